//! The interceptors, one file each. They know no sockets and no siblings; `chain` calls them.

pub mod entry;
pub mod plugin;
pub mod policy;
pub mod rate_limit;
pub mod schema;
pub mod secrets;

pub use entry::{EntrySettings, InterceptorEntry, InterceptorKind};

#[cfg(test)]
pub(crate) mod fixtures;
