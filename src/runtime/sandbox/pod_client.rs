//! A server in another container of the proxy's pod: `portcullis pod-exec serve` is the first
//! process there, and starts the program for each connection to its socket.
//!
//! The container, as configured in its pod, confines the program, together with the seccomp filter
//! that `pod-exec` loads. Everything in that container belongs to the server, including the socket
//! and the process that listens there. So nothing that arrives over it is trusted: the pipes are
//! created here, lines are limited, their text is never repeated, and every wait has a deadline.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, future::BoxFuture};
use nix::fcntl::OFlag;
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedReadHalf},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::{
    control::{Control, Watching, process},
    launch::{Start, Streams},
    protocol::{Plan, Report, TERMINATE},
};
use crate::{
    process::{Exit, Handle, LaunchFailure, LaunchSpec, Usage},
    started::Process,
};

/// Time limit for the other container to be available and to start the program.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between attempts to connect.
const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time limit for a program to end after its connection closed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of a report in bytes.
const MAX_REPORT_BYTES: usize = 16 << 10;

type Reports = FramedRead<OwnedReadHalf, LinesCodec>;

/// Starts the program of another container of this pod, with `spec.command` as the arguments after
/// its entry point.
///
/// # Errors
/// If nothing listens at the socket, or the program does not start.
pub async fn launch_in_pod(socket: &Path, spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    let plan = Plan::for_pod(spec);
    let until = Instant::now() + START_TIMEOUT;
    let control = loop {
        match connect(socket).await {
            Ok(control) => break control,
            Err(error) if until <= Instant::now() => return Err(absent(socket, &error)),
            // Containers of a pod start in any order.
            Err(_) => sleep(CONNECT_RETRY_INTERVAL).await,
        }
    };
    let failed = |error: io::Error| unexpected(&error);
    let start = Start::new(control.into_std().map_err(failed)?, &plan).map_err(failed)?;
    drop(plan);
    start.send_streams().map_err(failed)?;
    let Start { control, streams, plan, .. } = start;
    let Streams { theirs, ours } = streams;
    drop(theirs);
    let (read, mut write) = UnixStream::from_std(control).map_err(failed)?.into_split();
    let mut reports = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_REPORT_BYTES));
    let begun = async {
        // A failed start has reported the reason, which is more useful than a broken pipe.
        let _ = write.write_all(&plan).await;
        next(&mut reports).await
    };
    match timeout_at(until.max(Instant::now() + END_TIMEOUT), begun).await {
        Ok(Some(Report::Started { .. })) => {}
        _ => return Err(not_started()),
    }
    let (control, watching) = Control::new(write);
    tokio::spawn(supervise(reports, watching));
    let description = format!("pod {}", socket.display());
    let mut process = process(ours, PodProcess { description, control }).map_err(failed)?;
    process.origin.image_ref = spec.image.clone();
    Ok(process)
}

/// Connects to exactly this socket. The server could replace it by a link to another socket in the
/// proxy's container.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let path = socket.to_owned();
    let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let open = move || OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file: File = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("it is not a socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await
}

/// Next report; `None` at the end, or if it cannot be parsed.
async fn next(reports: &mut Reports) -> Option<Report> {
    serde_json::from_str(&reports.next().await?.ok()?).ok()
}

/// Reads reports until the connection ends, which is the program's end.
async fn supervise(mut reports: Reports, mut watching: Watching) {
    let mut code = None;
    loop {
        tokio::select! {
            report = next(&mut reports) => match report {
                Some(Report::Usage { memory, cpu_seconds }) => {
                    watching.measured(Usage { memory, cpu_seconds });
                }
                Some(Report::Ended { code: reported, .. }) => code = Some(reported),
                _ => break,
            },
            () = watching.dropped() => break,
        }
    }
    let lost = || "its container closed the connection; see `kubectl describe pod`".to_owned();
    let reason = code.is_none().then(lost);
    watching.ended(Exit { code: code.unwrap_or(-1), reason });
}

/// Program in another container. Dropping it ends the connection, and so the program.
struct PodProcess {
    description: String,
    control: Control,
}

#[async_trait]
impl Handle for PodProcess {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn wait(&self) -> BoxFuture<'static, Exit> {
        self.control.wait()
    }

    async fn stop(&self, grace: Duration) {
        self.control.order(TERMINATE).await;
        if timeout(grace, self.wait()).await.is_err() {
            self.control.disconnect().await;
            // The listening process may belong to the server and ignore every order.
            let _ = timeout(END_TIMEOUT, self.wait()).await;
        }
    }

    async fn usage(&self) -> Option<Usage> {
        self.control.usage().await
    }
}

fn unexpected(error: &dyn std::error::Error) -> LaunchFailure {
    LaunchFailure { what: format!("no connection to its container: {error}"), remedy: None }
}

fn absent(socket: &Path, error: &io::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!("nothing starts it at {}: {error}", socket.display()),
        remedy: Some("check that the pod's container `server` runs: `kubectl describe pod`".into()),
    }
}

fn not_started() -> LaunchFailure {
    LaunchFailure {
        what: "its program did not start in its container".into(),
        remedy: Some("see `kubectl logs` of the pod's container `server`".into()),
    }
}
