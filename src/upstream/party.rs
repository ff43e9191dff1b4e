//! For whom an instance of a server runs.

use bytes::Bytes;

use crate::{exchange::Revision, identity::PrincipalKind, names::SessionId};

/// What tells one party from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PartyKey {
    /// A legacy session.
    Session(SessionId),
    /// A modern client: sessionless, so known by who it is and by what it says it can be asked.
    Client {
        principal: PrincipalKind,
        /// SHA-256 of the text of its capabilities.
        capabilities: [u8; 32],
    },
}

/// A client that a server may ask something, which needs an instance that is greeted in its name.
#[derive(Debug, Clone)]
pub struct Party {
    pub key: PartyKey,
    /// Who it is, so that none takes the instances of all.
    pub principal: PrincipalKind,
    /// The revision to greet in; one before 2026-07-28.
    pub revision: Revision,
    /// The text of its capabilities, a JSON object, which the server is shown as it is.
    pub capabilities: Bytes,
}
