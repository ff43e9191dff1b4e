//! The thread that signs checkpoints. It only looks at the log: nobody waits for it to write a
//! record, and nothing that befalls it stops the proxy.

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

/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How soon after a failure there is another try.
const AGAIN: Duration = Duration::from_secs(5);

/// How checkpoints are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of the signing key and the newest checkpoint. Default: the store's own, where
    /// both go with a store that is swapped.
    pub state: Option<PathBuf>,
    /// A checkpoint after so many records.
    pub records: u64,
    /// A checkpoint so long after a record that none has.
    pub time: Duration,
    /// Who else is told.
    pub witnesses: Vec<Witness>,
}

impl Default for Settings {
    fn default() -> Self {
        let time = Duration::from_secs(60);
        Self { state: None, records: 10_000, time, witnesses: Vec::new() }
    }
}

/// What became of checkpoints.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The newest one, as it was signed.
    pub note: String,
    /// How many records it has.
    pub size: u64,
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub time: Option<Timestamp>,
    /// How many could not be made since the log was opened.
    pub failures: u64,
    /// Why the last one could not be made, until one is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
    /// Whether none is signed at all, because the log is not the one that was signed last.
    pub forked: bool,
    /// Who else is told.
    pub witnesses: Vec<witness::Status>,
}

/// Why there is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    #[error("the checkpoint could not be made: {0}")]
    Failed(String),
    #[error(
        "the audit log is not the one that was signed last, so that no checkpoint of it is signed \
         until that is mended: {0}. `portcullis audit verify` says more. Stop the proxy and restore \
         the log from a backup, or move its folder away and keep it: a new log begins"
    )]
    Forked(String),
    #[error("no more checkpoints are made: the audit log is closed")]
    Closed,
}

struct Order(oneshot::Sender<Result<(), CheckpointFault>>);

/// Makes checkpoints until it is dropped, and a last one then.
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
    /// Makes a checkpoint of the store in `dir` and starts the thread. Called before the store
    /// takes records, so that each has one that is not older than the run that wrote it.
    /// `digest_key` is the fingerprint of the key for digests. Signs nothing at all where `fork` says
    /// why the log is not the one that was signed last.
    ///
    /// # Errors
    /// Where there is no key to sign with. Anything else is logged, and tried again.
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
            nudge: witnesses.nudge(),
            waiting: None,
        };
        if let Err(error) = maker.look_back() {
            tracing::error!(%error, "the newest checkpoint of the audit log can't be read");
        }
        // What is wrong is in the log and the status.
        let _ = maker.make();
        let (orders, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || maker.run(&queue))
            .map_err(|source| KeyFault::Io { path: dir.to_owned(), source })?;
        Ok(Self { orders: Some(orders), thread: Some(thread), signer, status, witnesses })
    }

    /// Makes a checkpoint of all records now.
    ///
    /// # Errors
    /// Says why there is none.
    pub async fn now(&self) -> Result<Status, CheckpointFault> {
        let (reply, made) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or(CheckpointFault::Closed)?;
        orders.send(Order(reply)).map_err(|_| CheckpointFault::Closed)?;
        made.await.map_err(|_| CheckpointFault::Closed)??;
        Ok(self.status())
    }

    /// What became of checkpoints so far.
    pub fn status(&self) -> Status {
        Status { witnesses: self.witnesses.status(), ..self.status.lock().clone() }
    }

    /// Whether nothing is signed, because the log is not the one that was signed last.
    pub fn is_forked(&self) -> bool {
        self.status.lock().forked
    }

    /// The key that signs.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It contains its panics; there is nothing to be told of here.
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
    /// Why nothing is signed.
    fork: Option<String>,
    head: Box<dyn Fn() -> Head + Send>,
    status: Arc<Mutex<Status>>,
    nudge: witness::Nudge,
    /// Since when there are records without a checkpoint, or a failure to be made good.
    waiting: Option<Instant>,
}

impl Maker {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        let look = LOOK.min(self.pace.time);
        loop {
            match orders.recv_timeout(look) {
                Ok(Order(reply)) => {
                    // Who asked may be gone.
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
            // No other try in this run would do better.
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
            return waited >= AGAIN;
        }
        waited >= self.pace.time || size.abs_diff(status.size) >= self.pace.records
    }

    /// Makes a checkpoint, unless the newest one has all records.
    fn make(&mut self) -> Result<(), CheckpointFault> {
        if let Some(why) = &self.fork {
            let fault = CheckpointFault::Forked(why.clone());
            let mut status = self.status.lock();
            status.failures += 1;
            status.failing = Some(fault.to_string());
            status.forked = true;
            tracing::error!(why, "NO CHECKPOINT OF THE AUDIT LOG IS SIGNED: {fault}");
            return Err(fault);
        }
        self.waiting = None;
        let made = catch_unwind(AssertUnwindSafe(|| self.sign()))
            .unwrap_or_else(|_| Err(io::Error::other("a panic (see the log)")));
        let mut status = self.status.lock();
        match made {
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
                self.nudge.tell();
                Ok(())
            }
            Err(error) => {
                // It is opened anew with the next try: nobody knows what this one left.
                self.ledger = None;
                status.failures += 1;
                status.failing = Some(error.to_string());
                tracing::error!(%error, "no checkpoint of the audit log could be made");
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
        // After the store has it: `verify` looks here first.
        atomic_file::write(&self.state.join(NEWEST), signed.note.as_bytes())?;
        self.ledger = Some(ledger);
        Ok(signed)
    }

    fn keys(&self) -> Vec<Verifier> {
        crate::proof::key::read_verifiers(&self.state)
            .unwrap_or_else(|_| vec![self.signer.verifier().clone()])
    }

    /// Where the state folder knows of a checkpoint that the store does not have, says so loudly
    /// and keeps it: it is the proof that the store was rolled back, cut or replaced.
    fn look_back(&mut self) -> io::Result<()> {
        let path = self.state.join(NEWEST);
        let note = match fs::read_to_string(&path) {
            Ok(note) => note,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let known = self.keys().iter().find_map(|key| Signed::open(&note, key).ok());
        let Some(Signed { checkpoint, hash, .. }) = known else { return Ok(()) };
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
             was rolled back or replaced; `portcullis audit verify` says more"
        );
        let aside = format!("{NEWEST}-{}-{}", checkpoint.number, checkpoint.time.as_second());
        atomic_file::write(&self.state.join(&aside), note.as_bytes())
    }
}
