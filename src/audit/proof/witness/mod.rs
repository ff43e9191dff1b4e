//! Who else is told of checkpoints, so that they are kept where the proxy's machine can't change
//! them: a file elsewhere, a syslog, a URL.
//!
//! Each has a thread of its own, which reads the store's file of checkpoints from where it was the
//! last time. So nothing is queued in memory, and what could not be delivered is sent later, also
//! after a restart. A checkpoint can be delivered twice, and none is left out.

mod send;

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{note_file, verify::CHECKPOINTS};
use portcullis_foundation::{atomic_file, backoff::Backoff};

use send::Sender;

/// Bytes of checkpoints that are read at once.
const CHUNK: u64 = 256 << 10;
/// Pauses after failures.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// How long the end waits for what is still to be delivered.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where checkpoints are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// Appended to this file.
    File(PathBuf),
    /// As RFC 5424 messages, in datagrams.
    SyslogUdp(String),
    /// As RFC 5424 messages, counted as RFC 6587 says.
    SyslogTcp(String),
    /// As RFC 5424 messages, to a local socket.
    SyslogUnix(PathBuf),
    /// In the body of a POST.
    Url(String),
}

impl Witness {
    /// The syslog of an address: `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///PATH`.
    pub fn syslog(address: &str) -> Option<Self> {
        let named = |address: &str| {
            let (host, port) = address.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok()).then(|| address.to_owned())
        };
        match address.split_once("://")? {
            ("udp", address) => named(address).map(Self::SyslogUdp),
            ("tcp", address) => named(address).map(Self::SyslogTcp),
            ("unix", path) if path.starts_with('/') => Some(Self::SyslogUnix(path.into())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::SyslogUdp(address) => write!(f, "udp://{address}"),
            Self::SyslogTcp(address) => write!(f, "tcp://{address}"),
            Self::SyslogUnix(path) => write!(f, "unix://{}", path.display()),
            // It may hold a user's name and password, or a token.
            Self::Url(url) => match reqwest::Url::parse(url) {
                Ok(url) => write!(f, "{}", url.origin().ascii_serialization()),
                Err(_) => f.write_str("a URL"),
            },
        }
    }
}

/// What a witness was told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Who.
    pub to: String,
    /// How many checkpoints were delivered since the log was opened.
    pub delivered: u64,
    /// How many tries failed since then.
    pub failures: u64,
    /// Why the last one did, until one succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// Tells the threads that there is a new checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Nudge(Vec<SyncSender<()>>);

impl Nudge {
    pub fn tell(&self) {
        for thread in &self.0 {
            // One that is told already will look.
            let _ = thread.try_send(());
        }
    }
}

/// All witnesses of a store.
#[derive(Debug)]
pub(super) struct All {
    nudge: Option<Nudge>,
    threads: Vec<thread::JoinHandle<()>>,
    status: Vec<Arc<Mutex<Status>>>,
}

impl All {
    pub fn start(dir: &Path, state: &Path, witnesses: &[Witness]) -> Self {
        let mut all = Self { nudge: None, threads: Vec::new(), status: Vec::new() };
        let mut nudges = Vec::new();
        for witness in witnesses {
            let to = witness.to_string();
            let status = Arc::new(Mutex::new(Status { to: to.clone(), ..Status::default() }));
            all.status.push(status.clone());
            let (nudge, nudged) = mpsc::sync_channel(1);
            let teller = Teller {
                path: dir.join(CHECKPOINTS),
                state: state.to_owned(),
                cursor: cursor_name(witness),
                sender: Sender::new(witness.clone()),
                status: status.clone(),
            };
            let spawned =
                thread::Builder::new().name("witness".into()).spawn(move || teller.run(&nudged));
            match spawned {
                Ok(thread) => {
                    all.threads.push(thread);
                    nudges.push(nudge);
                }
                Err(error) => {
                    tracing::error!(%error, to, "a witness is not told of checkpoints");
                    status.lock().failing = Some(error.to_string());
                }
            }
        }
        all.nudge = Some(Nudge(nudges));
        all
    }

    pub fn nudge(&self) -> Nudge {
        self.nudge.clone().unwrap_or(Nudge(Vec::new()))
    }

    pub fn status(&self) -> Vec<Status> {
        self.status.iter().map(|status| status.lock().clone()).collect()
    }
}

impl Drop for All {
    fn drop(&mut self) {
        self.nudge = None;
        let until = Instant::now() + FAREWELL;
        // What is not delivered by then is sent after the next start.
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The file that says how far a witness was told.
fn cursor_name(witness: &Witness) -> String {
    let whole = Sha256::digest(format!("{witness:?}"));
    format!("audit-witness-{}", hex::encode(whole.first_chunk::<8>().unwrap_or(&[0; 8])))
}

struct Teller {
    path: PathBuf,
    state: PathBuf,
    cursor: String,
    sender: Sender,
    status: Arc<Mutex<Status>>,
}

impl Teller {
    fn run(mut self, nudged: &mpsc::Receiver<()>) {
        let mut pauses = 0;
        let mut offset = self.begin();
        loop {
            match self.tell(&mut offset) {
                Ok(()) => {
                    pauses = 0;
                    if nudged.recv().is_err() {
                        // The last one may have been made since.
                        let _ = self.tell(&mut offset);
                        return;
                    }
                }
                Err(error) => {
                    let mut status = self.status.lock();
                    status.failures += 1;
                    status.failing = Some(error.to_string());
                    let to = status.to.clone();
                    drop(status);
                    tracing::warn!(%error, to, "checkpoint could not be sent to a witness");
                    match wait(nudged, BACKOFF.pause(pauses)) {
                        Err(RecvTimeoutError::Disconnected) => return,
                        _ => pauses += 1,
                    }
                }
            }
        }
    }

    /// Where the last one that was delivered ends.
    fn begin(&self) -> u64 {
        let text = fs::read_to_string(self.state.join(&self.cursor)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Delivers what there is, in order.
    fn tell(&mut self, offset: &mut u64) -> io::Result<()> {
        loop {
            let mut file = File::open(&self.path)?;
            if *offset > file.metadata()?.len() {
                // Another file than the one that was told of.
                *offset = 0;
            }
            file.seek(SeekFrom::Start(*offset))?;
            let mut bytes = Vec::new();
            file.take(CHUNK).read_to_end(&mut bytes)?;
            // The end is what may still be written, or stands in the next chunk.
            let whole = memchr::memmem::rfind(&bytes, b"\n\n").map_or(0, |end| end + 2);
            let found = note_file::split(bytes.get(..whole).unwrap_or_default());
            let mut told = 0;
            for (at, note) in &found.notes {
                let end = at + note.len();
                if bytes.get(end) != Some(&b'\n') {
                    break;
                }
                if let Ok(note) = std::str::from_utf8(note) {
                    self.sender.send(note)?;
                    let mut status = self.status.lock();
                    status.delivered += 1;
                    status.failing = None;
                }
                told = end + 1;
                let after = *offset + told as u64;
                atomic_file::write(
                    &self.state.join(&self.cursor),
                    format!("{after}\n").as_bytes(),
                )?;
            }
            *offset += told as u64;
            if told == 0 {
                return Ok(());
            }
        }
    }
}

fn wait(nudged: &mpsc::Receiver<()>, pause: Duration) -> Result<(), RecvTimeoutError> {
    let until = Instant::now() + pause;
    loop {
        // A new checkpoint is no reason to try sooner.
        match nudged.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(gone) => return Err(gone),
        }
    }
}

/// The address of a name and a port, tried again each time.
fn resolve(address: &str) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))
}
