//! This process's memory, which holds keys and secrets: kept out of core dumps and from other
//! processes of the same user.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Switches core dumps of this process off, and keeps processes of the same user without
/// `CAP_SYS_PTRACE` from reading its memory and its environment in /proc and from tracing it.
///
/// Both are needed: the kernel writes no core file above `RLIMIT_CORE`, but pipes a core to the
/// program of `core_pattern` whatever the limit says (core(5)), unless the process is not dumpable
/// (`PR_SET_DUMPABLE`, prctl(2)). Programs that it starts have the limit too and are dumpable again.
///
/// # Errors
/// Where the kernel refuses either.
pub fn protect() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}
