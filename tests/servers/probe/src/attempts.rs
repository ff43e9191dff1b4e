//! What can only be known by trying.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{self, Command, Stdio},
    time::Duration,
};

use libc::{c_int, c_long};

/// A number that no process has: the kernel's highest is 4194304.
const NOBODY: c_long = 0x7fff_fff0;

pub fn writes() -> BTreeMap<String, String> {
    let folders = [
        "/",
        "/app",
        "/bin",
        "/boot",
        "/data",
        "/dev",
        "/dev/mqueue",
        "/dev/shm",
        "/etc",
        "/home",
        "/lib",
        "/mnt",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/sys/fs/cgroup",
        "/tmp",
        "/usr",
        "/usr/bin",
        "/usr/local",
        "/var",
        "/var/lib",
        "/var/log",
        "/var/run",
        "/var/tmp",
    ];
    let here = std::env::current_dir().ok().map(|dir| dir.to_string_lossy().into_owned());
    let folders = folders.into_iter().map(str::to_owned).chain(here);
    folders.map(|folder| (folder.clone(), outcome(write_in(Path::new(&folder))))).collect()
}

fn write_in(folder: &Path) -> io::Result<()> {
    let file = folder.join(format!(".probe-{}", process::id()));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
    fs::remove_file(file)
}

/// A file that is no program: where execution is allowed, its content is the objection.
pub fn exec_from_tmp() -> String {
    let file = format!("/tmp/.probe-{}.bin", process::id());
    let attempt = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut open = options.write(true).create_new(true).mode(0o700).open(&file)?;
        io::Write::write_all(&mut open, b"no program\n")?;
        drop(open);
        let ran = Command::new(&file).stdin(Stdio::null()).stdout(Stdio::null()).status();
        match ran.map(|_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => Ok(()),
            other => other,
        }
    };
    let tried = attempt();
    let _ = fs::remove_file(&file);
    outcome(tried)
}

pub fn connects() -> BTreeMap<String, String> {
    // Port 9 (discard) is served nowhere; who refuses it was reached.
    let addresses = [Ipv4Addr::LOCALHOST, gateway().unwrap_or(Ipv4Addr::new(172, 17, 0, 1))];
    addresses
        .into_iter()
        .map(|address| {
            let address = SocketAddr::from((address, 9));
            let tried = TcpStream::connect_timeout(&address, Duration::from_millis(500));
            (address.to_string(), outcome(tried.map(drop)))
        })
        .collect()
}

/// The default route's gateway, from /proc/net/route, where addresses are in memory's own order.
fn gateway() -> Option<Ipv4Addr> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (to, by) = (words.next()?, words.next()?);
        let by = u32::from_str_radix(by, 16).ok()?;
        (to == "00000000").then(|| Ipv4Addr::from(by.to_ne_bytes()))
    })
}

pub fn sockets() -> BTreeMap<String, String> {
    let (stream, datagram, raw, packet) =
        (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET);
    [
        ("unix", libc::AF_UNIX, stream, 0),
        ("inet", libc::AF_INET, stream, 0),
        ("inet-udp", libc::AF_INET, datagram, 0),
        ("inet-raw", libc::AF_INET, raw, libc::IPPROTO_ICMP),
        ("inet-mptcp", libc::AF_INET, stream, libc::IPPROTO_MPTCP),
        ("inet-udplite", libc::AF_INET, datagram, libc::IPPROTO_UDPLITE),
        ("inet-icmp", libc::AF_INET, datagram, libc::IPPROTO_ICMP),
        ("inet6", libc::AF_INET6, stream, 0),
        ("inet6-icmp", libc::AF_INET6, datagram, libc::IPPROTO_ICMPV6),
        ("netlink-route", libc::AF_NETLINK, raw, libc::NETLINK_ROUTE),
        ("netlink-audit", libc::AF_NETLINK, raw, libc::NETLINK_AUDIT),
        ("netlink-crypto", libc::AF_NETLINK, raw, libc::NETLINK_CRYPTO),
        ("netlink-netfilter", libc::AF_NETLINK, raw, libc::NETLINK_NETFILTER),
        ("netlink-uevent", libc::AF_NETLINK, raw, libc::NETLINK_KOBJECT_UEVENT),
        ("packet", libc::AF_PACKET, raw, 0),
        ("vsock", libc::AF_VSOCK, stream, 0),
        ("alg", libc::AF_ALG, packet, 0),
        ("bluetooth", libc::AF_BLUETOOTH, raw, 0),
        ("can", libc::AF_CAN, raw, 1),
        ("tipc", libc::AF_TIPC, packet, 0),
        ("xdp", libc::AF_XDP, raw, 0),
        ("rds", libc::AF_RDS, packet, 0),
        ("key", libc::AF_KEY, raw, 2),
        ("x25", libc::AF_X25, packet, 0),
    ]
    .into_iter()
    .map(|(name, family, kind, protocol): (&str, c_int, c_int, c_int)| {
        let arguments = [c_long::from(family), c_long::from(kind), c_long::from(protocol)];
        (name.to_owned(), outcome(call(libc::SYS_socket, &arguments).and_then(close).map(drop)))
    })
    .collect()
}

/// Each with arguments that do nothing, and that the kernel itself answers by something else than
/// `EPERM` wherever an ordinary process may make the call.
pub fn calls() -> BTreeMap<String, String> {
    let descriptor = |number, arguments: &[c_long]| call(number, arguments).and_then(close);
    let attempts = [
        ("ptrace", call(libc::SYS_ptrace, &[2, NOBODY, 0, 0])),
        ("process_vm_readv", call(libc::SYS_process_vm_readv, &[NOBODY, 0, 0, 0, 0, 0])),
        ("process_vm_writev", call(libc::SYS_process_vm_writev, &[NOBODY, 0, 0, 0, 0, 0])),
        ("kcmp", call(libc::SYS_kcmp, &[NOBODY, NOBODY, 0, 0, 0])),
        ("pidfd_getfd", call(libc::SYS_pidfd_getfd, &[-1, 0, 0])),
        ("io_uring_setup", call(libc::SYS_io_uring_setup, &[0, 0])),
        ("io_uring_enter", call(libc::SYS_io_uring_enter, &[-1, 0, 0, 0, 0, 0])),
        ("bpf", call(libc::SYS_bpf, &[9999, 0, 0])),
        ("perf_event_open", call(libc::SYS_perf_event_open, &[0, 0, -1, -1, 0])),
        ("keyctl", call(libc::SYS_keyctl, &[0, -3, 0])),
        ("add_key", call(libc::SYS_add_key, &[0, 0, 0, 0, 0])),
        ("request_key", call(libc::SYS_request_key, &[0, 0, 0, 0])),
        ("userfaultfd", descriptor(libc::SYS_userfaultfd, &[0])),
        ("memfd_create", descriptor(libc::SYS_memfd_create, &[c"probe".as_ptr() as c_long, 0])),
        ("mount", call(libc::SYS_mount, &[0, 0, 0, 0, 0])),
        ("umount2", call(libc::SYS_umount2, &[0, 0])),
        ("open_tree", call(libc::SYS_open_tree, &[-1, 0, 0])),
        ("move_mount", call(libc::SYS_move_mount, &[-1, 0, -1, 0, 0])),
        ("fsopen", call(libc::SYS_fsopen, &[0, 0])),
        ("pivot_root", call(libc::SYS_pivot_root, &[0, 0])),
        ("chroot", call(libc::SYS_chroot, &[0])),
        ("unshare", call(libc::SYS_unshare, &[0])),
        ("setns", call(libc::SYS_setns, &[-1, 0])),
        ("clone3", call(libc::SYS_clone3, &[0, 0])),
        ("personality", call(libc::SYS_personality, &[0xffff_ffff])),
        ("init_module", call(libc::SYS_init_module, &[0, 0, 0])),
        ("finit_module", call(libc::SYS_finit_module, &[-1, 0, 0])),
        ("kexec_load", call(libc::SYS_kexec_load, &[0, 0, 0, 0])),
        ("name_to_handle_at", call(libc::SYS_name_to_handle_at, &[-1, 0, 0, 0, 0])),
        ("open_by_handle_at", call(libc::SYS_open_by_handle_at, &[-1, 0, 0])),
        ("fanotify_init", call(libc::SYS_fanotify_init, &[-1, 0])),
        ("quotactl", call(libc::SYS_quotactl, &[0, 0, 0, 0])),
        ("syslog", call(libc::SYS_syslog, &[10, 0, 0])),
        ("sethostname", call(libc::SYS_sethostname, &[0, -1])),
        ("settimeofday", call(libc::SYS_settimeofday, &[0, 0])),
        ("swapoff", call(libc::SYS_swapoff, &[0])),
    ];
    attempts.into_iter().map(|(name, tried)| (name.to_owned(), outcome(tried.map(drop)))).collect()
}

pub fn proc_writes() -> BTreeMap<String, String> {
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
    ];
    // Opened, not written to.
    let open = |file| OpenOptions::new().write(true).open(file);
    files.into_iter().map(|file| (file.to_owned(), outcome(open(file).map(drop)))).collect()
}

pub(crate) fn call(number: c_long, arguments: &[c_long]) -> io::Result<c_long> {
    let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
    #[expect(
        unsafe_code,
        reason = "no crate calls what no program should; arguments are null, invalid or \
                  constants, or point to what the caller has for it"
    )]
    // SAFETY: see above; pointers are to constant C strings, for reading, and to buffers of the
    // caller that are as large as the kernel reads or writes.
    let answer = unsafe {
        libc::syscall(
            number,
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
            argument(5),
        )
    };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

pub(crate) fn close(descriptor: c_long) -> io::Result<c_long> {
    call(libc::SYS_close, &[descriptor])
}

pub(crate) fn outcome(tried: io::Result<()>) -> String {
    let Err(error) = tried else { return "ok".to_owned() };
    let name = match error.raw_os_error() {
        Some(libc::EPERM) => "EPERM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::EROFS) => "EROFS",
        Some(libc::ENOENT) => "ENOENT",
        Some(libc::ENOTDIR) => "ENOTDIR",
        Some(libc::ENOSYS) => "ENOSYS",
        Some(libc::EINVAL) => "EINVAL",
        Some(libc::EFAULT) => "EFAULT",
        Some(libc::EBADF) => "EBADF",
        Some(libc::ESRCH) => "ESRCH",
        Some(libc::ENOKEY) => "ENOKEY",
        Some(libc::E2BIG) => "E2BIG",
        Some(libc::EAFNOSUPPORT) => "EAFNOSUPPORT",
        Some(libc::EPROTONOSUPPORT) => "EPROTONOSUPPORT",
        Some(libc::ESOCKTNOSUPPORT) => "ESOCKTNOSUPPORT",
        Some(libc::ECONNREFUSED) => "ECONNREFUSED",
        Some(libc::ENETUNREACH) => "ENETUNREACH",
        Some(libc::EHOSTUNREACH) => "EHOSTUNREACH",
        Some(libc::ETIMEDOUT) => "ETIMEDOUT",
        Some(libc::EAGAIN) => "EAGAIN",
        Some(libc::ENXIO) => "ENXIO",
        Some(libc::ENODEV) => "ENODEV",
        Some(libc::ENOTTY) => "ENOTTY",
        Some(libc::ENOSPC) => "ENOSPC",
        Some(libc::EMFILE) => "EMFILE",
        Some(libc::ENOMEM) => "ENOMEM",
        Some(libc::ENOEXEC) => "ENOEXEC",
        Some(libc::ESTALE) => "ESTALE",
        Some(libc::EIO) => "EIO",
        Some(libc::EBUSY) => "EBUSY",
        Some(libc::EXDEV) => "EXDEV",
        Some(libc::EOPNOTSUPP) => "EOPNOTSUPP",
        Some(number) => return format!("errno {number}"),
        None if error.kind() == io::ErrorKind::TimedOut => "ETIMEDOUT",
        None => return error.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_is_the_kernels_error() {
        assert_eq!(call(libc::SYS_getpid, &[]).unwrap(), c_long::from(process::id() as i32));
        assert_eq!(outcome(call(libc::SYS_close, &[-1]).map(drop)), "EBADF");
        assert_eq!(sockets()["unix"], "ok");
    }
}
