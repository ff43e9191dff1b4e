//! Trusted signers.

use std::{fmt, str::FromStr};

use portcullis_oci::Digest;
use sigstore_verify::{
    Verifier,
    crypto::{KeyAlgorithm, SigningScheme, VerificationKey, validate_raw_public_key},
    trust_root::TrustedRoot,
    types::DerPublicKey,
};

use crate::crypto;

/// A trusted signer.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Name in the config.
    pub name: String,
    /// How the signer is identified.
    pub who: SignerIdentity,
}

/// How a signer is identified.
#[derive(Debug, Clone)]
pub enum SignerIdentity {
    /// By a key.
    Key {
        /// Public key in PEM: ECDSA (P-256, P-384), Ed25519 or RSA.
        pem: String,
        /// If set, a signature counts only with an entry in one of its transparency logs.
        trusted_root: Option<String>,
    },
    /// By a short-lived certificate, issued after a login.
    Identity {
        /// URL of the OpenID Connect issuer.
        issuer: String,
        /// Authenticated subject.
        subject: Subject,
        /// Authorities and logs: Sigstore's `trusted_root.json`.
        trusted_root: String,
    },
}

/// Pattern of an authenticated subject: an e-mail address, or a URI (with `://`). `*` matches any
/// text without `/` and `@`, `**` any text. The scheme and host of a URI, and the text after the
/// `@` of an address, are literal, except for a `*.` at the beginning of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject(String);

/// Error in the definition of a signer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// The key is invalid or of an unsupported kind.
    #[error(
        "it is not a public key in PEM of ECDSA (P-256, P-384), Ed25519 or RSA (2048 to 8192 bits)"
    )]
    Key,
    /// The file is not a trusted root.
    #[error("it is not a trusted root of Sigstore: {0}")]
    Root(String),
    /// The subject would match everybody, or everybody of any host.
    #[error("the subject is empty, or does not name a host or domain")]
    Subject,
}

impl FromStr for Subject {
    type Err = Untrusted;

    fn from_str(text: &str) -> Result<Self, Untrusted> {
        let is_place = |place: &str| {
            let place = place.strip_prefix("*.").unwrap_or(place);
            place.starts_with(|first: char| first.is_alphanumeric()) && !place.contains('*')
        };
        let says_who = match text.split_once("://") {
            _ if !text.contains('*') => !text.is_empty(),
            Some((scheme, rest)) => {
                !scheme.contains('*') && rest.split(['/', '@']).next().is_some_and(is_place)
            }
            None => text.rsplit_once('@').is_some_and(|(_, domain)| is_place(domain)),
        };
        match says_who {
            true => Ok(Self(text.to_owned())),
            false => Err(Untrusted::Subject),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Subject {
    /// Whether the subject matches. An address never matches a URI pattern, nor the reverse.
    pub fn is(&self, subject: &str) -> bool {
        self.0.contains("://") == subject.contains("://")
            && matches(self.0.as_bytes(), subject.as_bytes())
    }
}

/// Whether the pattern matches all of the text. Each star is tried again at most once for each
/// byte.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // `open` marks the lengths of prefixes of the text that the pattern so far can match.
    let mut open = vec![false; text.len() + 1];
    open[0] = true;
    let mut at = 0;
    while let Some(byte) = pattern.get(at) {
        let stars = pattern[at..].iter().take_while(|byte| **byte == b'*').count();
        let mut next = vec![false; text.len() + 1];
        if stars == 0 {
            for (end, here) in text.iter().enumerate() {
                next[end + 1] = open[end] && here == byte;
            }
            at += 1;
        } else {
            next[0] = open[0];
            for (end, here) in text.iter().enumerate() {
                let spans = stars > 1 || !matches!(here, b'/' | b'@');
                next[end + 1] = open[end + 1] || next[end] && spans;
            }
            at += stars;
        }
        open = next;
    }
    open[text.len()]
}

/// Trusted signers, prepared for verification.
pub struct Trust {
    pub(crate) signers: Vec<Trusted>,
    pub(crate) roots: Vec<Verifier>,
    digest: Digest,
}

pub(crate) struct Trusted {
    pub name: String,
    pub kind: Kind,
}

pub(crate) enum Kind {
    Key { key: DerPublicKey, log: Option<usize> },
    Identity { issuer: String, subject: Subject, root: usize },
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.signers.iter().map(|signer| &signer.name);
        f.debug_set().entries(names).finish()
    }
}

impl Default for Trust {
    /// No signers.
    fn default() -> Self {
        Self { signers: Vec::new(), roots: Vec::new(), digest: digest(&[]) }
    }
}

impl Trust {
    /// Trust in these signers.
    ///
    /// # Errors
    /// The invalid signer, and the reason.
    pub fn new(signers: &[Signer]) -> Result<Self, (String, Untrusted)> {
        crypto::install();
        let (mut texts, mut roots) = (Vec::<&str>::new(), Vec::new());
        let mut trusted = Vec::new();
        for Signer { name, who } in signers {
            let named = |why| (name.clone(), why);
            let mut root = |text| match texts.iter().position(|known| *known == text) {
                Some(at) => Ok(at),
                None => {
                    roots.push(root(text).map_err(named)?);
                    texts.push(text);
                    Ok(texts.len() - 1)
                }
            };
            let kind = match who {
                SignerIdentity::Key { pem, trusted_root } => {
                    let log = trusted_root.as_deref().map(&mut root).transpose()?;
                    Kind::Key { key: key(pem).map_err(named)?, log }
                }
                SignerIdentity::Identity { issuer, subject, trusted_root } => Kind::Identity {
                    issuer: issuer.clone(),
                    subject: subject.clone(),
                    root: root(trusted_root)?,
                },
            };
            trusted.push(Trusted { name: name.clone(), kind });
        }
        Ok(Self { signers: trusted, roots, digest: digest(signers) })
    }

    /// Digest of all trusted signers: a result for one trust is not valid for another.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether there are no signers.
    pub fn is_empty(&self) -> bool {
        self.signers.is_empty()
    }
}

fn digest(signers: &[Signer]) -> Digest {
    let signers = signers.iter().map(|Signer { name, who }| match who {
        SignerIdentity::Key { pem, trusted_root } => serde_json::json!([name, pem, trusted_root]),
        SignerIdentity::Identity { issuer, subject, trusted_root } => {
            serde_json::json!([name, issuer, subject.0, trusted_root])
        }
    });
    Digest::of(serde_json::Value::from_iter(signers).to_string().as_bytes())
}

fn key(pem: &str) -> Result<DerPublicKey, Untrusted> {
    let key = DerPublicKey::from_pem(pem.trim()).map_err(|_| Untrusted::Key)?;
    let read = VerificationKey::from_spki(&key).map_err(|_| Untrusted::Key)?;
    if schemes(&key).is_empty() {
        return Err(Untrusted::Key);
    }
    validate_raw_public_key(read.scheme(), read.as_bytes()).map_err(|_| Untrusted::Key)?;
    Ok(key)
}

/// Signature schemes of this kind of key in cosign, which used to hash with SHA-256 for every
/// curve, and now by the curve.
pub(crate) fn schemes(key: &DerPublicKey) -> &'static [SigningScheme] {
    match KeyAlgorithm::from_spki(key) {
        Ok(KeyAlgorithm::EcdsaP256) => &[SigningScheme::EcdsaP256Sha256],
        Ok(KeyAlgorithm::EcdsaP384) => {
            &[SigningScheme::EcdsaP384Sha384, SigningScheme::EcdsaP384Sha256]
        }
        Ok(KeyAlgorithm::Ed25519) => &[SigningScheme::Ed25519],
        Ok(KeyAlgorithm::Rsa) => &[SigningScheme::RsaPkcs1Sha256],
        _ => &[],
    }
}

fn root(json: &str) -> Result<Verifier, Untrusted> {
    portcullis_foundation::json::read(json.as_bytes())
        .map_err(|why| Untrusted::Root(why.to_string()))?;
    let root = TrustedRoot::from_json(json).map_err(|why| Untrusted::Root(why.to_string()))?;
    Verifier::new(&root).map_err(|why| Untrusted::Root(why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_match_their_patterns() {
        let flow = "https://github.com/acme/app/.github/workflows/release.yml@refs/tags/v1";
        for (pattern, subject, expected) in [
            ("ada@example.com", "ada@example.com", true),
            ("ada@example.com", "Ada@example.com", false),
            ("ada@example.com", "ada@example.com.evil.test", false),
            ("*@example.com", "ada@example.com", true),
            ("*@example.com", "ada@evil.test@example.com", false),
            ("*@example.com", "@example.com", true),
            ("**@example.com", "https://evil.test/@example.com", false),
            ("https://github.com/acme/*/.github/workflows/release.yml@refs/tags/*", flow, true),
            ("https://github.com/acme/*@refs/tags/*", flow, false),
            ("https://github.com/acme/**@refs/tags/*", flow, true),
            ("https://github.com/acme/**", flow, true),
            ("https://github.com/acme/**", "https://github.com/acme-evil/app", false),
            ("https://*.example.com/app", "https://evil.test/x.example.com/app", false),
            ("https://*.example.com/app", "https://a.example.com/app", true),
            ("https://a/**/b/**/c", "https://a/x/b/b/y/c", true),
            ("https://a/**/b/**/c", "https://a/x/b/c", false),
        ] {
            let pattern: Subject = pattern.parse().unwrap();
            assert_eq!(pattern.is(subject), expected, "{pattern} {subject}");
        }
        for anybody in [
            "",
            "*",
            "**",
            "*@*",
            "**@**",
            "ada@*",
            "ada@*.*",
            "ada@**.example.com",
            "**example.com",
            "https://**",
            "https://*/app",
            "https://*.*/app",
            "https://**.example.com/app",
            "https://*example.com/app",
            "*://example.com/app",
            "**://**",
        ] {
            assert_eq!(anybody.parse::<Subject>(), Err(Untrusted::Subject), "{anybody}");
        }
        let slow: Subject = format!("{}@b", "**a".repeat(200)).parse().unwrap();
        assert!(!slow.is(&format!("{}@b", "a".repeat(199))));
    }

    #[test]
    fn invalid_signers_are_refused() {
        let trust = |who| Trust::new(&[Signer { name: "ada".into(), who }]).unwrap_err();
        let key = |pem: &str| SignerIdentity::Key { pem: pem.into(), trusted_root: None };
        for pem in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert_eq!(trust(key(pem)), ("ada".to_owned(), Untrusted::Key));
        }
        for root in ["", "{}", r#"{"mediaType":"a","mediaType":"a"}"#] {
            let (issuer, subject) = ("https://example.com".into(), "a@b".parse().unwrap());
            let who = SignerIdentity::Identity { issuer, subject, trusted_root: root.into() };
            assert!(matches!(trust(who), (_, Untrusted::Root(_))), "{root}");
        }
    }
}
