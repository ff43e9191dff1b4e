//! System calls without a safe wrapper in the crates used here.

use std::{
    ffi::c_uint,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigHandler, Signal},
    unistd::ForkResult,
};

/// Restrictions of one mount, and of the mounts below it.
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

// From linux/mount.h; libc does not name them on every target.
pub(super) const RDONLY: u64 = 1;
pub(super) const NOSUID: u64 = 2;
pub(super) const NODEV: u64 = 4;
pub(super) const NOEXEC: u64 = 8;

/// Adds restrictions to a mount and to all mounts below it. Unlike a remount it never clears any,
/// and so need not know those that an outer namespace has locked.
pub(super) fn restrict_mount(at: BorrowedFd<'_>, set: u64, recursive: bool) -> nix::Result<()> {
    let attr = MountAttr { set, ..Default::default() };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    #[expect(
        unsafe_code,
        reason = "mount_setattr(2) has no wrapper; all pointers outlive the call"
    )]
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Forks. Only for a single-threaded process, whose child may run any code.
pub(super) fn fork() -> nix::Result<ForkResult> {
    #[expect(unsafe_code, reason = "the launcher has one thread, so its child may do anything")]
    unsafe {
        nix::unistd::fork()
    }
}

/// Sets close-on-exec for every file descriptor from 3 on.
pub(super) fn close_all_on_exec() -> nix::Result<()> {
    #[expect(unsafe_code, reason = "close_range(2) with CLOEXEC closes nothing that is in use")]
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, 3 as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    Errno::result(result).map(drop)
}

/// Restores the default action of a signal.
pub(super) fn default_signal(signal: Signal) -> nix::Result<()> {
    #[expect(unsafe_code, reason = "the default action runs no code of ours")]
    unsafe {
        nix::sys::signal::signal(signal, SigHandler::SigDfl).map(drop)
    }
}

/// Enables the loopback interface of this network namespace.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    #[expect(unsafe_code, reason = "a C structure of integers and arrays, for which zero is legal")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    #[expect(unsafe_code, reason = "SIOCSIFFLAGS reads an ifreq, which outlives the call")]
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result)?;
    Ok(())
}
