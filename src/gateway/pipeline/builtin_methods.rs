//! Methods that the proxy answers itself: handshakes, pings and the merged lists (`lists.rs`).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    router::Router,
    stages::{ClientContext, Stages, shared_instance},
    tasks::Tasks,
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{
        Object,
        era::{META_SERVER_INFO, TASKS_EXTENSION, implementation},
    },
    exchange::{Exchange, Method, Revision},
    refusal::Refusal,
    seal::Seal,
};
use portcullis_upstream::{Handshake, ListKind};

/// Time that a client's handshake waits for a server that never ran before. Shorter than the time
/// after which a response becomes a stream, which cannot name the session any more.
const SOON: Duration = Duration::from_secs(5);

/// Answers the methods that the proxy implements itself.
pub(super) struct BuiltinMethods {
    pub(super) stages: Arc<Stages>,
    pub(super) router: Arc<Router>,
    pub(super) seal: Arc<Seal>,
    tasks: Arc<Tasks>,
    /// Entries on a page of a list.
    pub(super) page: usize,
}

impl BuiltinMethods {
    pub fn new(
        stages: Arc<Stages>,
        router: Arc<Router>,
        seal: Arc<Seal>,
        tasks: Arc<Tasks>,
        page: usize,
    ) -> Self {
        Self { stages, router, seal, tasks, page }
    }

    /// Whether the proxy answers this method itself.
    pub fn has(method: &Method) -> bool {
        let own = [Method::INITIALIZE, Method::DISCOVER, Method::PING, Method::TASKS_LIST];
        own.contains(&method.as_str()) || ListKind::of(method.as_str()).is_some()
    }

    /// Returns the result of a method that the proxy [implements](Self::has).
    ///
    /// # Errors
    /// A refusal if the method cannot be answered.
    pub async fn answer(
        &self,
        client: &ClientContext,
        exchange: &Exchange,
    ) -> Result<Bytes, Refusal> {
        Ok(match exchange.method.as_str() {
            Method::INITIALIZE => self.initialized(client, exchange).await,
            Method::DISCOVER => self.discovered(client).await,
            Method::TASKS_LIST => self.tasks.list(client).await,
            method => match ListKind::of(method) {
                Some(offer) => self.list(client, exchange, offer).await?,
                None => Bytes::from_static(b"{}"),
            },
        })
    }

    async fn initialized(&self, client: &ClientContext, exchange: &Exchange) -> Bytes {
        let revision = Value::from(exchange.revision.as_str()).to_string();
        let Some(handshake) = self.server_handshake(client).await else {
            return json!({
                "protocolVersion": exchange.revision.as_str(),
                "capabilities": merged(false),
                "serverInfo": implementation(),
            })
            .to_string()
            .into();
        };
        let words = &handshake.words;
        if !handshake.revision.is_modern()
            && let Ok(object) = Object::parse(words.raw().clone())
        {
            // The server's own handshake, in the client's revision.
            return object.with(&[("protocolVersion", Some(revision.as_bytes()))]);
        }
        let words = words.value();
        let mut result = json!({
            "protocolVersion": exchange.revision.as_str(),
            "capabilities": capabilities(words, false),
            "serverInfo": server_info(words),
        });
        if let Some(instructions) = words.get("instructions") {
            result["instructions"] = instructions.clone();
        }
        result.to_string().into()
    }

    async fn discovered(&self, client: &ClientContext) -> Bytes {
        let versions: Vec<_> = Revision::ALL.iter().rev().map(|r| r.as_str()).collect();
        let versions = json!(versions);
        let handshake = self.server_handshake(client).await;
        if let Some(handshake) = &handshake
            && handshake.revision.is_modern()
            && let Ok(object) = Object::parse(handshake.words.raw().clone())
        {
            // The server's own result. It must not be cached: policies change what a client sees.
            return object.with(&[
                ("supportedVersions", Some(versions.to_string().as_bytes())),
                ("ttlMs", Some(b"0")),
                ("cacheScope", Some(b"\"private\"")),
            ]);
        }
        let words = handshake.as_ref().map(|handshake| handshake.words.value());
        let mut result = json!({
            "resultType": "complete",
            "supportedVersions": versions,
            "capabilities": words.map_or_else(|| merged(true), |words| capabilities(words, true)),
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": { META_SERVER_INFO: words.map_or_else(implementation, server_info) },
        });
        if let Some(instructions) = words.and_then(|words| words.get("instructions")) {
            result["instructions"] = instructions.clone();
        }
        result.to_string().into()
    }

    /// Handshake of the only server of a view. A server that never ran before is waited for, up to
    /// [`SOON`]. At the endpoint of all servers the result is `None`, and no server is waited for.
    async fn server_handshake(&self, client: &ClientContext) -> Option<Arc<Handshake>> {
        let View::One(name) = &client.view else { return None };
        let (server, revision) = (self.router.server(name)?, client.revision);
        server.known_eras().await;
        let known = server.handshake(revision).await;
        let starting = tokio::spawn(async move { shared_instance(&server, revision).await });
        if known.is_some() {
            return known;
        }
        let (_, running) = tokio::time::timeout(SOON, starting).await.ok()?.ok()?.ok()?;
        Some(running.handshake.clone())
    }
}

/// Capabilities at the endpoint of all servers: everything that the proxy can merge.
fn merged(modern: bool) -> Value {
    let mut capabilities = json!({
        "tools": { "listChanged": true },
        "prompts": { "listChanged": true },
        "resources": { "subscribe": true, "listChanged": true },
        "completions": {},
        "logging": {},
    });
    if modern {
        capabilities["extensions"] = json!({ TASKS_EXTENSION: {} });
    } else {
        capabilities["tasks"] =
            json!({ "list": {}, "cancel": {}, "requests": { "tools": { "call": {} } } });
    }
    capabilities
}

/// A server's capabilities for the other era. Tasks have other methods there.
fn capabilities(words: &Value, modern: bool) -> Value {
    let mut capabilities = words.get("capabilities").cloned().unwrap_or_else(|| json!({}));
    if let Some(capabilities) = capabilities.as_object_mut() {
        if modern {
            capabilities.remove("tasks");
        } else if let Some(extensions) =
            capabilities.get_mut("extensions").and_then(Value::as_object_mut)
        {
            extensions.remove(TASKS_EXTENSION);
        }
    }
    capabilities
}

/// A server's name and version, from a handshake of either era.
fn server_info(words: &Value) -> Value {
    let modern = words.get("_meta").and_then(|meta| meta.get(META_SERVER_INFO));
    modern.or_else(|| words.get("serverInfo")).cloned().unwrap_or_else(implementation)
}
