//! Normal forms of paths and URLs. A policy must match the location that a server opens, not the
//! spelling of it.

use portcullis_protocol::arguments::Unshowable;

/// A text as a path: that of a `file:` URL, decoded, or the text itself, without `.`, `..` and
/// doubled or trailing slashes. The file system is not read: a relative path stays relative, and
/// the server resolves links.
pub(super) fn path(text: &str) -> Result<String, Unshowable> {
    file(text).unwrap_or_else(|| Ok(clean(text)))
}

/// The path of a `file:` URL, or an error if it is ambiguous. `None` for other texts.
///
/// Servers differ: some take the text as a path, some cut off `file://`, some parse by RFC 3986 and
/// some as browsers do. They disagree on queries, fragments, backslashes, characters that browsers
/// drop, and `..` after differing segments. Without those, a server that does not read this path
/// reads one below a folder named `file:`, or none.
pub(super) fn file(text: &str) -> Option<Result<String, Unshowable>> {
    let path = match url::Url::parse(text) {
        Ok(url) => (url.scheme() == "file").then(|| one_reading(text, &url))?,
        // Other parsers may be less strict.
        Err(_) => {
            let start = text.trim_start().get(.."file:".len())?;
            start.eq_ignore_ascii_case("file:").then_some(None)?
        }
    };
    Some(path.ok_or(Unshowable::Ambiguous))
}

fn one_reading(text: &str, url: &url::Url) -> Option<String> {
    let (scheme, path) = text.split_at_checked("file://".len())?;
    let plain = scheme.eq_ignore_ascii_case("file://") && path.starts_with('/');
    let odd = |char: char| matches!(char, '?' | '#' | '\\' | '|') || char.is_control();
    if !plain || text.contains(odd) || text.ends_with(' ') {
        return None;
    }
    let decoded = url.to_file_path().ok()?;
    let decoded = decoded.to_str()?;
    let steps = |text: &str| text.split('/').any(|part| part == "..");
    // Browsers treat these as `..` too.
    let encoded = path.to_ascii_lowercase().replace("%2e", ".");
    if steps(&encoded) || steps(decoded) || decoded.contains('\\') || holds_nul(decoded) {
        return None;
    }
    Some(clean(decoded))
}

/// Whether a text contains NUL, also after it is percent-decoded once or several times. No system
/// has a file with such a name: a program opens the part before the NUL.
pub(super) fn holds_nul(text: &str) -> bool {
    let mut decoded = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        decoded.push(byte);
        // The decoded byte may complete another escape, such as `%25%30%30`.
        while let [.., b'%', high, low] = decoded[..] {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (Some(high), Some(low)) = (digit(high), digit(low)) else { break };
            decoded.truncate(decoded.len() - 3);
            // Two hex digits make one byte.
            decoded.push((high * 16 + low) as u8);
        }
    }
    // C0 80 is NUL in Java's modified UTF-8.
    decoded.contains(&0) || decoded.windows(2).any(|pair| pair == [0xC0, 0x80])
}

fn clean(text: &str) -> String {
    path_clean::clean(text).to_string_lossy().into_owned()
}

/// A URL with a host, parsed by the URL standard of browsers (WHATWG).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) href: String,
    pub(super) scheme: String,
    pub(super) host: String,
    /// The port, the default port of the scheme, or 0 if there is neither.
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) login: bool,
    pub(super) verbatim: bool,
}

impl Url {
    /// Parses a URL. `None` if the text is not a URL or has no host.
    pub(super) fn read(text: &str) -> Option<Self> {
        let url = url::Url::parse(text).ok()?;
        let host = match url.host()? {
            url::Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_canonical().to_string(),
        };
        Some(Self {
            host,
            scheme: url.scheme().to_owned(),
            port: url.port_or_known_default().unwrap_or(0),
            path: url.path().to_owned(),
            login: !url.username().is_empty() || url.password().is_some(),
            // `https://example.com` is normalized to end in `/`, which all parsers read alike.
            verbatim: url.as_str() == text || url.as_str().strip_suffix('/') == Some(text),
            href: url.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_normalized() {
        for (text, expected) in [
            ("/srv/a", "/srv/a"),
            ("/srv/../etc/passwd", "/etc/passwd"),
            ("/../../etc", "/etc"),
            ("//srv///a/./b/", "/srv/a/b"),
            ("a/../../b", "../b"),
            ("./a", "a"),
            ("", "."),
            (".", "."),
            ("~/x", "~/x"),
            ("/a\\..\\b", "/a\\..\\b"),
            ("file:///srv//a/./b/", "/srv/a/b"),
            ("FILE:///srv/a%20b c\u{e9}", "/srv/a b c\u{e9}"),
            ("file:///srv/a%3Fb%23", "/srv/a?b#"),
            ("file:///", "/"),
            ("/srv/a?b#c", "/srv/a?b#c"),
            ("https://example.com/../a", "https:/a"),
        ] {
            assert_eq!(path(text).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn encoded_nul_is_found() {
        for text in ["\0", "/a\0.txt", "/a%00.txt", "/a%2500.txt", "%%252500", "a%zz%00"] {
            assert!(holds_nul(text), "{text:?}");
        }
        for text in ["a%25%30%30", "a%%30%30", "a%2%35%30%30", "a%c0%80", "a%25C0%2580"] {
            assert!(holds_nul(text), "{text:?}");
        }
        for text in ["", "%", "/a%0", "/a00", "/a%2", "/a%25", "/a%250", "/a%26%200", "100% 00"] {
            assert!(!holds_nul(text), "{text:?}");
        }
    }

    #[test]
    fn ambiguous_file_url_is_not_a_path() {
        for text in [
            "file:///srv/work/a?/../../../../etc/passwd",
            "file:///srv/work/a#/../../../../etc/passwd",
            "file:///srv/work/a?",
            "file:///srv/work/a#",
            "file:///srv/work/a////../../../../etc/passwd",
            "file:///srv/../etc/passwd",
            "file:///srv/%2e%2E/etc",
            "file:///srv/.%2e/etc",
            "file:///srv%2f..%2fetc",
            "file:///srv/work\\..\\..\\etc",
            "file:///srv/work%5c..%5cetc",
            "file:///srv/.\t./etc",
            " file:///srv/a",
            "file:///srv/a ",
            "file:///srv/a\n",
            "file:///C|/a",
            "file:///srv/%ff",
            "file:///etc/shadow%00.txt",
            "file:///etc/shadow%2500.txt",
            "file:///etc/shadow\0.txt",
            "file:srv/a",
            "file:/srv/a",
            "file://localhost/srv",
            "file://elsewhere/srv/..%2fetc",
            "file:?/../etc",
            "file://%/../etc",
            " File://[/../etc",
        ] {
            assert_eq!(path(text), Err(Unshowable::Ambiguous), "{text:?}");
        }
    }

    #[test]
    fn urls_are_normalized() {
        for (text, host, port, verbatim) in [
            ("https://example.com/a", "example.com", 443, true),
            ("https://example.com", "example.com", 443, true),
            ("HTTPS://EXAMPLE.com:8443/a", "example.com", 8443, false),
            ("https://example.com./", "example.com", 443, true),
            ("https://example.com:443/", "example.com", 443, false),
            ("https://good.example\\@evil.example/", "good.example", 443, false),
            ("https://good.example@evil.example/", "evil.example", 443, true),
            ("https:evil.example", "evil.example", 443, false),
            ("\thttps://evil\n.example/", "evil.example", 443, false),
            ("http://2130706433/", "127.0.0.1", 80, false),
            ("http://0x7f.1/", "127.0.0.1", 80, false),
            ("http://[::ffff:127.0.0.1]/", "127.0.0.1", 80, false),
            ("http://[0:0::1]/", "::1", 80, false),
            ("http://bücher.example/", "xn--bcher-kva.example", 80, false),
            ("http://ｅｖｉｌ.example/", "evil.example", 80, false),
            ("postgres://db:5432/x", "db", 5432, true),
            ("ssh://HOST/x", "host", 0, true),
        ] {
            let url = Url::read(text).unwrap_or_else(|| panic!("no URL: {text:?}"));
            assert_eq!((&*url.host, url.port, url.verbatim), (host, port, verbatim), "{text:?}");
        }
        let login = |text| Url::read(text).unwrap().login;
        assert!(login("https://a@b/") && login("https://:x@b/") && !login("https://b/@"));
        for text in ["", "/srv", "example.com", "mailto:a@b", "data:,x", "https://", "file:///srv"]
        {
            assert_eq!(Url::read(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn normalized_path_has_parent_segments_only_at_its_start(
            text in "(file://)?/?[a./\\\\%2ef:?#]{0,24}",
        ) {
            let Ok(path) = path(&text) else {
                prop_assert!(file(&text).is_some(), "only a URL has two readings");
                return Ok(());
            };
            let climbs = path.split('/').skip_while(|part| *part == "..").any(|part| part == "..");
            let climbs = climbs || path == "/.." || path.starts_with("/../");
            prop_assert!(!climbs, "{}", path);
            // Cleaning is idempotent, unless the result reads as a URL.
            prop_assert!(file(&path).is_some() || super::path(&path) == Ok(path));
        }

        #[test]
        fn file_url_read_as_a_path_stays_relative(text in "file:/{1,4}[a./\\\\%2ef?#|]{0,24}") {
            if let Some(Ok(path)) = file(&text) {
                // As a path, it is relative and stays below the server's working directory.
                prop_assert!(clean(&text).starts_with("file:"), "{}", text);
                // Without its scheme, only the encoding differs.
                let bare = clean(&text["file://".len()..]);
                let decoded = url::Url::parse(&format!("file://{bare}")).unwrap();
                let decoded = decoded.to_file_path().unwrap();
                prop_assert_eq!(clean(decoded.to_str().unwrap()), path);
            }
        }

        #[test]
        fn normalized_url_keeps_its_host(text in "[htps]{0,5}:/{0,2}[a-z.@:\\\\%0-9]{0,16}") {
            if let Some(url) = Url::read(&text) {
                let normalized = Url::read(&url.href);
                prop_assert_eq!(normalized.map(|url| url.host), Some(url.host));
            }
        }
    }
}
