//! References to artifacts.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Digest, digest::IllegalDigest};

/// Limit of a repository's name with its host, and of a tag, in characters.
const MAX_NAME_CHARS: usize = 255;
const MAX_TAG_CHARS: usize = 128;
/// Name of Docker Hub, and its address.
const HUB: &str = "docker.io";
const HUB_ADDRESS: &str = "registry-1.docker.io";

/// `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, with a tag, a digest or both. If both exist, the digest
/// counts. Missing parts are an error, because defaults would be guesses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Error for text that is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalReference {
    #[error("it must begin with a registry's host, as `ghcr.io/acme/thing:1.0` does")]
    NoHost,
    #[error("`{0}` is not a host, or a host and a port")]
    Host(String),
    #[error(
        "`{0}` is not the name of a repository: lower-case letters and digits, with `.`, `_`, `-` and `/` between"
    )]
    Repository(String),
    #[error("`{0}` is not a tag: letters, digits, `.`, `_` and `-`, at most 128")]
    Tag(String),
    #[error("{0}")]
    Digest(#[from] IllegalDigest),
    #[error("it has neither a tag nor a digest")]
    Open,
}

impl Reference {
    /// Image by Docker's rules: of Docker Hub if no host is named, and `latest` if there is no tag.
    ///
    /// # Errors
    /// If it is not an image name.
    pub fn of_image(text: &str) -> Result<Self, IllegalReference> {
        // Artifacts are named that way, Docker's images never.
        if text.contains("://") {
            return Err(IllegalReference::Host(text.to_owned()));
        }
        let name = text.split('@').next().unwrap_or_default();
        let digest = text.get(name.len()..).unwrap_or_default();
        let host = if names_host(name) {
            ""
        } else if name.contains('/') {
            "docker.io/"
        } else {
            "docker.io/library/"
        };
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let tag = if tagged || !digest.is_empty() { "" } else { ":latest" };
        format!("{host}{name}{tag}{digest}").parse()
    }

    /// Registry's host as written, with its port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Address of the registry.
    pub(crate) fn authority(&self) -> &str {
        if self.host == HUB { HUB_ADDRESS } else { &self.host }
    }

    /// Name under which docker stores a login for the registry.
    pub fn login_name(&self) -> &str {
        if self.host == HUB { "https://index.docker.io/v1/" } else { &self.host }
    }

    /// Name within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, if any.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// This reference with this digest.
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// Whether the registry is on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(self.host.rsplit_once(':').map_or(&*self.host, |(name, _)| name))
    }
}

/// Whether a host name means this machine.
pub(crate) fn is_loopback(name: &str) -> bool {
    name == "localhost"
        || name.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

impl FromStr for Reference {
    type Err = IllegalReference;

    fn from_str(text: &str) -> Result<Self, IllegalReference> {
        let text = text.strip_prefix("oci://").unwrap_or(text);
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse()?)),
            None => (text, None),
        };
        let (host, rest) = text.split_once('/').ok_or(IllegalReference::NoHost)?;
        // Docker would take `acme/thing` as a name of Docker Hub.
        let bare = host.split(':').next().unwrap_or_default();
        if !names_host(text) {
            return Err(IllegalReference::NoHost);
        }
        let port = host.strip_prefix(bare).unwrap_or_default();
        if !is_name(bare) || !(port.is_empty() || is_port(port)) {
            return Err(IllegalReference::Host(host.to_owned()));
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if host.len() + repository.len() >= MAX_NAME_CHARS
            || !repository.split('/').all(is_component)
        {
            return Err(IllegalReference::Repository(repository.to_owned()));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(IllegalReference::Tag(tag.to_owned()));
        }
        if tag.is_none() && digest.is_none() {
            return Err(IllegalReference::Open);
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Whether an image name begins with a registry's host, by Docker's rule.
pub fn names_host(image: &str) -> bool {
    image
        .split_once('/')
        .is_some_and(|(first, _)| first == "localhost" || first.contains(['.', ':']))
}

fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label)
}

fn is_port(port: &str) -> bool {
    port.strip_prefix(':').is_some_and(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    })
}

fn is_component(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let legal = name.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'_' | b'-'));
    let ends = name.bytes().next().is_some_and(word) && name.bytes().last().is_some_and(word);
    let dots = ["..", "._", "_.", ".-", "-.", "_-", "-_", "___"];
    legal && ends && !dots.iter().any(|pair| name.contains(pair))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_CHARS
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
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
    fn references_round_trip() {
        let digest = Digest::of(b"");
        for text in [
            "ghcr.io/acme/thing:1.0".to_owned(),
            "localhost/thing:latest".to_owned(),
            "127.0.0.1:5000/a/b-c/d__e.f:v1_2.3-x".to_owned(),
            format!("registry.example.com:8443/thing@{digest}"),
            format!("ghcr.io/acme/thing:1.0@{digest}"),
        ] {
            let reference: Reference =
                text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), text);
            assert_eq!(format!("oci://{text}").parse(), Ok(reference));
        }
        let both: Reference = format!("ghcr.io/acme/thing:1.0@{digest}").parse().unwrap();
        assert_eq!(
            (both.host(), both.repository(), both.tag(), both.digest()),
            ("ghcr.io", "acme/thing", Some("1.0"), Some(digest))
        );
    }

    #[test]
    fn incomplete_references_are_refused() {
        for (text, why) in [
            ("thing:1.0", "begin with a registry's host"),
            ("acme/thing:1.0", "begin with a registry's host"),
            ("ghcr.io/acme/thing", "neither a tag nor a digest"),
            ("user:word@ghcr.io/acme/thing:1", "a digest is"),
            ("ghcr.io:0/thing:1", "not a host"),
            ("ghcr.io:99999/thing:1", "not a host"),
            ("ghcr.io:+1/thing:1", "not a host"),
            ("-ghcr.io/thing:1", "not a host"),
            ("ghcr.io?x=y/thing:1", "not a host"),
            ("ghcr.io/Thing:1", "not the name of a repository"),
            ("ghcr.io/a//b:1", "not the name of a repository"),
            ("ghcr.io/a/../b:1", "not the name of a repository"),
            ("ghcr.io/a%2fb:1", "not the name of a repository"),
            ("ghcr.io/a:", "not a tag"),
            ("ghcr.io/a:b/c", "not a tag"),
            ("ghcr.io/a:..", "not a tag"),
            ("ghcr.io/a@sha256:12", "a digest is"),
            ("", "begin with a registry's host"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn image_names_are_completed_by_dockers_rules() {
        let digest = Digest::of(b"");
        for (text, whole) in [
            ("fetch", "docker.io/library/fetch:latest"),
            ("mcp/fetch", "docker.io/mcp/fetch:latest"),
            ("mcp/fetch:1", "docker.io/mcp/fetch:1"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
            ("localhost/a", "localhost/a:latest"),
            (&format!("mcp/fetch:1@{digest}"), &format!("docker.io/mcp/fetch:1@{digest}")),
            (&format!("mcp/fetch@{digest}"), &format!("docker.io/mcp/fetch@{digest}")),
        ] {
            assert_eq!(Reference::of_image(text).unwrap().to_string(), whole);
        }
        for text in [
            "",
            "-v",
            "a b",
            "a/",
            "/a",
            "a@b",
            "a:b:c",
            "a:-b",
            "A",
            "../a",
            "oci://ghcr.io/a:1",
            "a\n",
        ] {
            assert!(Reference::of_image(text).is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_hosts_are_recognized() {
        let loopback =
            |text: &str| format!("{text}/a:1").parse::<Reference>().unwrap().is_loopback();
        assert!(
            loopback("localhost:5000") && loopback("127.0.0.1:5000") && loopback("127.1.2.3:1")
        );
        assert!(!loopback("localhost.example.com") && !loopback("10.0.0.1:5000"));
    }
}
