//! Thread that seals blocks, so that no call waits for the packing of records.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    block::Growing,
    fault::Fault,
    segment::{Segment, Wal},
    segments::SegmentSet,
};

/// Delay between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Task of the sealing thread. Tasks run in order.
pub(super) enum Task {
    /// Pack a block into its segment.
    Seal { segment: Arc<Segment>, block: Arc<Growing> },
    /// Prepare the file for the commits of the next block.
    Prepare,
    /// Close a segment whose blocks are all sealed.
    Close(Arc<Segment>),
}

/// Handle of the sealing thread. On drop, the thread tries each remaining task once and ends.
/// Failed tasks are repeated when the store is opened next.
pub(super) struct Sealer {
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Sealer {
    pub fn start(segment_set: Arc<SegmentSet>) -> Result<Self, Fault> {
        let (tasks, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("audit-seal".into())
            .spawn(move || run(&segment_set, &queue))
            .map_err(|e| Fault::Io(format!("starting the sealing thread: {e}")))?;
        Ok(Self { tasks: Some(tasks), thread: Some(thread) })
    }

    /// Queues a task. The writer bounds the number of waiting blocks.
    pub fn put(&self, task: Task) -> Result<(), Fault> {
        let sent = self.tasks.as_ref().map(|tasks| tasks.send(task));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Fault::Io("the sealing thread has ended".into())),
        }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

fn run(segment_set: &SegmentSet, queue: &mpsc::Receiver<Task>) {
    let mut waiting: Vec<Task> = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        if waiting.is_empty() {
            match queue.recv() {
                Ok(task) => waiting.push(task),
                Err(_) => break,
            }
        }
        while let Some(task) = waiting.first() {
            let done = catch_unwind(AssertUnwindSafe(|| work(segment_set, task)))
                .unwrap_or_else(|_| Err(Fault::Io("the sealing thread panicked".into())));
            match done {
                Ok(()) => {
                    waiting.remove(0);
                }
                // The segment stays open until the next start; blocks must not wait for it.
                Err(fault @ Fault::Damaged(_)) if matches!(task, Task::Close(_)) => {
                    tracing::error!(%fault, "a segment of the audit log is not closed");
                    waiting.remove(0);
                }
                Err(fault) => {
                    tracing::error!(%fault, "a block of the audit log can't be sealed");
                    break;
                }
            }
        }
        if waiting.is_empty() {
            continue;
        }
        // Later blocks cannot be sealed before this one: wait, and queue new tasks meanwhile.
        match queue.recv_timeout(PAUSE) {
            Ok(task) => waiting.push(task),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) if open => open = false,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn work(segment_set: &SegmentSet, task: &Task) -> Result<(), Fault> {
    match task {
        Task::Seal { segment, block } => {
            segment.seal(block)?;
            segment_set.sealed(block);
            segment.forget_commits(block);
            Ok(())
        }
        Task::Prepare => {
            // Commits work without it, only slower.
            if let Err(error) = Wal::prepare(segment_set.dir()) {
                tracing::debug!(%error, "no file is filled ahead for audit records");
            }
            Ok(())
        }
        Task::Close(segment) => segment_set.close(segment),
    }
}
