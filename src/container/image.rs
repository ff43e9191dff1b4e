//! Image names. An operator names an image by content (a digest or a local id), so that what was
//! reviewed is what runs; a tag can be moved, and needs a line in the config.

use std::{fmt, str::FromStr};

/// An image by content or, where the config allows it, by tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A local image: `sha256:` and 64 hex digits.
    Id(String),
    /// `NAME@sha256:…`, possibly with a tag that says nothing more.
    Digest(String),
    /// `NAME[:TAG]`.
    Tag(String),
}

/// A string that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image name: {why}")]
pub struct IllegalImage {
    pub name: String,
    pub why: &'static str,
}

impl Image {
    /// The name as the engine takes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(name) | Self::Digest(name) | Self::Tag(name) => name,
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Image {
    type Err = IllegalImage;

    /// The grammar is that of the Distribution specification: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`,
    /// with SHA-256 as the only digest.
    fn from_str(name: &str) -> Result<Self, IllegalImage> {
        let illegal = |why| {
            Err(IllegalImage {
                name: name.chars().take(100).flat_map(char::escape_debug).collect(),
                why,
            })
        };
        if name.is_empty() {
            return illegal("it is empty");
        }
        if name.starts_with('-') {
            return illegal("it begins with `-`");
        }
        if name.len() > 512 {
            return illegal("it is longer than 512 characters");
        }
        if let Some(hex) = name.strip_prefix("sha256:") {
            return if sha256(hex) {
                Ok(Self::Id(name.to_owned()))
            } else {
                illegal("an image id is `sha256:` and 64 of 0-9, a-f")
            };
        }
        let (tagged, digest) = match name.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(digest)),
            None => (name, None),
        };
        if digest.is_some_and(|d| !d.strip_prefix("sha256:").is_some_and(sha256)) {
            return illegal("a digest is `sha256:` and 64 of 0-9, a-f");
        }
        // A colon in the last component begins the tag; one further left is a registry's port.
        let last = tagged.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match tagged.get(last..).and_then(|rest| rest.split_once(':')) {
            Some((component, tag)) => {
                (tagged.get(..last + component.len()).unwrap_or(""), Some(tag))
            }
            None => (tagged, None),
        };
        if tag.is_some_and(|tag| !legal_tag(tag)) {
            return illegal(
                "a tag is 1 to 128 of A-Z, a-z, 0-9, `_`, `.`, `-`, not beginning with `.` or `-`",
            );
        }
        let mut components: Vec<&str> = path.split('/').collect();
        let registry = |c: &str| c.contains(['.', ':']) || c == "localhost";
        if components.len() > 1 && components.first().is_some_and(|c| registry(c)) {
            let host = components.remove(0);
            if !legal_host(host) {
                return illegal("the registry before the first `/` is not HOST or HOST:PORT");
            }
        }
        if !components.iter().all(|c| legal_component(c)) {
            return illegal(
                "each part of its path is a-z and 0-9, with single `.`, `_`, `__` or `-` between",
            );
        }
        Ok(if digest.is_some() {
            Self::Digest(name.to_owned())
        } else {
            Self::Tag(name.to_owned())
        })
    }
}

fn sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn legal_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn legal_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

fn legal_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let word = rest.bytes().take_while(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')).count();
        if word == 0 {
            return false;
        }
        rest = rest.get(word..).unwrap_or("");
        let dashes = rest.bytes().take_while(|b| *b == b'-').count();
        let separator = match dashes {
            0 if rest.starts_with("__") => 2,
            0 if rest.starts_with(['.', '_']) => 1,
            0 => return rest.is_empty(),
            n => n,
        };
        rest = rest.get(separator..).unwrap_or("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        let hex = "0123456789abcdef".repeat(4);
        for (name, expected) in [
            (format!("sha256:{hex}"), Some("id")),
            (format!("alpine@sha256:{hex}"), Some("digest")),
            (format!("ghcr.io/github/github-mcp-server:v1@sha256:{hex}"), Some("digest")),
            (format!("localhost:5000/a__b/c-d.e@sha256:{hex}"), Some("digest")),
            ("alpine".into(), Some("tag")),
            ("alpine:3.20".into(), Some("tag")),
            ("127.0.0.1:5000/x/y:latest".into(), Some("tag")),
            ("".into(), None),
            ("-v".into(), None),
            ("--privileged".into(), None),
            ("sha256:abc".into(), None),
            (format!("sha256:{}", hex.to_uppercase()), None),
            (format!("alpine@sha512:{hex}"), None),
            ("alpine@sha256:".into(), None),
            ("Alpine".into(), None),
            ("al pine".into(), None),
            ("alpine:".into(), None),
            ("alpine:-x".into(), None),
            ("a//b".into(), None),
            ("/a".into(), None),
            ("a/".into(), None),
            ("a___b".into(), None),
            ("a..b".into(), None),
            ("exa_mple.com:99999/x".into(), None),
            ("https://example.com/x".into(), None),
            ("alpine\n".into(), None),
            ("x".repeat(513), None),
        ] {
            let kind = name.parse().ok().map(|image| match image {
                Image::Id(_) => "id",
                Image::Digest(_) => "digest",
                Image::Tag(_) => "tag",
            });
            assert_eq!(kind, expected, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_string_is_taken_or_refused_without_panic(name in "\\PC{0,80}") {
            if let Ok(image) = name.parse::<Image>() {
                assert_eq!(image.as_str(), name);
            }
        }
    }
}
