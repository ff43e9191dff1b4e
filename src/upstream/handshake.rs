//! Handshake with a server: determines its era and receives its claims.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, TryFutureExt as _};
use serde_json::{Value, json};

use super::{
    call_error::CallError,
    instance_key::InstanceOwner,
    transport::{Call, Reply, ServerTransport},
};
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

/// Order in which a handshake tries the eras.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Approach {
    /// Only `initialize`.
    Legacy,
    /// Only `server/discover`.
    Modern,
    /// `server/discover` first; any answer other than a modern result, or a timeout, means legacy.
    ModernFirst,
    /// `initialize` first, and `server/discover` if the server refuses it.
    LegacyFirst,
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

    /// Eras that the server can speak. A server with a modern handshake is assumed to accept
    /// `initialize` too: the servers of most SDKs do, and list only the modern revision.
    pub fn eras(&self) -> Eras {
        if self.revision.is_modern() { Eras::Both } else { Eras::Legacy }
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

/// Does the handshake.
///
/// # Errors
/// [`CallError::Unavailable`] if the link died: after an attempt in one era, the caller should
/// restart the server and use the other one. Also the other errors of [`ServerTransport::call`].
pub(super) async fn perform_handshake(
    link: &dyn ServerTransport,
    approach: Approach,
    handshake_params: &HandshakeParams,
    deadline: Duration,
) -> Result<Handshake, CallError> {
    let handshake = match approach {
        Approach::Legacy => initialize(link, handshake_params, deadline).await?,
        Approach::Modern => discover(link, deadline).await?.ok_or_else(not_modern)?,
        Approach::ModernFirst | Approach::LegacyFirst => {
            let patience = match approach {
                Approach::LegacyFirst => deadline / 2,
                _ => PROBE.min(deadline),
            };
            try_both(link, approach, handshake_params, patience, deadline).await?
        }
    };
    link.agreed(handshake.revision);
    if !handshake.revision.is_modern() {
        link.notify(Method::INITIALIZED, Bytes::from_static(b"{}")).await?;
    }
    link.listen();
    Ok(handshake)
}

/// Tries the first era of an approach, and the other one if the server refuses that. A server that
/// has not answered after `patience` may be slow, or ignore requests of the first era. So the request
/// of the other era is sent as well, and the answer to the first one still counts: a slow modern
/// server sends it, and refuses `initialize` on the connection on which it did.
async fn try_both(
    link: &dyn ServerTransport,
    approach: Approach,
    handshake_params: &HandshakeParams,
    patience: Duration,
    deadline: Duration,
) -> Result<Handshake, CallError> {
    let legacy_first = approach == Approach::LegacyFirst;
    let discovery = discover(link, deadline).boxed();
    let initialization = initialize(link, handshake_params, deadline).map_ok(Some).boxed();
    let (mut first, mut second) =
        if legacy_first { (initialization, discovery) } else { (discovery, initialization) };
    let mut other = None;
    let found = match tokio::time::timeout(patience, &mut first).await {
        Ok(found) => found,
        Err(_) => tokio::select! {
            biased;
            found = &mut first => found,
            found = &mut second => match found {
                Ok(Some(handshake)) => return Ok(handshake),
                refused => {
                    other = Some(refused);
                    first.await
                }
            },
        },
    };
    let failure = match found {
        Ok(Some(handshake)) => return Ok(handshake),
        Err(failure) if link.dead().is_some() => return Err(failure),
        Err(failure) => failure,
        Ok(None) => not_modern(),
    };
    let other = match other {
        Some(refused) => refused,
        None => second.await,
    };
    match other {
        Ok(Some(handshake)) => Ok(handshake),
        // What the server says in its own era explains more than that it lacks the modern one.
        Err(legacy) if !legacy_first => Err(legacy),
        _ => Err(failure),
    }
}

fn not_modern() -> CallError {
    CallError::Misbehaved("it does not speak 2026-07-28".into())
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

    /// Handshake with a server that answers after both requests have arrived, in the order that this
    /// approach sends them.
    async fn slow(approach: Approach, answers: &[&str]) -> Result<Revision, CallError> {
        let (stdin, unrouted) = duplex(1 << 12);
        let (stdout, mut message) = duplex(1 << 12);
        let caps = Caps { bytes: 1 << 12, depth: 8, nodes: 100, keys: 100, object_keys: 100 };
        let (sink, _unrouted) = MessageSink::test(None);
        let link = StdioTransport::new(stdin, stdout, caps, sink);
        let server = async {
            let mut lines = BufReader::new(unrouted).lines();
            let mut methods = [Method::DISCOVER, Method::INITIALIZE];
            if approach == Approach::LegacyFirst {
                methods.reverse();
            }
            for method in methods {
                assert!(lines.next_line().await.unwrap().unwrap().contains(method));
            }
            for answer in answers {
                message.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
            (lines, message)
        };
        let handshake_params = HandshakeParams::default();
        let handshake = async {
            let (patience, deadline) = (Duration::ZERO, Duration::from_secs(9));
            try_both(&link, approach, &handshake_params, patience, deadline).await
        };
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
            assert_eq!(slow(Approach::ModernFirst, answers).await, *revision, "{answers:?}");
        }
        assert!(slow(Approach::ModernFirst, &[UNKNOWN, REFUSED]).await.is_err());
    }

    #[tokio::test]
    async fn the_legacy_era_counts_first_for_its_clients() {
        // The ids in the other order.
        let [legacy, refused] = [LEGACY, REFUSED].map(|text| text.replace("\"id\":2", "\"id\":1"));
        let [modern, unknown] = [MODERN, UNKNOWN].map(|text| text.replace("\"id\":1", "\"id\":2"));
        let both = (Ok(Revision::V2026_07_28), Ok(Revision::V2025_06_18));
        for (answers, revision) in [
            (&[&legacy, &modern][..], &both.1),
            (&[&legacy], &both.1),
            (&[&refused, &modern], &both.0),
            (&[&modern], &both.0),
            (&[&unknown, &legacy], &both.1),
        ] {
            let answers: Vec<_> = answers.iter().map(|answer| answer.as_str()).collect();
            assert_eq!(slow(Approach::LegacyFirst, &answers).await, *revision, "{answers:?}");
        }
        let neither = [refused.as_str(), unknown.as_str()];
        assert!(slow(Approach::LegacyFirst, &neither).await.is_err());
    }
}
