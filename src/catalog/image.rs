//! Names of images.

use portcullis_oci::{IllegalReference, Reference};

use crate::{report::brief, server::Image};

/// A text that is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoImage {
    #[error("`{}` is not a name of an image", brief(.0))]
    Name(String),
    #[error("the digest of `{}` is not a SHA-256", brief(.0))]
    Digest(String),
}

impl std::str::FromStr for Image {
    type Err = NoImage;

    /// Reads `[HOST[:PORT]/]PATH[:TAG][@sha256:…]`, or the id of an image on the engine (`sha256:`
    /// and 64 hexadecimal digits).
    fn from_str(text: &str) -> Result<Self, NoImage> {
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_hex(hex)) {
            return Ok(Self { name: text.to_owned(), digest: None, id: Some(text.to_owned()) });
        }
        Reference::of_image(text).map_err(|error| match error {
            IllegalReference::Digest(_) => NoImage::Digest(text.to_owned()),
            _ => NoImage::Name(text.to_owned()),
        })?;
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        Ok(Self { name: name.to_owned(), digest: digest.map(str::to_owned), id: None })
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
    fn image_names_are_parsed_or_refused() {
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
        let id: Image = digest.parse().unwrap();
        assert!(id.is_id() && id.content() == Some(&*digest) && id.to_string() == digest);
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
