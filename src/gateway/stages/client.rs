//! A client and what it declares.

use std::{net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::session::{Calls, ClientCapabilities, LogLevel, Session};
use portcullis_protocol::{
    codec::{
        Frame, Kind,
        era::{META_CAPABILITIES, META_CLIENT_INFO, META_LOG_LEVEL},
    },
    exchange::{Method, Revision, Transport, View},
    identity::Principal,
    names::ServerName,
};
use portcullis_upstream::{
    Call, CallError, Instance, InstanceKey, InstanceOwner, Items, ListKind, Reply, Running, Server,
    config::Sharing,
};

/// Sender of a message, and its transport data.
#[derive(Clone)]
pub struct Caller {
    pub principal: Arc<Principal>,
    pub transport: Transport,
    pub client_addr: Option<SocketAddr>,
    pub view: View,
    /// The legacy session; `initialize` has none yet.
    pub session: Option<Arc<Session>>,
    /// The client's calls in flight, if it can cancel them by id.
    pub calls: Option<Arc<Calls>>,
    pub revision: Revision,
    /// The `Mcp-Param-*` headers of a modern message, if its transport has headers that must match
    /// the body.
    pub headers: Option<Arc<HeaderMap>>,
}

/// Sender of a message with its declarations, from its handshake or from the message itself.
#[derive(Clone)]
pub(crate) struct ClientContext {
    caller: Caller,
    pub abilities: ClientCapabilities,
    /// The least severe log messages that it wants, if it set a level.
    pub level: Option<LogLevel>,
    /// `clientInfo` as text. A claim that is never a basis for a decision.
    pub info: Option<Bytes>,
}

impl Deref for ClientContext {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl ClientContext {
    /// The sender of a message.
    pub fn of(caller: Caller, frame: &Frame) -> Self {
        if let Some(session) = &caller.session {
            let (abilities, level) = (session.abilities.clone(), session.level());
            let info = session.info.clone();
            return Self { caller, abilities, level, info };
        }
        let meta = match &frame.kind {
            Kind::Request { .. } if caller.revision.is_modern() => {
                frame.params().and_then(|params| params.object("_meta"))
            }
            _ => None,
        };
        let get = |key| meta.as_ref().and_then(|meta| meta.get(key));
        let level = meta.as_ref().and_then(|meta| meta.string(META_LOG_LEVEL));
        Self {
            abilities: ClientCapabilities::new(get(META_CAPABILITIES)),
            level: level.and_then(|level| LogLevel::parse(&level)),
            info: get(META_CLIENT_INFO),
            caller,
        }
    }

    /// The client of a legacy session, as the receiver of server messages.
    pub fn at(session: &Arc<Session>) -> Self {
        Self {
            caller: Caller {
                principal: session.owner().clone(),
                transport: session.transport,
                client_addr: None,
                view: session.view().clone(),
                session: Some(session.clone()),
                calls: None,
                revision: session.revision,
                headers: None,
            },
            abilities: session.abilities.clone(),
            level: session.level(),
            info: session.info.clone(),
        }
    }

    /// The same client at another address.
    pub fn from(mut self, address: Option<SocketAddr>) -> Self {
        self.caller.client_addr = address;
        self
    }

    /// Whether the client wants a server's log message. Without a level, a legacy client gets all
    /// messages and a modern client none.
    pub fn wants(&self, level: Option<&str>) -> bool {
        match self.level {
            None => !self.revision.is_modern(),
            Some(least) => level.and_then(LogLevel::parse).is_none_or(|level| level >= least),
        }
    }

    /// Notes that a session uses a server's shared instance; false if there is no session to note
    /// it in.
    pub fn shares(&self, server: &ServerName) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.shares.lock().insert(server.clone());
            true
        })
    }

    /// Key of the instance that serves this client; `None` for the shared instance.
    pub fn party_key(&self, server: &Server) -> Option<InstanceKey> {
        let own = self.party(server).map(|party| party.key);
        own.or_else(|| server.shared_key(self.revision))
    }

    /// The instance whose lists this client gets.
    pub fn list_source(&self, server: &Server) -> ListSource {
        match self.party(server) {
            // What a server offers can depend on the requests that its client accepts.
            Some(owner) if self.abilities.is_askable() => ListSource::Own(Box::new(owner)),
            _ => ListSource::Shared(server.shared_key(self.revision)),
        }
    }

    /// Owner of the dedicated instance that this client needs. It needs one if the config separates
    /// clients, or if the server is a legacy one and could send it requests or has its log level. A
    /// server of both eras is a legacy one for a legacy client.
    pub fn party(&self, server: &Server) -> Option<InstanceOwner> {
        let shares = |session: &Arc<Session>| session.shares.lock().contains(&server.name);
        let sharing = server.settings.sharing;
        let apart = sharing.keeps_apart();
        let modern = server.eras().is_some_and(|eras| eras.is_modern_for(self.revision));
        if sharing == Sharing::Shared || modern && !apart {
            return None;
        }
        if !apart && self.session.as_ref().is_some_and(shares) {
            return None;
        }
        let askable = self.abilities.is_askable();
        // Where each client has a dedicated instance, its log level affects no other client.
        let separate = askable || self.level.is_some() && !apart;
        if !separate && !apart {
            return None;
        }
        let by_session = separate || sharing == Sharing::PerSession;
        let capabilities = self.abilities.raw().clone();
        let principal = self.principal.kind.clone();
        let holder = self.principal.key.clone();
        match &self.session {
            Some(session) if by_session => Some(InstanceOwner {
                key: InstanceKey::Session(session.id.clone()),
                principal,
                holder,
                revision: session.revision,
                capabilities,
            }),
            _ if separate || apart => {
                let mut digest = Sha256::new();
                if askable || !apart {
                    digest.update(&capabilities);
                    digest.update(self.level.map_or("", LogLevel::as_str));
                }
                Some(InstanceOwner {
                    key: InstanceKey::Client {
                        principal: principal.clone(),
                        holder: holder.clone(),
                        capabilities: digest.finalize().into(),
                    },
                    principal,
                    holder,
                    revision: self.revision,
                    capabilities,
                })
            }
            _ => None,
        }
    }

    /// The running instance of a server that serves this client.
    pub async fn instance(
        &self,
        server: &Arc<Server>,
    ) -> Result<(Arc<Instance>, Arc<Running>), CallError> {
        let own = if server.settings.sharing.keeps_apart() {
            // Independent of the server's era, and without a running shared instance.
            let party = self.party(server).ok_or_else(|| {
                CallError::Misbehaved("an isolated client has no principal of its own".into())
            })?;
            server.own(&party)?
        } else {
            let (shared, running) = shared_instance(server, self.revision).await?;
            let Some(party) = self.party(server) else { return Ok((shared, running)) };
            match server.own(&party) {
                Ok(own) => own,
                // The shared instance, without server requests. The session keeps it.
                Err(CallError::Overloaded { .. }) if self.shares(&server.name) => {
                    tracing::warn!(server = %server.name, client = self.principal.name(), "instance limit reached; the client shares the common instance, without server requests");
                    return Ok((shared, running));
                }
                Err(failure) => return Err(failure),
            }
        };
        let running = own.running().await?;
        if let Some(level) = self.level {
            set_level(&own, &running, level.as_str()).await?;
        }
        Ok((own, running))
    }

    /// The digest of the image of the instance that serves this client.
    pub fn image(&self, server: &Arc<Server>) -> Option<String> {
        let own = self.party_key(server).and_then(|key| server.owned(&key)?.peek());
        own.or_else(|| server.current())?.origin.image.clone()
    }
}

/// Instance whose lists a client gets.
#[derive(Clone)]
pub(crate) enum ListSource {
    /// A shared instance.
    Shared(Option<InstanceKey>),
    /// The instance of this client.
    Own(Box<InstanceOwner>),
}

impl ListSource {
    /// Key of the instance; `None` for the shared one.
    pub fn key(&self) -> Option<&InstanceKey> {
        match self {
            Self::Shared(key) => key.as_ref(),
            Self::Own(owner) => Some(&owner.key),
        }
    }

    /// The instance, if it exists.
    pub fn instance(&self, server: &Server) -> Option<Arc<Instance>> {
        server.at(self.key())
    }

    /// A list of the instance, which is started if necessary. Of a client that gets no instance, or
    /// whose instance returns no list, the list of the shared one.
    ///
    /// # Errors
    /// A [`CallError`] if the server returns no list.
    pub async fn items(&self, server: &Server, offer: ListKind) -> Result<Items, CallError> {
        let shared = match self {
            Self::Shared(key) => key.clone(),
            Self::Own(owner) => {
                let items = match server.own(owner) {
                    Ok(own) => own.items(offer).await,
                    Err(failure) => Err(failure),
                };
                match items {
                    Ok(items) => return Ok(items),
                    Err(failure) => {
                        tracing::debug!(server = %server.name, %failure, "list of a dedicated instance is unavailable");
                    }
                }
                server.shared_key(owner.revision)
            }
        };
        match shared.as_ref().and_then(|key| server.at(Some(key))) {
            Some(instance) => instance.items(offer).await,
            None => server.items(offer).await,
        }
    }
}

/// The running shared instance of clients of this revision.
pub(crate) async fn shared_instance(
    server: &Server,
    client: Revision,
) -> Result<(Arc<Instance>, Arc<Running>), CallError> {
    server.known_eras().await;
    loop {
        let key = server.shared_key(client);
        let instance = server.at(key.as_ref()).unwrap_or_else(|| server.shared().clone());
        let running = instance.running().await?;
        // The first handshake shows whether the server speaks both eras.
        if server.shared_key(client) == key {
            return Ok((instance, running));
        }
    }
}

/// Sets the client's log level at a server that does not have it yet.
pub(crate) async fn set_level(
    instance: &Arc<Instance>,
    running: &Arc<Running>,
    level: &'static str,
) -> Result<(), CallError> {
    if !running.handshake.offers("logging") || *running.level.lock() == Some(level) {
        return Ok(());
    }
    let params = json!({ "level": level }).to_string();
    let limit = Duration::from_secs(10);
    let call = Call::own(Method::SET_LEVEL, Some(params.into()), limit);
    if let Reply::Result(_) = instance.call(running, call).await? {
        *running.level.lock() = Some(level);
    }
    Ok(())
}
