//! Loads the seccomp filters. `portcullis-syscalls` has the table of allowed calls, which
//! containers use too.

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::sandbox::protocol::Failure;

/// Forbids the process and its children to listen at any socket. In a shared network, a process
/// that takes another's port is taken for that one.
pub(super) fn forbid_listening() -> Result<(), Failure> {
    let program = || -> Result<BpfProgram, seccompiler::BackendError> {
        let arch = std::env::consts::ARCH.try_into()?;
        let refused = [(libc::SYS_listen, Vec::new())].into();
        let not_so = SeccompAction::Errno(libc::EACCES as u32);
        SeccompFilter::new(refused, SeccompAction::Allow, not_so, arch)?.try_into()
    };
    let program = program().map_err(|error| failed(&error))?;
    seccompiler::apply_filter(&program).map_err(|error| failed(&error))
}

/// Builds and loads the filters of a server, for this process and its children.
pub(super) fn confine() -> Result<(), Failure> {
    for program in portcullis_syscalls::sandbox_filters().map_err(|error| failed(&error))? {
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("the sandbox can't filter system calls: {error}"))
        .remedy("the kernel needs CONFIG_SECCOMP_FILTER")
}
