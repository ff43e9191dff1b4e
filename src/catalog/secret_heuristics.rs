//! Heuristics for values that may be secrets, and for values that may be in the config.

use portcullis_egress::{Destination, Host, Pattern, is_public};
use url::Url;

/// Whether a variable's value is plainly not a secret: a flag, a number, a path, a host, a word.
/// Other values are treated as secrets: a needless reference costs the person a minute, a key in
/// the config is leaked.
pub(crate) fn is_plain(name: &str, value: &str) -> bool {
    if value.is_empty() {
        return true;
    }
    let flag = matches!(
        value.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "none" | "null" | "auto"
    );
    let number = value.len() <= 6 && value.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    flag || number || (!names_secret(name) && is_harmless(value))
}

fn is_harmless(value: &str) -> bool {
    if value.len() > 256 || value.chars().any(char::is_control) || begins_as_key(value) {
        return false;
    }
    let path = value.starts_with(['/', '~'])
        || value.starts_with("./")
        || value.get(1..3).is_some_and(|rest| rest == ":\\");
    let url = Url::parse(value).is_ok_and(|url| url.has_host() && !url_holds_secret(&url));
    // Words of people are short, with letters in one case. Keys mix digits, cases and length.
    let word = value.len() <= 24
        && value.split(['-', '_', '.', ' ', ',', '/', '@', ':']).all(|part| {
            let letters = part.bytes().all(|b| b.is_ascii_alphabetic());
            let one_case = part.bytes().all(|b| !b.is_ascii_uppercase())
                || part.bytes().all(|b| !b.is_ascii_lowercase())
                || part.bytes().skip(1).all(|b| b.is_ascii_lowercase());
            let number = part.bytes().all(|b| b.is_ascii_digit()) && part.len() <= 6;
            (letters && one_case && part.len() <= 16) || number
        });
    let host = value.len() <= 64
        && value.split_once(':').is_some_and(|(host, port)| {
            host.contains('.') && is_host(host) && port.parse::<u16>().is_ok()
        });
    (path && !has_long_key(value)) || (url && !has_long_key(value)) || word || host
}

/// Whether the name of a variable, an option or a parameter indicates a secret.
pub fn names_secret(name: &str) -> bool {
    const PARTS: &[&str] = &[
        "TOKEN",
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "APIKEY",
        "API_KEY",
        "ACCESS_KEY",
        "PRIVATE_KEY",
        "CREDENTIAL",
        "AUTHORIZATION",
        "BEARER",
        "COOKIE",
        "SESSION",
        "_PAT",
        "DSN",
        "CONNECTION_STRING",
        "WEBHOOK",
        "LICENSE_KEY",
        "SIGNING",
        "ENCRYPTION_KEY",
    ];
    let name = name.trim_start_matches('-').to_ascii_uppercase().replace(['-', '.', ' '], "_");
    if name.ends_with("_FILE") || name.ends_with("_PATH") || name.ends_with("_DIR") {
        return false;
    }
    PARTS.iter().any(|part| name.contains(part))
        || matches!(name.as_str(), "PAT" | "KEY" | "AUTH" | "PASS" | "PWD" | "COOKIES")
        || name.ends_with("_KEY")
        || name.ends_with("_PASS")
        || name.ends_with("_AUTH")
}

/// Whether an argument holds a secret. `before` is the argument before it.
#[must_use]
pub fn argument_holds_secret(before: Option<&str>, argument: &str) -> bool {
    let (option, value) = match argument.split_once('=') {
        Some((option, value)) if option.starts_with('-') => (Some(option), value),
        // `NAME=VALUE`, or the value of an option.
        Some((name, value)) if crate::name::is_variable(name) => (Some(name), value),
        _ => (before.filter(|before| before.starts_with('-') && !before.contains('=')), argument),
    };
    if value.is_empty() || value.starts_with('-') {
        return begins_as_key(argument);
    }
    let path = value.starts_with(['/', '.', '~']);
    let number = value.len() <= 6 && value.bytes().all(|b| b.is_ascii_digit());
    let named = option.is_some_and(|option| names_secret(option) && !path && !number);
    let login = Url::parse(value).is_ok_and(|url| url_holds_secret(&url));
    named || login || begins_as_key(value) || has_long_key(value)
}

/// Whether a URL has a login, a parameter with the name of a secret, or a part of its path that
/// looks like a key: hosted servers use addresses with a key in them.
pub fn url_holds_secret(url: &Url) -> bool {
    url.password().is_some()
        || (!url.username().is_empty() && url.scheme() != "ssh" && url.scheme() != "git")
        || url.query_pairs().any(|(name, value)| {
            names_secret(&name)
                || name.eq_ignore_ascii_case("key")
                || name.to_ascii_lowercase().contains("token")
                || begins_as_key(&value)
                || has_long_key(&value)
        })
        || url.path_segments().into_iter().flatten().any(segment_holds_secret)
}

/// Whether a part of a URL looks like a key. `-` and `_` are letters, as in base64 for URLs.
pub fn segment_holds_secret(segment: &str) -> bool {
    let count = |is: fn(&u8) -> bool| segment.bytes().filter(is).count();
    let letters = segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let mixed = letters
        && segment.len() >= 20
        && count(u8::is_ascii_uppercase) >= 4
        && count(u8::is_ascii_lowercase) >= 4
        && count(u8::is_ascii_digit) >= 2;
    mixed || begins_as_key(segment) || has_long_key(segment)
}

/// Whether a value begins with a known prefix of keys.
#[must_use]
pub fn begins_as_key(value: &str) -> bool {
    const STARTS: &[&str] = &[
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        "glpat-",
        "xoxb-",
        "xoxp-",
        "xapp-",
        "sk-",
        "sk_",
        "pk_",
        "rk_",
        "AKIA",
        "ASIA",
        "pck_",
        "-----BEGIN",
        "eyJ",
        "npm_",
        "pypi-",
        "dckr_pat_",
        "hf_",
        "Bearer ",
        "Basic ",
        "AIza",
        "ya29.",
        "SG.",
        "lin_api_",
        "ntn_",
        "secret_",
        "tvly-",
        "BSA",
    ];
    value.len() >= 8 && STARTS.iter().any(|start| value.starts_with(start))
}

/// Whether a text looks like a key or a login or has one in it, except for long runs in a path.
#[must_use]
pub fn holds_key(text: &str) -> bool {
    let path = text.starts_with(['/', '.', '~']);
    let login = Url::parse(text).is_ok_and(|url| url_holds_secret(&url));
    begins_as_key(text) || login || (!path && has_long_key(text))
}

/// A long run of letters and digits that mixes both, or both cases.
fn has_long_key(value: &str) -> bool {
    value.split(|c: char| !c.is_ascii_alphanumeric()).any(|run| {
        let digits = run.bytes().filter(u8::is_ascii_digit).count();
        let upper = run.bytes().filter(u8::is_ascii_uppercase).count();
        let lower = run.bytes().filter(u8::is_ascii_lowercase).count();
        run.len() >= 20 && (digits >= 3 || (upper >= 4 && lower >= 4))
    })
}

/// A host by name or address.
pub(crate) fn is_host(host: &str) -> bool {
    let name = host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    name || host.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok()
}

/// An entry of `egress` for `HOST` or `HOST:PORT`. The default is port 443 with TLS. Port 80 is
/// HTTP; other ports allow any protocol.
pub(crate) fn endpoint(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().ok()?)
        }
        _ => (text, 443u16),
    };
    let below = host.strip_prefix("*.");
    let legal = below.map_or_else(|| is_host(host), |top| top.contains('.') && is_host(top));
    let scheme = match port {
        443 => "",
        80 => "http://",
        _ if below.is_some() => "",
        _ => "tcp://",
    };
    // Unusual forms of addresses (`127.1`) are not hosts in the config.
    let to: Destination = format!("{scheme}{host}:{port}").parse().ok()?;
    legal.then(|| to.to_string())
}

/// Whether hosts are this machine or an address of a private network. Other names can resolve to
/// one; this is checked when a server connects.
pub(crate) fn is_near(hosts: &Pattern) -> bool {
    match hosts {
        Pattern::One(Host::Address(address)) => !is_public(*address),
        Pattern::One(Host::Name(name)) | Pattern::Below(name) => {
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_differ_from_possible_secrets() {
        for (name, value) in [
            ("DEBUG", "true"),
            ("PORT", "8080"),
            ("LOG_LEVEL", "info"),
            ("DATA_DIR", "/var/lib/data"),
            ("API_URL", "https://api.example.com/v1"),
            ("REGION", "eu-west-1"),
            ("MODEL", "gpt"),
            ("TOKEN_LIMIT", "4096"),
            ("HOST", "db.example.com:5432"),
            ("MODE", "read only"),
        ] {
            assert!(is_plain(name, value), "{name}={value}");
        }
        let key = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
        for (name, value) in [
            ("X", key.as_str()),
            ("API_KEY", "hunter"),
            ("GITHUB_TOKEN", "abc"),
            ("URL", "https://user:word@example.com/"),
            ("URL", "https://example.com/?api_key=abcdef"),
            ("X", "correct horse battery staple and more words"),
            ("X", "a\nb"),
            ("AUTH", "Basic abcdefgh"),
        ] {
            assert!(!is_plain(name, value), "{name}={value}");
        }
    }

    #[test]
    fn arguments_with_secrets_are_found() {
        let key = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
        for (before, argument) in [
            (Some("--api-key"), "hunter-two-x"),
            (None, &*format!("--token={key}")),
            (None, &*key),
            (None, "postgresql://user:word@host/db"),
            (Some("--header"), &*format!("Authorization: Bearer {key}")),
        ] {
            assert!(argument_holds_secret(before, argument), "{argument}");
        }
        for (before, argument) in [
            (None, "--token-limit=100"),
            (Some("--dir"), "/home/me/project"),
            (None, "@modelcontextprotocol/server-filesystem"),
            (None, "postgresql://localhost/db"),
            (None, "--verbose"),
            (Some("-y"), "some-package@1.2.3"),
        ] {
            assert!(!argument_holds_secret(before, argument), "{argument}");
        }
    }

    #[test]
    fn endpoints_are_parsed_or_refused() {
        for (text, read) in [
            ("api.github.com:443", Some("api.github.com:443")),
            ("API.github.com", Some("api.github.com:443")),
            ("10.0.0.1:80", Some("http://10.0.0.1:80")),
            ("[::1]:5432", Some("tcp://[::1]:5432")),
            ("*.example.com:443", Some("*.example.com:443")),
            ("*.com", None),
            ("a.*.com", None),
            ("host:0", None),
            ("host:99999", None),
            ("a b", None),
            ("", None),
            ("-x:1", None),
            ("127.1:80", None),
            ("0x7f.1:80", None),
            ("2130706433:80", None),
            ("[::ffff:1.1.1.1]:80", Some("http://1.1.1.1:80")),
        ] {
            assert_eq!(endpoint(text).as_deref(), read, "{text}");
        }
    }

    #[test]
    fn local_and_private_hosts_are_recognized() {
        for (text, near) in [
            ("api.example.com", false),
            ("1.1.1.1:443", false),
            ("[2606:4700::1111]:443", false),
            ("mylocalhost:443", false),
            ("169.254.169.254:80", true),
            ("127.0.0.1:2375", true),
            ("[::1]:2375", true),
            ("[::ffff:10.0.0.1]:2375", true),
            ("10.0.0.1", true),
            ("LOCALHOST:2375", true),
            ("x.localhost:2375", true),
            ("*.a.localhost", true),
        ] {
            let to: Destination = endpoint(text).unwrap().parse().unwrap();
            assert_eq!(is_near(&to.host), near, "{text}");
        }
    }

    #[test]
    fn urls_with_secrets_are_found() {
        let key = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
        let dashed = ["AbC9", "dEf8-", "GhI7", "_jKl6"].concat() + "-Mn";
        for (url, holds) in [
            ("https://mcp.example.com/mcp", false),
            ("https://mcp.example.com/v1/workspaces/my-team-2026/sse", false),
            ("https://mcp.example.com/s/0f8fad5b-d9cb-469f-a165-70867728950e/mcp", false),
            (&*format!("https://mcp.example.com/s/{key}/mcp"), true),
            (&*format!("https://mcp.example.com/s/{dashed}/mcp"), true),
            (&*format!("https://mcp.example.com/a/123/sk-{}/mcp", &key[..8]), true),
            (&*format!("https://mcp.example.com/mcp?k={key}"), true),
            ("https://me:word@mcp.example.com/mcp", true),
        ] {
            assert_eq!(url_holds_secret(&Url::parse(url).unwrap()), holds, "{url}");
        }
    }
}
