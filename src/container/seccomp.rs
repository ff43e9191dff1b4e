//! The system calls that a contained server may make: an allow-list, in the engine's format.
//!
//! Everything else answers `EPERM`, and calls through a foreign ABI (32-bit, x32) end the process.

use std::{fs, sync::LazyLock};

use sha2::{Digest, Sha256};

/// The profile as the engine takes it, without the white space of the file it comes from.
pub(super) static JSON: LazyLock<String> = LazyLock::new(|| {
    let profile: serde_json::Value =
        serde_json::from_str(include_str!("seccomp.json")).unwrap_or_default();
    profile.to_string()
});

/// The first 16 hex digits of the profile's SHA-256: enough to tell two versions apart.
pub(super) static DIGEST: LazyLock<String> =
    LazyLock::new(|| hex::encode(&Sha256::digest(JSON.as_bytes())[..8]));

/// Whether that is what an engine was given: its text, or a file of it.
pub(super) fn is_ours(given: &str) -> bool {
    given == *JSON
        || (given.starts_with('/') && fs::read_to_string(given).is_ok_and(|text| text == *JSON))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn rules() -> Vec<Value> {
        let profile: Value = serde_json::from_str(&JSON).expect("the profile is JSON");
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        profile["syscalls"].as_array().expect("rules").clone()
    }

    #[test]
    fn what_reaches_beyond_the_process_is_not_allowed() {
        let allowed: BTreeSet<String> = rules()
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
            .flat_map(|rule| rule["names"].as_array().expect("names").clone())
            .map(|name| name.as_str().expect("a name").to_owned())
            .collect();
        for name in [
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "process_madvise",
            "pidfd_getfd",
            "kcmp",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "bpf",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "mount",
            "umount2",
            "mount_setattr",
            "move_mount",
            "fsopen",
            "fsmount",
            "fsconfig",
            "fspick",
            "open_tree",
            "pivot_root",
            "chroot",
            "unshare",
            "setns",
            "clone3",
            "kexec_load",
            "kexec_file_load",
            "init_module",
            "finit_module",
            "delete_module",
            "reboot",
            "swapon",
            "swapoff",
            "sethostname",
            "setdomainname",
            "settimeofday",
            "clock_settime",
            "adjtimex",
            "iopl",
            "ioperm",
            "modify_ldt",
            "syslog",
            "quotactl",
            "fanotify_init",
            "open_by_handle_at",
            "name_to_handle_at",
            "personality",
            "memfd_create",
            "execveat",
            "vmsplice",
            "acct",
            "socketcall",
        ] {
            assert!(!allowed.contains(name), "{name} is allowed");
        }
    }

    #[test]
    fn a_file_of_it_is_ours_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("list");
        let given = place.to_str().expect("its path");
        fs::write(&place, &*JSON).expect("written");
        assert!(is_ours(given) && is_ours(&JSON));
        fs::write(&place, "{}").expect("written");
        assert!(!is_ours(given) && !is_ours("unconfined"));
    }

    #[test]
    fn calls_that_are_only_safe_with_some_arguments_are_never_allowed_outright() {
        for name in ["socket", "socketpair", "clone", "mknod", "mknodat"] {
            for rule in rules() {
                let names = rule["names"].as_array().expect("names");
                if names.iter().any(|n| n == name) {
                    assert!(rule["args"].as_array().is_some_and(|a| !a.is_empty()), "{name}");
                }
            }
        }
    }
}
