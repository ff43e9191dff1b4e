//! The proxy's side of a start: starts the launcher, sends it the plan and the streams, and holds
//! the control socket. The tree ends when that socket closes.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use nix::{fcntl::OFlag, unistd::pipe2};
use std::os::unix::process::ExitStatusExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, Lines},
    net::{UnixStream, unix::OwnedReadHalf},
    process::Child,
    time::timeout,
};
use zeroize::Zeroizing;

use super::{
    cgroups::{self, Cgroup, Controller},
    control::{Control, Watching, process},
    fd_passing,
    protocol::{Failure, Plan, Report, TERMINATE},
};
use crate::{
    egress_netns::{self, EgressSockets},
    process::{Exit, Handle, LaunchFailure, LaunchSpec, Usage},
    started::Process,
};

/// This executable, even if its file was replaced since the start.
const OURSELVES: &str = "/proc/self/exe";

/// Time limit for setting up a sandbox and executing the program in it.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for a tree to end after the control socket closed. Then its launcher is killed, too.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Exit code of a killed process.
const KILLED_EXIT_CODE: i64 = 137;

/// Starts `spec.command` in a sandbox, and returns after the program was executed.
///
/// # Errors
/// If the program cannot be started, or any part of the sandbox is missing: it never runs without.
pub async fn launch(spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    launch_by(Path::new(OURSELVES), spec).await
}

/// As [`launch`], with another `portcullis` executable. For programs that link this library and are
/// not that executable.
///
/// # Errors
/// As [`launch`].
pub async fn launch_by(launcher: &Path, spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    let plan = {
        let (spec, launcher) = (spec.clone(), launcher.to_owned());
        let plan = tokio::task::spawn_blocking(move || Plan::new(&spec, &launcher));
        plan.await.map_err(|error| unexpected(&error))??
    };
    let mut plan = plan;
    let groups = cgroups::parents().make(&spec.resources).map_err(|error| no_group(&error))?;
    plan.groups = groups.folders();
    plan.memory_is_held = groups.limit(Controller::Memory);
    let (mut command, start) = prepare(launcher, &plan).map_err(|error| unexpected(&error))?;
    command.stderr(start.streams.theirs[2].try_clone().map_err(|error| unexpected(&error))?);
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn();
    let child = child.map_err(|error| no_launcher(launcher, &error))?;
    let program = plan.program.as_ref().map(|program| program.display().to_string());
    drop(plan);
    let mut process = start.run(child, groups, spec).await?;
    process.origin.program = program;
    Ok(process)
}

/// Sets up a sandbox without a program and removes it.
pub(super) fn attempt() -> Result<bool, LaunchFailure> {
    let launcher = Path::new(OURSELVES);
    let failed = |error: io::Error| unexpected(&error);
    let (mut command, start) = prepare(launcher, &Plan::trial()?).map_err(failed)?;
    let mut child = command.spawn().map_err(|error| no_launcher(launcher, &error))?;
    drop(command);
    let answer = start.ask_blocking();
    let status = child.wait().map_err(failed)?;
    match answer.map_err(failed)? {
        Some(Report::Started { landlock }) => Ok(landlock),
        Some(Report::Failed(failure)) => Err(failure.into()),
        _ => Err(silent(status)),
    }
}

impl From<Failure> for LaunchFailure {
    fn from(failure: Failure) -> Self {
        Self { what: failure.what, remedy: failure.remedy }
    }
}

/// Streams of the program: its ends, and the proxy's.
pub(super) struct Streams {
    pub theirs: [OwnedFd; 3],
    pub ours: [OwnedFd; 3],
}

impl Streams {
    fn new() -> nix::Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) =
            (pipe()?, pipe()?, pipe()?);
        Ok(Self { theirs: [in_read, out_write, err_write], ours: [in_write, out_read, err_read] })
    }
}

/// Everything needed after the launcher started.
pub(super) struct Start {
    pub control: StdStream,
    pub streams: Streams,
    pub plan: Zeroizing<Vec<u8>>,
    /// Sockets that pass the egress sockets: the proxy's end and the launcher's.
    pub egress_sockets: Option<(StdStream, StdStream)>,
}

fn prepare(launcher: &Path, plan: &Plan) -> io::Result<(Command, Start)> {
    let (control, theirs) = StdStream::pair()?;
    let mut command = Command::new(launcher);
    command
        .arg("sandbox-exec")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut start = Start::new(control, plan)?;
    start.egress_sockets = (!plan.egress_sockets.is_empty()).then(StdStream::pair).transpose()?;
    Ok((command, start))
}

impl Start {
    /// From a plan, with new streams.
    pub(super) fn new(control: StdStream, plan: &Plan) -> io::Result<Self> {
        // Allocated in full: a growing buffer leaves copies of secrets behind.
        let size: usize =
            plan.environment.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut body = Zeroizing::new(Vec::with_capacity(6 * size + (1 << 20)));
        serde_json::to_writer(&mut *body, plan)?;
        Ok(Self { control, streams: Streams::new()?, plan: body, egress_sockets: None })
    }

    /// Sends the plan's length and the streams. The socket is empty, so this does not block.
    pub(super) fn send_streams(&self) -> io::Result<()> {
        let length = u32::try_from(self.plan.len()).map_err(io::Error::other)?.to_be_bytes();
        let streams = self.streams.theirs.iter().map(AsRawFd::as_raw_fd);
        let egress_sockets = self.egress_sockets.iter().map(|(_, theirs)| theirs.as_raw_fd());
        fd_passing::send(&self.control, &length, &streams.chain(egress_sockets).collect::<Vec<_>>())
    }

    fn ask_blocking(mut self) -> io::Result<Option<Report>> {
        self.send_streams()?;
        self.control.set_read_timeout(Some(START_TIMEOUT))?;
        self.control.write_all(&self.plan)?;
        let mut line = String::new();
        BufReader::new(&self.control).read_line(&mut line)?;
        Ok(serde_json::from_str(&line).ok())
    }

    /// Starts the launcher and waits for its report.
    async fn run(
        self,
        mut child: Child,
        groups: Cgroup,
        spec: &LaunchSpec,
    ) -> Result<Process, LaunchFailure> {
        let failed = |error: io::Error| unexpected(&error);
        self.send_streams().map_err(failed)?;
        let Self { control, streams, plan, egress_sockets } = self;
        let Streams { theirs, ours } = streams;
        drop(theirs);
        let egress_sockets = egress_sockets.map(|(ours, _)| ours);
        control.set_nonblocking(true).map_err(failed)?;
        let (read, mut write) = UnixStream::from_std(control).map_err(failed)?.into_split();
        let mut reports = tokio::io::BufReader::new(read).lines();
        let process_start = async {
            // A launcher that ended early has reported the reason, which is more useful than a
            // broken pipe.
            let _ = write.write_all(&plan).await;
            reports.next_line().await.ok().flatten()
        };
        let Ok(line) = timeout(START_TIMEOUT, process_start).await else {
            return Err(LaunchFailure {
                what: format!("the sandbox was not ready within {} s", START_TIMEOUT.as_secs()),
                remedy: Some("check whether the machine is overloaded".into()),
            });
        };
        match line.and_then(|line| serde_json::from_str(&line).ok()) {
            Some(Report::Started { .. }) => {}
            Some(Report::Failed(failure)) => return Err(failure.into()),
            _ => return Err(silent(child.wait().await.map_err(failed)?)),
        }
        let pid = child.id().unwrap_or_default();
        let egress_sockets = match egress_sockets {
            None => None,
            // They were sent before the report.
            Some(egress_sockets) => {
                let sockets = fd_passing::take(
                    &egress_sockets,
                    egress_netns::listen_addresses(&spec.egress).len(),
                );
                Some(EgressSockets::of(sockets.map_err(failed)?, &spec.egress)?)
            }
        };
        let (control, watching) = Control::new(write);
        tokio::spawn(supervise(child, reports, watching, (groups, spec.resources.memory_mib)));
        let process = process(ours, Running { pid, control }).map_err(failed)?;
        Ok(Process { egress_sockets, ..process })
    }
}

/// Reads the launcher's reports until its end, and reaps it.
async fn supervise(
    mut child: Child,
    mut reports: Lines<tokio::io::BufReader<OwnedReadHalf>>,
    mut watching: Watching,
    (groups, memory): (Cgroup, u64),
) {
    let mut reported = None;
    loop {
        tokio::select! {
            line = reports.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(Report::Usage { memory, cpu_seconds }) => {
                        watching.measured(Usage { memory, cpu_seconds });
                    }
                    Ok(Report::Ended { code, reason }) => reported = Some(Exit { code, reason }),
                    _ => {}
                },
                _ => break,
            },
            () = watching.dropped() => break,
            // The kernel kills processes one by one until the rest fits. A tree that lost a process
            // is useless, so it ends as a whole.
            () = groups.run_out_of_memory() => {
                let _ = child.start_kill();
                break;
            }
        }
    }
    // The tree ends by itself: its first process has seen the end of the control socket, or has
    // caused it.
    let status = match timeout(END_TIMEOUT, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let mut exit = reported.unwrap_or_else(|| {
        let code = status.ok().and_then(|status| {
            status.code().or_else(|| status.signal().map(|signal| 128 + signal))
        });
        Exit { code: code.unwrap_or(-1).into(), reason: None }
    });
    if exit.code == KILLED_EXIT_CODE && groups.ran_out_of_memory() {
        exit.reason = Some(format!("it used more than its limit of {memory} MiB of memory"));
    }
    drop(groups);
    watching.ended(exit);
}

/// A running tree. Dropping it closes the control socket, and so ends the tree.
struct Running {
    /// Process id of the launcher.
    pid: u32,
    control: Control,
}

#[async_trait]
impl Handle for Running {
    fn describe(&self) -> String {
        format!("sandbox pid {}", self.pid)
    }

    fn wait(&self) -> BoxFuture<'static, Exit> {
        self.control.wait()
    }

    async fn stop(&self, grace: Duration) {
        self.control.order(TERMINATE).await;
        if timeout(grace, self.wait()).await.is_err() {
            self.control.disconnect().await;
            self.wait().await;
        }
    }

    async fn usage(&self) -> Option<Usage> {
        self.control.usage().await
    }
}

fn unexpected(error: &dyn std::error::Error) -> LaunchFailure {
    LaunchFailure { what: format!("the sandbox can't be started: {error}"), remedy: None }
}

fn no_group(error: &io::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!(
            "the sandbox can't create a control group, although it could before: \
            {error}"
        ),
        remedy: Some("`portcullis doctor` shows what this machine offers".into()),
    }
}

fn no_launcher(launcher: &Path, error: &io::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!(
            "`{}` can't be executed as the sandbox's launcher: {error}",
            launcher.display()
        ),
        remedy: Some("/proc must be mounted, and the executable be executable for its user".into()),
    }
}

fn silent(status: ExitStatus) -> LaunchFailure {
    LaunchFailure {
        what: format!("the sandbox's launcher ended without a report ({status})"),
        remedy: Some("`portcullis doctor` shows what the sandbox lacks".into()),
    }
}
