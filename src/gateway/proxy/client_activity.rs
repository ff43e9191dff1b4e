//! Who is here: clients that came in, sessions that opened and ended, and what was dropped on the
//! way to them. Counted here and recorded as events, since each message of it would say the same.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Caller, Gateway, network};
use crate::session::Session;
use portcullis_audit::{
    Unavailable,
    record::{By, DropReason, Dropped, Event, SessionOpened, Who},
};
use portcullis_protocol::{
    identity::{Change, Keyring, Principal, PrincipalKind},
    names::ServerName,
};
use portcullis_upstream::claims;

/// Why what a client has open ends without its doing.
pub const CLIENT_CHANGED: &str = "the client was removed, or its groups changed";
/// After how long without a message a client is new again.
const AWAY: Duration = Duration::from_secs(60 * 60);
/// Clients that are remembered.
const CLIENTS: usize = 10_000;
/// Counts of drops that are kept apart until they are recorded.
const COUNTS: usize = 1_000;
/// Changes among the clients that are recorded and not seen yet.
const CHANGES: usize = 1_000;

/// Clients that were seen lately.
#[derive(Default)]
pub(super) struct RecentClients {
    hasher: RandomState,
    seen: Mutex<HashMap<u64, Instant>>,
}

impl RecentClients {
    /// Notes that this client is here: its principal, with its key, from its network. Tells by what
    /// it is remembered where it was not seen lately.
    fn enter(&self, caller: &Caller) -> Option<u64> {
        let Principal { kind, key, .. } = &*caller.principal;
        let from = caller.client_addr.map(|address| network(address.ip()));
        let who = self.hasher.hash_one((kind, key, from, caller.transport));
        let now = Instant::now();
        let mut seen = self.seen.lock();
        match seen.get_mut(&who) {
            Some(last) => {
                let away = now.duration_since(std::mem::replace(last, now)) >= AWAY;
                away.then_some(who)
            }
            None => {
                if seen.len() >= CLIENTS {
                    seen.retain(|_, last| now.duration_since(*last) < AWAY);
                }
                // Rather a client told of twice than one never.
                if seen.len() >= CLIENTS {
                    seen.clear();
                }
                seen.insert(who, now);
                Some(who)
            }
        }
    }

    /// Takes a client for new again.
    fn forget(&self, who: u64) {
        self.seen.lock().remove(&who);
    }
}

/// Messages that were dropped, not recorded yet.
#[derive(Default)]
pub(super) struct DropCounters(Mutex<HashMap<Dropping, u64>>);

/// The server whose messages they were, for whom, and why they were dropped.
type Dropping = (ServerName, Option<PrincipalKind>, DropReason);

impl DropCounters {
    /// Counts a message of a server that a client does not get.
    pub fn count(&self, server: &ServerName, principal: &PrincipalKind, why: DropReason) {
        self.add(server.clone(), Some(principal.clone()), why, 1);
    }

    fn add(&self, server: ServerName, of: Option<PrincipalKind>, why: DropReason, count: u64) {
        let mut counts = self.0.lock();
        let of = of.filter(|_| counts.len() < COUNTS);
        let counted = counts.entry((server, of, why)).or_default();
        *counted = counted.saturating_add(count);
    }
}

/// Changes among the clients that are on record, and that will be seen in their file.
#[derive(Default)]
pub(super) struct ExpectedChanges(Mutex<VecDeque<Change>>);

impl ExpectedChanges {
    fn add(&self, change: Change) {
        let mut changes = self.0.lock();
        if changes.len() >= CHANGES {
            changes.pop_front();
        }
        changes.push_back(change);
    }

    /// Whether this one was expected. It is not any more.
    fn take(&self, change: &Change) -> bool {
        let mut changes = self.0.lock();
        let at = changes.iter().position(|expected| expected.is_like(change));
        at.and_then(|at| changes.remove(at)).is_some()
    }
}

/// What is recorded of a change among the clients.
pub(super) fn changed(change: Change, by: By) -> Event {
    match change {
        Change::Added { client, key, groups } => Event::ClientAdded {
            client: client.to_string(),
            key_id: key,
            groups: groups.iter().map(ToString::to_string).collect(),
            by,
        },
        Change::Removed { client, key } => {
            Event::ClientRemoved { client: client.to_string(), key_id: key, by }
        }
    }
}

impl Gateway {
    /// Records that a client came in, unless it was here lately.
    pub(super) async fn note_client(&self, caller: &Caller) {
        // A log that takes none has its next chance with the client's next message, and no message
        // waits for it twice.
        if !self.audit.is_well() {
            return;
        }
        let Some(new) = self.presence.enter(caller) else { return };
        if let Err(error) = self.audit.record_event(Event::ClientSeen(who(caller))).await {
            tracing::error!(%error, "client connection could not be recorded");
            self.presence.forget(new);
        }
    }

    /// Records a session from its opening to its end.
    pub(super) async fn note_session(&self, session: &Arc<Session>, caller: &Caller) {
        let info = session.info.as_ref().and_then(|info| serde_json::from_slice(info).ok());
        self.audit
            .record_best_effort(Event::SessionOpened(SessionOpened {
                session: session.id.prefix().to_owned(),
                who: who(caller),
                revision: session.revision.to_string(),
                client_info: info.as_ref().and_then(claims),
            }))
            .await;
        session.ended().cancelled().await;
        self.audit
            .record_best_effort(Event::SessionEnded {
                session: session.id.prefix().to_owned(),
                principal: session.owner().name(),
                requests: session.requests(),
                reason: session.end_reason().to_owned(),
            })
            .await;
    }

    /// Has clients who lose their key wait for nobody and keep no server running, and records which are
    /// given keys and lose them, as long as somebody tells: those of whom it was not recorded before.
    pub async fn tell_of_clients(
        self: Arc<Self>,
        keyring: Arc<Keyring>,
        mut changes: mpsc::UnboundedReceiver<Change>,
    ) {
        let (seen, mut to_record) = mpsc::unbounded_channel();
        // No log is waited for: who has lost a key keeps nothing meanwhile.
        let followed = {
            let proxy = self.clone();
            async move {
                while let Some(change) = changes.recv().await {
                    proxy.client_changed(&keyring, &change);
                    let _ = seen.send(change);
                }
            }
        };
        let recorded = async {
            while let Some(change) = to_record.recv().await {
                if !self.expected.take(&change) {
                    self.audit.record_best_effort(changed(change, By::default())).await;
                }
            }
        };
        tokio::join!(followed, recorded);
    }

    fn client_changed(self: &Arc<Self>, keyring: &Keyring, change: &Change) {
        let dismissed = &self.launcher.dismissed;
        match change {
            Change::Added { client, key, .. } => {
                dismissed.remove(PrincipalKind::Client(client.clone()), key.clone());
            }
            Change::Removed { client, key } => {
                let kind = PrincipalKind::Client(client.clone());
                // What it asked for is not sent any more, and nothing more is decided by what it was.
                self.approvals.forget(&kind);
                self.sessions.close_of(&kind, Some(key), CLIENT_CHANGED);
                self.end_listeners(&kind, Some(key), CLIENT_CHANGED);
                // One that has other groups now has the same key. Who has another may be somebody else.
                let now = keyring.client(client);
                if now.is_some_and(|now| now.key.as_ref() == Some(key)) {
                    return;
                }
                self.task_log.forget_owner(&kind);
                dismissed.add(kind.clone(), key.clone());
                let (proxy, key) = (self.clone(), key.clone());
                self.tasks.spawn(async move { proxy.dismiss(&kind, &key).await });
            }
        }
    }

    /// Ends what runs for that client with that key alone, with the secrets that are its own.
    async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let servers = self.all_servers();
        let dismissed = servers.iter().map(|server| server.dismiss(client, key));
        futures_util::future::join_all(dismissed).await;
    }

    /// Records a change among the clients that somebody is about to make.
    ///
    /// # Errors
    /// [`Unavailable`]: it must not be made.
    pub async fn client_changes(&self, change: Change, by: By) -> Result<(), Unavailable> {
        let undone = by.reason.is_some();
        self.audit.record_event(changed(change.clone(), by)).await?;
        // Reverting an unapplied change cancels the expected notification for both.
        if undone {
            self.expected.take(&change.reverse());
        } else {
            self.expected.add(change);
        }
        Ok(())
    }

    /// Records what was dropped since this was last done. What can't be recorded stays for the next
    /// time.
    pub(super) async fn tell_of_drops(&self) {
        let counts = std::mem::take(&mut *self.drops.0.lock());
        let told = counts.into_iter().map(|((server, of, why), count)| async move {
            let dropped = Dropped {
                server: server.to_string(),
                principal: of.as_ref().map(PrincipalKind::name),
                reason: why,
                count,
            };
            let told = self.audit.record_event(Event::MessagesDropped(dropped)).await;
            told.inspect_err(|_| self.drops.add(server, of, why, count)).err()
        });
        // Together: they wait for one commit, and once where the store is slow.
        let failures = futures_util::future::join_all(told).await;
        if let Some(error) = failures.into_iter().flatten().next() {
            tracing::error!(%error, "counts of dropped messages could not be recorded");
        }
    }
}

fn who(caller: &Caller) -> Who {
    Who::of(&caller.principal, caller.transport, caller.client_addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::exchange::View;
    use portcullis_protocol::exchange::{Revision, Transport};

    fn caller(principal: Arc<Principal>, address: Option<&str>) -> Caller {
        Caller {
            principal,
            transport: Transport::Http,
            client_addr: address.map(|address| address.parse().unwrap()),
            view: View::All,
            session: None,
            calls: None,
            revision: Revision::LATEST_MODERN,
            headers: None,
        }
    }

    #[test]
    fn a_client_is_new_by_its_principal_its_key_and_its_network() {
        let presence = RecentClients::default();
        let bot = |key: &str| {
            let principal = Principal::client("bot".parse().unwrap(), Vec::new());
            Arc::new(Principal { key: Some(key.to_owned()), ..principal })
        };
        for (principal, address, new) in [
            (bot("a"), Some("192.0.2.1:1"), true),
            (bot("a"), Some("192.0.2.1:2"), false),
            (bot("b"), Some("192.0.2.1:2"), true),
            (bot("a"), Some("192.0.2.2:1"), true),
            (bot("a"), Some("[2001:db8::1]:1"), true),
            (bot("a"), Some("[2001:db8::2]:1"), false),
            (Principal::anonymous(), Some("192.0.2.1:1"), true),
            (Principal::anonymous(), None, true),
            (Principal::anonymous(), None, false),
        ] {
            assert_eq!(
                presence.enter(&caller(principal.clone(), address)).is_some(),
                new,
                "{address:?}"
            );
        }
        // One of whom nothing could be recorded is new again.
        let carl = caller(bot("c"), None);
        let new = presence.enter(&carl).unwrap();
        assert_eq!(presence.enter(&carl), None);
        presence.forget(new);
        assert_eq!(presence.enter(&carl), Some(new));
        for port in 0..2 * CLIENTS {
            let octets = u32::try_from(port).unwrap().to_be_bytes();
            let address = format!("10.{}.{}.{}:1", octets[1], octets[2], octets[3]);
            presence.enter(&caller(Principal::anonymous(), Some(&address)));
        }
        assert!(presence.seen.lock().len() <= CLIENTS);
    }

    #[test]
    fn drops_are_counted_apart_and_within_bounds() {
        let drops = DropCounters::default();
        let server: ServerName = "s".parse().unwrap();
        for client in 0..COUNTS + 10 {
            let kind = PrincipalKind::Client(format!("c{client}").parse().unwrap());
            drops.count(&server, &kind, DropReason::Unread);
            drops.count(&server, &kind, DropReason::Unread);
        }
        let counts = drops.0.lock();
        assert!(counts.len() <= COUNTS + 1);
        assert_eq!(counts.values().sum::<u64>(), 2 * (COUNTS as u64 + 10));
    }
}
