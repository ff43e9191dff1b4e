//! Every attempt of the probe: what it tries, what becomes of it and by what, and where it works.

/// One attempt.
pub struct Row {
    /// The probe's name for it.
    pub name: &'static str,
    pub tries: &'static str,
    pub container: Refusal,
    pub sandbox: Refusal,
    pub control: Control,
}

/// What the probe is told, and what refuses. Where it depends on the kernel, outcomes are told apart
/// by `|`.
pub type Refusal = (&'static str, &'static str);

/// A container of the engine's own making, in which the same attempt, by the same program,
/// succeeds: it is made as it should be, and something could have let it through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Works(With),
    /// Or this comes of it, where the host itself lacks what is tried or may not do it.
    Or(With, &'static str),
    /// None, and why.
    Nowhere(&'static str),
}

impl Control {
    pub fn with(self) -> Option<With> {
        match self {
            Self::Works(with) | Self::Or(with, _) => Some(with),
            Self::Nowhere(_) => None,
        }
    }
}

/// How such a container is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum With {
    /// `docker run`, and the engine's socket.
    Defaults,
    /// `docker run --user 65534:65534`.
    Nobody,
    /// `docker run --init` with every capability and device, no filter and nothing masked: what
    /// `--privileged` is, but for CAP_SYS_RESOURCE, which an engine may lack itself.
    Loose,
    /// The same on a terminal.
    Terminal,
    /// The same in the host's namespaces of processes, network and IPC.
    Host,
    /// `docker run --network NAME`, a network that the user made.
    Network,
}

/// Whether this is what it should be told.
pub fn is_as_expected(outcome: &str, (expected, _): Refusal) -> bool {
    expected.split('|').any(|expected| expected == outcome)
}

impl With {
    pub const ALL: [Self; 6] =
        [Self::Defaults, Self::Nobody, Self::Loose, Self::Terminal, Self::Host, Self::Network];

    /// As a person reads it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Nobody => "defaults, as nobody",
            Self::Loose => "all capabilities, no filter",
            Self::Terminal => "the same, on a terminal",
            Self::Host => "the same, in the host's namespaces",
            Self::Network => "a network of the user's",
        }
    }
}

const fn row(
    name: &'static str,
    tries: &'static str,
    container: Refusal,
    sandbox: Refusal,
    control: Control,
) -> Row {
    Row { name, tries, container, sandbox, control }
}

use Control::{Nowhere, Or, Works};
use With::{Defaults, Host, Loose, Network, Nobody, Terminal};

const SECCOMP: Refusal = ("EPERM", "seccomp");
/// The sandbox's filter answers as a kernel does that lacks the call.
const ABSENT: Refusal = ("ENOSYS", "seccomp");
/// The container's engine may not know the call, and answers `EPERM` then, too.
const SECCOMP_OR_ABSENT: Refusal = ("EPERM|ENOSYS", "seccomp");
const NO_WAY: Refusal = ("ENETUNREACH", "network namespace");

pub const ROWS: &[Row] = &[
    // Mounts and namespaces
    row("mount", "mount(2) of a tmpfs", SECCOMP, ABSENT, Works(Loose)),
    row("remount-root", "make the root writable by mount(2)", SECCOMP, ABSENT, Works(Loose)),
    row("fsopen", "mount by the newer calls, fsopen(2)", SECCOMP, ABSENT, Works(Loose)),
    row("chroot", "chroot(2), to break out of it", SECCOMP, ABSENT, Works(Defaults)),
    row("unshare-user", "unshare(2) a user namespace", SECCOMP, ABSENT, Works(Loose)),
    row("clone-user", "clone(2) into a user namespace", SECCOMP, SECCOMP, Works(Loose)),
    row(
        "clone3-user",
        "clone3(2) into one, whose flags no filter sees",
        ABSENT,
        ABSENT,
        Works(Loose),
    ),
    row(
        "setns",
        "setns(2) to the mounts of another process",
        SECCOMP,
        ("EACCES", "process not dumpable"),
        Works(Host),
    ),
    // Other processes
    row("ptrace", "ptrace(2) of the parent", SECCOMP, ABSENT, Works(Loose)),
    row("process-vm-readv", "read the parent's memory", SECCOMP, ABSENT, Works(Loose)),
    row("pidfd-getfd", "take a file descriptor of the parent", SECCOMP, ABSENT, Works(Loose)),
    row(
        "proc-root",
        "a file of the host through `/proc/PID/root`",
        ("ENOENT", "process namespace"),
        ("EACCES", "process namespace"),
        Works(Host),
    ),
    row(
        "environ-of-others",
        "a secret in `/proc/*/environ` of a process of the host",
        ("not seen", "process namespace"),
        ("not seen", "process namespace"),
        Works(Host),
    ),
    // The kernel
    row("keyctl", "join a keyring", SECCOMP, ABSENT, Works(Loose)),
    row("bpf", "make a map by bpf(2)", SECCOMP, ABSENT, Works(Loose)),
    row("perf-event-open", "perf_event_open(2)", SECCOMP, ABSENT, Works(Loose)),
    row("io-uring", "io_uring_setup(2)", SECCOMP, ABSENT, Or(Loose, "ENOSYS")),
    row("userfaultfd", "userfaultfd(2)", SECCOMP, ABSENT, Or(Loose, "ENOSYS")),
    row("kexec-load", "load another kernel", SECCOMP, ABSENT, Or(Loose, "ENOSYS")),
    row("init-module", "load a module", SECCOMP, ABSENT, Or(Loose, "ENOSYS")),
    row(
        "open-by-handle",
        "a folder outside by a handle that was made up (\"shocker\")",
        SECCOMP,
        ("ENOENT", "no file of the host's to begin with"),
        Works(Loose),
    ),
    row("fanotify", "watch a file system", SECCOMP, ABSENT, Works(Loose)),
    row("reboot", "reboot(2)", SECCOMP, ABSENT, Works(Loose)),
    row("set-time", "settimeofday(2)", SECCOMP, ABSENT, Works(Loose)),
    row("swapoff", "swapoff(2)", SECCOMP, ABSENT, Works(Loose)),
    row("dmesg", "the kernel's log by syslog(2)", SECCOMP, ABSENT, Works(Loose)),
    row(
        "kernel-log",
        "the kernel's log by `/dev/kmsg`",
        ("ENOENT", "devices"),
        ("ENOENT", "devices"),
        Works(Loose),
    ),
    row(
        "kernel-pointers",
        "addresses of the kernel in `/proc/kallsyms`",
        ("zeros", "capability"),
        ("zeros", "mount"),
        Or(Loose, "zeros"),
    ),
    row(
        "kernel-memory",
        "read `/proc/kcore`",
        ("empty|ENOENT", "mount"),
        ("empty|ENOENT", "mount"),
        Or(Loose, "ENOENT"),
    ),
    row("port-io", "the machine's ports, iopl(2)", SECCOMP, ABSENT, Or(Loose, "ENOSYS")),
    row("personality", "switch address randomization off", SECCOMP, ABSENT, Works(Loose)),
    row("sysv-shm", "System V shared memory", SECCOMP, ABSENT, Works(Defaults)),
    row(
        "abi-32-bit",
        "a call by the gate of 32-bit programs",
        ("SIGSYS", "seccomp"),
        ("SIGSYS", "seccomp"),
        Or(Defaults, "SIGSEGV"),
    ),
    row(
        "abi-x32",
        "a call by the numbers of x32",
        ("SIGSYS", "seccomp"),
        ABSENT,
        Or(Loose, "ENOSYS"),
    ),
    // Settings of the host
    row(
        "core-pattern",
        "what the host runs at a crash: `core_pattern`",
        ("EACCES", "mount"),
        ("EACCES|EROFS", "owner, mount"),
        Works(Loose),
    ),
    row(
        "modprobe-path",
        "what the host runs for a module: `kernel.modprobe`",
        ("EACCES|none there", "mount"),
        ("EACCES|none there", "owner, mount"),
        Or(Loose, "none there"),
    ),
    row(
        "sysrq-trigger",
        "`/proc/sysrq-trigger`",
        ("EACCES|none there", "mount"),
        ("EACCES|none there", "owner, mount"),
        Or(Loose, "none there"),
    ),
    row(
        "sys-write",
        "a setting in `/sys`",
        ("EPERM|EACCES|none there", "owner, mount"),
        ("none there", "mount"),
        Or(Loose, "none there"),
    ),
    row(
        "cgroup-make",
        "a control group of its own",
        ("EPERM|EACCES", "mount"),
        ("none there", "mount"),
        Works(Loose),
    ),
    row(
        "cgroup-limit",
        "its own memory limit",
        ("EACCES|EPERM", "owner, mount"),
        ("none there", "mount"),
        Works(Loose),
    ),
    row(
        "release-agent",
        "mount cgroup v1 and set `release_agent`",
        SECCOMP,
        ABSENT,
        Or(Loose, "EBUSY"),
    ),
    // Files
    row(
        "engine-socket",
        "the engine's socket by a link in a mounted folder",
        ("ENOENT", "mount namespace"),
        ("ENOENT", "mount namespace"),
        Works(Defaults),
    ),
    row(
        "init-binary",
        "the host's `docker-init`, which runs as the first process",
        ("EACCES", "owner, mount"),
        ("ENOENT", "mount namespace"),
        Works(Loose),
    ),
    row("device-node", "mknod(2) of a disk", SECCOMP, SECCOMP, Works(Defaults)),
    row("disk", "read the host's disk by such a node", SECCOMP, SECCOMP, Or(Loose, "EPERM")),
    row("write-root", "a file in `/`", ("EROFS", "mount"), ("EROFS", "mount"), Works(Defaults)),
    row(
        "shm-of-host",
        "a file of the host in `/dev/shm`",
        ("ENOENT", "IPC namespace"),
        ("ENOENT", "mount namespace"),
        Works(Host),
    ),
    // Programs and users
    row(
        "exec-tmp",
        "execute what was put in `/tmp`",
        ("EACCES", "mount"),
        ("EACCES", "mount"),
        Works(Defaults),
    ),
    row(
        "exec-shm",
        "execute what was put in `/dev/shm`",
        ("EACCES", "mount"),
        ("EACCES", "mount"),
        Nowhere("the engine mounts it so for everybody"),
    ),
    row(
        "exec-by-loader",
        "have the loader map a library in `/tmp`",
        ("did not run", "mount"),
        ("did not run", "mount"),
        Works(Defaults),
    ),
    row(
        "exec-memory",
        "execute a file in memory, memfd_create(2)",
        SECCOMP,
        ABSENT,
        Works(Defaults),
    ),
    row(
        "setuid-program",
        "a program of root's that is set-user-ID, in a mounted folder",
        ("runs as who started it", "no new privileges"),
        ("runs as who started it", "mount"),
        Works(Nobody),
    ),
    row(
        "set-id-chmod",
        "a set-user-ID and set-group-ID program, chmod(2)",
        SECCOMP,
        SECCOMP,
        Works(Defaults),
    ),
    row("set-user-id-chmod", "a set-user-ID program alone", SECCOMP, SECCOMP, Works(Defaults)),
    row("set-group-id-chmod", "a set-group-ID program alone", SECCOMP, SECCOMP, Works(Defaults)),
    row("set-id-fchmod", "both bits by fchmod(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row("set-id-fchmodat", "both bits by fchmodat(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row(
        "set-id-fchmodat2",
        "both bits by fchmodat2(2)",
        SECCOMP_OR_ABSENT,
        SECCOMP_OR_ABSENT,
        Or(Loose, "ENOSYS"),
    ),
    row("set-id-open", "a new file with both bits, open(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row("set-id-creat", "the same by creat(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row("set-id-openat", "the same by openat(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row(
        "set-id-openat2",
        "the same by openat2(2), whose mode no filter sees",
        ABSENT,
        ABSENT,
        Works(Loose),
    ),
    row(
        "set-id-tmpfile",
        "a file without a name with both bits, O_TMPFILE",
        SECCOMP,
        SECCOMP,
        Or(Defaults, "EOPNOTSUPP"),
    ),
    row("set-id-mknod", "a new file with both bits, mknod(2)", SECCOMP, SECCOMP, Works(Defaults)),
    row(
        "set-id-link",
        "a link to a set-user-ID program in another mount",
        ("EXDEV", "mount"),
        ("EXDEV", "mount"),
        Nowhere("links do not cross mounts"),
    ),
    row(
        "file-capabilities",
        "capabilities on a program, setxattr(2)",
        ABSENT,
        ABSENT,
        Or(Defaults, "EOPNOTSUPP"),
    ),
    row(
        "become-root",
        "setresuid(2) to 0",
        ("EPERM", "capability"),
        ("EINVAL|EPERM", "user namespace"),
        Works(Defaults),
    ),
    row(
        "capset",
        "take back CAP_SYS_ADMIN",
        ("EPERM", "capability"),
        ("EPERM", "capability"),
        Works(Loose),
    ),
    row(
        "type-in",
        "TIOCSTI, to type into the terminal of who started it",
        ("ENOTTY", "no terminal"),
        ("EPERM", "seccomp"),
        Or(Terminal, "EIO"),
    ),
    // Network
    row("vsock", "AF_VSOCK, to the hypervisor", SECCOMP, SECCOMP, Or(Loose, "EAFNOSUPPORT")),
    row("alg", "AF_ALG", SECCOMP, SECCOMP, Or(Loose, "EAFNOSUPPORT")),
    row("packet", "AF_PACKET", SECCOMP, SECCOMP, Or(Loose, "EAFNOSUPPORT")),
    row(
        "raw-ip",
        "a raw socket",
        ("EPERM", "capability"),
        ("EPERM", "capability"),
        Works(Defaults),
    ),
    row("mptcp", "MPTCP", SECCOMP, SECCOMP, Or(Defaults, "EPROTONOSUPPORT")),
    row("udp-lite", "UDP-Lite", SECCOMP, SECCOMP, Or(Defaults, "EPROTONOSUPPORT")),
    row("icmp", "ICMP without a raw socket, as ping(8)", SECCOMP, SECCOMP, Or(Defaults, "EACCES")),
    row("icmp6", "the same in IPv6", SECCOMP, SECCOMP, Or(Defaults, "EACCES")),
    row("sctp", "SCTP", SECCOMP, SECCOMP, Or(Defaults, "ESOCKTNOSUPPORT")),
    row("dccp", "DCCP", SECCOMP, SECCOMP, Or(Defaults, "ESOCKTNOSUPPORT")),
    row(
        "netlink-audit",
        "netlink beyond routes: audit",
        SECCOMP,
        SECCOMP,
        Or(Loose, "EPROTONOSUPPORT"),
    ),
    row("netlink-uevent", "netlink beyond routes: devices", SECCOMP, SECCOMP, Works(Loose)),
    row("metadata-address", "169.254.169.254", NO_WAY, NO_WAY, Or(Defaults, "no answer")),
    row(
        "host-gateway",
        "a service of the host by the bridge's gateway",
        NO_WAY,
        NO_WAY,
        Works(Defaults),
    ),
    row("host-gateway-udp", "the same by UDP", NO_WAY, NO_WAY, Works(Defaults)),
    row(
        "host-loopback",
        "a service on the host's loopback",
        ("ECONNREFUSED", "network namespace"),
        ("ECONNREFUSED", "network namespace"),
        Works(Host),
    ),
    row(
        "abstract-socket",
        "an abstract socket of the host",
        ("ECONNREFUSED", "network namespace"),
        ("ECONNREFUSED", "network namespace"),
        Works(Host),
    ),
    row(
        "dns-anywhere",
        "a question to a DNS server of its choice",
        NO_WAY,
        NO_WAY,
        Works(Defaults),
    ),
    row(
        "dns-of-engine",
        "a question to the engine's own DNS",
        ("ECONNREFUSED", "network namespace"),
        ("ECONNREFUSED", "network namespace"),
        Works(Network),
    ),
    row(
        "dns-resolvers",
        "a question to the host's resolvers",
        NO_WAY,
        ("none there|ENOENT", "no resolver is told"),
        Works(Network),
    ),
    // Its share
    row(
        "fork-bomb",
        "200 tasks",
        ("EAGAIN", "cgroup"),
        ("EAGAIN", "resource limit"),
        Works(Defaults),
    ),
    row(
        "memory",
        "half as much memory again as its limit",
        ("SIGKILL", "cgroup"),
        ("SIGKILL", "cgroup, where there is one"),
        Works(Defaults),
    ),
    row("fill-tmp", "80 MiB in `/tmp`", ("ENOSPC", "mount"), ("ENOSPC", "mount"), Works(Defaults)),
    row("fill-shm", "80 MiB in `/dev/shm`", ("ENOSPC", "mount"), ("ENOSPC", "mount"), Works(Host)),
    row(
        "open-files",
        "2,000 open files",
        ("EMFILE", "resource limit"),
        ("EMFILE", "resource limit"),
        Works(Defaults),
    ),
    row(
        "raise-limits",
        "raise a hard limit",
        ("EPERM", "capability"),
        ("EPERM", "capability"),
        Nowhere("needs CAP_SYS_RESOURCE"),
    ),
    row(
        "priority",
        "a higher priority",
        ("EACCES", "capability"),
        ("EACCES", "capability"),
        Works(Loose),
    ),
    row(
        "realtime",
        "real-time scheduling",
        ("EPERM", "capability"),
        ("EPERM", "capability"),
        Or(Loose, "EPERM"),
    ),
    row(
        "oom-score",
        "others to be killed first when memory runs out",
        ("EACCES", "capability"),
        ("EACCES", "capability"),
        Nowhere("needs CAP_SYS_RESOURCE"),
    ),
];
