//! The thread that signs checkpoints. It only reads the log: no write of a record waits for it, and
//! none of its failures stops the proxy.

use std::{
    fmt, fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{
    Companions, Hash, KeyFault, Signer, Verifier,
    checkpoint::{Checkpoint, Pace, Signed},
    checkpoint_file::CheckpointFile,
    verify::NEWEST,
    witness::{self, Witness},
};
use crate::store::Head;
use portcullis_foundation::atomic_file;

/// Interval between checks for new records.
const LOOK: Duration = Duration::from_millis(200);
/// Delay after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Settings of checkpoints.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the signing key and the newest checkpoint. Default: the store's own folder, where
    /// an attacker who replaces the store replaces both.
    pub state: Option<PathBuf>,
    /// Number of records after which a checkpoint is signed.
    pub records: u64,
    /// Maximum time for which a record has no checkpoint.
    pub time: Duration,
    /// Witnesses that receive checkpoints.
    pub witnesses: Vec<Witness>,
}

impl Default for Settings {
    fn default() -> Self {
        let time = Duration::from_secs(60);
        Self { state: None, records: 10_000, time, witnesses: Vec::new() }
    }
}

/// Status of checkpoints.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Newest checkpoint, as signed.
    pub note: String,
    /// Number of its records.
    pub size: u64,
    /// Its number.
    pub number: u64,
    /// Time of its signing.
    pub time: Option<Timestamp>,
    /// Number of failures since the log was opened.
    pub failures: u64,
    /// Reason of the last failure, until a checkpoint succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
    /// Whether signing is disabled, because the log is not the one that was signed last.
    pub forked: bool,
    /// Status of each witness.
    pub witnesses: Vec<witness::Status>,
}

/// Reasons why there is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    #[error("the checkpoint could not be signed: {0}")]
    Failed(String),
    #[error(
        "the audit log is not the one that was signed last, so no checkpoint is signed: {0}. Run \
         `portcullis audit verify`. Stop the proxy and restore the log from a backup, or move its \
         folder away and keep it: a new log begins"
    )]
    Forked(String),
    #[error("no more checkpoints are signed: the audit log is closed")]
    Closed,
}

struct Order(oneshot::Sender<Result<(), CheckpointFault>>);

/// Signs checkpoints until it is dropped, and a last one on drop.
pub(crate) struct Checkpointer {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    signer: Arc<Signer>,
    status: Arc<Mutex<Status>>,
    witnesses: witness::All,
}

impl fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpointer").field("signer", &self.signer).finish_non_exhaustive()
    }
}

impl Checkpointer {
    /// Signs a checkpoint of the store in `dir` and starts the thread. Called before the store
    /// accepts records, so that each record has a checkpoint that is not older than its run.
    /// `digest_key` is the fingerprint of the key for digests. `fork` is the reason why the log is
    /// not the one that was signed last; with a reason, nothing is signed.
    ///
    /// # Errors
    /// If there is no key to sign with. Other failures are logged and retried.
    pub fn start(
        dir: &Path,
        store: &str,
        settings: &Settings,
        digest_key: Hash,
        fork: Option<String>,
        head: impl Fn() -> Head + Send + 'static,
    ) -> Result<Self, KeyFault> {
        let Settings { records, time, witnesses, .. } = settings;
        let state = settings.state.as_deref().unwrap_or(dir);
        let signer = Arc::new(Signer::open(state, store)?);
        let verifier = signer.verifier();
        let keep = |to: &Path| {
            crate::proof::key::keep_verifier(to, verifier)
                .map_err(|source| KeyFault::Io { path: to.to_owned(), source })
        };
        keep(state)?;
        keep(dir)?;
        let companions = Companions::read(dir, digest_key)
            .map_err(|source| KeyFault::Io { path: dir.to_owned(), source })?;
        let status = Arc::new(Mutex::new(Status::default()));
        let witnesses = witness::All::start(dir, state, witnesses);
        let mut maker = Maker {
            dir: dir.to_owned(),
            state: state.to_owned(),
            signer: signer.clone(),
            companions,
            pace: Pace { records: *records, time: *time },
            ledger: None,
            fork,
            head: Box::new(head),
            status: status.clone(),
            notifier: witnesses.notifier(),
            waiting: None,
        };
        if let Err(error) = maker.look_back() {
            tracing::error!(%error, "the newest checkpoint of the audit log can't be read");
        }
        // A failure is in the log and the status.
        let _ = maker.make();
        let (orders, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || maker.run(&queue))
            .map_err(|source| KeyFault::Io { path: dir.to_owned(), source })?;
        Ok(Self { orders: Some(orders), thread: Some(thread), signer, status, witnesses })
    }

    /// Signs a checkpoint of all records now.
    ///
    /// # Errors
    /// [`CheckpointFault`] with the reason.
    pub async fn now(&self) -> Result<Status, CheckpointFault> {
        let (reply, answer) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or(CheckpointFault::Closed)?;
        orders.send(Order(reply)).map_err(|_| CheckpointFault::Closed)?;
        answer.await.map_err(|_| CheckpointFault::Closed)??;
        Ok(self.status())
    }

    /// Status of checkpoints.
    pub fn status(&self) -> Status {
        Status { witnesses: self.witnesses.status(), ..self.status.lock().clone() }
    }

    /// Whether signing is disabled, because the log is not the one that was signed last.
    pub fn is_forked(&self) -> bool {
        self.status.lock().forked
    }

    /// Signing key.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

struct Maker {
    dir: PathBuf,
    state: PathBuf,
    signer: Arc<Signer>,
    companions: Companions,
    pace: Pace,
    ledger: Option<CheckpointFile>,
    /// Reason why nothing is signed.
    fork: Option<String>,
    head: Box<dyn Fn() -> Head + Send>,
    status: Arc<Mutex<Status>>,
    notifier: witness::Notifier,
    /// Time since which records lack a checkpoint, or a failure needs a retry.
    waiting: Option<Instant>,
}

impl Maker {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        let look = LOOK.min(self.pace.time);
        loop {
            match orders.recv_timeout(look) {
                Ok(Order(reply)) => {
                    // The caller may have stopped waiting.
                    let _ = reply.send(self.make());
                }
                Err(RecvTimeoutError::Timeout) if self.is_due() => {
                    let _ = self.make();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.make();
                    return;
                }
            }
        }
    }

    fn is_due(&mut self) -> bool {
        if self.fork.is_some() {
            // A retry in this run would fail too.
            return false;
        }
        let size = (self.head)().tree.size();
        let status = self.status.lock();
        if size == status.size && status.failing.is_none() {
            self.waiting = None;
            return false;
        }
        let waited = self.waiting.get_or_insert_with(Instant::now).elapsed();
        if status.failing.is_some() {
            return waited >= RETRY_INTERVAL;
        }
        waited >= self.pace.time || size.abs_diff(status.size) >= self.pace.records
    }

    /// Signs a checkpoint, unless the newest one covers all records.
    fn make(&mut self) -> Result<(), CheckpointFault> {
        if let Some(why) = &self.fork {
            let fault = CheckpointFault::Forked(why.clone());
            let mut status = self.status.lock();
            status.failures += 1;
            status.failing = Some(fault.to_string());
            status.forked = true;
            tracing::error!(why, "audit log checkpoint refused: {fault}");
            return Err(fault);
        }
        self.waiting = None;
        let result = catch_unwind(AssertUnwindSafe(|| self.sign()))
            .unwrap_or_else(|_| Err(io::Error::other("a panic (see the log)")));
        let mut status = self.status.lock();
        match result {
            Ok(signed) => {
                let Checkpoint { size, number, time, .. } = signed.checkpoint;
                let failures = status.failures;
                let witnesses = Vec::new();
                *status = Status {
                    note: signed.note,
                    size,
                    number,
                    time: Some(time),
                    failures,
                    failing: None,
                    forked: false,
                    witnesses,
                };
                drop(status);
                self.notifier.notify();
                Ok(())
            }
            Err(error) => {
                // The next attempt opens the file again: its state is unknown.
                self.ledger = None;
                status.failures += 1;
                status.failing = Some(error.to_string());
                tracing::error!(%error, "audit log checkpoint failed");
                Err(CheckpointFault::Failed(error.to_string()))
            }
        }
    }

    fn sign(&mut self) -> io::Result<Signed> {
        let mut ledger = match self.ledger.take() {
            Some(ledger) => ledger,
            None => CheckpointFile::open(&self.dir, &self.keys())?,
        };
        let Head { tree, last, .. } = (self.head)();
        let root = tree.root();
        let newest = ledger.newest();
        let before = newest.map(|newest| newest.checkpoint.companions);
        for file in before.iter().flat_map(|before| self.companions.changed_since(before)) {
            tracing::warn!(file, "a file of the audit log changed since the newest checkpoint");
        }
        let signed = match newest {
            Some(newest)
                if newest.checkpoint.size == tree.size()
                    && newest.checkpoint.root == root
                    && newest.checkpoint.companions == self.companions =>
            {
                newest.clone()
            }
            newest => {
                let checkpoint = Checkpoint {
                    origin: self.signer.origin().to_owned(),
                    size: tree.size(),
                    root,
                    number: newest.map_or(0, |newest| newest.checkpoint.number + 1),
                    before: newest.map_or(Hash::ZERO, |newest| newest.hash),
                    last,
                    time: Timestamp::now(),
                    next: self.pace,
                    companions: self.companions,
                };
                let signed = checkpoint.sign(&self.signer).map_err(io::Error::other)?;
                ledger.append(signed.clone())?;
                signed
            }
        };
        // After the store's own copy: `verify` reads this file first.
        atomic_file::write(&self.state.join(NEWEST), signed.note.as_bytes())?;
        self.ledger = Some(ledger);
        Ok(signed)
    }

    fn keys(&self) -> Vec<Verifier> {
        crate::proof::key::read_verifiers(&self.state)
            .unwrap_or_else(|_| vec![self.signer.verifier().clone()])
    }

    /// Checks that the store has the checkpoint in the state folder. If not, logs an error and
    /// keeps the checkpoint: it proves that the store was rolled back, cut or replaced.
    fn look_back(&mut self) -> io::Result<()> {
        let path = self.state.join(NEWEST);
        let note = match fs::read_to_string(&path) {
            Ok(note) => note,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let verified = self.keys().iter().find_map(|key| Signed::open(&note, key).ok());
        let Some(Signed { checkpoint, hash, .. }) = verified else { return Ok(()) };
        let ledger = CheckpointFile::open(&self.dir, &self.keys())?;
        let has = ledger.newest().is_some_and(|newest| {
            newest.checkpoint.number > checkpoint.number || newest.hash == hash
        });
        let found = (self.head)().tree.size();
        if has && checkpoint.size <= found {
            return Ok(());
        }
        tracing::error!(
            signed = checkpoint.size,
            found,
            "the audit log is not the one that was signed last: records were lost, or the store \
             was rolled back or replaced; run `portcullis audit verify`"
        );
        let aside = format!("{NEWEST}-{}-{}", checkpoint.number, checkpoint.time.as_second());
        atomic_file::write(&self.state.join(&aside), note.as_bytes())
    }
}
