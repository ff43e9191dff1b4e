//! The audit log that the chain writes to, and the reader for a store without a running proxy.

mod open;
mod options;
mod reader;

use std::{
    fmt,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{broadcast, mpsc};

use crate::{
    digest::DigestKey,
    line::Line,
    maintenance::{self, Gap, Keys, MissedRecords, PROBE},
    proof::{self, CheckpointFault, Checkpointer, Proof, ProveFault, Prover, Verifier},
    query::Archive,
    record::{Event, EventRecord, Intent, KeyRotated, Kind, Outcome, Record, Refused},
    store::{Fault, Job, Lock, SegmentInfo, SegmentSet, Settings, Writer, private_dir},
    unavailable::Unavailable,
};
use portcullis_protocol::names::DecisionId;

use open::{broken, identify, lock, open_segment_set, unfit};
pub use options::{Clock, Options, Scrub};
pub use reader::Reader;

/// Maximum number of records that a follower may lag behind.
const TAIL: usize = 1024;

/// The audit log. Clones share it; the last drop writes the queued records and closes the store.
#[derive(Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    id: String,
    options: Options,
    key: DigestKey,
    archive: Archive,
    segment_set: Arc<SegmentSet>,
    /// Records that the log missed.
    gap: Gap,
    /// Excludes concurrent backups and removals of segments.
    keeping: tokio::sync::Mutex<()>,
    /// Serializes verifications.
    verifying: Arc<tokio::sync::Mutex<()>>,
    tail: broadcast::Sender<Line>,
    /// Records acknowledged since the log was opened.
    written: AtomicU64,
    /// Whether the store accepted the last record.
    well: AtomicBool,
    /// Queue of the writer thread; the thread ends when it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Signs the last checkpoint when dropped, after the last record.
    checkpointer: Option<Checkpointer>,
    prover: Prover,
    /// Dropped last: the store is closed before another process can lock it.
    _lock: Lock,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Last chance to log missed records that were not reported yet.
        let missed = self.gap.open();
        let reported = missed.and_then(|missed| {
            let (job, answer) = Job::new(EventRecord::now(missed).into()).ok()?;
            self.jobs.as_ref()?.try_send(job).ok()?;
            Some(answer)
        });
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
        if let Some(missed) = missed
            && !reported.is_some_and(|mut answer| matches!(answer.try_recv(), Ok(Ok(()))))
        {
            let MissedRecords { since, until, intents, outcomes, refusals, events } = missed;
            tracing::error!(
                %since, %until, intents, outcomes, refusals, events,
                "audit records dropped, and the gap could not be recorded: keep this line"
            );
        }
        self.checkpointer = None;
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the store in `dir`, or creates it (mode 0700). Blocks for at most `deadline` while
    /// another process holds it. `deadline` also bounds later writes of records.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason and a remedy.
    pub fn open(dir: &Path, deadline: Duration) -> Result<Self, Unavailable> {
        Self::open_with(dir, Options { deadline, ..Options::default() })
    }

    /// Opens the store in `dir` with all options.
    ///
    /// # Errors
    /// As for [`Audit::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, Unavailable> {
        private_dir(dir).map_err(broken(dir))?;
        let held = lock(dir, options.deadline)?;
        let (mut manifest, cipher) = identify(dir, options.keys.as_ref())?;
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(broken(dir))?;
        maintenance::sweep(dir).map_err(broken(dir))?;
        let state = options.checkpoints.state.as_deref().unwrap_or(dir);
        let signed = proof::signed_digest_key(dir, state);
        let key = DigestKey::open(dir, cipher.as_deref(), signed).map_err(broken(dir))?;
        let unavailable = |fault| Unavailable::of(fault, dir.to_owned(), options.reserve);
        let (opened, fork) =
            open_segment_set(dir, state, &key, cipher.as_ref()).map_err(unavailable)?;
        let segment_set = opened.segment_set.clone();
        let rotated = match &cipher {
            Some(cipher) => {
                manifest.uses(dir, cipher.id(), segment_set.view().end()).map_err(unfit(dir))?
            }
            None => None,
        };
        let signed = segment_set.clone();
        let head = move || signed.head();
        let (digest_key, settings) = (key.fingerprint(), &options.checkpoints);
        let checkpointer = Checkpointer::start(dir, &manifest.id, settings, digest_key, fork, head)
            .map_err(|fault| Unavailable::Broken { dir: dir.to_owned(), why: fault.to_string() })?;
        let (tail, _) = broadcast::channel(TAIL);
        let settings = Settings {
            queue: options.queue.max(1),
            reserve: options.reserve,
            period: u64::try_from(options.segment.as_micros()).unwrap_or(u64::MAX).max(1),
            bytes: options.segment_bytes,
            clock: options.clock.clone(),
        };
        let (jobs, thread) = Writer::start(opened, settings, tail.clone()).map_err(unavailable)?;
        if let Some(id) = rotated {
            let what = KeyRotated { key_id: id.to_string() };
            let (job, _) = Job::new(EventRecord::now(what).into()).map_err(unavailable)?;
            // The queue is still empty.
            let _ = jobs.try_send(job);
        }
        let archive = Archive::new(segment_set.clone());
        let gap = Gap::new(options.pass);
        let inner = Inner {
            dir: dir.to_owned(),
            id: manifest.id.clone(),
            options,
            key,
            prover: Prover::new(segment_set.clone(), archive.clone()),
            archive,
            segment_set,
            gap,
            keeping: Default::default(),
            verifying: Arc::default(),
            tail,
            written: AtomicU64::new(0),
            well: AtomicBool::new(true),
            jobs: Some(jobs),
            thread: Some(thread),
            checkpointer: Some(checkpointer),
            _lock: held,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Id of the store: the name of its hash chain.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// Key of the digests in records.
    pub fn key(&self) -> &DigestKey {
        &self.inner.key
    }

    /// Records that a message is about to leave. The record is durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Unavailable`]: the message must not leave.
    pub async fn intent(&self, intent: Intent) -> Result<(), Unavailable> {
        self.record(intent.into()).await
    }

    /// Records the end of a message. The record is durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Unavailable`]; the intent stays recorded without an outcome.
    pub async fn outcome(&self, outcome: Outcome) -> Result<(), Unavailable> {
        self.record(outcome.into()).await
    }

    /// Records that a message was refused before it left. Durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Unavailable`]; the message stays refused, and the log reports the missed record later.
    pub async fn refused(&self, refused: Refused) -> Result<(), Unavailable> {
        let written = self.record(refused.into()).await;
        if let Err(fault) = &written {
            self.inner.miss(Kind::Refused, fault);
        }
        written
    }

    /// Records an event that cannot be refused any more. Records that the store does not accept are
    /// counted and reported when it accepts records again. Until then, further events are only
    /// counted and do not wait.
    pub async fn record_best_effort(&self, what: impl Into<Event>) {
        let what = what.into();
        let (inner, event) = (&self.inner, what.name());
        let why = match inner.gap.open().filter(|_| !inner.well.load(Ordering::Relaxed)) {
            Some(missed) => format!("the store takes none since {}", missed.since),
            None => match inner.write(EventRecord::now(what).into()).await {
                Ok(()) => return,
                Err(fault) => fault.to_string(),
            },
        };
        tracing::warn!(event, why, "what happened could not be recorded");
        inner.miss(Kind::Event, &why);
    }

    /// Records an event before it happens to the proxy. Durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`Unavailable`]: the event must not happen.
    pub async fn record_event(&self, what: impl Into<Event>) -> Result<(), Unavailable> {
        self.record(EventRecord::now(what).into()).await
    }

    /// Like [`Audit::record_event`], with an id that was allocated and published before.
    ///
    /// # Errors
    /// As for [`Audit::record_event`].
    pub async fn record_event_as(
        &self,
        id: DecisionId,
        what: impl Into<Event>,
    ) -> Result<(), Unavailable> {
        self.record(EventRecord { id, ..EventRecord::now(what) }.into()).await
    }

    /// Like [`Audit::record_event`], but fails even where calls may go on without a record.
    ///
    /// # Errors
    /// As for [`Audit::record_event`].
    pub async fn record_required(&self, what: impl Into<Event>) -> Result<(), Unavailable> {
        self.inner.write(EventRecord::now(what).into()).await
    }

    async fn record(&self, record: Record) -> Result<(), Unavailable> {
        let inner = &self.inner;
        let kind = record.kind();
        if inner.options.pass
            && let Some(missed) = inner.gap.open()
        {
            inner.miss(kind, &format_args!("the store takes none since {}", missed.since));
            return Ok(());
        }
        match inner.write(record).await {
            Err(fault) if inner.options.pass => {
                inner.miss(kind, &fault);
                Ok(())
            }
            written => written,
        }
    }

    /// Number of records acknowledged since the log was opened.
    pub fn written(&self) -> u64 {
        self.inner.written.load(Ordering::Relaxed)
    }

    /// Records that the log misses now (while calls go on without it), and the number of records
    /// missed since it was opened.
    pub fn missed(&self) -> (Option<MissedRecords>, u64) {
        let passing = self.inner.gap.open().filter(|_| self.inner.options.pass);
        (passing, self.inner.gap.total())
    }

    /// Error for a record that was not durable in time.
    pub fn too_slow(&self) -> Unavailable {
        let Inner { dir, options, .. } = &*self.inner;
        Unavailable::Slow { dir: dir.clone(), waited: options.deadline }
    }

    /// Whether the store accepted the last record.
    pub fn is_healthy(&self) -> bool {
        self.inner.well.load(Ordering::Relaxed)
    }

    /// Folder of the store.
    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Lock to hold while files of the store are copied or removed.
    pub(crate) fn keeping(&self) -> &tokio::sync::Mutex<()> {
        &self.inner.keeping
    }

    /// Lock to hold while the log is verified.
    pub(crate) fn verifying(&self) -> &Arc<tokio::sync::Mutex<()>> {
        &self.inner.verifying
    }

    /// State folder, and the keys that encrypt records.
    pub(crate) fn verified_with(&self) -> (Option<PathBuf>, Option<Keys>) {
        let Options { checkpoints, keys, .. } = &self.inner.options;
        (checkpoints.state.clone(), keys.clone())
    }

    /// Signs a checkpoint of all existing records.
    ///
    /// # Errors
    /// [`CheckpointFault`] with the reason, if no checkpoint could be made.
    pub async fn checkpoint(&self) -> Result<proof::Status, CheckpointFault> {
        match &self.inner.checkpointer {
            Some(checkpointer) => checkpointer.now().await,
            None => Err(CheckpointFault::Closed),
        }
    }

    /// Status of checkpoints since the log was opened.
    pub fn checkpoints(&self) -> proof::Status {
        self.inner.checkpointer.as_ref().map(Checkpointer::status).unwrap_or_default()
    }

    /// Key that verifies checkpoints.
    pub fn verifier(&self) -> Option<Verifier> {
        let checkpointer = self.inner.checkpointer.as_ref()?;
        Some(checkpointer.signer().verifier().clone())
    }

    /// Proves that the records of a decision are in the log. Makes a checkpoint first if none
    /// contains them.
    ///
    /// # Errors
    /// [`ProveFault`], if there is no proof.
    pub async fn prove(&self, id: DecisionId) -> Result<Proof, ProveFault> {
        let prover = &self.inner.prover;
        if let Some(proof) = prover.include(id).await? {
            return Ok(proof);
        }
        self.checkpoint().await.map_err(|_| ProveFault::Unsigned)?;
        prover.include(id).await?.ok_or(ProveFault::Unsigned)
    }

    /// Proves that the log at the checkpoint of size `from` is a prefix of that of size `to`.
    ///
    /// # Errors
    /// [`ProveFault`], if there is no proof.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Proof, ProveFault> {
        self.inner.prover.consist(from, to).await
    }

    /// Saves the signed hashes of a closed segment that proofs need. They are durable when this
    /// returns, so that the segment's folder can be removed. Blocks.
    pub(crate) fn keep_proof(&self, segment: &SegmentInfo) -> Result<(), Fault> {
        let Inner { dir, checkpointer, prover, .. } = &*self.inner;
        match checkpointer {
            Some(checkpointer) if checkpointer.is_forked() => Err(Fault::Damaged(
                "the log is not the one that was signed last: none of it is dropped".into(),
            )),
            Some(checkpointer) => prover.keep(checkpointer.signer(), segment),
            None => Err(Fault::Io(format!("{} is closed", dir.display()))),
        }
    }

    /// Query interface of the records.
    pub fn archive(&self) -> &Archive {
        &self.inner.archive
    }

    pub(super) fn segment_set(&self) -> &Arc<SegmentSet> {
        &self.inner.segment_set
    }

    /// Stream of all records written from now on.
    pub fn tail(&self) -> Tail {
        Tail(self.inner.tail.subscribe())
    }
}

impl Inner {
    /// Counts a record that the store did not accept, and starts to probe the store.
    fn miss(self: &Arc<Self>, kind: Kind, why: &dyn fmt::Display) {
        if self.gap.miss(kind, why) {
            tokio::spawn(mend(Arc::downgrade(self)));
        }
    }

    /// Writes a record. The record is durable when this returns `Ok`.
    async fn write(&self, mut record: Record) -> Result<(), Unavailable> {
        let Self { dir, options, jobs, written: total, .. } = self;
        let closed = || Unavailable::Closed { dir: dir.clone() };
        let unavailable = |fault| Unavailable::of(fault, dir.clone(), options.reserve);
        record.scrub_and_truncate(
            options.scrub.as_deref().map(|scrub| scrub as &dyn Fn(&mut String)),
        );
        let (job, answer) = Job::new(record).map_err(unavailable)?;
        let jobs = jobs.as_ref().ok_or_else(closed)?;
        let written = async {
            jobs.send(job).await.map_err(|_| closed())?;
            answer
                .await
                .map_err(|_| Unavailable::Broken {
                    dir: dir.clone(),
                    why: "the store panicked (see the log)".into(),
                })?
                .map_err(unavailable)?;
            total.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let written = tokio::time::timeout(options.deadline, written).await.unwrap_or_else(|_| {
            Err(Unavailable::Slow { dir: dir.clone(), waited: options.deadline })
        });
        self.well.store(written.is_ok(), Ordering::Relaxed);
        written
    }
}

/// Retries the record about missed records until the store accepts it.
async fn mend(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(PROBE).await;
        let Some(inner) = inner.upgrade() else { return };
        let Some(missed) = inner.gap.open() else { return };
        if inner.write(EventRecord::now(missed).into()).await.is_ok() {
            tracing::warn!(
                since = %missed.since, until = %missed.until, records = missed.count(),
                "audit log recovered; the missed records are on record"
            );
            if inner.gap.reported(&missed) {
                return;
            }
        }
    }
}

/// Stream of records as they are written.
#[derive(Debug)]
pub struct Tail(broadcast::Receiver<Line>);

/// Item of a [`Tail`].
#[derive(Debug, Clone, PartialEq)]
pub enum Tailed {
    /// A record was written.
    Record(Line),
    /// Number of records that were skipped because the follower was too slow. The store has them.
    Missed(u64),
}

impl Tail {
    /// Waits for the next record. `None` when the log is closed.
    pub async fn next(&mut self) -> Option<Tailed> {
        match self.0.recv().await {
            Ok(line) => Some(Tailed::Record(line)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Tailed::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_test_support::exchange;

    use crate::DecisionContext;

    /// A log whose queue only the test empties.
    fn stalled(dir: &Path, deadline: Duration) -> (Audit, mpsc::Receiver<Job>) {
        let mut audit = Audit::open(dir, Duration::from_secs(60)).unwrap();
        let (jobs, queue) = mpsc::channel(1);
        let inner = Arc::get_mut(&mut audit.inner).unwrap();
        inner.jobs = Some(jobs);
        inner.options.deadline = deadline;
        (audit, queue)
    }

    async fn write(audit: &Audit) -> Result<(), Unavailable> {
        audit.intent(Intent::of(&exchange(|_| {}), DecisionContext::default(), audit.key())).await
    }

    #[tokio::test]
    async fn late_write_is_not_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let waited = Duration::from_millis(10);
        let (audit, mut queue) = stalled(dir.path(), waited);
        let slow = Err(Unavailable::Slow { dir: dir.path().into(), waited });
        assert_eq!(write(&audit).await, slow, "no answer");
        assert_eq!(write(&audit).await, slow, "a full queue");
        assert!(queue.recv().await.is_some());
    }

    #[tokio::test]
    async fn ended_writer_acknowledges_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, mut queue) = stalled(dir.path(), Duration::from_secs(60));
        let (written, _) = tokio::join!(write(&audit), async { drop(queue.recv().await) });
        assert!(matches!(written, Err(Unavailable::Broken { .. })), "{written:?}");
        drop(queue);
        assert_eq!(write(&audit).await, Err(Unavailable::Closed { dir: dir.path().into() }));
    }
}
