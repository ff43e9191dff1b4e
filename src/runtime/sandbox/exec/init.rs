//! First process of the sandbox's process namespace. It starts the program, reaps orphaned
//! processes, checks the whole tree's memory and executes the proxy's orders. The tree ends with
//! it: the kernel kills all processes of a process namespace whose first process has ended.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setsid},
};
use zeroize::Zeroizing;

use super::{process_tree::Tree, sys};
use crate::sandbox::protocol::{Failure, Plan, Report, TERMINATE, USAGE};

/// Interval between checks of the tree's memory.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Exit code of a tree that was killed.
const KILLED_EXIT_CODE: i64 = 137;

/// Starts the program and returns its exit code after it has ended or the proxy has gone.
pub(super) fn run(
    plan: Plan,
    control: &mut UnixStream,
    streams: [OwnedFd; 3],
    landlock: bool,
    tree: Tree,
) -> Result<i64, Failure> {
    let children = signal_fd()?;
    // Memory that processes share counts for each of them here. A control group counts it once.
    let memory = if plan.memory_is_held { u64::MAX } else { plan.memory };
    if plan.program.is_none() {
        report(control, &Report::Started { landlock });
        return Ok(0);
    }
    let main = spawn(plan, streams)?;
    report(control, &Report::Started { landlock });
    let (code, reason) = watch(control, &children, main, memory, tree);
    report(control, &Report::Ended { code, reason });
    Ok(code)
}

fn signal_fd() -> Result<SignalFd, Failure> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| {
            Failure::new(format!("the sandbox can't wait for children: {}", errno.desc()))
        })
}

/// Forks and executes the program. Returns after exec has succeeded.
fn spawn(plan: Plan, streams: [OwnedFd; 3]) -> Result<Pid, Failure> {
    let failed = |what: &str, errno: Errno| {
        Failure::new(format!("the sandbox can't {what}: {}", errno.desc()))
    };
    let image = Image::new(&plan)?;
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make a pipe", errno))?;
    match sys::fork().map_err(|errno| failed("start a process", errno))? {
        ForkResult::Child => {
            let errno = image.execute(&streams);
            let _ = File::from(write).write_all(&(errno as i32).to_ne_bytes());
            std::process::exit(127);
        }
        ForkResult::Parent { child } => {
            drop((write, streams));
            let mut errno = [0; 4];
            // The pipe closes by itself when exec succeeds.
            match File::from(read).read_exact(&mut errno) {
                Err(_) => Ok(child),
                Ok(()) => Err(not_executed(&plan, Errno::from_raw(i32::from_ne_bytes(errno)))),
            }
        }
    }
}

fn not_executed(plan: &Plan, errno: Errno) -> Failure {
    let program = plan.program.as_deref().unwrap_or(Path::new("")).display();
    let failure = Failure::new(format!("`{program}` can't be executed: {}", errno.desc()));
    match errno {
        Errno::ENOENT => failure.remedy(
            "the program, its interpreter or its loader is not visible inside: mount the folder \
             that holds it",
        ),
        Errno::EACCES => failure.remedy(
            "it must be executable for everyone; nothing can be executed from /tmp or a writable \
             mount unless the server's `hardening` says `exec-tmp = true`",
        ),
        _ => failure,
    }
}

/// Arguments of execve.
struct Image {
    program: CString,
    arguments: Vec<CString>,
    /// Variables, each with a NUL byte at the end.
    environment: Vec<Zeroizing<Vec<u8>>>,
}

impl Image {
    fn new(plan: &Plan) -> Result<Self, Failure> {
        let text = |text: &[u8]| {
            CString::new(text)
                .map_err(|_| Failure::new("an argument or a variable contains a NUL byte"))
        };
        let program = plan.program.as_deref().unwrap_or(Path::new(""));
        Ok(Self {
            program: text(program.as_os_str().as_bytes())?,
            arguments: plan
                .arguments
                .iter()
                .map(|argument| text(argument.as_bytes()))
                .collect::<Result<_, _>>()?,
            environment: plan
                .environment
                .iter()
                .map(|(name, value)| Zeroizing::new(format!("{name}={value}\0").into_bytes()))
                .collect(),
        })
    }

    /// Becomes the program. Returns only on failure.
    fn execute(&self, [stdin, stdout, stderr]: &[OwnedFd; 3]) -> Errno {
        let environment = self.environment.iter().map(|pair| CStr::from_bytes_with_nul(pair));
        let Ok(environment) = environment.collect::<Result<Vec<_>, _>>() else {
            return Errno::EINVAL;
        };
        let ready = setsid()
            .map(drop)
            .and_then(|()| dup2_stdin(stdin))
            .and_then(|()| dup2_stdout(stdout))
            .and_then(|()| dup2_stderr(stderr))
            // Rust ignores it, and the program would inherit that.
            .and_then(|()| sys::default_signal(Signal::SIGPIPE))
            .and_then(|()| SigSet::empty().thread_set_mask())
            .and_then(|()| sys::close_all_on_exec());
        match ready.and_then(|()| execve(&self.program, &self.arguments, &environment)) {
            Err(errno) => errno,
        }
    }
}

/// Waits for the end of the program or of the proxy.
fn watch(
    control: &mut UnixStream,
    children: &SignalFd,
    main: Pid,
    memory: u64,
    tree: Tree,
) -> (i64, Option<String>) {
    let own = |reason: &str| (KILLED_EXIT_CODE, Some(reason.to_owned()));
    let mut watched = Instant::now();
    loop {
        let mut ready = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        let patience = MEMORY_CHECK_INTERVAL.saturating_sub(watched.elapsed());
        // Rounded up, so that the memory check below is due when the wait ends.
        let patience = PollTimeout::try_from(patience.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
        match poll(&mut ready, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return own(errno.desc()),
        }
        let ordered = ready[0].any().unwrap_or(false);
        while let Ok(Some(_)) = children.read_signal() {}
        if let Some(end) = reap(main) {
            return end;
        }
        if ordered {
            let mut order = [0];
            match control.read(&mut order) {
                Ok(1) if order == [TERMINATE] => {
                    let _ = kill(main, Signal::SIGTERM);
                }
                Ok(1) if order == [USAGE] => {
                    let (memory, cpu_seconds) = tree.usage();
                    report(control, &Report::Usage { memory, cpu_seconds });
                }
                _ => return own("the proxy closed the connection"),
            }
        }
        // Not for every child that ends: a check is expensive.
        if watched.elapsed() >= MEMORY_CHECK_INTERVAL {
            let (used, _) = tree.usage();
            if used > memory {
                return own(&format!(
                    "it used more than its limit of {} MiB of \
                    memory",
                    memory >> 20
                ));
            }
            watched = Instant::now();
        }
    }
}

/// Reaps every child that has ended. Returns the program's exit status if it has ended.
fn reap(main: Pid) -> Option<(i64, Option<String>)> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Some((code.into(), None)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                let reason = format!("ended by {}", signal.as_str());
                return Some((128 + i64::from(signal as i32), Some(reason)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Some((KILLED_EXIT_CODE, Some(errno.desc().to_owned()))),
        }
    }
}

/// Sends a report to the proxy. If the proxy has gone, the next read fails.
pub(super) fn report(control: &mut UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = control.write_all(&line);
    }
}
