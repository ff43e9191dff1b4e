//! Image names. An image runs by content (a digest or a local id), so that it is the one that was
//! reviewed. A tag is resolved once and stored in the lock file.

use std::{fmt, str::FromStr};

use portcullis_oci::{Digest, Reference};

/// Image named by content or by tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A local image: `sha256:` and 64 hex digits.
    Id(String),
    /// `NAME@sha256:…`, possibly with a tag, which has no effect.
    Digest(String),
    /// `NAME[:TAG]`.
    Tag(String),
}

/// Error for a string that is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image name: {why}")]
pub struct IllegalImage {
    pub name: String,
    pub why: String,
}

impl Image {
    /// Name in the form that the engine accepts.
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
            return illegal("it is empty".into());
        }
        if name.starts_with('-') {
            return illegal("it begins with `-`".into());
        }
        if name.len() > 512 {
            return illegal("it is longer than 512 characters".into());
        }
        if name.starts_with("sha256:") {
            return match name.parse::<Digest>() {
                Ok(_) => Ok(Self::Id(name.to_owned())),
                Err(_) => illegal("an image id is `sha256:` and 64 of 0-9, a-f".into()),
            };
        }
        match Reference::of_image(name) {
            Ok(reference) if reference.digest().is_some() => Ok(Self::Digest(name.to_owned())),
            Ok(_) => Ok(Self::Tag(name.to_owned())),
            Err(error) => illegal(error.to_string().escape_debug().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_parsed_or_refused() {
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
        fn any_string_is_parsed_or_refused_without_panic(name in "\\PC{0,80}") {
            if let Ok(image) = name.parse::<Image>() {
                assert_eq!(image.as_str(), name);
            }
        }
    }
}
