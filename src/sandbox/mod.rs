//! sandbox

/// The launcher: `portcullis sandbox-exec`.
pub fn exec_main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
