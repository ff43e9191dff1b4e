//! What goes wrong in a store.

use std::{io, path::Path};

/// Why the store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    /// Its files are not what they should be.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Something else has it open.
    #[error("in use: {0}")]
    InUse(String),
    /// No room on the disk.
    #[error("no space left on the disk")]
    Full,
    /// The system failed.
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
                Self::InUse("an index that was just closed; it is free again in a moment".into())
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
