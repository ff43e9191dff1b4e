//! Handshake with a server: determines its era and receives its claims.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    call_error::CallError,
    instance_key::InstanceOwner,
    transport::{Call, Reply, ServerTransport},
};
use crate::config::Era;
use portcullis_chain::{Weight, grow};
use portcullis_protocol::{
    codec::era::{META_SERVER_INFO, implementation, own_meta},
    exchange::{Method, Payload, Revision},
};

/// Longest wait for the answer to `server/discover` before `initialize` is sent as well.
const PROBE: Duration = Duration::from_secs(3);

/// Revision and capabilities that the proxy sends to a legacy server.
#[derive(Debug)]
pub(super) struct HandshakeParams {
    revision: Revision,
    /// JSON object, sent byte for byte.
    capabilities: Bytes,
}

impl Default for HandshakeParams {
    /// For a shared instance: no capabilities, so the server cannot send server requests.
    fn default() -> Self {
        Self { revision: Revision::LATEST_LEGACY, capabilities: Bytes::from_static(b"{}") }
    }
}

impl HandshakeParams {
    /// For a dedicated instance: the capabilities of its owner.
    pub fn of(party: &InstanceOwner) -> Self {
        Self {
            revision: party.revision.min(Revision::LATEST_LEGACY),
            capabilities: party.capabilities.clone(),
        }
    }
}

/// Eras that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    Legacy,
    Modern,
    Both,
}

impl Eras {
    /// Whether a client of this revision is served in the modern era.
    pub fn is_modern_for(self, client: Revision) -> bool {
        match self {
            Self::Legacy => false,
            Self::Modern => true,
            Self::Both => client.is_modern(),
        }
    }
}

/// Result of a handshake.
#[derive(Debug)]
pub struct Handshake {
    pub revision: Revision,
    /// The result of `initialize` or `server/discover`: the server's claims.
    pub words: Payload,
}

impl Handshake {
    /// Name and version that the server claims.
    pub fn claims(&self) -> Option<String> {
        let words = self.words.value();
        let modern = words.get("_meta").and_then(|meta| meta.get(META_SERVER_INFO));
        claims(modern.or_else(|| words.get("serverInfo"))?)
    }

    /// Eras that the server claims to speak.
    pub fn eras(&self) -> Eras {
        if !self.revision.is_modern() {
            return Eras::Legacy;
        }
        let versions = self.words.value().get("supportedVersions").and_then(Value::as_array);
        let is_legacy = |version: &Value| {
            version.as_str().and_then(Revision::parse).is_some_and(|version| !version.is_modern())
        };
        match versions.is_some_and(|versions| versions.iter().any(is_legacy)) {
            true => Eras::Both,
            false => Eras::Modern,
        }
    }

    /// Whether the server claims a capability.
    pub fn offers(&self, capability: &str) -> bool {
        self.words.value().get("capabilities").is_some_and(|c| c.get(capability).is_some())
    }
}

/// Name and version of an `Implementation`, as one text.
pub fn claims(info: &Value) -> Option<String> {
    let name = info.get("name")?.as_str()?;
    match info.get("version").and_then(Value::as_str) {
        Some(version) => Some(format!("{name} {version}")),
        None => Some(name.to_owned()),
    }
}

/// Does the handshake. In [`Era::Auto`], `server/discover` is sent first; any answer other than a
/// modern result, or a timeout, means legacy.
///
/// # Errors
/// [`CallError::Unavailable`] if the link died: after a probe, the caller should restart the
/// server and treat it as legacy. Also the other errors of [`ServerTransport::call`].
pub(super) async fn perform_handshake(
    link: &dyn ServerTransport,
    era: Era,
    handshake_params: &HandshakeParams,
    deadline: Duration,
) -> Result<Handshake, CallError> {
    let handshake = match era {
        Era::Legacy => initialize(link, handshake_params, deadline).await?,
        Era::Modern => discover(link, deadline)
            .await?
            .ok_or_else(|| CallError::Misbehaved("it does not speak 2026-07-28".into()))?,
        Era::Auto => probe(link, handshake_params, PROBE.min(deadline), deadline).await?,
    };
    link.agreed(handshake.revision);
    if !handshake.revision.is_modern() {
        link.notify(Method::INITIALIZED, Bytes::from_static(b"{}")).await?;
    }
    link.listen();
    Ok(handshake)
}

/// Determines the era. A server that has not answered after `patience` may be slow, or legacy and
/// ignore unknown requests. So `initialize` is sent as well, and the answer to `server/discover`
/// still counts: a slow modern server sends it, and refuses `initialize` on the connection on
/// which it did.
async fn probe(
    link: &dyn ServerTransport,
    handshake_params: &HandshakeParams,
    patience: Duration,
    deadline: Duration,
) -> Result<Handshake, CallError> {
    let discovery = discover(link, deadline);
    tokio::pin!(discovery);
    let settled = |found: Result<Option<Handshake>, CallError>| match found {
        Err(failure) if link.dead().is_some() => Some(Err(failure)),
        found => found.ok().flatten().map(Ok),
    };
    if let Ok(found) = tokio::time::timeout(patience, &mut discovery).await {
        return match settled(found) {
            Some(end) => end,
            None => initialize(link, handshake_params, deadline).await,
        };
    }
    let initialization = initialize(link, handshake_params, deadline);
    tokio::pin!(initialization);
    tokio::select! {
        biased;
        found = &mut discovery => match settled(found) {
            Some(end) => end,
            None => initialization.await,
        },
        handshake = &mut initialization => match handshake {
            Ok(handshake) => Ok(handshake),
            Err(failure) => settled(discovery.await).unwrap_or(Err(failure)),
        },
    }
}

async fn discover(
    link: &dyn ServerTransport,
    deadline: Duration,
) -> Result<Option<Handshake>, CallError> {
    let params = json!({ "_meta": own_meta() }).to_string();
    match link.call(Call::own(Method::DISCOVER, Some(params.into()), deadline)).await? {
        Reply::Error(_) => Ok(None),
        Reply::Result(result) => {
            grow(Weight::of(&result)).await;
            let words = Payload::new(result);
            let modern = words
                .value()
                .get("supportedVersions")
                .and_then(Value::as_array)
                .is_some_and(|v| v.iter().any(|v| v == Revision::LATEST_MODERN.as_str()));
            Ok(modern.then_some(Handshake { revision: Revision::LATEST_MODERN, words }))
        }
    }
}

async fn initialize(
    link: &dyn ServerTransport,
    handshake_params: &HandshakeParams,
    deadline: Duration,
) -> Result<Handshake, CallError> {
    let mut params = Vec::from(&b"{\"protocolVersion\":\""[..]);
    params.extend_from_slice(handshake_params.revision.as_str().as_bytes());
    params.extend_from_slice(b"\",\"capabilities\":");
    params.extend_from_slice(&handshake_params.capabilities);
    params.extend_from_slice(format!(",\"clientInfo\":{}}}", implementation()).as_bytes());
    match link.call(Call::own(Method::INITIALIZE, Some(params.into()), deadline)).await? {
        Reply::Error(_) => Err(CallError::Misbehaved("it refused `initialize`".into())),
        Reply::Result(result) => {
            grow(Weight::of(&result)).await;
            let words = Payload::new(result);
            let version = words.value().get("protocolVersion").and_then(Value::as_str);
            let revision = version
                .and_then(Revision::parse)
                .filter(|revision| !revision.is_modern())
                .ok_or_else(|| {
                    CallError::Misbehaved(
                        "it answered `initialize` with a revision nobody knows".into(),
                    )
                })?;
            Ok(Handshake { revision, words })
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, duplex};

    use super::*;
    use crate::{message_sink::MessageSink, stdio::StdioTransport};
    use portcullis_protocol::codec::Caps;

    const MODERN: &str =
        r#"{"jsonrpc":"2.0","id":1,"result":{"supportedVersions":["2026-07-28"]}}"#;
    const UNKNOWN: &str = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"?"}}"#;
    const LEGACY: &str = r#"{"jsonrpc":"2.0","id":2,"result":{"protocolVersion":"2025-06-18"}}"#;
    const REFUSED: &str = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32022,"message":"?"}}"#;

    /// Handshake with a server that answers after both requests have arrived.
    async fn slow(answers: &[&str]) -> Result<Revision, CallError> {
        let (stdin, unrouted) = duplex(1 << 12);
        let (stdout, mut message) = duplex(1 << 12);
        let caps = Caps { bytes: 1 << 12, depth: 8, nodes: 100, keys: 100, object_keys: 100 };
        let (sink, _unrouted) = MessageSink::test(None);
        let link = StdioTransport::new(stdin, stdout, caps, sink);
        let server = async {
            let mut lines = BufReader::new(unrouted).lines();
            for method in [Method::DISCOVER, Method::INITIALIZE] {
                assert!(lines.next_line().await.unwrap().unwrap().contains(method));
            }
            for answer in answers {
                message.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
            (lines, message)
        };
        let handshake_params = HandshakeParams::default();
        let handshake = probe(&link, &handshake_params, Duration::ZERO, Duration::from_secs(9));
        let (handshake, _open) = tokio::join!(handshake, server);
        handshake.map(|handshake| handshake.revision)
    }

    #[tokio::test]
    async fn slow_server_is_initialized_in_its_own_era() {
        let (modern, legacy) = (Ok(Revision::V2026_07_28), Ok(Revision::V2025_06_18));
        for (answers, revision) in [
            (&[MODERN, REFUSED][..], &modern),
            (&[REFUSED, MODERN], &modern),
            (&[UNKNOWN, LEGACY], &legacy),
            (&[LEGACY], &legacy),
        ] {
            assert_eq!(slow(answers).await, *revision, "{answers:?}");
        }
        assert!(slow(&[UNKNOWN, REFUSED]).await.is_err());
    }
}
