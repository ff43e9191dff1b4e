//! Encrypted stores, in a build without them.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{Secret, error::Why};

/// An encrypted store, which this build can't open.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

fn none<T>() -> Result<T, Why> {
    Err(Why::new("this build has no encrypted stores: build it with `--features age`"))
}

impl Store {
    /// The store in that file.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is: there is no identity to look for.
    pub fn identity(&self) -> &Path {
        &self.0
    }

    /// The value of a secret.
    ///
    /// # Errors
    /// Always.
    pub fn get(&self, _: &str) -> Result<Zeroizing<String>, Why> {
        none()
    }

    /// The names of its secrets.
    ///
    /// # Errors
    /// Always.
    pub fn names(&self) -> Result<Vec<String>, Why> {
        none()
    }

    /// Keeps a secret under a name.
    ///
    /// # Errors
    /// Always.
    pub fn set(&self, _: &str, _: &Secret) -> Result<bool, Why> {
        none()
    }

    /// Takes a secret out.
    ///
    /// # Errors
    /// Always.
    pub fn remove(&self, _: &str) -> Result<bool, Why> {
        none()
    }

    /// Encrypts all of it to a new identity.
    ///
    /// # Errors
    /// Always.
    pub fn rotate_key(&self) -> Result<(), Why> {
        none()
    }
}
