//! Programs that keep secrets: started without a shell, given what they need on standard input,
//! and read no further than a secret may be long. What they write to standard error is nobody's.

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

use crate::{MAX_BYTES, error::Why};

/// What a program said.
pub(crate) struct Said {
    /// Its exit code, where no signal ended it.
    pub code: Option<i32>,
    pub out: Zeroizing<Vec<u8>>,
}

impl Said {
    /// Its words, where it ended well.
    pub fn well(self, program: &str) -> Result<Zeroizing<Vec<u8>>, Why> {
        match self.code {
            Some(0) => Ok(self.out),
            Some(code) => Err(Why::new(format!("`{program}` failed with exit code {code}"))),
            None => Err(Why::new(format!("`{program}` was ended by a signal"))),
        }
    }
}

/// A group of processes that ends when nobody waits for it any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs a program of `PATH`.
pub(crate) async fn run(program: &str, arguments: &[&str], input: &[u8]) -> Result<Said, Why> {
    let failed = |error: io::Error| Why::new(format!("`{program}` failed: {error}"));
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
                Why::new(format!("the program `{program}` is not in PATH: install it"))
            }
            _ => failed(error),
        })?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // The room for all of it at once: a buffer that grows leaves copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read has its reasons, and an exit code for them.
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
        return Err(Why::new(format!("`{program}` wrote more than {} KiB", MAX_BYTES >> 10)));
    }
    let status = child.wait().await.map_err(failed)?;
    group.0 = None;
    Ok(Said { code: status.code(), out })
}
