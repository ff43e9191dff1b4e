//! The interceptors, one file each; `chain` calls them.
//!
//! # Invariants
//!
//! - An interceptor uses no sockets.
//! - An interceptor does not know the others.

pub mod argument_names;
pub mod entry;
mod entry_settings;
pub mod plugin;
pub mod policy;
pub mod rate_limit;
pub mod schema;
pub mod secrets;

pub use entry::{InterceptorEntry, InterceptorKind};
pub use entry_settings::EntrySettings;

#[cfg(test)]
pub(crate) mod fixtures;
