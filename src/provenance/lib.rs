//! The signers of an image, and their attestations.
//!
//! [`verify`] takes an image's digest and a trust ([`Trust`]: keys, and identities with the
//! authorities that vouch for them), and searches the image's repository for
//! - cosign's tags `sha256-HEX.sig` and `sha256-HEX.att`: payloads of simple signing and DSSE
//!   envelopes of in-toto statements, with cosign's annotations;
//! - manifests that refer to the image (the referrers of OCI 1.1, or the list by the tag
//!   `sha256-HEX` in a registry without them): Sigstore bundles of statements, as cosign 3 writes
//!   them, and the above.
//!
//! It returns what is valid.
//!
//! # Invariants
//! - Only signed content counts: the image's digest must be in the signed bytes. A tag, a list or
//!   an annotation only leads there.
//! - A finding adds evidence and removes none: a registry can hide a signature but never make one,
//!   and other uploads beside a signature do not harm it, as long as it is found.
//! - A registry that does not answer ([`Error`]) is not one that has nothing.
//! - Signed JSON with a duplicate key is refused, so that no other reader reads another payload.
//! - No input takes more than bounded bytes, requests and time, or causes a panic.
//!
//! # What a signature covers
//! The digest by which the image runs. An index names the manifests of its platforms by digest, so
//! a signature of the index covers each of them. A signature of one manifest does not cover the
//! index: another manifest of it may be selected.
//!
//! A statement covers each of its subjects; it counts if the image is one of them, by SHA-256. The
//! `docker-reference` of simple signing is ignored, as in cosign: the digest is signed, wherever
//! copies of it are.
//!
//! # Identities
//! A certificate counts by the rules of `sigstore-verify`:
//! - It chains to an authority of the trusted root and has the timestamp of one of its certificate
//!   logs.
//! - It was valid when a timestamp authority or the transparency log saw the signature.
//! - The log's entry belongs to this signature and is proved. In cosign's older annotations, the
//!   only proof is the log's promise. A signer can choose this format, so every such signature is
//!   worth as much as a promise.
//!
//! Bundles of version 0.1, which may omit the proof, are not accepted. Nothing is fetched: the
//! root is a file that the operator names. To revoke a signer, remove it from the trust.
//!
//! # Why not the crate `sigstore`
//! Its `cosign` brings a second registry client (`oci-client`), which reads answers without a
//! bound and follows redirects with logins, and with it OpenID Connect, a browser launcher and a
//! protocol buffer compiler. `sigstore-verify`, of the same project, only verifies; `ring` does
//! its computations here, and `portcullis-oci` sends the requests.

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
pub use trust::{Signer, SignerIdentity, Subject, Trust, Untrusted};

/// Signatures and attestations of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provenance {
    /// Valid ones.
    pub signed: Vec<Signed>,
    /// Rejected ones.
    pub rejected: Vec<Rejected>,
}

/// A valid signature or attestation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signed {
    /// Signer.
    pub by: By,
    /// Signed content.
    pub what: SignedContent,
    /// Manifest that contains it.
    pub at: Digest,
}

/// Signer of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Holder of a key.
    Key {
        /// Name in the config.
        name: String,
    },
    /// Holder of an identity that an issuer authenticated.
    Identity {
        /// Name in the config.
        name: String,
        /// Issuer.
        issuer: String,
        /// Authenticated subject.
        subject: String,
    },
}

impl By {
    /// Name in the config.
    pub fn name(&self) -> &str {
        match self {
            Self::Key { name } | Self::Identity { name, .. } => name,
        }
    }
}

/// Content that a signer vouches for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignedContent {
    /// The image.
    Signature,
    /// A statement about the image.
    Attestation {
        /// Type of the statement: a URI.
        predicate_type: String,
        /// The statement, up to 64 KiB.
        predicate: Option<serde_json::Value>,
    },
}
