//! Secrets that the operator hands to the plugin. The manifest names them
//! ([`Manifest::secret`](crate::Manifest::secret)).

use std::fmt;

use super::bindings::portcullis::interceptor::secrets as host;

/// A secret's value. It stands in no `Debug` text, so that none is logged by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for where it is needed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secret of a name; nothing where it is not granted.
pub fn get(name: &str) -> Option<Secret> {
    host::get(name).map(Secret)
}
