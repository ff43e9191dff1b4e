//! Replacement of encrypted stores in a build without them.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{Secret, error::BackendError};

/// Encrypted store that this build cannot open.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

fn none<T>() -> Result<T, BackendError> {
    Err(BackendError::new(
        "this build does not support encrypted stores: build it with `--features age`",
    ))
}

impl Store {
    /// Store in that file.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Path of the store, because there is no identity.
    pub fn identity(&self) -> &Path {
        &self.0
    }

    /// Value of a secret.
    ///
    /// # Errors
    /// Always.
    pub fn get(&self, _: &str) -> Result<Zeroizing<String>, BackendError> {
        none()
    }

    /// Names of the store's secrets.
    ///
    /// # Errors
    /// Always.
    pub fn names(&self) -> Result<Vec<String>, BackendError> {
        none()
    }

    /// Stores a secret under a name.
    ///
    /// # Errors
    /// Always.
    pub fn set(&self, _: &str, _: &Secret) -> Result<bool, BackendError> {
        none()
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// Always.
    pub fn remove(&self, _: &str) -> Result<bool, BackendError> {
        none()
    }

    /// Encrypts the store to a new identity.
    ///
    /// # Errors
    /// Always.
    pub fn rotate_key(&self) -> Result<(), BackendError> {
        none()
    }
}
