//! Owners of the dedicated instances of a server.

use std::collections::HashSet;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use portcullis_protocol::{exchange::Revision, identity::PrincipalKind, names::SessionId};

/// Key of an instance other than the shared one: its legacy session or its modern client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstanceKey {
    /// The clients before 2026-07-28 that share an instance of a server of both eras.
    Legacy,
    /// A legacy session. It ends with the proxy, and its id is a secret, so it is never stored.
    #[serde(skip)]
    Session(SessionId),
    /// A modern client. It has no session, so its principal and capabilities identify it.
    Client {
        principal: PrincipalKind,
        /// Id of the client's key. A later client with the same name has another key.
        holder: Option<String>,
        /// SHA-256 of the text of the client's capabilities.
        capabilities: [u8; 32],
    },
}

impl InstanceKey {
    /// Whether the instance belongs to one client.
    pub fn is_dedicated(&self) -> bool {
        *self != Self::Legacy
    }
}

/// Client that owns a dedicated instance. The handshake has its capabilities.
#[derive(Debug, Clone)]
pub struct InstanceOwner {
    pub key: InstanceKey,
    /// Principal, for the limit of instances per principal.
    pub principal: PrincipalKind,
    /// Id of the client's key, if it has one.
    pub holder: Option<String>,
    /// Revision of the client. A server of both eras is addressed in its era.
    pub revision: Revision,
    /// The client's capabilities: a JSON object, passed to the server unchanged.
    pub capabilities: Bytes,
}

/// Clients without access, by the ids of their keys. Only clients that an operator removed are in
/// it, so it stays small.
#[derive(Debug, Default)]
pub struct RevokedClients(Mutex<HashSet<(PrincipalKind, String)>>);

impl RevokedClients {
    /// Refuses further instances for a client with this key.
    pub fn add(&self, client: PrincipalKind, key: String) {
        self.0.lock().insert((client, key));
    }

    /// Allows instances for a client that has this key again.
    pub fn remove(&self, client: PrincipalKind, key: String) {
        self.0.lock().remove(&(client, key));
    }

    /// Whether the client has lost its access.
    pub fn has(&self, party: &InstanceOwner) -> bool {
        let of = |key: &String| (party.principal.clone(), key.clone());
        party.holder.as_ref().is_some_and(|key| self.0.lock().contains(&of(key)))
    }
}
