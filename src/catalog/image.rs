//! Names of images.

use crate::{report::brief, server::Image};

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoImage {
    #[error("`{}` is no name of an image", brief(.0))]
    Name(String),
    #[error("the digest of `{}` is no SHA-256", brief(.0))]
    Digest(String),
}

impl std::str::FromStr for Image {
    type Err = NoImage;

    /// Reads `[HOST[:PORT]/]PATH[:TAG][@sha256:…]`.
    fn from_str(text: &str) -> Result<Self, NoImage> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let no_name = || NoImage::Name(text.to_owned());
        let (path, tag) = match name.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        let host = |host: &str| {
            let (name, port) = host.split_once(':').unwrap_or((host, "1"));
            part(name) && port.parse::<u16>().is_ok()
        };
        let parts: Vec<&str> = path.split('/').collect();
        let legal = match parts.as_slice() {
            [] => false,
            [one] => part(one),
            [first, rest @ ..] => host(first) && rest.iter().all(|one| part(one)),
        };
        let lower = match parts.split_first() {
            Some((_, [])) | None => path,
            Some((first, _)) => &path[first.len()..],
        };
        let tag_is_legal = tag.is_none_or(|tag| {
            !tag.is_empty()
                && tag.len() <= 128
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !tag.starts_with(['.', '-'])
        });
        let upper = lower.bytes().any(|b| b.is_ascii_uppercase());
        if !legal || !tag_is_legal || upper || text.len() > 512 {
            return Err(no_name());
        }
        if let Some(digest) = digest {
            let hex = digest.strip_prefix("sha256:").unwrap_or("");
            if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(NoImage::Digest(text.to_owned()));
            }
        }
        Ok(Self { name: name.to_owned(), digest: digest.map(str::to_owned) })
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for name in [
            "mcp/fetch",
            "mcp/fetch:1.0",
            "ghcr.io/owner/name",
            "localhost:5000/a/b:tag",
            "fetch",
            "registry.example.com/a__b/c-d:v1_2",
        ] {
            let image: Image = name.parse().unwrap();
            assert_eq!((image.name.as_str(), image.digest), (name, None));
            let pinned: Image = format!("{name}@{digest}").parse().unwrap();
            assert_eq!(pinned.digest.as_deref(), Some(&*digest));
            assert_eq!(pinned.to_string(), format!("{name}@{digest}"));
        }
        for name in [
            "",
            "-v",
            "--privileged",
            "a b",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-b",
            "UPPER",
            "a/B",
            "a@b",
            "a@sha256:12",
            "a;b",
            "a\nb",
            "a@sha256:AB",
            "../a",
            "a:b:c",
            "ä",
        ] {
            assert!(name.parse::<Image>().is_err(), "{name}");
        }
    }
}
