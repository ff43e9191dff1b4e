//! Reasons why the store cannot write or read a record.

use std::{path::PathBuf, time::Duration};

use portcullis_protocol::refusal::{Code, Refusal};

use super::store::Fault;

/// The store did not accept a record, or could not be read. If this happens to the record of an
/// intent, the call must not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Another process uses the store.
    #[error(
        "the audit store in {} is used by another process{}", dir.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Locked { dir: PathBuf, pid: Option<u32> },
    /// The disk is full, or has only its reserve left.
    #[error(
        "no space for the audit store in {}: less than {} MiB are free", dir.display(),
        reserve.div_ceil(1 << 20)
    )]
    Full {
        dir: PathBuf,
        /// Bytes of the disk that must stay free.
        reserve: u64,
    },
    /// The record was not durable before the deadline. It can become durable later.
    #[error("the audit store in {} took longer than {waited:?} for a record", dir.display())]
    Slow { dir: PathBuf, waited: Duration },
    /// The store does not exist.
    #[error("there is no audit store in {}", dir.display())]
    Missing { dir: PathBuf },
    /// The store or its disk failed.
    #[error("the audit store in {} fails: {why}", dir.display())]
    Broken { dir: PathBuf, why: String },
    /// The folder is not a store that this version can open with these keys.
    #[error("the audit store in {} can't be opened: {why}", dir.display())]
    Unfit { dir: PathBuf, why: String },
    /// The store was closed.
    #[error("the audit store in {} is closed", dir.display())]
    Closed { dir: PathBuf },
}

impl Unavailable {
    /// Remedy for the operator.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Locked { .. } => {
                "stop the other process, or give this one a `state-dir` or `audit.dir` of its own"
            }
            Self::Full { .. } => {
                "free some space, bound the log with `audit.retention` (`portcullis audit prune` \
                 applies it at once), or move the store to a larger disk with `audit.dir`"
            }
            Self::Slow { .. } => {
                "check for a slow or overloaded disk, or raise `audit.deadline-ms`"
            }
            Self::Missing { .. } => {
                "start the proxy once with `portcullis run`, or check `state-dir` and `audit.dir`"
            }
            Self::Broken { .. } => {
                "check that the folder is writable for this user and that the disk is sound"
            }
            Self::Unfit { .. } => {
                "give the key or use the version that it needs: see docs/operate/audit.md"
            }
            Self::Closed { .. } => "restart the proxy",
        }
    }

    pub(super) fn of(fault: Fault, dir: PathBuf, reserve: u64) -> Self {
        match fault {
            Fault::Full => Self::Full { dir, reserve },
            // For another process, `Audit::open` fails at the store's lock, before this.
            fault @ (Fault::InUse(_) | Fault::Damaged(_) | Fault::Io(_)) => {
                Self::Broken { dir, why: fault.to_string() }
            }
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        Refusal::new(Code::AuditUnavailable, "the call could not be recorded, so it was not made")
            .detail(format!("{unavailable}: {}", unavailable.remedy()))
    }
}
