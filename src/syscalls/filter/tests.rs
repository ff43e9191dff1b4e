//! Evaluates the sandbox's programs and the container's profile for the same calls.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::{container_profile, table::ABSENT};

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Errno(i32),
    Killed,
}

/// A system call as a filter sees it: `struct seccomp_data` of linux/seccomp.h.
#[derive(Debug, Clone, Copy)]
struct Syscall {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

// linux/audit.h
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// 32-bit programs on the same machine.
#[cfg(target_arch = "x86_64")]
const ARCH_32: u32 = 0x4000_0003;
#[cfg(target_arch = "aarch64")]
const ARCH_32: u32 = 0x4000_0028;

impl Syscall {
    fn new(number: i64, arguments: [u64; 6]) -> Self {
        Self { number: number as u32, arch: ARCH, arguments }
    }

    fn word(&self, offset: u32) -> u32 {
        let argument = |at: u32| self.arguments[(at / 8) as usize];
        match offset {
            0 => self.number,
            4 => self.arch,
            low if low >= 16 && low % 8 == 0 => argument(low - 16) as u32,
            high if high >= 16 && high % 8 == 4 => (argument(high - 16) >> 32) as u32,
            other => panic!("no word at {other}"),
        }
    }
}

/// Runs one program as the kernel does. Supports the instructions that seccompiler writes.
fn run(program: &BpfProgram, syscall: &Syscall) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = syscall.word(step.k),
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Result of all filters in the kernel: the strictest action, and of equal ones that of the filter
/// loaded last.
fn in_the_sandbox(filters: &[BpfProgram; 2], syscall: &Syscall) -> Verdict {
    let answers = filters.iter().rev().map(|program| run(program, syscall));
    let strictest = answers.fold(libc::SECCOMP_RET_ALLOW, |so_far, answer| {
        let action = |answer: u32| (answer & libc::SECCOMP_RET_ACTION_FULL) as i32;
        if action(answer) < action(so_far) { answer } else { so_far }
    });
    match strictest & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => Verdict::Allowed,
        libc::SECCOMP_RET_ERRNO => Verdict::Errno((strictest & libc::SECCOMP_RET_DATA) as i32),
        libc::SECCOMP_RET_KILL_PROCESS => Verdict::Killed,
        other => panic!("action {other:#x}"),
    }
}

/// The container's profile, parsed as its format is documented.
struct Profile {
    /// By call name: sets of conditions, and the result of a call that satisfies one of them.
    rules: BTreeMap<String, Vec<(Vec<Condition>, Verdict)>>,
    otherwise: Verdict,
}

impl Profile {
    fn ours() -> Self {
        let profile = container_profile();
        let errno = |value: &Value| Verdict::Errno(value.as_i64().expect("an errno") as i32);
        let mut rules: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for rule in profile["syscalls"].as_array().expect("rules") {
            let verdict = match rule["action"].as_str() {
                Some("SCMP_ACT_ALLOW") => Verdict::Allowed,
                Some("SCMP_ACT_ERRNO") => errno(&rule["errnoRet"]),
                other => panic!("action {other:?}"),
            };
            let conditions = rule["args"].as_array().map_or(&[][..], Vec::as_slice).iter();
            let conditions = conditions.map(|condition| {
                assert_eq!(condition["op"], "SCMP_CMP_MASKED_EQ");
                let of = |key: &str| condition[key].as_u64().expect("a number") as u32;
                Condition { argument: of("index") as u8, mask: of("value"), value: of("valueTwo") }
            });
            let conditions: Vec<_> = conditions.collect();
            for name in rule["names"].as_array().expect("names") {
                let name = name.as_str().expect("a name").to_owned();
                rules.entry(name).or_default().push((conditions.clone(), verdict));
            }
        }
        Self { rules, otherwise: errno(&profile["defaultErrnoRet"]) }
    }

    fn verdict(&self, name: &str, arguments: &[u64; 6]) -> Verdict {
        let holds = |one: &Condition| {
            arguments[usize::from(one.argument)] & u64::from(one.mask) == u64::from(one.value)
        };
        let rules = self.rules.get(name).map_or(&[][..], Vec::as_slice);
        let applies = rules.iter().find(|(conditions, _)| conditions.iter().all(holds));
        applies.map_or(self.otherwise, |(_, verdict)| *verdict)
    }
}

/// Values of one argument on both sides of each of the call's conditions.
fn candidates(call: &Call, argument: u8) -> Vec<u64> {
    let mut values = BTreeSet::from([0, u64::from(u32::MAX), 1 << 32]);
    let conditions = call.any_of.iter().flatten().filter(|one| one.argument == argument);
    for Condition { mask, value, .. } in conditions.copied() {
        let bits = (0..32).map(|bit| 1_u32 << bit).filter(|bit| mask & bit != 0);
        // For a mask of all bits, the lowest and the highest represent the others.
        let few = |bit: &u32| mask != u32::MAX || *bit == 1 || *bit == 1 << 31;
        let bits = bits.filter(few);
        for near in [value, !mask, value | !mask, mask].into_iter().chain(bits.map(|b| value ^ b)) {
            values.insert(u64::from(near));
        }
        // The kernel ignores the upper half of such an argument.
        values.insert(u64::from(value) | 1 << 40);
    }
    if call.name == "ioctl" && argument == 1 {
        values.extend(TERMINAL_REQUESTS.map(u64::from));
    }
    values.into_iter().collect()
}

#[test]
fn both_runtimes_allow_the_same_calls() {
    let (filters, profile) = (sandbox_filters().expect("filters"), Profile::ours());
    let mut compared = 0;
    for call in table() {
        let Some(number) = call.number else { continue };
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|at| candidates(&call, at));
        for a in &first {
            for b in &second {
                for c in &third {
                    for d in &fourth {
                        let arguments = [*a, *b, *c, *d, 0, 0];
                        let sandbox = in_the_sandbox(&filters, &Syscall::new(number, arguments));
                        let container = profile.verdict(call.name, &arguments);
                        let request = arguments[1] as u32;
                        if call.name == "ioctl" && TERMINAL_REQUESTS.contains(&request) {
                            assert_eq!(sandbox, Verdict::Errno(libc::EPERM));
                        } else {
                            assert_eq!(sandbox, container, "{} {arguments:x?}", call.name);
                        }
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 10_000, "{compared}");
}

#[test]
fn calls_outside_the_table_are_refused_in_both() {
    let (filters, profile) = (sandbox_filters().expect("filters"), Profile::ours());
    let known: BTreeSet<i64> = table().iter().filter_map(|call| call.number).collect();
    for number in (0..1024).filter(|number| !known.contains(number)) {
        let syscall = Syscall::new(number, [0; 6]);
        assert_eq!(in_the_sandbox(&filters, &syscall), Verdict::Errno(libc::ENOSYS), "{number}");
    }
    assert_eq!(profile.verdict("ptrace", &[0; 6]), Verdict::Errno(libc::EPERM));
    for name in ABSENT {
        assert_eq!(profile.verdict(name, &[0; 6]), Verdict::Errno(libc::ENOSYS));
    }
}

#[test]
fn calls_of_another_abi_are_refused() {
    let filters = sandbox_filters().expect("filters");
    const X32: u32 = 0x4000_0000;
    for call in table() {
        let Some(number) = call.number else { continue };
        let syscall = Syscall::new(number, [0; 6]);
        let x32 = Syscall { number: syscall.number | X32, ..syscall };
        assert_eq!(in_the_sandbox(&filters, &x32), Verdict::Errno(libc::ENOSYS), "{}", call.name);
        let other = Syscall { arch: ARCH_32, ..syscall };
        assert_eq!(in_the_sandbox(&filters, &other), Verdict::Killed, "{}", call.name);
    }
}

/// Result for a call by name, which must be the same in both runtimes.
fn verdict(name: &str, arguments: &[u32]) -> Verdict {
    let mut six = [0; 6];
    for (to, from) in six.iter_mut().zip(arguments) {
        *to = u64::from(*from);
    }
    let filters = sandbox_filters().expect("filters");
    let call = table().into_iter().find(|call| call.name == name).expect("a call of the table");
    let number = call.number.expect("a call of this architecture");
    let sandbox = in_the_sandbox(&filters, &Syscall::new(number, six));
    assert_eq!(sandbox, Profile::ours().verdict(name, &six));
    sandbox
}

#[test]
fn set_id_bits_are_refused_in_every_mode_argument() {
    const CREATE: u32 = libc::O_CREAT as u32;
    const TMPFILE: u32 = libc::O_TMPFILE as u32;
    let allowed = |name, arguments: &[u32]| {
        assert_eq!(verdict(name, arguments), Verdict::Allowed, "{name} {arguments:x?}");
    };
    for mode in [0, 0o644, 0o755, 0o777, 0o1777, libc::S_IFREG | 0o600] {
        allowed("fchmod", &[3, mode]);
        allowed("fchmodat", &[3, 0, mode]);
        allowed("fchmodat2", &[3, 0, mode, 0]);
        allowed("openat", &[3, 0, CREATE, mode]);
        allowed("openat", &[3, 0, TMPFILE, mode]);
    }
    for (name, before) in [
        ("fchmod", &[3][..]),
        ("fchmodat", &[3, 0]),
        ("fchmodat2", &[3, 0]),
        ("mknodat", &[3, 0]),
        ("openat", &[3, 0, CREATE]),
        ("openat", &[3, 0, TMPFILE]),
        ("openat", &[3, 0, CREATE | TMPFILE]),
        #[cfg(target_arch = "x86_64")]
        ("chmod", &[0]),
        #[cfg(target_arch = "x86_64")]
        ("creat", &[0]),
        #[cfg(target_arch = "x86_64")]
        ("mknod", &[0]),
        #[cfg(target_arch = "x86_64")]
        ("open", &[0, CREATE]),
        #[cfg(target_arch = "x86_64")]
        ("open", &[0, TMPFILE]),
    ] {
        for mode in [0o4755, 0o2755, 0o6755, 0o4000, 0o2000, libc::S_IFREG | 0o4755] {
            let arguments = [before, &[mode]].concat();
            let refused = Verdict::Errno(libc::EPERM);
            assert_eq!(verdict(name, &arguments), refused, "{name} {arguments:x?}");
        }
    }
    // A call that creates no file has no mode argument: the register's value does not count.
    allowed("openat", &[3, 0, 0, 0o6755]);
    // The kernel drops these bits from the mode of a folder.
    allowed("mkdirat", &[3, 0, 0o2755]);
}

#[test]
fn sockets_are_allowed_by_domain_type_and_protocol() {
    const SMC: i32 = 256;
    const SOCK_PACKET: i32 = 10;
    let (stream, datagram, raw) = (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW);
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut cases = vec![
        (true, libc::AF_UNIX, stream, 0),
        (true, libc::AF_UNIX, datagram | flags, 0),
        (true, libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
        (true, libc::AF_NETLINK, raw | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE),
        (false, libc::AF_NETLINK, raw, libc::NETLINK_AUDIT),
        (false, libc::AF_PACKET, raw, 0),
        (false, libc::AF_VSOCK, stream, 0),
    ];
    for internet in [libc::AF_INET, libc::AF_INET6] {
        cases.extend([
            (true, internet, stream | flags, 0),
            (true, internet, stream, libc::IPPROTO_TCP),
            (true, internet, datagram | flags, 0),
            (true, internet, datagram, libc::IPPROTO_UDP),
            // CAP_NET_RAW decides on these.
            (true, internet, raw, libc::IPPROTO_ICMP),
            (false, internet, stream, libc::IPPROTO_MPTCP),
            (false, internet, stream, libc::IPPROTO_SCTP),
            (false, internet, stream, SMC),
            (false, internet, stream, libc::IPPROTO_UDP),
            (false, internet, datagram, libc::IPPROTO_UDPLITE),
            (false, internet, datagram, libc::IPPROTO_ICMP),
            (false, internet, datagram, libc::IPPROTO_ICMPV6),
            (false, internet, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
            (false, internet, libc::SOCK_DCCP, libc::IPPROTO_DCCP),
            (false, internet, SOCK_PACKET, 0),
        ]);
    }
    for (allowed, domain, kind, protocol) in cases {
        let arguments = [domain, kind, protocol].map(|argument| argument as u32);
        let expected = if allowed { Verdict::Allowed } else { Verdict::Errno(libc::EPERM) };
        assert_eq!(verdict("socket", &arguments), expected, "{arguments:?}");
    }
}

#[test]
fn calls_beyond_the_process_are_not_in_the_table() {
    let names: BTreeSet<&str> = table().iter().map(|call| call.name).collect();
    assert_eq!(names.len(), table().len(), "a call is listed twice");
    for name in [
        "acct",
        "add_key",
        "adjtimex",
        "bpf",
        "chroot",
        "clock_settime",
        "clone3",
        "delete_module",
        "execveat",
        "fanotify_init",
        "finit_module",
        "fsconfig",
        "fsetxattr",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "ioperm",
        "iopl",
        "kcmp",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lsetxattr",
        "memfd_create",
        "modify_ldt",
        "mount",
        "mount_setattr",
        "move_mount",
        "name_to_handle_at",
        "open_by_handle_at",
        "open_tree",
        "openat2",
        "perf_event_open",
        "personality",
        "pidfd_getfd",
        "pivot_root",
        "process_madvise",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
        "quotactl",
        "reboot",
        "request_key",
        "sched_setaffinity",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "setxattr",
        "setxattrat",
        "shmget",
        "socketcall",
        "swapoff",
        "swapon",
        "syslog",
        "umount2",
        "unshare",
        "userfaultfd",
        "vmsplice",
    ] {
        assert!(!names.contains(name), "{name} is allowed");
    }
}

#[test]
fn programs_fit_the_kernels_length_limit() {
    // BPF_MAXINSNS of linux/bpf_common.h.
    assert!(sandbox_filters().expect("filters").iter().all(|program| program.len() <= 4096));
}
