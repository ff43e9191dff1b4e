//! The interceptors, one file each; `chain` calls them.
//!
//! # Invariants
//!
//! - An interceptor uses no sockets.
//! - An interceptor does not know the others.

pub mod argument_names;
pub mod entry;
pub mod plugin;
pub mod policy;
pub mod rate_limit;
pub mod schema;
pub mod secrets;

pub use entry::{EntrySettings, InterceptorEntry, InterceptorKind};

#[cfg(test)]
pub(crate) mod fixtures;
