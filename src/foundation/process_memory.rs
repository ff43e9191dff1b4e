//! Protects this process's memory, which contains keys and secrets, from core dumps and from other
//! processes of the same user.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Disables core dumps of this process, and prevents processes of the same user without
/// `CAP_SYS_PTRACE` from reading its memory and its environment in /proc and from tracing it.
///
/// Both settings are needed: the kernel writes no core file above `RLIMIT_CORE`, but pipes a core
/// to the program of `core_pattern` regardless of the limit (core(5)), unless the process is not
/// dumpable (`PR_SET_DUMPABLE`, prctl(2)). Child programs have the limit too and are dumpable
/// again.
///
/// # Errors
/// If the kernel refuses either.
pub fn protect() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}
