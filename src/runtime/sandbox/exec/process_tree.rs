//! Processes of a tree, read from /proc.

use std::fs;

use nix::unistd::{Pid, SysconfVar, getpid, sysconf};

/// Which processes belong to a program, seen from the process that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// All of the process namespace, with the contents of its /tmp.
    Namespace,
    /// Those below the process itself. /tmp is shared with others, so it does not count.
    Own,
}

impl Tree {
    /// Bytes of memory and seconds of processor time. Memory is each process's private memory,
    /// shared memory without a file, swapped memory, and /tmp if it belongs only to the tree. The
    /// calling process counts only with its time and that of its ended children.
    pub(super) fn usage(self) -> (u64, f64) {
        let (pids, tmp) = match self {
            Self::Namespace => (all(), in_tmp()),
            Self::Own => (below(getpid()), 0),
        };
        let of = |pid: &Pid| if *pid == getpid() { 0 } else { memory(*pid) };
        let memory = tmp + pids.iter().map(of).sum::<u64>();
        let others = pids.into_iter().filter(|pid| *pid != getpid());
        let ticks: u64 = others.chain([getpid()]).map(ticks).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        (memory, ticks as f64 / per_second as f64)
    }
}

fn in_tmp() -> u64 {
    nix::sys::statvfs::statvfs("/tmp")
        .map_or(0, |tmp| (tmp.blocks() - tmp.blocks_free()) * tmp.fragment_size())
}

/// All visible processes.
fn all() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw);
    entries.flatten().filter_map(pid).collect()
}

/// Processes below one.
pub(super) fn below(top: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, Pid::from_raw(stat(pid)?.get(1)?.parse().ok()?))))
        .collect();
    let mut found = vec![top];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let children = parents.iter().filter(|(pid, of)| *of == parent && !found.contains(pid));
        let children: Vec<Pid> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        at += 1;
    }
    found.split_off(1)
}

/// Fields of a process's stat from its state on. They follow the name, which is in brackets and may
/// contain anything.
fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// Time in user and system mode, and that of its ended children.
fn ticks(pid: Pid) -> u64 {
    let fields = stat(pid).unwrap_or_default();
    fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn memory(pid: Pid) -> u64 {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let counts = |line: &&str| {
        ["RssAnon:", "RssShmem:", "VmSwap:"].iter().any(|name| line.starts_with(name))
    };
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    status.lines().filter(counts).filter_map(kib).sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Child, Command, Stdio},
    };

    use nix::sys::signal::{Signal, kill};

    use super::*;

    /// A shell that has started executing the text.
    fn shell(text: &str) -> (Child, Pid) {
        let mut shell = Command::new("bash");
        let shell = shell.args(["-c", text]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        (child, pid)
    }

    #[test]
    fn only_descendants_are_found_at_any_depth() {
        let deep = "sleep 60 & bash -c 'sleep 60 & echo; wait' & wait";
        let ((mut one, top), (mut two, other)) = (shell(deep), shell(deep));
        let found = below(top);
        assert_eq!(found.len(), 3);
        let mine = below(getpid());
        assert!(found.iter().chain([&top, &other]).all(|pid| mine.contains(pid)));
        let others = below(other);
        assert!(!found.contains(&other) && others.iter().all(|pid| !found.contains(pid)));
        for pid in found.into_iter().chain(others) {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        for (child, pid) in [(&mut one, top), (&mut two, other)] {
            // It may have ended with those it waited for.
            let _ = kill(pid, Signal::SIGKILL);
            child.wait().unwrap();
        }
    }

    #[test]
    fn memory_and_processor_time_are_counted() {
        let busy = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); for i in {1..200000}; do :; done; echo; read";
        let (mut child, pid) = shell(busy);
        assert!(memory(pid) > 30_000_000, "{}", memory(pid));
        assert!(ticks(pid) > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((memory(Pid::from_raw(i32::MAX)), ticks(Pid::from_raw(i32::MAX))), (0, 0));
    }
}
