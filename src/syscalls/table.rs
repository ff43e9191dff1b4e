//! Calls, and conditions on their arguments.
//!
//! Deliberately not in the table: ptrace and process_vm_*, io_uring, bpf, perf, userfaultfd, keys,
//! mounts and namespaces, modules, kexec, reboot, swap, clocks, quotas, accounting, System V IPC
//! and memfd_create (memory that no limit counts, and programs on no mount), execveat, handles to
//! files, fanotify, sync and syncfs (they flush the whole machine), setxattr and its variants
//! (POSIX ACLs and file capabilities), and sched_setaffinity (the sandbox limits processors by
//! affinity).

use libc::c_long;

/// Bits that make a program run as its file's owner or group, inode(7).
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// Flags with which open(2) creates a file and reads its mode argument. `O_TMPFILE` contains
/// `O_DIRECTORY`, whose value depends on the architecture; this is its other bit.
const CREATES: u32 = libc::O_CREAT as u32 | 0o20_000_000;

/// The type in the second argument of socket(2), without `SOCK_NONBLOCK` and `SOCK_CLOEXEC`.
const SOCKET_TYPE: u32 = 0xf;

/// All flags of clone(2) that create a namespace.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Requests of ioctl(2) that type into a terminal or control the console.
pub const TERMINAL_REQUESTS: [u32; 2] = [libc::TIOCSTI as u32, libc::TIOCLINUX as u32];

/// An allowed system call.
pub struct Call {
    pub name: &'static str,
    /// Number on this architecture; `None` if the architecture lacks the call.
    pub number: Option<c_long>,
    /// The call is allowed if all conditions of one of these sets hold. Without sets: always.
    pub any_of: Vec<Vec<Condition>>,
}

/// Condition on an argument, counted from 0: `argument & mask == value`.
///
/// It considers the lower 32 bits, as the kernel does for every argument in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8,
    pub mask: u32,
    pub value: u32,
}

fn masked(argument: u8, mask: u32, value: u32) -> Condition {
    Condition { argument, mask, value }
}

fn equal(argument: u8, value: u32) -> Condition {
    masked(argument, u32::MAX, value)
}

fn no_set_id(argument: u8) -> Condition {
    masked(argument, SET_ID, 0)
}

/// Refused calls that answer `ENOSYS` in both runtimes. Programs then use another call or continue
/// without, but fail on `EPERM`: the C library replaces clone3 by clone, and cp(1) and install(1)
/// set modes without ACLs. The flags and modes of clone3 and openat2 are behind a pointer, where
/// filters cannot see them.
pub const ABSENT: &[&str] = &[
    "clone3",
    "fremovexattr",
    "fsetxattr",
    "lremovexattr",
    "lsetxattr",
    "openat2",
    "removexattr",
    "setxattr",
];

macro_rules! everywhere {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Calls that newer architectures do not have.
macro_rules! only_on_x86_64 {
    ($($name:ident)*) => {
        &[$((stringify!($name), {
            #[cfg(target_arch = "x86_64")]
            { Some(libc::$name) }
            #[cfg(not(target_arch = "x86_64"))]
            { None }
        })),*]
    };
}

const ALWAYS: &[(&str, c_long)] = everywhere![
    // Files: contents and positions.
    SYS_close SYS_close_range SYS_copy_file_range SYS_dup SYS_dup3 SYS_fadvise64 SYS_fallocate
    SYS_fcntl SYS_fdatasync SYS_flock SYS_fsync SYS_ftruncate SYS_ioctl SYS_lseek SYS_pipe2
    SYS_pread64 SYS_preadv SYS_preadv2 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead
    SYS_readv SYS_sendfile SYS_splice SYS_sync_file_range SYS_tee SYS_truncate SYS_write SYS_writev
    // Files: names and attributes. mkdirat has no condition: the kernel drops set-ID bits from the
    // mode of a new folder (mkdir(2), "Notes"), and cp(1) passes those of the copied folder.
    SYS_chdir SYS_faccessat SYS_faccessat2 SYS_fchdir SYS_fchown SYS_fchownat SYS_fgetxattr
    SYS_flistxattr SYS_fstat SYS_fstatfs SYS_getcwd SYS_getdents64 SYS_getxattr
    SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_lgetxattr SYS_linkat
    SYS_listxattr SYS_llistxattr SYS_mkdirat SYS_newfstatat SYS_readlinkat SYS_renameat
    SYS_renameat2 SYS_statfs SYS_statx SYS_symlinkat SYS_umask SYS_unlinkat SYS_utimensat
    // Memory of this process.
    SYS_brk SYS_madvise SYS_membarrier SYS_mincore SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap
    SYS_mprotect SYS_mremap SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_pkey_alloc
    SYS_pkey_free SYS_pkey_mprotect
    // Processes and threads.
    SYS_capget SYS_capset SYS_execve SYS_exit SYS_exit_group SYS_get_robust_list SYS_getcpu
    SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrlimit SYS_getrusage SYS_getsid
    SYS_gettid SYS_kill SYS_pidfd_open SYS_pidfd_send_signal SYS_prctl SYS_prlimit64 SYS_rseq
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr
    SYS_sched_getparam SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setparam
    SYS_sched_setscheduler SYS_sched_yield SYS_set_robust_list SYS_set_tid_address SYS_setpgid
    SYS_setpriority SYS_setrlimit SYS_setsid SYS_sysinfo SYS_tgkill SYS_times SYS_tkill SYS_uname
    SYS_wait4 SYS_waitid
    // Users and groups: without capabilities these change nothing.
    SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getresgid SYS_getresuid SYS_getuid
    SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setregid SYS_setresgid SYS_setresuid
    SYS_setreuid SYS_setuid
    // Signals.
    SYS_getitimer SYS_restart_syscall SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_tgsigqueueinfo SYS_setitimer SYS_sigaltstack SYS_signalfd4
    // Time: reading and waiting, never setting.
    SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_gettimeofday SYS_nanosleep
    SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime
    // Waiting.
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_futex
    SYS_ppoll SYS_pselect6
    // Sockets that exist.
    SYS_accept SYS_accept4 SYS_bind SYS_connect SYS_getpeername SYS_getsockname SYS_getsockopt
    SYS_listen SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_sendmmsg SYS_sendmsg SYS_sendto
    SYS_setsockopt SYS_shutdown
    // Randomness, and a process that restricts itself further.
    SYS_getrandom SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self
    SYS_seccomp
];

const ALWAYS_ON_X86_64: &[(&str, Option<c_long>)] = only_on_x86_64![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chown SYS_dup2 SYS_epoll_create SYS_epoll_wait
    SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link
    SYS_lstat SYS_mkdir SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select
    SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
];

/// Calls that the libc crate does not name everywhere. From 424 on, numbers are the same on every
/// architecture (Documentation/process/adding-syscalls.rst of the kernel).
const ALWAYS_AND_NEW: &[(&str, c_long)] = &[
    ("futex_waitv", 449),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("mseal", 462),
];
const FCHMODAT2: c_long = 452;

/// Calls that are allowed with some arguments.
fn with_conditions() -> Vec<Call> {
    let call = |(name, number): (&'static str, Option<c_long>), any_of| Call {
        name: without_prefix(name),
        number,
        any_of,
    };
    let everywhere = |table: &[(&'static str, c_long)]| (table[0].0, Some(table[0].1));
    let on_x86_64 = |table: &[(&'static str, Option<c_long>)]| table[0];
    vec![
        // A set-ID file in a writable mount is a program that runs as this server's user for every
        // other user of the machine. The mount's `nosuid` applies inside only; the machine itself
        // still sees the bit. These are the calls of systemd's RestrictSUIDSGID=, and O_TMPFILE.
        call(on_x86_64(only_on_x86_64![SYS_chmod]), vec![vec![no_set_id(1)]]),
        call(everywhere(everywhere![SYS_fchmod]), vec![vec![no_set_id(1)]]),
        call(everywhere(everywhere![SYS_fchmodat]), vec![vec![no_set_id(2)]]),
        call(("fchmodat2", Some(FCHMODAT2)), vec![vec![no_set_id(2)]]),
        call(on_x86_64(only_on_x86_64![SYS_creat]), vec![vec![no_set_id(1)]]),
        call(on_x86_64(only_on_x86_64![SYS_open]), opening(1)),
        call(everywhere(everywhere![SYS_openat]), opening(2)),
        call(on_x86_64(only_on_x86_64![SYS_mknod]), nodes(1)),
        call(everywhere(everywhere![SYS_mknodat]), nodes(2)),
        call(everywhere(everywhere![SYS_clone]), vec![vec![masked(0, NAMESPACES, 0)]]),
        call(everywhere(everywhere![SYS_socket]), sockets()),
        call(everywhere(everywhere![SYS_socketpair]), vec![vec![equal(0, libc::AF_UNIX as u32)]]),
    ]
}

/// Opens an existing file, or creates one without set-ID bits. The mode follows the flags.
fn opening(flags: u8) -> Vec<Vec<Condition>> {
    vec![vec![masked(flags, CREATES, 0)], vec![no_set_id(flags + 1)]]
}

/// Files, named pipes and sockets, without set-ID bits. No devices.
fn nodes(mode: u8) -> Vec<Vec<Condition>> {
    let kinds = [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
    kinds.map(|kind| vec![masked(mode, libc::S_IFMT | SET_ID, kind)]).into()
}

/// Allowed sockets, by domain, type and protocol. The others, such as MPTCP, UDP-Lite, SCTP, DCCP,
/// SMC and the ICMP sockets of ping(8), use kernel code that no MCP server needs. Raw sockets
/// require CAP_NET_RAW, which a server has only with `hardening.cap-add`.
fn sockets() -> Vec<Vec<Condition>> {
    let domain = |domain: i32| equal(0, domain as u32);
    let kind = |kind: i32| masked(1, SOCKET_TYPE, kind as u32);
    let protocol = |protocol: i32| equal(2, protocol as u32);
    let mut allowed = vec![
        vec![domain(libc::AF_UNIX)],
        // Runtimes use it to list network interfaces.
        vec![domain(libc::AF_NETLINK), protocol(libc::NETLINK_ROUTE)],
    ];
    for internet in [libc::AF_INET, libc::AF_INET6] {
        for (of, protocols) in [
            (libc::SOCK_STREAM, [0, libc::IPPROTO_TCP]),
            (libc::SOCK_DGRAM, [0, libc::IPPROTO_UDP]),
        ] {
            allowed.extend(protocols.map(|one| vec![domain(internet), kind(of), protocol(one)]));
        }
        allowed.push(vec![domain(internet), kind(libc::SOCK_RAW)]);
    }
    allowed
}

/// All allowed calls, each once.
pub fn table() -> Vec<Call> {
    let always = ALWAYS.iter().chain(ALWAYS_AND_NEW).map(|(name, number)| (name, Some(*number)));
    let x86_64 = ALWAYS_ON_X86_64.iter().map(|(name, number)| (name, *number));
    let always = always.chain(x86_64).map(|(name, number)| Call {
        name: without_prefix(name),
        number,
        any_of: Vec::new(),
    });
    always.chain(with_conditions()).collect()
}

fn without_prefix(name: &'static str) -> &'static str {
    name.strip_prefix("SYS_").unwrap_or(name)
}
