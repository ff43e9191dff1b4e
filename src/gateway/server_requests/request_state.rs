//! `requestState`: sealed state that a client of 2026-07-28 returns with its next attempt.
//!
//! A server's own state is sealed into the proxy's. Only the principal that received it can return
//! it, and only with the same request. The server cannot check that, since all clients are the same
//! client to it, the proxy.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ServerRequests;
use portcullis_protocol::{
    codec::Object,
    exchange::Exchange,
    refusal::{Code, Refusal},
};
use portcullis_upstream::Server;

const PURPOSE: &str = "requestState";
/// Time in which a client can return it.
pub(crate) const TTL: Duration = Duration::from_secs(3_600);

/// Content of the proxy's `requestState`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// The server's own state, as text.
    Server(String),
    /// Key of a call that is suspended in the proxy.
    Parked(Uuid),
}

impl ServerRequests {
    /// A `requestState` for the response of this exchange, as JSON text.
    ///
    /// # Errors
    /// A refusal if it cannot be sealed.
    pub fn seal_state(
        &self,
        server: &Server,
        exchange: &Exchange,
        state: &State,
    ) -> Result<Bytes, Refusal> {
        let plain = serde_json::to_vec(state).map_err(|error| fault(&error))?;
        let sealed = self
            .seal
            .seal(PURPOSE, &bound(server, exchange), &plain, TTL)
            .map_err(|error| fault(&error))?;
        Ok(Value::from(sealed).to_string().into())
    }

    /// Opens the `requestState` of a request; `None` if it has none.
    ///
    /// # Errors
    /// A refusal if it was issued to another principal, for another request, or too long ago.
    pub fn open_state(
        &self,
        server: &Server,
        exchange: &Exchange,
    ) -> Result<Option<State>, Refusal> {
        let Some(state) = Object::parse(exchange.request.raw().clone())
            .ok()
            .and_then(|params| params.get("requestState"))
        else {
            return Ok(None);
        };
        let unknown = |why: String| {
            let words = "this `requestState` does not belong to this request, or the config entry of its server has changed: call again without it";
            Refusal::new(Code::RequestStateInvalid, words).detail(why)
        };
        let sealed: String =
            serde_json::from_slice(&state).map_err(|_| unknown("it is not a string".into()))?;
        let plain = self
            .seal
            .open(PURPOSE, &bound(server, exchange), &sealed)
            .map_err(|error| unknown(error.to_string()))?;
        serde_json::from_slice(&plain).map(Some).map_err(|error| unknown(error.to_string()))
    }
}

fn fault(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(Code::InterceptorFault, "the state of this request could not be sealed")
        .detail(error.to_string())
}

/// Data that a state is bound to: the principal with its key, the server's config entry, and the
/// request without the parts that change between attempts. A later client of the same name or a
/// later entry cannot open it.
fn bound(server: &Server, exchange: &Exchange) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut part = |part: &[u8]| {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    };
    part(&serde_json::to_vec(&exchange.principal.kind).unwrap_or_default());
    part(exchange.principal.key.as_deref().unwrap_or_default().as_bytes());
    part(server.name.as_str().as_bytes());
    part(&serde_json::to_vec(&server.settings).unwrap_or_default());
    part(exchange.method.as_str().as_bytes());
    if let Some(params) = exchange.request.value().as_object() {
        let mut members: Vec<_> = params
            .iter()
            .filter(|(key, _)| !["_meta", "requestState", "inputResponses"].contains(&key.as_str()))
            .collect();
        members.sort_by_key(|(key, _)| *key);
        for (key, value) in members {
            part(key.as_bytes());
            part(sorted(value).to_string().as_bytes());
        }
    }
    digest.finalize().into()
}

/// A value with sorted object keys, since a client may serialize its retry differently.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        scalar => scalar.clone(),
    }
}
