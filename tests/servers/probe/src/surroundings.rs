//! What can be read without trying anything.

use std::{fs, path::Path};

use caps::CapSet;

use crate::report::{Capabilities, Limits};

pub struct Status {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub no_new_privs: bool,
    pub seccomp: u8,
}

/// From proc_pid_status(5).
pub fn status() -> Status {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let numbers = |key: &str| -> Vec<u32> {
        text.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .flat_map(str::split_ascii_whitespace)
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    // The effective one of real, effective, saved and file system.
    let effective = |key| numbers(key).get(1).copied().unwrap_or(u32::MAX);
    let first = |key| numbers(key).first().copied().unwrap_or(0);
    Status {
        uid: effective("Uid"),
        gid: effective("Gid"),
        groups: numbers("Groups"),
        no_new_privs: first("NoNewPrivs") == 1,
        seccomp: u8::try_from(first("Seccomp")).unwrap_or(u8::MAX),
    }
}

/// The real user and the effective one.
pub fn ids() -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

pub fn capabilities() -> Capabilities {
    let set = |set| match caps::read(None, set) {
        Ok(held) => {
            let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
            names.sort();
            names
        }
        Err(error) => vec![format!("unreadable: {error}")],
    };
    Capabilities {
        effective: set(CapSet::Effective),
        permitted: set(CapSet::Permitted),
        inheritable: set(CapSet::Inheritable),
        bounding: set(CapSet::Bounding),
        ambient: set(CapSet::Ambient),
    }
}

pub fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// From /proc/net/dev, where every interface has a line after the two of the heading.
pub fn interfaces() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let named = text.lines().skip(2).filter_map(|line| line.split(':').next());
    named.map(|name| name.trim().to_owned()).filter(|name| name != "lo").collect()
}

pub fn limits() -> Limits {
    let number = |paths: [&str; 2]| {
        paths.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
    };
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let row = |title: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(title))?;
        let mut words = line.split_ascii_whitespace();
        Some(format!("{}:{}", words.next()?, words.next()?))
    };
    Limits {
        pids: number(["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]),
        memory: number([
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ]),
        open_files: row("Max open files"),
        core: row("Max core file size"),
    }
}

pub fn host_files() -> Vec<String> {
    let opened = [
        "/etc/shadow",
        "/proc/kcore",
        "/proc/sched_debug",
        "/root/.ssh",
        "/sys/firmware/dmi",
        "/sys/kernel/debug/tracing",
        "/var/lib/docker",
        "/boot/grub",
    ];
    let present = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];
    let readable = |path: &&str| {
        // A masked file reads as empty, a masked folder lists as empty.
        fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
            || fs::File::open(path)
                .and_then(|mut file| std::io::Read::read(&mut file, &mut [0; 1]))
                .is_ok_and(|read| read > 0)
    };
    let mut found: Vec<String> = opened.into_iter().filter(readable).map(str::to_owned).collect();
    found.extend(present.into_iter().filter(|path| Path::new(path).exists()).map(str::to_owned));
    for home in names("/home") {
        found.push(format!("/home/{home}"));
    }
    found
}

/// A file's first line, with one space between its words.
pub fn line(file: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_ascii_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

pub fn processes() -> Vec<String> {
    let numbered = names("/proc").into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    numbered
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} {}", name.trim())
        })
        .collect()
}
