//! Server messages that clients do not get. They are counted and recorded as events, since separate
//! records would all be the same.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Recorder;
use portcullis_audit::record::{DropReason, MessagesDropped};
use portcullis_protocol::{identity::PrincipalKind, names::ServerName};

/// Counts that are kept separately until they are recorded.
const MAX_COUNTS: usize = 1_000;

/// Dropped messages that are not recorded yet.
#[derive(Default)]
pub(crate) struct DropCounters(Mutex<HashMap<DropKey, u64>>);

/// Server and receiver of the messages, and the cause of the drop.
type DropKey = (ServerName, Option<PrincipalKind>, DropReason);

impl DropCounters {
    /// Counts a server message that a client does not get.
    pub fn count(&self, server: &ServerName, principal: &PrincipalKind, why: DropReason) {
        self.add(server.clone(), Some(principal.clone()), why, 1);
    }

    fn add(&self, server: ServerName, of: Option<PrincipalKind>, why: DropReason, count: u64) {
        let mut counts = self.0.lock();
        let of = of.filter(|_| counts.len() < MAX_COUNTS);
        let counted = counts.entry((server, of, why)).or_default();
        *counted = counted.saturating_add(count);
    }
}

impl Recorder {
    /// Records the drops since the last call. Counts that cannot be recorded are kept for the next
    /// call.
    pub(crate) async fn record_drops(&self) {
        let counts = std::mem::take(&mut *self.drops.0.lock());
        let reports = counts.into_iter().map(|((server, of, why), count)| async move {
            let dropped = MessagesDropped {
                server: server.to_string(),
                principal: of.as_ref().map(PrincipalKind::name),
                reason: why,
                count,
            };
            let recorded = self.audit.record_event(dropped).await;
            recorded.inspect_err(|_| self.drops.add(server, of, why, count)).err()
        });
        // Concurrently: they share one commit, and wait only once for a slow store.
        let failures = futures_util::future::join_all(reports).await;
        if let Some(error) = failures.into_iter().flatten().next() {
            tracing::error!(%error, "counts of dropped messages could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_counters_are_separate_and_limited() {
        let drops = DropCounters::default();
        let server: ServerName = "s".parse().unwrap();
        for client in 0..MAX_COUNTS + 10 {
            let kind = PrincipalKind::Client(format!("c{client}").parse().unwrap());
            drops.count(&server, &kind, DropReason::Unread);
            drops.count(&server, &kind, DropReason::Unread);
        }
        let counts = drops.0.lock();
        assert!(counts.len() <= MAX_COUNTS + 1);
        assert_eq!(counts.values().sum::<u64>(), 2 * (MAX_COUNTS as u64 + 10));
    }
}
