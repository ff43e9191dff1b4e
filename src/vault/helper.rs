//! Runs programs that store secrets: without a shell, with their input on standard input. Output
//! beyond the length limit of a secret is not read, and standard error is ignored.

use std::{io, process::Stdio};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};
use zeroize::Zeroizing;

use crate::{MAX_BYTES, error::BackendError};

/// Result of a program.
pub(crate) struct HelperOutput {
    /// Exit code, unless a signal ended the program.
    pub code: Option<i32>,
    pub out: Zeroizing<Vec<u8>>,
}

impl HelperOutput {
    /// Output, if the program succeeded.
    pub fn well(self, program: &str) -> Result<Zeroizing<Vec<u8>>, BackendError> {
        match self.code {
            Some(0) => Ok(self.out),
            Some(code) => {
                Err(BackendError::new(format!("`{program}` failed with exit code {code}")))
            }
            None => Err(BackendError::new(format!("`{program}` was ended by a signal"))),
        }
    }
}

/// Process group that is killed on drop.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a program found in `PATH`.
pub(crate) async fn run(
    program: &str,
    arguments: &[&str],
    input: &[u8],
) -> Result<HelperOutput, BackendError> {
    let failed = |error: io::Error| BackendError::new(format!("`{program}` failed: {error}"));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                BackendError::new(format!("the program `{program}` is not in PATH: install it"))
            }
            _ => failed(error),
        })?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // Allocated in full: a growing buffer leaves copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input reports that by its exit code.
            let _ = stdin.write_all(input).await;
        }
    };
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(MAX_BYTES as u64 + 1).read_to_end(&mut out).await,
            None => Ok(0),
        }
    };
    let ((), read) = tokio::join!(write, read);
    read.map_err(failed)?;
    if out.len() > MAX_BYTES {
        return Err(BackendError::new(format!(
            "`{program}` wrote more than {} KiB",
            MAX_BYTES >> 10
        )));
    }
    let status = child.wait().await.map_err(failed)?;
    group.0 = None;
    Ok(HelperOutput { code: status.code(), out })
}
