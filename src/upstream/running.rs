//! One that runs: its line, its process, and their end.

use std::{
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    definitions::Definitions,
    ear::Ear,
    event::Launching,
    greeting::Greeting,
    hands::Handed,
    launcher::Place,
    link::{Failure, Link},
    process::{Exit, Handle, Origin},
};
use crate::{names::DecisionId, refusal::Refusal, vault::Folder};

/// Numbers of what ever ran, and of the servers that it ran of.
pub(super) static NUMBERS: AtomicU64 = AtomicU64::new(1);
/// How long its end by force may take on top.
const FORCE: Duration = Duration::from_secs(5);

/// A started instance.
pub struct Running {
    /// No two that ever ran have the same.
    pub number: u64,
    /// What joins all that is told of it.
    pub(super) launch: DecisionId,
    pub(super) link: Arc<dyn Link>,
    pub(super) ear: Ear,
    /// What keeps the server telling of what is watched.
    pub(super) listening: Mutex<Option<AbortOnDropHandle<()>>>,
    pub greeting: Arc<Greeting>,
    pub(super) definitions: Arc<Definitions>,
    pub(super) process: Option<Arc<dyn Handle>>,
    pub(super) exit: Arc<OnceLock<Exit>>,
    pub place: Place,
    /// What runs there.
    pub origin: Origin,
    pub since: Instant,
    /// The least severe log messages that it was last told to send, where it was told.
    pub level: Mutex<Option<&'static str>>,
    /// What policies let be done to start it.
    pub(super) cleared: Arc<Launching>,
    /// The secrets that it was started with.
    pub(super) first: Arc<Handed>,
    /// Those that it was last handed: of the first ones, those on its files are no more.
    pub(super) handed: Mutex<Arc<Handed>>,
    /// Where it finds those that it gets as files; gone with it.
    pub(super) folder: Option<Folder>,
    /// Its calls under way. Closed once another takes its calls.
    pub(super) calls: TaskTracker,
    /// Why they let it run no longer.
    pub(super) revoked: SetOnce<Box<Refusal>>,
}

impl Running {
    /// Why it ended, if it did.
    pub(super) fn end(&self) -> Option<String> {
        let why = self.link.dead()?;
        Some(match self.exit.get() {
            Some(exit) => format!("{why} with {exit}"),
            None => why,
        })
    }

    /// What comes of work with it, while policies let it run.
    pub(super) async fn unless_revoked<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            refusal = self.revoked.wait() => Err(Failure::Forbidden(refusal.clone())),
            done = work => done,
        }
    }

    /// Ends the process, where there is one here. Until it is gone, the state keeps it: a caller
    /// that gives up half way leaves it to the next.
    pub(super) async fn stop(&self, grace: Duration) {
        drop(self.listening.lock().take());
        if !grace.is_zero() {
            self.link.leave().await;
        }
        if let Some(process) = &self.process {
            end(process.as_ref(), grace).await;
        }
    }
}

/// Ends a process, and does not wait for ever for that: what then remains goes with its handle.
pub(super) async fn end(process: &dyn Handle, grace: Duration) {
    if tokio::time::timeout(grace + FORCE, process.stop(grace)).await.is_err() {
        tracing::warn!(process = process.describe(), "a server's process did not end in time");
    }
}
