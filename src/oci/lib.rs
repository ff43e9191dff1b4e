//! Artifacts of OCI registries: pulled by digest, pushed, and kept.
//!
//! # Invariants
//! - What is handed out as pulled has the digest that it was asked for by, taken here over those very
//!   bytes, each time: what a registry, a host that it leads to, or whoever can write to the folder
//!   where it is kept says of it counts for nothing.
//! - Every answer is bounded in bytes, in silence and in time.
//! - A login goes to the registry that it is for, or to the token service that this registry names; to
//!   nobody whom a redirect leads to. No error, `Debug` or log holds one, nor words of a registry,
//!   which could repeat it: the name of a host that it leads to is one, too.
//! - Nothing goes out without TLS, logins included, but to this machine, or to a host that is named
//!   for that.
//! - A registry with a public address leads to public addresses alone. Behind a proxy of the
//!   environment, that one says who is reached.
//!
//! This room knows nothing of what artifacts are for. `client.rs` is what can be asked, `transport.rs`
//! how, `way.rs` where it may lead; `image.rs` tells of images what an engine is going to pull;
//! `store.rs` keeps what came. Other clients read answers without a bound and follow redirects
//! as they come, so the HTTP is our own here; the parts that are nobody's secret, what challenges say
//! (`http-auth`) and where docker keeps logins (`docker_credential`), are not.

mod client;
mod credentials;
mod digest;
mod error;
mod image;
mod manifest;
mod redirect_policy;
mod reference;
mod store;
mod transport;

pub use client::{Artifact, Client, Limits, Pulled, Settings};
pub use credentials::{Login, Logins};
pub use digest::{Digest, IllegalDigest};
pub use error::{Asked, Error};
pub use image::{Image, Platform, Program};
pub use manifest::{Descriptor, EMPTY, Manifest};
pub use reference::{IllegalReference, Reference, names_host};
pub use store::Store;
pub use url::Url;
