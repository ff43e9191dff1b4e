//! Loads the filters of system calls. Which calls they allow stands in `portcullis-syscalls`, for
//! containers too.

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::sandbox::protocol::Failure;

/// Lets the process and its children listen at no socket. Where a network is shared, who listens in
/// another's place is taken for it.
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

/// Builds and loads the filters of a server. The process and its children are bound by them.
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
