//! Records of connected clients and of sessions, and the end of everything that a removed client
//! has open. Clients are recorded as events, since each message would repeat the same.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    approval::Approvals,
    client_network::network,
    recorder::{Recorder, client_events::changed},
    servers::Servers,
    session::{Session, Sessions},
    stages::{CLIENT_CHANGED, Caller},
    subscriptions::Subscriptions,
    tasks::Tasks,
};
use portcullis_audit::{
    Unavailable,
    record::{By, ClientSeen, ConnectedPrincipal, SessionEnded, SessionOpened},
};
use portcullis_protocol::identity::{Change, Keyring, Principal, PrincipalKind};
use portcullis_upstream::{InstanceKey, Launcher, claims};

/// Time without a message after which a client counts as new again.
const AWAY: Duration = Duration::from_secs(60 * 60);
/// Clients that are remembered.
const CLIENTS: usize = 10_000;
/// Recorded changes of clients that may wait until they appear in the clients file.
const CHANGES: usize = 1_000;

/// Clients that sent a message lately.
#[derive(Default)]
pub(crate) struct RecentClients {
    hasher: RandomState,
    seen: Mutex<HashMap<u64, Instant>>,
}

impl RecentClients {
    /// Notes that this client is present: its principal, key, network and transport. Returns the
    /// key for [`forget`](Self::forget) if the client is new.
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
                // Recording a client twice is better than never.
                if seen.len() >= CLIENTS {
                    seen.clear();
                }
                seen.insert(who, now);
                Some(who)
            }
        }
    }

    /// Makes a client count as new again.
    fn forget(&self, who: u64) {
        self.seen.lock().remove(&who);
    }
}

/// Changes of clients that are on record and will appear in the clients file.
#[derive(Default)]
pub(crate) struct ExpectedChanges(Mutex<VecDeque<Change>>);

impl ExpectedChanges {
    fn add(&self, change: Change) {
        let mut changes = self.0.lock();
        if changes.len() >= CHANGES {
            changes.pop_front();
        }
        changes.push_back(change);
    }

    /// Removes a change from the expected ones. Returns whether it was expected.
    fn take(&self, change: &Change) -> bool {
        let mut changes = self.0.lock();
        let at = changes.iter().position(|expected| expected.is_like(change));
        at.and_then(|at| changes.remove(at)).is_some()
    }
}

/// Records clients, and ends everything that clients with a removed key have open.
pub struct Clients {
    recorder: Arc<Recorder>,
    recent: RecentClients,
    expected: ExpectedChanges,
    approvals: Arc<Approvals>,
    launcher: Arc<Launcher>,
    sessions: Arc<Sessions>,
    subscriptions: Arc<Subscriptions>,
    server_tasks: Arc<Tasks>,
    servers: Arc<Servers>,
    tasks: TaskTracker,
}

impl Clients {
    pub(crate) fn new(
        servers: Arc<Servers>,
        approvals: Arc<Approvals>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            recorder: servers.recorder.clone(),
            recent: RecentClients::default(),
            expected: ExpectedChanges::default(),
            approvals,
            launcher: servers.launcher.clone(),
            sessions: servers.sessions.clone(),
            subscriptions: servers.subscriptions.clone(),
            server_tasks: servers.server_tasks.clone(),
            servers,
            tasks,
        })
    }

    /// Records that a client connected, unless it was present lately.
    pub(crate) async fn note_client(&self, caller: &Caller) {
        // If the log is unavailable, the client's next message tries again. No message waits for it
        // twice.
        if !self.recorder.audit.is_healthy() {
            return;
        }
        let Some(new) = self.recent.enter(caller) else { return };
        if let Err(error) = self.recorder.audit.record_event(ClientSeen { who: who(caller) }).await
        {
            tracing::error!(%error, "client connection could not be recorded");
            self.recent.forget(new);
        }
    }

    /// Records the opening and the end of a session. Then ends its subscriptions and its dedicated
    /// instances.
    pub(crate) async fn follow_session(self: Arc<Self>, session: Arc<Session>, caller: Caller) {
        // Boxed, so that an idle session does not hold the memory of recording.
        Box::pin(self.session_opened(&session, caller)).await;
        session.ended().cancelled().await;
        Box::pin(self.session_ended(&session)).await;
    }

    async fn session_opened(&self, session: &Session, caller: Caller) {
        let info = session.info.as_ref().and_then(|info| serde_json::from_slice(info).ok());
        self.recorder
            .audit
            .record_best_effort(SessionOpened {
                session: session.id.prefix().to_owned(),
                who: who(&caller),
                revision: session.revision.to_string(),
                client_info: info.as_ref().and_then(claims),
            })
            .await;
    }

    async fn session_ended(&self, session: &Session) {
        self.recorder
            .audit
            .record_best_effort(SessionEnded {
                session: session.id.prefix().to_owned(),
                principal: session.owner().name(),
                requests: session.requests(),
                reason: session.end_reason().to_owned(),
            })
            .await;
        self.subscriptions.forget_session(&session.id);
        let key = InstanceKey::Session(session.id.clone());
        self.server_tasks.forget(&key);
        let servers = self.servers.all();
        futures_util::future::join_all(servers.iter().map(|server| server.leave(&key))).await;
    }

    /// Follows changes of the clients file: ends everything that clients with a removed key have
    /// open, and records changes that are not on record yet.
    pub async fn follow_changes(
        self: Arc<Self>,
        keyring: Arc<Keyring>,
        mut changes: mpsc::UnboundedReceiver<Change>,
    ) {
        let (seen, mut to_record) = mpsc::unbounded_channel();
        // Independent of the log, so that a removed client keeps nothing open meanwhile.
        let followed = {
            let clients = self.clone();
            async move {
                while let Some(change) = changes.recv().await {
                    clients.client_changed(&keyring, &change);
                    let _ = seen.send(change);
                }
            }
        };
        let recorded = async {
            while let Some(change) = to_record.recv().await {
                if !self.expected.take(&change) {
                    self.recorder.audit.record_best_effort(changed(change, By::default())).await;
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
                // Its waiting calls are not sent, and its old groups decide nothing more.
                self.approvals.forget(&kind);
                self.sessions.close_of(&kind, Some(key), CLIENT_CHANGED);
                self.subscriptions.end_listeners(&kind, Some(key), CLIENT_CHANGED);
                // With the same key, only the groups changed. Another key may be another client.
                let now = keyring.client(client);
                if now.is_some_and(|now| now.key.as_ref() == Some(key)) {
                    return;
                }
                self.server_tasks.forget_owner(&kind);
                dismissed.add(kind.clone(), key.clone());
                let (clients, key) = (self.clone(), key.clone());
                self.tasks.spawn(async move { clients.dismiss(&kind, &key).await });
            }
        }
    }

    /// Ends the instances dedicated to the client with that key, and their secrets.
    async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let servers = self.servers.all();
        let dismissed = servers.iter().map(|server| server.dismiss(client, key));
        futures_util::future::join_all(dismissed).await;
    }

    /// Records a change of clients that is about to be made.
    ///
    /// # Errors
    /// [`Unavailable`]: the change must not be made.
    pub async fn record_change(&self, change: Change, by: By) -> Result<(), Unavailable> {
        let undone = by.reason.is_some();
        self.recorder.audit.record_event(changed(change.clone(), by)).await?;
        // Reverting an unapplied change cancels the expected notification for both.
        if undone {
            self.expected.take(&change.reverse());
        } else {
            self.expected.add(change);
        }
        Ok(())
    }
}

fn who(caller: &Caller) -> ConnectedPrincipal {
    ConnectedPrincipal::of(&caller.principal, caller.transport, caller.client_addr)
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
    fn new_principal_key_or_network_is_a_new_client() {
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
        // A client that could not be recorded is new again.
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
}
