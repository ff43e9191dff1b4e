//! What processes use: CPU time, memory, files and threads.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// CPU time of a process and its ended threads, by the nanosecond: `/proc/PID/stat` counts in ticks
/// of 10 ms.
///
/// # Errors
/// If the process is gone.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let clock = clock_getcpuclockid(pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(clock_gettime(clock)?.into())
}

/// CPU time of several processes together.
///
/// # Errors
/// If a process is gone.
pub fn cpu_of(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|&pid| cpu(pid)).sum()
}

/// CPU time of this process.
///
/// # Errors
/// If the clock cannot be read.
pub fn own_cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub files: usize,
    pub threads: usize,
    /// Resident memory.
    pub kib: u64,
    /// The most resident memory since the last [`reset_peak`].
    pub peak_kib: u64,
}

impl Held {
    /// Reads what a process holds.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn by(pid: u32) -> anyhow::Result<Self> {
        let count = |what: &str| {
            Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count())
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| -> anyhow::Result<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            let value = value.and_then(|value| value.split_whitespace().next());
            Ok(value.with_context(|| format!("process {pid} has no {name}"))?.parse()?)
        };
        Ok(Self {
            files: count("fd")?,
            threads: count("task")?,
            kib: kib("VmRSS:")?,
            peak_kib: kib("VmHWM:")?,
        })
    }
}

/// Sets the peak of a process's memory to its present memory.
pub fn reset_peak(pid: u32) {
    // A kernel without this counts from the start.
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// The descendants of a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The name in brackets may hold anything; the parent is the second field after it.
        let parent = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .and_then(|stat| stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            parents.push((child, parent));
        }
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child));
        at += 1;
    }
    found.remove(0);
    found
}
