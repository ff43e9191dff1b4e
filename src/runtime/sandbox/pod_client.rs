//! A server in another container of the proxy's own pod: `portcullis pod-exec serve` is the first
//! process there, and starts the program for each connection to its socket.
//!
//! What confines the program is its container, as its pod says, and the list of system calls that
//! `pod-exec` puts on it. In that container everything belongs to the server, the socket and who
//! listens at it among it, so nothing that comes over it is believed: the pipes are made here, lines
//! have a bound, no text of it is repeated, and every wait has a deadline.

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
use crate::process::{Exit, Handle, LaunchFailure, LaunchSpec, Process, Usage};

/// The time that the other container may take to be there, and to start the program.
const START: Duration = Duration::from_secs(30);
/// How often it is looked whether it is there.
const AGAIN: Duration = Duration::from_millis(100);
/// The time that what was let go of has to be gone.
const FALL: Duration = Duration::from_secs(5);
/// Bytes of a report.
const LINE: usize = 16 << 10;

type Reports = FramedRead<OwnedReadHalf, LinesCodec>;

/// Has the program of another container of this pod started, with `spec.command` as the arguments
/// after its entry point.
///
/// # Errors
/// Where nobody listens at the socket, or the program does not start.
pub async fn launch_in_pod(socket: &Path, spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    let plan = Plan::for_pod(spec);
    let until = Instant::now() + START;
    let control = loop {
        match connect(socket).await {
            Ok(control) => break control,
            Err(error) if until <= Instant::now() => return Err(absent(socket, &error)),
            // Containers of a pod are started in no order.
            Err(_) => sleep(AGAIN).await,
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
    let mut reports = FramedRead::new(read, LinesCodec::new_with_max_length(LINE));
    let begun = async {
        // What has failed has said so, which is worth more than a broken pipe.
        let _ = write.write_all(&plan).await;
        next(&mut reports).await
    };
    match timeout_at(until.max(Instant::now() + FALL), begun).await {
        Ok(Some(Report::Started { .. })) => {}
        _ => return Err(not_started()),
    }
    let (control, watching) = Control::new(write);
    tokio::spawn(supervise(reports, watching));
    let place = format!("pod {}", socket.display());
    let mut process = process(ours, PodProcess { place, control }).map_err(failed)?;
    process.origin.image_ref = spec.image.clone();
    Ok(process)
}

/// Connects to the very socket that stands there. The server could put a link in its place, which
/// would lead to another socket of the proxy's own container.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let path = socket.to_owned();
    let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let open = move || OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file: File = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    if !file.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("it is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await
}

/// The next report; nothing where there is none any more, or none that can be read.
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
                Some(Report::Ended { code: told, .. }) => code = Some(told),
                _ => break,
            },
            () = watching.dropped() => break,
        }
    }
    let lost = || "its container let go of it; `kubectl describe pod` says more".to_owned();
    let reason = code.is_none().then(lost);
    watching.ended(Exit { code: code.unwrap_or(-1), reason });
}

/// A program that runs in another container. Dropping it ends the connection, and so the program.
struct PodProcess {
    place: String,
    control: Control,
}

#[async_trait]
impl Handle for PodProcess {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn wait(&self) -> BoxFuture<'static, Exit> {
        self.control.wait()
    }

    async fn stop(&self, grace: Duration) {
        self.control.order(TERMINATE).await;
        if timeout(grace, self.wait()).await.is_err() {
            self.control.let_go().await;
            // Who listens there may be the server's own, which no word of ours ends.
            let _ = timeout(FALL, self.wait()).await;
        }
    }

    async fn usage(&self) -> Option<Usage> {
        self.control.usage().await
    }
}

fn unexpected(error: &dyn std::error::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!("its container can't be asked to start it: {error}"),
        remedy: None,
    }
}

fn absent(socket: &Path, error: &io::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!("nobody starts it at {}: {error}", socket.display()),
        remedy: Some("see that the pod's container `server` runs: `kubectl describe pod`".into()),
    }
}

fn not_started() -> LaunchFailure {
    LaunchFailure {
        what: "its program did not start in its container".into(),
        remedy: Some("`kubectl logs` of the pod's container `server` says why".into()),
    }
}
