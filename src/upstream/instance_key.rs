//! For whom an instance of a server runs.

use std::collections::HashSet;

use bytes::Bytes;
use parking_lot::Mutex;

use portcullis_protocol::{exchange::Revision, identity::PrincipalKind, names::SessionId};

/// What tells one party from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum InstanceKey {
    /// A legacy session.
    Session(SessionId),
    /// A modern client: sessionless, so known by who it is and by what it says it can be asked.
    Client {
        principal: PrincipalKind,
        /// The id of its key: whoever has a name after another is somebody else.
        holder: Option<String>,
        /// SHA-256 of the text of its capabilities.
        capabilities: [u8; 32],
    },
}

/// A client that a server may ask something, which needs an instance that is greeted in its name.
#[derive(Debug, Clone)]
pub struct InstanceOwner {
    pub key: InstanceKey,
    /// Who it is, so that none takes the instances of all.
    pub principal: PrincipalKind,
    /// The id of its key, where it has one.
    pub holder: Option<String>,
    /// The revision to greet in; one before 2026-07-28.
    pub revision: Revision,
    /// The text of its capabilities, a JSON object, which the server is shown as it is.
    pub capabilities: Bytes,
}

/// Clients that may come in no more, by the ids of their keys. Those that an operator removed, so there
/// are few.
#[derive(Debug, Default)]
pub struct RevokedClients(Mutex<HashSet<(PrincipalKind, String)>>);

impl RevokedClients {
    /// Has nothing begun any more for a client with that key.
    pub fn add(&self, client: PrincipalKind, key: String) {
        self.0.lock().insert((client, key));
    }

    /// It has that key again.
    pub fn remove(&self, client: PrincipalKind, key: String) {
        self.0.lock().remove(&(client, key));
    }

    /// Whether nothing is begun for it any more.
    pub fn has(&self, party: &InstanceOwner) -> bool {
        let of = |key: &String| (party.principal.clone(), key.clone());
        party.holder.as_ref().is_some_and(|key| self.0.lock().contains(&of(key)))
    }
}
