//! A client with what it says of itself.

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
    Call, CallError, Instance, InstanceKey, InstanceOwner, Reply, Running, Server, config::Sharing,
};

/// Who sends a message, and how it came.
#[derive(Clone)]
pub struct Caller {
    pub principal: Arc<Principal>,
    pub transport: Transport,
    pub client_addr: Option<SocketAddr>,
    pub view: View,
    /// The legacy session; `initialize` comes without one.
    pub session: Option<Arc<Session>>,
    /// What the client has under way, where it can cancel by an id.
    pub calls: Option<Arc<Calls>>,
    pub revision: Revision,
    /// The `Mcp-Param-*` headers of a modern message, where it came with headers to be held
    /// against its body.
    pub headers: Option<Arc<HeaderMap>>,
}

/// Who sends a message, with what the client says of itself: in its greeting, or in each message.
#[derive(Clone)]
pub(crate) struct ClientContext {
    caller: Caller,
    pub abilities: ClientCapabilities,
    /// The least severe log messages that it wants, where it said so.
    pub level: Option<LogLevel>,
    /// `clientInfo`, as text. A claim, never a basis for a decision.
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

    /// The client of a legacy session, to which a server speaks.
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

    /// The same, at this address.
    pub fn from(mut self, address: Option<SocketAddr>) -> Self {
        self.caller.client_addr = address;
        self
    }

    /// Whether a log message of a server is one that the client wants. A legacy client that never
    /// said which is sent all, a modern one none.
    pub fn wants(&self, level: Option<&str>) -> bool {
        match self.level {
            None => !self.revision.is_modern(),
            Some(least) => level.and_then(LogLevel::parse).is_none_or(|level| level >= least),
        }
    }

    /// Takes note that a session shares the instance of a server that runs for all; false where
    /// there is no session to which that would stick.
    pub fn shares(&self, server: &ServerName) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.shares.lock().insert(server.clone());
            true
        })
    }

    /// The party for which a server runs that answers this client; none where it runs for all.
    pub fn party_key(&self, server: &Server) -> Option<InstanceKey> {
        let revision = server.shared().peek().map(|running| running.greeting.revision);
        self.party(server, revision).map(|party| party.key)
    }

    /// As whom a server must know this client, where it must be told apart from others: the config
    /// says so; or the server is a legacy one and could ask it something, or was told which log
    /// messages it wants. A remote legacy server keeps sessions of its own, so there every session
    /// has one. `revision` is that which the server was greeted in.
    pub fn party(&self, server: &Server, revision: Option<Revision>) -> Option<InstanceOwner> {
        let shares = |session: &Arc<Session>| session.shares.lock().contains(&server.name);
        let sharing = server.settings.sharing;
        let apart = sharing.keeps_apart();
        let modern = revision.is_some_and(Revision::is_modern);
        if sharing == Sharing::Shared || modern && !apart {
            return None;
        }
        if !apart && self.session.as_ref().is_some_and(shares) {
            return None;
        }
        let askable = self.abilities.is_askable();
        // Where each client has one of its own, the log messages that it wants are all its own.
        let told_apart = askable || self.level.is_some() && !apart;
        let by_session =
            told_apart || sharing == Sharing::PerSession || server.settings.url.is_some() && !apart;
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
            _ if told_apart || apart => {
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
                    revision: Revision::LATEST_LEGACY,
                    capabilities,
                })
            }
            _ => None,
        }
    }

    /// The instance of a server that answers this client, running.
    pub async fn instance(
        &self,
        server: &Arc<Server>,
    ) -> Result<(Arc<Instance>, Arc<Running>), CallError> {
        let shared = server.shared();
        let own = if server.settings.sharing.keeps_apart() {
            // Whatever the server's era is. The common one need not be there for it.
            let party = self.party(server, None).ok_or_else(|| {
                CallError::Misbehaved("an isolated client has no principal of its own".into())
            })?;
            server.own(&party)?
        } else {
            let running = shared.running().await?;
            let Some(party) = self.party(server, Some(running.greeting.revision)) else {
                return Ok((shared.clone(), running));
            };
            match server.own(&party) {
                Ok(own) => own,
                // Rather one that can ask it nothing than none; and from now on the same one.
                Err(CallError::Overloaded { .. }) if self.shares(&server.name) => {
                    tracing::warn!(server = %server.name, client = self.principal.name(), "instance limit reached; the client shares the common instance, without server requests");
                    return Ok((shared.clone(), running));
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

    /// The digest of the image in which a server runs for this client.
    pub fn image(&self, server: &Arc<Server>) -> Option<String> {
        let own = self.party_key(server).and_then(|key| server.owned(&key)?.peek());
        own.or_else(|| server.current())?.origin.image.clone()
    }
}

/// Tells a server which log messages its client wants, where it does not know that yet.
pub(crate) async fn set_level(
    instance: &Arc<Instance>,
    running: &Arc<Running>,
    level: &'static str,
) -> Result<(), CallError> {
    if !running.greeting.offers("logging") || *running.level.lock() == Some(level) {
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
