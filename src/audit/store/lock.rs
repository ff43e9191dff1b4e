//! Lock of a store, for one process at a time.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Lock of a store. Released on drop or when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Reasons why the lock was not acquired.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another process holds it. Contains the process id, if it could be read.
    Held(Option<u32>),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Lock {
    /// Acquires the lock of the store in `dir`, waiting at most `deadline`.
    pub(crate) fn take(dir: &Path, deadline: Duration) -> Result<Self, Refused> {
        let until = Instant::now() + deadline;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("store.lock"))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.take(20).read_to_string(&mut holder);
                    return Err(Refused::Held(holder.trim().parse().ok()));
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        // The process id is only informative; a full disk must not prevent reading.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}
