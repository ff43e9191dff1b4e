//! Texts that say where something is, in one spelling each: what a policy matches must be what a
//! server makes of it, not how it was written.

/// A text read as a path: that of a `file:` URL, decoded, or the text itself; without `.`, `..` and
/// doubled or trailing slashes. Nothing is looked up: a relative path stays relative, and links are
/// the server's to follow.
pub(super) fn path(text: &str) -> String {
    file(text).unwrap_or_else(|| clean(text))
}

/// The path of a `file:` URL.
pub(super) fn file(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok().filter(|url| url.scheme() == "file")?;
    Some(match url.to_file_path() {
        Ok(path) => clean(&path.to_string_lossy()),
        // On another host.
        Err(()) => clean(url.path()),
    })
}

fn clean(text: &str) -> String {
    path_clean::clean(text).to_string_lossy().into_owned()
}

/// A URL with a host, as the URL standard of browsers (WHATWG) reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) href: String,
    pub(super) scheme: String,
    pub(super) host: String,
    /// 0 where there is none and the scheme has none.
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) login: bool,
    pub(super) verbatim: bool,
}

impl Url {
    /// Reads a URL; nothing where it is none, or has no host.
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
            // `https://example.com` is normalized to have a `/`, which nobody reads otherwise.
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
    fn paths_have_one_spelling() {
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
            ("/etc/passwd\0.txt", "/etc/passwd\0.txt"),
            ("file:///srv/../etc/passwd", "/etc/passwd"),
            ("file:///srv/%2e%2e/etc", "/etc"),
            ("file:///srv%2f..%2fetc", "/etc"),
            ("FILE:/srv/a%20b", "/srv/a b"),
            (" file:///srv/\ta", "/srv/a"),
            ("file://localhost/srv", "/srv"),
            ("file://elsewhere/srv/../etc", "/etc"),
            ("https://example.com/../a", "https:/a"),
        ] {
            assert_eq!(path(text), expected, "{text:?}");
        }
    }

    #[test]
    fn urls_have_one_spelling() {
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
        fn a_clean_path_steps_back_only_at_its_beginning(text in "[a./\\\\%2ef:]{0,24}") {
            let path = path(&text);
            let climbs = path.split('/').skip_while(|part| *part == "..").any(|part| part == "..");
            let climbs = climbs || path == "/.." || path.starts_with("/../");
            prop_assert!(!climbs, "{}", path);
            // Cleaning again changes nothing, unless what came out reads as a URL.
            prop_assert!(file(&path).is_some() || super::path(&path) == path);
        }

        #[test]
        fn a_url_reads_as_itself(text in "[htps]{0,5}:/{0,2}[a-z.@:\\\\%0-9]{0,16}") {
            if let Some(url) = Url::read(&text) {
                let again = Url::read(&url.href);
                prop_assert_eq!(again.map(|url| url.host), Some(url.host));
            }
        }
    }
}
