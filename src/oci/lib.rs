//! Artifacts of OCI registries: pulled by digest, pushed, and stored.
//!
//! `client` has the requests, `transport` the HTTP, `redirect_policy` the allowed redirects,
//! `image` the metadata of images that an engine is going to pull, and `store` the local copies.
//! The crate does not know the meaning of an artifact. It has its own HTTP code, because other
//! clients read answers without a limit and follow all redirects. Challenges (`http-auth`) and
//! docker's stored logins (`docker_credential`) come from crates.
//!
//! # Invariants
//!
//! - Pulled bytes have the requested digest, computed here over those bytes each time. Statements
//!   of a registry, of a host that it redirects to, or of a process that can write to the store's
//!   folder are not trusted.
//! - Every answer is limited in bytes, in silence and in time.
//! - A login goes to its registry, or to the token service that this registry names, and never to a
//!   redirect's target. No error, `Debug` or log contains a login, or text of a registry, which
//!   could repeat it; the name of a host that a registry redirects to is such text.
//! - Nothing goes out without TLS, logins included, except to this machine or to a host that is
//!   configured for it.
//! - A registry with a public address redirects to public addresses only. Behind a proxy of the
//!   environment, that proxy decides which addresses are reached.

mod client;
mod credentials;
mod digest;
mod error;
mod image;
mod manifest;
mod redirect_policy;
mod reference;
mod settings;
mod store;
mod transport;

pub use client::{Artifact, Client, Pulled};
pub use credentials::{Login, Logins};
pub use digest::{Digest, IllegalDigest};
pub use error::{ContactedHost, Error};
pub use image::{Image, Platform, Program};
pub use manifest::{Descriptor, EMPTY, Manifest};
pub use reference::{IllegalReference, Reference, names_host};
pub use settings::{Limits, Settings};
pub use store::Store;
pub use url::Url;
