//! `seal.key` in the state folder.

use std::{
    io,
    path::{Path, PathBuf},
};

use portcullis_foundation::key_file::{self, Fault, Key};

/// Failure to read or create the key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "`{}` is accessible to other users, who could forge sealed texts with the key: \
         remove the file (a new key is created; calls that wait for an answer are lost)",
        .0.display()
    )]
    Open(PathBuf),
    #[error(
        "`{}` is not a key of 32 bytes: remove the file (a new key is created; calls that wait \
        for an \
         answer are lost)",
        .0.display()
    )]
    Damaged(PathBuf),
    #[error("the operating system provides no random bytes: {0}")]
    Random(getrandom::Error),
}

impl From<Fault> for KeyFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io { path, source } => Self::Io { path, source },
            Fault::Open(path) => Self::Open(path),
            Fault::Damaged(path) => Self::Damaged(path),
            Fault::Random(error) => Self::Random(error),
        }
    }
}

/// Reads the key, and creates it if it does not exist.
pub(super) fn load(state_dir: &Path) -> Result<Key, KeyFault> {
    Ok(key_file::load(state_dir, "seal.key")?)
}
