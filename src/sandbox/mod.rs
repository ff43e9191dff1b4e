//! Local programs in a sandbox: the default where no container engine is.

use std::process::ExitCode;

use crate::upstream::process::{LaunchFailure, LaunchSpec, Process};

/// What of the sandbox this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Each part and what there is of it, for `portcullis doctor`.
    pub parts: Vec<(String, String)>,
}

/// Starts `spec.command` in a sandbox.
///
/// # Errors
/// Where the program can't be started, or any part of the sandbox is missing: it never runs
/// without.
pub async fn launch(_spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    Err(LaunchFailure { what: "the sandbox is not part of this build".into(), remedy: None })
}

/// The launcher's own process: the hidden verb `sandbox-exec`.
pub fn exec_main() -> ExitCode {
    ExitCode::FAILURE
}

/// What the sandbox does, for `portcullis server inspect`.
pub fn facts() -> Vec<(String, String)> {
    Vec::new()
}

/// What of the sandbox this machine offers.
///
/// # Errors
/// What is missing, and the remedy.
pub fn available() -> Result<Availability, String> {
    Err("the sandbox is not part of this build".into())
}
