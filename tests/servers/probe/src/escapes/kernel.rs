//! System calls, and other ways to make them.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, process::parent_id},
    },
    path::Path,
};

use caps::{CapSet, Capability};
use libc::{c_long, c_uint};

use super::{Attempt, files, past, refused};
use crate::attempts::{call, close};

pub(super) const ALL: &[Attempt] = &[
    ("mount", |_| mount_tmpfs()),
    ("remount-root", |_| remount_root()),
    ("fsopen", |_| descriptor(libc::SYS_fsopen, &[text(c"tmpfs"), 0])),
    ("chroot", |_| {
        fs::create_dir_all("/tmp")?;
        call(libc::SYS_chroot, &[text(c"/tmp")]).map(drop)
    }),
    ("unshare-user", |_| call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]).map(drop)),
    ("clone-user", |_| {
        let flags = c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        born(call(libc::SYS_clone, &[flags, 0, 0, 0, 0]))
    }),
    ("clone3-user", |_| {
        // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
        let mut arguments = [0_u64; 8];
        arguments[0] = libc::CLONE_NEWUSER as u64;
        arguments[4] = libc::SIGCHLD as u64;
        born(call(libc::SYS_clone3, &[address(&mut arguments), 64]))
    }),
    ("setns", |told| {
        files::by_each(told, |process| {
            let namespace = fs::File::open(format!("/proc/{process}/ns/mnt"))?;
            let descriptor = c_long::from(namespace.as_raw_fd());
            call(libc::SYS_setns, &[descriptor, libc::CLONE_NEWNS.into()]).map(drop)
        })
    }),
    ("ptrace", |_| {
        const SEIZE: c_long = 0x4206;
        call(libc::SYS_ptrace, &[SEIZE, parent_id().into(), 0, 0]).map(drop)
    }),
    ("process-vm-readv", |_| read_parent()),
    ("pidfd-getfd", |_| {
        let parent = call(libc::SYS_pidfd_open, &[parent_id().into(), 0])?;
        descriptor(libc::SYS_pidfd_getfd, &[parent, 0, 0])
    }),
    ("keyctl", |_| {
        const JOIN_SESSION_KEYRING: c_long = 1;
        call(libc::SYS_keyctl, &[JOIN_SESSION_KEYRING, 0]).map(drop)
    }),
    ("bpf", |_| {
        // BPF_MAP_CREATE of an array: type, key size, value size, entries.
        let mut attributes = [0_u32; 32];
        attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
        descriptor(libc::SYS_bpf, &[0, address(&mut attributes), 128])
    }),
    ("perf-event-open", |_| {
        // PERF_TYPE_SOFTWARE, the first size of the structure, PERF_COUNT_SW_CPU_CLOCK.
        let mut attributes = [0_u64; 8];
        attributes[0] = 1 | (64 << 32);
        descriptor(libc::SYS_perf_event_open, &[address(&mut attributes), 0, -1, -1, 0])
    }),
    ("io-uring", |_| {
        let mut parameters = [0_u64; 15];
        descriptor(libc::SYS_io_uring_setup, &[1, address(&mut parameters)])
    }),
    ("userfaultfd", |_| descriptor(libc::SYS_userfaultfd, &[0])),
    // More segments than the kernel takes.
    ("kexec-load", |_| past(call(libc::SYS_kexec_load, &[0, 17, 0, 0]), libc::EINVAL)),
    ("init-module", |_| {
        let tried = call(libc::SYS_init_module, &[text(c""), 0, text(c"")]);
        past(tried, libc::ENOEXEC)
    }),
    ("open-by-handle", |_| shocker()),
    ("fanotify", |_| descriptor(libc::SYS_fanotify_init, &[0, 0])),
    // A command that there is not.
    ("reboot", |_| past(call(libc::SYS_reboot, &[0xfee1_dead, 672_274_793, 1, 0]), libc::EINVAL)),
    // Neither a time nor a zone: nothing is set.
    ("set-time", |_| call(libc::SYS_settimeofday, &[0, 0]).map(drop)),
    ("swapoff", |_| past(call(libc::SYS_swapoff, &[0]), libc::EFAULT)),
    ("dmesg", |_| {
        const SIZE_BUFFER: c_long = 10;
        call(libc::SYS_syslog, &[SIZE_BUFFER, 0, 0]).map(drop)
    }),
    ("personality", |_| {
        const ADDR_NO_RANDOMIZE: c_long = 0x0004_0000;
        call(libc::SYS_personality, &[ADDR_NO_RANDOMIZE]).map(drop)
    }),
    ("sysv-shm", |_| {
        let segment = call(libc::SYS_shmget, &[0, 4096, 0o600])?;
        call(libc::SYS_shmctl, &[segment, libc::IPC_RMID.into(), 0]).map(drop)
    }),
    ("become-root", |_| call(libc::SYS_setresuid, &[0, 0, 0]).map(drop)),
    ("capset", |_| {
        caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)
            .map_err(|_| io::Error::from_raw_os_error(libc::EPERM))
    }),
    ("port-io", |_| port_io()),
    ("abi-32-bit", |_| foreign_abi()),
    ("abi-x32", |_| {
        const X32: c_long = 0x4000_0000;
        call(X32 | libc::SYS_getpid, &[]).map(drop)
    }),
    ("vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("alg", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("packet", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("raw-ip", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("mptcp", |_| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("udp-lite", |_| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
    ("icmp", |_| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)),
    ("icmp6", |_| socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6)),
    ("sctp", |_| socket(libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP)),
    ("dccp", |_| socket(libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP)),
    ("netlink-audit", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)),
    ("netlink-uevent", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT)),
];

pub(super) fn text(text: &CStr) -> c_long {
    text.as_ptr() as c_long
}

/// Of a buffer that outlives the call and is as large as the kernel reads or writes.
fn address<T>(buffer: &mut [T]) -> c_long {
    buffer.as_mut_ptr() as c_long
}

fn descriptor(number: c_long, arguments: &[c_long]) -> io::Result<()> {
    call(number, arguments).and_then(close).map(drop)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    descriptor(libc::SYS_socket, &[family.into(), kind.into(), protocol.into()])
}

/// The child of a call like fork(2) ends at once.
fn born(child: io::Result<c_long>) -> io::Result<()> {
    match child? {
        0 => loop {
            call(libc::SYS_exit_group, &[0])?;
        },
        child => call(libc::SYS_wait4, &[child, 0, 0, 0]).map(drop),
    }
}

pub(super) fn mount(
    source: &CStr,
    target: &Path,
    kind: &CStr,
    flags: u64,
    data: &CStr,
) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    let arguments = [text(source), text(&target), text(kind), flags as c_long, text(data)];
    call(libc::SYS_mount, &arguments).map(drop)
}

fn mount_tmpfs() -> io::Result<()> {
    fs::create_dir_all("/tmp")?;
    mount(c"escape", Path::new("/tmp"), c"tmpfs", 0, c"size=4k")?;
    unmount(Path::new("/tmp"))
}

pub(super) fn unmount(place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    call(libc::SYS_umount2, &[text(&place), libc::MNT_DETACH.into()]).map(drop)
}

/// Makes what is read-only writable again: the settings of the whole system in /proc.
fn remount_root() -> io::Result<()> {
    mount(c"none", Path::new("/"), c"none", libc::MS_REMOUNT | libc::MS_BIND, c"")
}

fn read_parent() -> io::Result<()> {
    let parent = parent_id();
    let maps = fs::read_to_string(format!("/proc/{parent}/maps"))?;
    let first = maps.split('-').next().and_then(|at| usize::from_str_radix(at, 16).ok());
    let Some(first) = first else { return refused("no memory seen") };
    let mut byte = [0_u8];
    let mut here = [byte.as_mut_ptr() as usize, 1];
    let mut there = [first, 1];
    let arguments = [parent.into(), address(&mut here), 1, address(&mut there), 1, 0];
    call(libc::SYS_process_vm_readv, &arguments).map(drop)
}

/// Opens a folder above the mount of a file by a handle that was made up: the root of its file
/// system, or where it numbers its folders otherwise, the file itself.
fn shocker() -> io::Result<()> {
    const INO32_GEN: u32 = 1;
    let file = fs::File::open("/etc/hostname")?;
    let (mut handle, mut mount) = ([0_u32; 34], [0_i32]);
    handle[0] = 128;
    let arguments = [
        libc::AT_FDCWD.into(),
        text(c"/etc/hostname"),
        address(&mut handle),
        address(&mut mount),
        0,
    ];
    // Asked for without the call where it is refused: the bytes are guessed as the exploit does.
    let asked = call(libc::SYS_name_to_handle_at, &arguments);
    let mut root = [0_u32; 34];
    root[..4].copy_from_slice(&[8, INO32_GEN, 2, 0]);
    let fd = c_long::from(file.as_raw_fd());
    let flags = c_long::from(libc::O_RDONLY);
    let opened = descriptor(libc::SYS_open_by_handle_at, &[fd, address(&mut root), flags]);
    match (opened, asked) {
        (Err(error), Ok(_)) if error.raw_os_error() == Some(libc::ESTALE) => {
            descriptor(libc::SYS_open_by_handle_at, &[fd, address(&mut handle), flags])
        }
        (opened, _) => opened,
    }
}

#[cfg(target_arch = "x86_64")]
fn port_io() -> io::Result<()> {
    call(libc::SYS_iopl, &[3]).map(drop)
}

#[cfg(not(target_arch = "x86_64"))]
fn port_io() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// `getpid` by the gate of 32-bit programs, where every call has another number.
#[cfg(target_arch = "x86_64")]
fn foreign_abi() -> io::Result<()> {
    const GETPID: c_long = 20;
    let mut answer = GETPID;
    #[expect(unsafe_code, reason = "there is no other way through that gate")]
    // SAFETY: the call reads no memory; the registers that old kernels clear are given up.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inout("rax") answer,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if answer > 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-(answer as i32))) }
}

#[cfg(not(target_arch = "x86_64"))]
fn foreign_abi() -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// `major << 8 | minor`, as far as numbers of disks go.
pub(super) fn block_node(place: &CStr, device: (u32, u32)) -> io::Result<()> {
    let mode = c_long::from(libc::S_IFBLK | 0o600 as c_uint);
    let device = libc::makedev(device.0, device.1) as c_long;
    let arguments = [libc::AT_FDCWD.into(), text(place), mode, device];
    call(libc::SYS_mknodat, &arguments).map(drop)
}

/// Types a character into the terminal that the process runs on.
pub(super) fn type_in(terminal: &fs::File) -> io::Result<()> {
    let arguments = [terminal.as_raw_fd().into(), libc::TIOCSTI as c_long, text(c"\n")];
    call(libc::SYS_ioctl, &arguments).map(drop)
}

pub(super) fn may_write(file: &CStr) -> io::Result<()> {
    let arguments = [libc::AT_FDCWD.into(), text(file), libc::W_OK.into(), 0];
    call(libc::SYS_faccessat, &arguments).map(drop)
}

pub(super) fn memory_file() -> io::Result<c_long> {
    call(libc::SYS_memfd_create, &[text(c"escape"), 0])
}
