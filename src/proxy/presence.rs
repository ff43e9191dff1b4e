//! Who is here: clients that came in, sessions that opened and ended, and what was dropped on the
//! way to them. Counted here and recorded as events, since each message of it would say the same.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{Caller, Proxy, network};
use crate::{
    audit::record::{DropReason, Dropped, Happening, SessionOpened, Who},
    identity::{Change, Principal, PrincipalKind},
    names::ServerName,
    session::Session,
    upstream::claims,
};

/// After how long without a message a client is new again.
const AWAY: Duration = Duration::from_secs(60 * 60);
/// Clients that are remembered.
const CLIENTS: usize = 10_000;
/// Counts of drops that are kept apart until they are recorded.
const COUNTS: usize = 1_000;

/// Clients that were seen lately.
#[derive(Default)]
pub(super) struct Presence {
    hasher: RandomState,
    seen: Mutex<HashMap<u64, Instant>>,
}

impl Presence {
    /// Whether this client was not seen lately: its principal, with its key, from its network.
    fn is_new(&self, caller: &Caller) -> bool {
        let Principal { kind, key, .. } = &*caller.principal;
        let from = caller.client_addr.map(|address| network(address.ip()));
        let who = self.hasher.hash_one((kind, key, from, caller.transport));
        let now = Instant::now();
        let mut seen = self.seen.lock();
        match seen.get_mut(&who) {
            Some(last) => now.duration_since(std::mem::replace(last, now)) >= AWAY,
            None => {
                if seen.len() >= CLIENTS {
                    seen.retain(|_, last| now.duration_since(*last) < AWAY);
                }
                // Rather a client told of twice than one never.
                if seen.len() >= CLIENTS {
                    seen.clear();
                }
                seen.insert(who, now);
                true
            }
        }
    }
}

/// Messages that were dropped, not recorded yet.
#[derive(Default)]
pub(super) struct Drops(Mutex<HashMap<Dropping, u64>>);

/// The server whose messages they were, for whom, and why they were dropped.
type Dropping = (ServerName, Option<PrincipalKind>, DropReason);

impl Drops {
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

impl Proxy {
    /// Records that a client came in, unless it was here lately.
    pub(super) async fn note_client(&self, caller: &Caller) {
        if self.presence.is_new(caller) {
            self.audit.tell(Happening::ClientSeen(who(caller))).await;
        }
    }

    /// Records a session from its opening to its end.
    pub(super) async fn note_session(&self, session: &Arc<Session>, caller: &Caller) {
        let info = session.info.as_ref().and_then(|info| serde_json::from_slice(info).ok());
        self.audit
            .tell(Happening::SessionOpened(SessionOpened {
                session: session.id.prefix().to_owned(),
                who: who(caller),
                revision: session.revision.to_string(),
                claims: info.as_ref().and_then(claims),
            }))
            .await;
        session.ended().cancelled().await;
        self.audit
            .tell(Happening::SessionEnded {
                session: session.id.prefix().to_owned(),
                principal: session.owner().name(),
                requests: session.requests(),
            })
            .await;
    }

    /// Records which clients are given keys and lose them, as long as somebody tells.
    pub async fn tell_of_clients(
        self: Arc<Self>,
        mut changes: tokio::sync::mpsc::UnboundedReceiver<Change>,
    ) {
        while let Some(change) = changes.recv().await {
            self.audit
                .tell(match change {
                    Change::Added { client, key, groups } => Happening::ClientAdded {
                        client: client.to_string(),
                        key,
                        groups: groups.iter().map(ToString::to_string).collect(),
                    },
                    Change::Removed { client, key } => {
                        Happening::ClientRemoved { client: client.to_string(), key }
                    }
                })
                .await;
        }
    }

    /// Records what was dropped since this was last done.
    pub(super) async fn tell_of_drops(&self) {
        let counts = std::mem::take(&mut *self.drops.0.lock());
        for ((server, of, why), count) in counts {
            let dropped = Dropped {
                server: server.to_string(),
                principal: of.as_ref().map(PrincipalKind::name),
                why,
                count,
            };
            if let Err(error) = self.audit.event(Happening::MessagesDropped(dropped)).await {
                tracing::error!(%server, %error, "a count of dropped messages could not be recorded");
                self.drops.add(server, of, why, count);
            }
        }
    }
}

fn who(caller: &Caller) -> Who {
    Who::of(&caller.principal, caller.transport, caller.client_addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exchange::{Revision, Transport},
        router::View,
    };

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
        let presence = Presence::default();
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
            assert_eq!(presence.is_new(&caller(principal.clone(), address)), new, "{address:?}");
        }
        for port in 0..2 * CLIENTS {
            let octets = u32::try_from(port).unwrap().to_be_bytes();
            let address = format!("10.{}.{}.{}:1", octets[1], octets[2], octets[3]);
            presence.is_new(&caller(Principal::anonymous(), Some(&address)));
        }
        assert!(presence.seen.lock().len() <= CLIENTS);
    }

    #[test]
    fn drops_are_counted_apart_and_within_bounds() {
        let drops = Drops::default();
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
