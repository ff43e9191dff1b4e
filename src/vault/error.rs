//! Why a secret does not resolve.

use std::{io, path::PathBuf};

use crate::{MAX_BYTES, PATIENCE, Source};

/// A secret that does not resolve. Names its source, never its value.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// Not a reference. What was written is not repeated: it may be the secret itself.
    #[error(
        "a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that \
         docs/concepts/secrets.md lists, never the value"
    )]
    Reference,
    #[error("the environment variable `{0}` is not set: export it before the proxy starts")]
    EnvUnset(String),
    #[error("the environment variable `{0}` is not UTF-8 text")]
    EnvText(String),
    #[error("cannot read the secret's file `{}`: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the secret's file `{}` is not UTF-8 text", .0.display())]
    FileText(PathBuf),
    #[error(
        "the secret's file `{path}` has more than {} KiB: is it the right file?",
        MAX_BYTES >> 10,
        path = .0.display()
    )]
    FileSize(PathBuf),
    #[error("the secret of `{0}` is empty")]
    Empty(Source),
    #[error("the secret of `{0}` holds a NUL byte, which no environment can hold")]
    Nul(Source),
    #[error("timed out after {} s resolving secret `{from}`", PATIENCE.as_secs(), from = .0)]
    Late(Source),
    /// What its keeper said, in words of ours.
    #[error("cannot resolve secret `{from}`: {why}")]
    Kept { from: Source, why: Why },
}

/// In words for the operator. Nothing that a keeper of secrets wrote is ever repeated in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Why(pub(crate) String);

impl Why {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}
