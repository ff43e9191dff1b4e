//! Errors of a store.

use std::{io, path::Path};

/// Reason why an operation of the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    /// The files are damaged.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Another process or handle has the store open.
    #[error("in use: {0}")]
    InUse(String),
    /// The disk is full.
    #[error("no space left on the disk")]
    Full,
    /// A system call failed.
    #[error("{0}")]
    Io(String),
}

impl Fault {
    pub(crate) fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        if is_full(error.kind()) {
            return Self::Full;
        }
        Self::Io(format!("{doing} {}: {error}", path.display()))
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        match &error {
            sled::Error::Io(io) if is_full(io.kind()) => Self::Full,
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
                Self::InUse("an index that was just closed; retry in a moment".into())
            }
            sled::Error::Io(io)
                if matches!(
                    io.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                ) =>
            {
                Self::Damaged(error.to_string())
            }
            sled::Error::Io(_) => Self::Io(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}
