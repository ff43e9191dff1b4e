//! Where secrets come from, and the type that keeps them out of logs.
//!
//! # Invariants
//! - No error, `Debug` or `Display` of this crate contains a value, a reference that could be a
//!   value (a secret pasted in place of its reference), or text that an external secret store
//!   wrote.
//! - Whatever the source, fetching a value ends within [`RESOLVE_TIMEOUT`] and takes at most
//!   [`MAX_BYTES`].

mod dotenv;
mod error;
mod hashicorp;
mod headers;
mod helper;
mod keyctl;
mod providers;
mod reference;
mod resolve;
mod source;
#[cfg_attr(not(feature = "age"), path = "no_store.rs")]
mod store;
mod tmpfs_files;
mod utf8;

use std::{fmt, time::Duration};

use zeroize::Zeroizing;

pub use error::{BackendError, Unresolved};
pub use headers::{IllegalHeader, headers};
pub use reference::SecretRef;
pub use source::{Source, is_secret_name};
pub use store::Store;
pub use tmpfs_files::{
    Folder, Reader, Runtime, abandoned, clear, folders, is_folder, remove_abandoned,
};

/// Limit of a secret in bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// Time limit for resolving a secret. A secret store may ask a person to unlock it.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Secret value without `Display`, and with a `Debug` that shows nothing. Its memory is overwritten
/// on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value, for its delivery.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_shows_nothing_in_debug_output() {
        let secret = Secret::new(["hunter", "2"].concat());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
