//! Records reloads of policies: a revision is on record before anything that it decides.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{Recorder, startup_events};
use portcullis_audit::{
    Unavailable,
    record::{PolicyLoaded, PolicyRejected},
};
use portcullis_policy::{Reload, Revision};

/// Revisions that are known to be on record. Messages are decided by one of the last ones.
const KNOWN: usize = 64;
/// Pause between two attempts to record a revision.
const PAUSE: Duration = Duration::from_millis(500);

/// The policy revisions that are on record.
pub(crate) struct RecordedRevisions(watch::Sender<VecDeque<String>>);

impl RecordedRevisions {
    /// Starts with the revision that the proxy started with.
    pub fn new(first: Revision) -> Self {
        Self(watch::Sender::new([first.to_string()].into()))
    }

    fn add(&self, revision: Revision) {
        let revision = revision.to_string();
        self.0.send_modify(|revisions| {
            revisions.retain(|old| *old != revision);
            revisions.push_front(revision);
            revisions.truncate(KNOWN);
        });
    }

    fn has(&self, revision: &str) -> bool {
        self.0.borrow().iter().any(|one| one == revision)
    }
}

impl Recorder {
    /// Waits until it is on record that policies of this revision took effect.
    ///
    /// # Errors
    /// [`Unavailable`] if that takes longer than the time limit of a record.
    pub(crate) async fn revision_recorded(&self, revision: &str) -> Result<(), Unavailable> {
        if self.revisions.has(revision) {
            return Ok(());
        }
        let mut revisions = self.revisions.0.subscribe();
        let recorded = revisions.wait_for(|revisions| revisions.iter().any(|one| one == revision));
        match tokio::time::timeout(self.deadline, recorded).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.audit.too_slow()),
        }
    }

    /// Records every reload of the policies, applied or rejected, in order. Ends after the last one
    /// before the proxy stops is on record.
    pub(crate) async fn record_reloads(self: Arc<Self>, mut reloads: mpsc::Receiver<Reload>) {
        loop {
            let reload = tokio::select! {
                biased;
                reload = reloads.recv() => reload,
                () = self.closing.cancelled() => {
                    reloads.close();
                    reloads.recv().await
                }
            };
            match reload {
                Some(Reload::Taken(status)) => {
                    self.metrics.policy_reload(true);
                    self.record_policies(startup_events::policies(&status)).await;
                    self.revisions.add(status.revision);
                }
                Some(Reload::Rejected(failure)) => {
                    self.metrics.policy_reload(false);
                    let reason = failure.to_string();
                    self.audit.record_best_effort(PolicyRejected { reason }).await;
                }
                None => return,
            }
        }
    }

    /// Records policies that took effect, with retries until it succeeds. Messages that they
    /// decided do not pass before that.
    async fn record_policies(&self, loaded: PolicyLoaded) {
        while let Err(error) = self.audit.record_event(loaded.clone()).await {
            tracing::error!(%error, "new policies could not be recorded; refusing what they decide");
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = self.closing.cancelled() => return self.audit.record_best_effort(loaded).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_revisions_are_known_and_limited() {
        let engine = portcullis_policy::Engine::load(&[], std::path::Path::new("/")).unwrap();
        let revisions = RecordedRevisions::new(engine.revision());
        assert!(revisions.has(&engine.revision().to_string()));
        assert!(!revisions.has("another"));
        for _ in 0..2 * KNOWN {
            revisions.add(engine.revision());
        }
        assert_eq!(revisions.0.borrow().len(), 1);
    }
}
