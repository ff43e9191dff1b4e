//! `requestState`: sealed state that a client of 2026-07-28 returns with its next attempt.
//!
//! A server's own state is sealed into the proxy's. Only the principal that received it can return
//! it, and only with the same request. The server cannot check that, since all clients are the same
//! client to it, the proxy.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
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
    /// A call that is suspended in the proxy.
    Parked(ParkedState),
}

/// State of a call that a proxy suspended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ParkedState {
    /// Key of the call.
    pub key: Uuid,
    /// Key of the run of the proxy.
    pub run: Uuid,
    /// The [`digest`] of each server request at the client, by its key in `inputRequests`.
    pub digests: BTreeMap<String, String>,
}

/// Answers of a client to the server requests of a call that ended with an earlier run of the
/// proxy, by the digests of the requests.
#[derive(Default)]
pub(crate) struct EarlierAnswers(HashMap<String, Bytes>);

impl EarlierAnswers {
    /// The answers in the `params` of a client.
    pub fn of(state: ParkedState, params: &Bytes) -> Self {
        let responses = Object::parse(params.clone())
            .ok()
            .and_then(|params| params.object("inputResponses"))
            .unwrap_or_default();
        let answered = state.digests.into_iter();
        Self(answered.filter_map(|(key, digest)| Some((digest, responses.get(&key)?))).collect())
    }

    /// Removes the answer to a server request.
    pub fn take(&mut self, digest: &str) -> Option<Bytes> {
        self.0.remove(digest)
    }
}

/// Digest of a server request. The progress token is not part of it, since a server may choose
/// another one when it repeats the request.
pub(super) fn digest(method: &str, params: Option<&Bytes>) -> String {
    let mut params: Value =
        params.and_then(|params| serde_json::from_slice(params).ok()).unwrap_or_default();
    if let Some(meta) = params.get_mut("_meta").and_then(Value::as_object_mut) {
        meta.remove("progressToken");
    }
    let text = Value::from(vec![method.into(), sorted(&params)]).to_string();
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_requests_have_equal_digests() {
        let digest = |method, params: &str| digest(method, Some(&Bytes::from(params.to_owned())));
        let first = digest("m", r#"{"message":"a","_meta":{"progressToken":1,"x":1}}"#);
        assert_eq!(digest("m", r#"{"_meta":{"x":1,"progressToken":2},"message":"a"}"#), first);
        for other in [
            digest("n", r#"{"message":"a","_meta":{"x":1}}"#),
            digest("m", r#"{"message":"b","_meta":{"x":1}}"#),
            digest("m", r#"{"message":"a","_meta":{"x":2}}"#),
            super::digest("m", None),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn answers_belong_to_the_requests_of_their_keys() {
        let digests = [("1", "a"), ("2", "b"), ("3", "c")];
        let digests = digests.map(|(key, digest)| (key.to_owned(), digest.to_owned())).into();
        let state = ParkedState { key: Uuid::nil(), run: Uuid::nil(), digests };
        let params = Bytes::from_static(br#"{"inputResponses":{"1":{"x":1.0},"3":2,"4":{}}}"#);
        let mut answers = EarlierAnswers::of(state, &params);
        assert_eq!(answers.take("a").unwrap(), r#"{"x":1.0}"#);
        assert_eq!(answers.take("a"), None);
        assert_eq!(answers.take("b"), None);
        assert_eq!(answers.take("c").unwrap(), "2");
    }
}
