//! More than its share. Each stops of itself a good way beyond the limits that the tests set.

use std::{
    fs,
    fs::File,
    io::{self, Write},
    process,
    sync::mpsc,
    thread,
};

use libc::c_long;

use super::{Attempt, refused};
use crate::attempts::call;

const MIB: usize = 1 << 20;

pub(super) const ALL: &[Attempt] = &[
    ("fork-bomb", |_| fork_bomb()),
    ("memory", |told| {
        let mib = told.get("memory").and_then(|mib| mib.parse().ok());
        memory(mib.unwrap_or(192))
    }),
    ("fill-tmp", |_| fill("/tmp")),
    ("fill-shm", |_| fill("/dev/shm")),
    ("open-files", |_| {
        let mut open = Vec::new();
        for _ in 0..2_000 {
            open.push(File::open("/dev/null")?);
        }
        Ok(())
    }),
    ("raise-limits", |_| {
        // One file more than it may have, of a hard limit that it may only lower.
        let mut limit = [0_u64; 2];
        let files = c_long::from(libc::RLIMIT_NOFILE);
        call(libc::SYS_prlimit64, &[0, files, 0, limit.as_mut_ptr() as c_long])?;
        limit = [limit[1] + 1; 2];
        call(libc::SYS_prlimit64, &[0, files, limit.as_mut_ptr() as c_long, 0]).map(drop)
    }),
    ("priority", |_| call(libc::SYS_setpriority, &[libc::PRIO_PROCESS.into(), 0, -20]).map(drop)),
    ("realtime", |_| {
        let mut priority = [1_i32];
        let fifo = c_long::from(libc::SCHED_FIFO);
        call(libc::SYS_sched_setscheduler, &[0, fifo, priority.as_mut_ptr() as c_long]).map(drop)
    }),
];

/// Tasks that wait: to the kernel, a thread counts as a process does.
fn fork_bomb() -> io::Result<()> {
    let mut waiting = Vec::new();
    let mut tried = Ok(());
    for _ in 0..200 {
        let (end, ended) = mpsc::channel::<()>();
        let spawned = thread::Builder::new().stack_size(64 << 10).spawn(move || ended.recv());
        match spawned {
            Ok(thread) => waiting.push((end, thread)),
            Err(error) => {
                tried = Err(error);
                break;
            }
        }
    }
    for (end, thread) in waiting {
        drop(end);
        let _ = thread.join();
    }
    tried
}

fn memory(mib: usize) -> io::Result<()> {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        let mut part = Vec::new();
        part.try_reserve_exact(MIB).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // Not zeros, which cost nothing.
        part.resize(MIB, 1);
        held.push(part);
    }
    if held.iter().all(|part| part.last() == Some(&1)) { Ok(()) } else { refused("not kept") }
}

fn fill(folder: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let file = format!("{folder}/escape-{}", process::id());
    let attempt = || {
        let mut open = File::create(&file)?;
        for _ in 0..80 {
            open.write_all(&vec![1; MIB])?;
        }
        Ok(())
    };
    let tried = attempt();
    let _ = fs::remove_file(&file);
    tried
}
