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
use tokio_util::task::TaskTracker;

use crate::{
    approval::Approvals,
    recorder::Recorder,
    servers::Servers,
    session::{Session, Sessions},
    stages::{Caller, network},
    subscriptions::Subscriptions,
    tasks::Tasks,
};
use portcullis_audit::{
    Unavailable,
    record::{By, ClientAdded, ClientRemoved, ClientSeen, Event, SessionEnded, SessionOpened, Who},
};
use portcullis_protocol::identity::{Change, Keyring, Principal, PrincipalKind};
use portcullis_upstream::{InstanceKey, Launcher, claims};

/// Why what a client has open ends without its doing.
pub const CLIENT_CHANGED: &str = "the client was removed, or its groups changed";
/// After how long without a message a client is new again.
const AWAY: Duration = Duration::from_secs(60 * 60);
/// Clients that are remembered.
const CLIENTS: usize = 10_000;
/// Changes among the clients that are recorded and not seen yet.
const CHANGES: usize = 1_000;

/// Clients that were seen lately.
#[derive(Default)]
pub(crate) struct RecentClients {
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

/// Changes among the clients that are on record, and that will be seen in their file.
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

    /// Whether this one was expected. It is not any more.
    fn take(&self, change: &Change) -> bool {
        let mut changes = self.0.lock();
        let at = changes.iter().position(|expected| expected.is_like(change));
        at.and_then(|at| changes.remove(at)).is_some()
    }
}

/// What is recorded of a change among the clients.
pub(crate) fn changed(change: Change, by: By) -> Event {
    match change {
        Change::Added { client, key, groups } => ClientAdded {
            client: client.to_string(),
            key_id: key,
            groups: groups.iter().map(ToString::to_string).collect(),
            by,
        }
        .into(),
        Change::Removed { client, key } => {
            ClientRemoved { client: client.to_string(), key_id: key, by }.into()
        }
    }
}

/// Records which clients are here, and ends what is open for those who lose their key.
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

    /// Records that a client came in, unless it was here lately.
    pub(crate) async fn note_client(&self, caller: &Caller) {
        // A log that takes none has its next chance with the client's next message, and no message
        // waits for it twice.
        if !self.recorder.audit.is_well() {
            return;
        }
        let Some(new) = self.recent.enter(caller) else { return };
        if let Err(error) = self.recorder.audit.record_event(ClientSeen { who: who(caller) }).await
        {
            tracing::error!(%error, "client connection could not be recorded");
            self.recent.forget(new);
        }
    }

    /// Records a session from its opening to its end, and then ends what was kept for it: its
    /// subscriptions, and the servers that ran for it alone.
    pub(crate) async fn follow_session(self: Arc<Self>, session: Arc<Session>, caller: Caller) {
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
        session.ended().cancelled().await;
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

    /// Has clients who lose their key wait for nobody and keep no server running, and records which are
    /// given keys and lose them, as long as somebody tells: those of whom it was not recorded before.
    pub async fn follow_changes(
        self: Arc<Self>,
        keyring: Arc<Keyring>,
        mut changes: mpsc::UnboundedReceiver<Change>,
    ) {
        let (seen, mut to_record) = mpsc::unbounded_channel();
        // No log is waited for: who has lost a key keeps nothing meanwhile.
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
                // What it asked for is not sent any more, and nothing more is decided by what it was.
                self.approvals.forget(&kind);
                self.sessions.close_of(&kind, Some(key), CLIENT_CHANGED);
                self.subscriptions.end_listeners(&kind, Some(key), CLIENT_CHANGED);
                // One that has other groups now has the same key. Who has another may be somebody else.
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

    /// Ends what runs for that client with that key alone, with the secrets that are its own.
    async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let servers = self.servers.all();
        let dismissed = servers.iter().map(|server| server.dismiss(client, key));
        futures_util::future::join_all(dismissed).await;
    }

    /// Records a change among the clients that somebody is about to make.
    ///
    /// # Errors
    /// [`Unavailable`]: it must not be made.
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
}
