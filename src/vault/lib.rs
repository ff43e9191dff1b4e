//! Where secrets come from, and the type that keeps them out of logs.
//!
//! Invariant: no error, no `Debug` and no `Display` of this room holds a value, nor a reference
//! that could be one (a secret pasted where its reference belongs).

mod headers;
mod source;

use std::fmt;

use zeroize::Zeroizing;

pub use headers::{IllegalHeader, headers};
pub use source::{Source, Unresolved};

/// A secret value: no `Display`, and a `Debug` that shows nothing. Its memory is overwritten when
/// it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value, for the one place that hands it over.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
