//! The way of a record to the writer.
//!
//! Under load, records are queued, and one thread commits all that arrived during the sync before.
//! That costs two switches of threads for each commit, which take longer than the sync of a quick
//! disk. So a record that would be alone in its commit is committed by the thread that brings it.
//! If a disk that was quick hangs, that one record is late; all others queue, within their deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
};

use super::{
    fault::Fault,
    writer::{Draft, Writer},
};
use crate::record::Kind;

/// Maximum number of records in one commit.
const BATCH: usize = 512;
/// Maximum bytes of records in one commit.
const BATCH_BYTES: usize = 4 << 20;
/// Maximum bytes of a record that its own thread commits.
const DIRECT_BYTES: usize = 16 << 10;
/// Syncs must be quicker for that on average: the thread serves nothing else meanwhile.
const DIRECT_SYNC: Duration = Duration::from_millis(1);
/// Consecutive commits of one record by the thread, after which there is no load.
const CALM: u32 = 4;

/// A queued record.
#[derive(Debug)]
pub(crate) struct Job {
    draft: Draft,
    reply: oneshot::Sender<Result<(), Fault>>,
}

/// Receives records. The writer ends when this is dropped, after the queued records.
pub(crate) struct CommitQueue {
    queue: mpsc::Sender<Job>,
    /// None in tests without a writer.
    writer: Option<Arc<Mutex<Writer>>>,
    /// Consecutive commits of one record while no other came.
    calm: Arc<AtomicU32>,
}

impl CommitQueue {
    /// Starts the thread that commits queued records.
    pub(crate) fn start(writer: Writer, length: usize) -> Result<(Self, JoinHandle<()>), Fault> {
        let (queue, jobs) = mpsc::channel(length);
        let writer = Arc::new(Mutex::new(writer));
        let calm = Arc::new(AtomicU32::new(0));
        let (shared, load) = (writer.clone(), calm.clone());
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || run(&shared, jobs, &load))
            .map_err(|e| Fault::Io(format!("starting the writing thread: {e}")))?;
        Ok((Self { queue, writer: Some(writer), calm }, thread))
    }

    /// A queue that the receiver empties.
    #[cfg(test)]
    pub(crate) fn stalled(length: usize) -> (Self, mpsc::Receiver<Job>) {
        let (queue, jobs) = mpsc::channel(length);
        (Self { queue, writer: None, calm: Arc::default() }, jobs)
    }

    /// Commits the record on this thread, if that is quick and no other record waits. Blocks for
    /// the sync of the disk. Otherwise returns the record.
    pub(crate) fn commit_directly(&self, draft: Draft) -> Result<Result<(), Fault>, Draft> {
        let is_calm = self.calm.load(Ordering::Relaxed) >= CALM;
        if !is_calm || draft.len() > DIRECT_BYTES || !has_other_workers() {
            return Err(draft);
        }
        let Some(writer) = &self.writer else { return Err(draft) };
        // One thread at most waits for the disk here. The others queue.
        let Some(mut writer) = writer.try_lock() else {
            self.calm.store(0, Ordering::Relaxed);
            return Err(draft);
        };
        if self.queue.capacity() < self.queue.max_capacity() || !writer.is_quick(DIRECT_SYNC) {
            self.calm.store(0, Ordering::Relaxed);
            return Err(draft);
        }
        let mut result = Ok(());
        writer.commit(vec![draft], |_, written| result = written);
        Ok(result)
    }

    /// Queues the record and waits for its commit.
    pub(crate) async fn commit(&self, draft: Draft) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Job { draft, reply }).await.map_err(|_| Fault::Closed)?;
        answer.await.unwrap_or(Err(Fault::Closed))
    }

    /// Queues the record, if there is room.
    pub(crate) fn try_queue(&self, draft: Draft) -> Option<oneshot::Receiver<Result<(), Fault>>> {
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Job { draft, reply }) {
            Ok(()) => Some(answer),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => None,
        }
    }
}

/// Whether the runtime has a thread that serves other tasks while this one waits for the disk.
fn has_other_workers() -> bool {
    Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() > 1)
}

fn run(writer: &Mutex<Writer>, mut jobs: mpsc::Receiver<Job>, calm: &AtomicU32) {
    while let Some(first) = jobs.blocking_recv() {
        let mut writer = writer.lock();
        let mut bytes = 0;
        let (mut drafts, mut replies) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(Job { draft, reply }) = next {
            // If the producer stopped waiting, its call is not made, so its intent is skipped.
            // Other records describe past events and are written in any case.
            if !reply.is_closed() || draft.kind() != Kind::Intent {
                bytes += draft.len();
                drafts.push(draft);
                replies.push(reply);
            }
            let has_room = drafts.len() < BATCH && bytes < BATCH_BYTES;
            next = has_room.then(|| jobs.try_recv().ok()).flatten();
        }
        if drafts.len() > 1 {
            calm.store(0, Ordering::Relaxed);
        } else {
            // The counter stays small: it stops at `CALM`.
            let _ = calm.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < CALM).then_some(count + 1)
            });
        }
        let mut replies = replies.into_iter();
        writer.commit(drafts, |count, written| {
            for reply in replies.by_ref().take(count) {
                // The producer may have stopped waiting.
                let _ = reply.send(written.clone());
            }
        });
    }
}
