//! Witnesses: receivers of checkpoints that the proxy's machine cannot change later: a remote file,
//! a syslog, a URL.
//!
//! Each has its own thread, which reads the store's file of checkpoints from the last delivered
//! position. So nothing is queued in memory, and undelivered checkpoints are sent later, also after
//! a restart. Every checkpoint is delivered at least once.

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

/// Bytes of checkpoints per read.
const CHUNK: u64 = 256 << 10;
/// Delays after failures.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Maximum time that a stop waits for deliveries.
const FAREWELL: Duration = Duration::from_secs(2);

/// Receiver of checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// File to append to.
    File(PathBuf),
    /// RFC 5424 messages in datagrams.
    SyslogUdp(String),
    /// RFC 5424 messages with octet counts of RFC 6587.
    SyslogTcp(String),
    /// RFC 5424 messages to a local socket.
    SyslogUnix(PathBuf),
    /// Body of a POST request.
    Url(String),
}

impl Witness {
    /// Syslog witness of an address: `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///PATH`.
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
            // The URL may contain a user's name and password, or a token.
            Self::Url(url) => match reqwest::Url::parse(url) {
                Ok(url) => write!(f, "{}", url.origin().ascii_serialization()),
                Err(_) => f.write_str("a URL"),
            },
        }
    }
}

/// Status of a witness.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Name of the witness.
    pub to: String,
    /// Number of checkpoints delivered since the log was opened.
    pub delivered: u64,
    /// Number of failed attempts since the log was opened.
    pub failures: u64,
    /// Reason of the last failure, until an attempt succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
}

/// Notifies the threads about a new checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Notifier(Vec<SyncSender<()>>);

impl Notifier {
    pub fn notify(&self) {
        for thread in &self.0 {
            // A full channel means that a notification is pending.
            let _ = thread.try_send(());
        }
    }
}

/// All witnesses of a store.
#[derive(Debug)]
pub(super) struct All {
    notifier: Option<Notifier>,
    threads: Vec<thread::JoinHandle<()>>,
    status: Vec<Arc<Mutex<Status>>>,
}

impl All {
    pub fn start(dir: &Path, state: &Path, witnesses: &[Witness]) -> Self {
        let mut all = Self { notifier: None, threads: Vec::new(), status: Vec::new() };
        let mut senders = Vec::new();
        for witness in witnesses {
            let to = witness.to_string();
            let status = Arc::new(Mutex::new(Status { to: to.clone(), ..Status::default() }));
            all.status.push(status.clone());
            let (sender, notified) = mpsc::sync_channel(1);
            let witness_thread = WitnessThread {
                path: dir.join(CHECKPOINTS),
                state: state.to_owned(),
                cursor: cursor_name(witness),
                sender: Sender::new(witness.clone()),
                status: status.clone(),
            };
            let spawned = thread::Builder::new()
                .name("witness".into())
                .spawn(move || witness_thread.run(&notified));
            match spawned {
                Ok(thread) => {
                    all.threads.push(thread);
                    senders.push(sender);
                }
                Err(error) => {
                    tracing::error!(%error, to, "witness thread could not be started; this \
                                                 witness gets no checkpoints");
                    status.lock().failing = Some(error.to_string());
                }
            }
        }
        all.notifier = Some(Notifier(senders));
        all
    }

    pub fn notifier(&self) -> Notifier {
        self.notifier.clone().unwrap_or(Notifier(Vec::new()))
    }

    pub fn status(&self) -> Vec<Status> {
        self.status.iter().map(|status| status.lock().clone()).collect()
    }
}

impl Drop for All {
    fn drop(&mut self) {
        self.notifier = None;
        let until = Instant::now() + FAREWELL;
        // Undelivered checkpoints are sent after the next start.
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// File with a witness's position.
fn cursor_name(witness: &Witness) -> String {
    let digest = Sha256::digest(format!("{witness:?}"));
    format!("audit-witness-{}", hex::encode(digest.first_chunk::<8>().unwrap_or(&[0; 8])))
}

struct WitnessThread {
    path: PathBuf,
    state: PathBuf,
    cursor: String,
    sender: Sender,
    status: Arc<Mutex<Status>>,
}

impl WitnessThread {
    fn run(mut self, notified: &mpsc::Receiver<()>) {
        let mut pauses = 0;
        let mut offset = self.begin();
        loop {
            match self.deliver(&mut offset) {
                Ok(()) => {
                    pauses = 0;
                    if notified.recv().is_err() {
                        // A checkpoint may have been added since the last delivery.
                        let _ = self.deliver(&mut offset);
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
                    match wait(notified, BACKOFF.pause(pauses)) {
                        Err(RecvTimeoutError::Disconnected) => return,
                        _ => pauses += 1,
                    }
                }
            }
        }
    }

    /// End of the last delivered checkpoint.
    fn begin(&self) -> u64 {
        let text = fs::read_to_string(self.state.join(&self.cursor)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Delivers new checkpoints, in order.
    fn deliver(&mut self, offset: &mut u64) -> io::Result<()> {
        loop {
            let mut file = File::open(&self.path)?;
            if *offset > file.metadata()?.len() {
                // The file was replaced.
                *offset = 0;
            }
            file.seek(SeekFrom::Start(*offset))?;
            let mut bytes = Vec::new();
            file.take(CHUNK).read_to_end(&mut bytes)?;
            // The rest may still be written, or continues in the next chunk.
            let complete_len = memchr::memmem::rfind(&bytes, b"\n\n").map_or(0, |end| end + 2);
            let found = note_file::split(bytes.get(..complete_len).unwrap_or_default());
            let mut sent = 0;
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
                sent = end + 1;
                let after = *offset + sent as u64;
                atomic_file::write(
                    &self.state.join(&self.cursor),
                    format!("{after}\n").as_bytes(),
                )?;
            }
            *offset += sent as u64;
            if sent == 0 {
                return Ok(());
            }
        }
    }
}

fn wait(notified: &mpsc::Receiver<()>, pause: Duration) -> Result<(), RecvTimeoutError> {
    let until = Instant::now() + pause;
    loop {
        // A new checkpoint does not shorten the delay after a failure.
        match notified.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(gone) => return Err(gone),
        }
    }
}

/// Resolves a name and a port. Tries again at each attempt.
fn resolve(address: &str) -> io::Result<SocketAddr> {
    use std::net::ToSocketAddrs as _;
    address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))
}
