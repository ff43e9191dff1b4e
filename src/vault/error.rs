//! Errors of resolving a secret.

use std::{io, path::PathBuf};

use crate::{MAX_BYTES, RESOLVE_TIMEOUT, Source};

/// Failure to resolve a secret. Names its source, never its value.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// Not a reference. The text is not repeated, because it may be the secret itself.
    #[error(
        "a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that \
         docs/concepts/secrets.md lists, never the value"
    )]
    Reference,
    #[error("the environment variable `{0}` is not set: export it before the proxy starts")]
    EnvUnset(String),
    #[error("the environment variable `{0}` is not UTF-8 text")]
    EnvText(String),
    #[error("cannot read the file with the secret, `{}`: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the file with the secret, `{}`, is not UTF-8 text", .0.display())]
    FileText(PathBuf),
    #[error(
        "the file with the secret, `{path}`, has more than {} KiB: check the path",
        MAX_BYTES >> 10,
        path = .0.display()
    )]
    FileSize(PathBuf),
    #[error("the secret of `{0}` is empty")]
    Empty(Source),
    #[error("the secret of `{0}` contains a NUL byte, which a variable cannot contain")]
    Nul(Source),
    #[error("timed out after {} s resolving secret `{from}`", RESOLVE_TIMEOUT.as_secs(), from = .0)]
    Late(Source),
    /// Reason of a secret store, in this program's words.
    #[error("cannot resolve secret `{from}`: {why}")]
    Kept { from: Source, why: BackendError },
}

/// Reason for the operator. Never contains text that a secret store wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub(crate) String);

impl BackendError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}
