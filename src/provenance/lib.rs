//! Who signed an image, and what they attest of it.
//!
//! Given an image's digest and a trust ([`Trust`]: keys, and identities with the authorities that
//! vouch for them), [`verify`] looks in the image's repository for
//! - cosign's tags `sha256-HEX.sig` and `sha256-HEX.att`: payloads of simple signing and envelopes
//!   (DSSE) of in-toto's statements, with cosign's annotations;
//! - manifests that say they are about the image (the referrers of OCI 1.1, or the list by the tag
//!   `sha256-HEX` where a registry has none): Sigstore's bundles of statements, as cosign 3 writes
//!   them, and the above,
//!
//! and says what of it holds.
//!
//! # Invariants
//! - Nothing counts but what is signed: the digest of the image has to stand in the signed bytes. What
//!   a tag, a list or an annotation says only leads there.
//! - What is found adds, and takes nothing away: a registry can hide a signature, never make one, and
//!   what somebody else pushes beside a signature does not harm it, as long as it is found.
//! - A registry that does not tell ([`Error`]) is not one that has nothing.
//! - Signed JSON with a key twice is refused, so that no other reader reads another payload.
//! - No input takes more than bounded bytes, requests and time, nor panics.
//!
//! # What a signature may stand on
//! On the digest by which the image is run. An index names the manifests of its platforms by their
//! digests, so who signs the index signs each of them. Who signs one of the manifests signs no index:
//! another manifest of it may be taken.
//!
//! A statement is of each of its subjects; it counts where the image is one, by SHA-256. The
//! `docker-reference` of simple signing is not looked at, as with cosign: it is the digest that is
//! signed, wherever copies of it lie.
//!
//! # Identities
//! A certificate counts as `sigstore-verify` has it: it chains to an authority of the trusted root, has
//! the timestamp of one of its logs of certificates, was valid when an authority of timestamps or the
//! transparency log saw the signature, and the log's entry is of this signature and proved (by the
//! log's promise alone in cosign's older annotations, which have nothing else; whoever signs chooses
//! these, so what a promise is worth, every such signature is). Bundles of version 0.1, which may leave
//! the proof out, are not taken. Nothing is fetched: the root is a file that the operator names.
//! Revocation is by taking somebody out of the trust.
//!
//! # Why not the crate `sigstore`
//! Its `cosign` brings a second client of registries (`oci-client`), which reads answers without a
//! bound and follows redirects with logins, and with it OpenID Connect, a browser's launcher and a
//! compiler of protocol buffers. `sigstore-verify`, of the same project, verifies and does nothing else;
//! `ring` computes for it here, and `portcullis-oci` asks registries.

mod candidate;
mod crypto;
mod discover;
mod evaluate;
mod payload;
mod rejection;
mod trust;

use portcullis_oci::Digest;
use serde::{Deserialize, Serialize};

pub use discover::{Error, verify};
pub use rejection::{Rejected, Rejection};
pub use trust::{Signer, Subject, Trust, Untrusted, Who};

/// What is known of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provenance {
    /// What was proved.
    pub signed: Vec<Signed>,
    /// What was found and does not count.
    pub rejected: Vec<Rejected>,
}

/// Something that was proved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signed {
    /// Who vouches for it.
    pub by: By,
    /// For what.
    pub what: What,
    /// The manifest that it stands in.
    pub at: Digest,
}

/// Who vouches for something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The holder of a key.
    Key {
        /// What the operator calls it.
        name: String,
    },
    /// Somebody who was let in by an issuer.
    Identity {
        /// What the operator calls them.
        name: String,
        /// Who let them in.
        issuer: String,
        /// As whom.
        subject: String,
    },
}

impl By {
    /// What the operator calls them.
    pub fn name(&self) -> &str {
        match self {
            Self::Key { name } | Self::Identity { name, .. } => name,
        }
    }
}

/// What somebody vouches for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The image.
    Signature,
    /// That this is so of the image.
    Attestation {
        /// What kind of thing is said: a URI.
        predicate_type: String,
        /// What is said, if it is not more than 64 KiB.
        predicate: Option<serde_json::Value>,
    },
}
