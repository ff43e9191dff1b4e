//! Open connections of the transport of 2024-11-05.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use parking_lot::Mutex;

use crate::front::connection::{Connection, ENDED};
use portcullis_protocol::{
    exchange::View,
    identity::Principal,
    names::SessionId,
    refusal::{Code, Refusal},
};

/// Divisor of all connections that gives one principal's limit, as for sessions.
const SHARE: usize = 10;

/// The open connections of one listener.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<SessionId, Arc<Connection>>>);

/// Ends a connection when its stream is dropped.
pub(super) struct Open {
    connections: Arc<Connections>,
    pub(super) id: SessionId,
}

impl Drop for Open {
    fn drop(&mut self) {
        let ended = self.connections.0.lock().remove(&self.id);
        if let Some(connection) = ended {
            connection.end(ENDED);
        }
    }
}

impl Connections {
    /// Keeps a connection until the returned value is dropped.
    ///
    /// # Errors
    /// A refusal: too many connections are open, or the system returned no random bytes.
    pub(super) fn open(
        self: &Arc<Self>,
        connection: Arc<Connection>,
        most: usize,
    ) -> Result<Open, Refusal> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| {
            Refusal::new(Code::InterceptorFault, "the connection cannot be opened")
                .detail(format!("the operating system returned no random bytes: {error}"))
        })?;
        let id = SessionId::presented(&BASE64_URL_SAFE_NO_PAD.encode(random));
        let mut open = self.0.lock();
        let kind = &connection.principal.kind;
        let own = open.values().filter(|other| other.principal.kind == *kind).count();
        if open.len() >= most || own >= most.div_ceil(SHARE) {
            return Err(Refusal::new(Code::RateLimited, "too many connections are open")
                .detail(format!("limits.sessions = {most}")));
        }
        open.insert(id.clone(), connection);
        Ok(Open { connections: self.clone(), id })
    }

    /// The connection with this id, for the client that opened it over the same endpoint.
    ///
    /// # Errors
    /// A refusal: the connection does not exist for this client.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        principal: &Principal,
        view: &View,
    ) -> Result<Arc<Connection>, Refusal> {
        let found = id.map(SessionId::presented);
        let found = found.and_then(|id| self.0.lock().get(&id).cloned());
        found
            // Decisions use the principal that opened it, so groups and key must match, too.
            .filter(|found| *found.principal == *principal && found.view == *view)
            .ok_or_else(|| Refusal::new(Code::SessionUnknown, "the connection does not exist"))
    }
}
