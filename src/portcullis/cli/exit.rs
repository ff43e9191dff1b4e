//! Exit codes, and the errors that end a command.

use std::{fmt, process::ExitCode};

use portcullis_config::Diagnostics;

/// Exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success, or the answer is "allowed".
    Ok = 0,
    /// Failure.
    Failure = 1,
    /// The command line is invalid.
    Usage = 2,
    /// The answer is "denied".
    Denied = 10,
    /// A check has findings.
    Findings = 11,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that ends the program with [`Exit::Usage`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Diagnostics that end the program, printed with their positions in files.
#[derive(Debug)]
pub struct Reports(pub Vec<Box<dyn miette::Diagnostic + Send + Sync>>);

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, report) in self.0.iter().enumerate() {
            write!(f, "{}{report}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Reports {}

/// Diagnostics of a config, as the error that ends the program.
pub(super) fn reports(Diagnostics(findings): Diagnostics) -> Reports {
    Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
}
