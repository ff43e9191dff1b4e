//! Stages that every message passes, of clients and of servers: the chain of interceptors, the
//! obligations of policies, and the record.

mod approval;
mod client;
mod decision_renewal;
mod obligations;
mod visibility;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::{
    app_uris,
    recorder::{ExchangeRecord, Recorder},
};
use portcullis_audit::record::DropReason;
use portcullis_chain::Chain;
use portcullis_interceptors::policy::PolicyGate;
use portcullis_protocol::{
    codec::{Frame, Object, may_have},
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Target},
    identity::{Keyring, Principal},
    names::{DecisionId, ServerName},
    refusal::{Code, Refusal},
};

pub use client::Caller;
pub(crate) use client::{ClientContext, ListSource, set_level, shared_instance};
pub use decision_renewal::CLIENT_CHANGED;
pub(crate) use obligations::Obligations;
pub(crate) use visibility::PrincipalView;

/// The stages of every message.
pub(crate) struct Stages {
    pub chain: Chain,
    pub gate: Arc<PolicyGate>,
    pub obligations: Obligations,
    pub recorder: Arc<Recorder>,
    pub keyring: Arc<Keyring>,
}

impl Stages {
    /// An exchange for a message, without a target yet, with the labels of its client.
    pub fn begin(
        &self,
        caller: &Caller,
        method: &Method,
        notification: bool,
        params: Option<Bytes>,
    ) -> Exchange {
        let labels = self.obligations.labels(caller);
        Exchange { labels, ..new_exchange(caller, method, notification, params) }
    }

    /// Everything that a principal may use.
    pub fn view<'a>(&'a self, principal: &'a Principal) -> PrincipalView<'a> {
        PrincipalView(self.gate.sight(principal))
    }

    /// Sends a message through the chain and fulfils the obligations of policies before it leaves.
    ///
    /// # Errors
    /// The refusal of the message.
    pub async fn request(
        &self,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        reject_lookalike_method(&exchange.method)?;
        self.decide(exchange, record).await?;
        self.obligations.apply(exchange, record).await
    }

    /// Sends a message through the chain.
    ///
    /// # Errors
    /// The refusal of the message.
    pub async fn decide(
        &self,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        // Before the decision: policies that are loaded meanwhile have another number.
        record.generation = self.gate.engine().generation();
        self.chain.pass(exchange, Phase::Request, &mut record.trail).await
    }

    /// Records the intent of a client's message, which may leave only afterwards.
    ///
    /// # Errors
    /// `audit-unavailable`: the message must not leave.
    pub async fn record_intent(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        self.recorder.record_intent(exchange, record).await.map_err(|error| {
            tracing::error!(decision = %exchange.id, %error, "call refused: it could not be recorded");
            Refusal::new(Code::AuditUnavailable, "the call could not be recorded, so it was not made")
                .detail(error.to_string())
        })
    }

    /// Sends a server's notification through the chain. Returns the client's text if it is allowed.
    pub async fn to_client(&self, mut notice: Exchange) -> Option<Bytes> {
        let mut record = ExchangeRecord::default();
        if let Err(refusal) = self.request(&mut notice, &mut record).await {
            self.recorder.record_refusal(&notice, &record, &refusal).await;
            return None;
        }
        match self.recorder.record_intent(&notice, &mut record).await {
            Ok(()) => Some(Frame::notification(notice.method.as_str(), notice.request.raw())),
            Err(error) => {
                tracing::error!(decision = %notice.id, %error, "notification dropped: it could not be recorded");
                None
            }
        }
    }

    /// Whether the client wants this notification. Log messages are filtered by their level.
    fn is_wanted(&self, client: &ClientContext, notice: &Exchange) -> bool {
        let wanted = notice.method.as_str() != Method::LOG_MESSAGE
            || client.wants(notice.request.value().get("level").and_then(Value::as_str));
        if let (false, Some(server)) = (wanted, &notice.server) {
            self.recorder.drops.count(server, &client.principal.kind, DropReason::Level);
        }
        wanted
    }

    /// Sends a server's notification for one client through the chain.
    pub async fn notice_to(
        &self,
        client: &ClientContext,
        server: &ServerName,
        method: &Method,
        params: Option<Bytes>,
    ) -> Option<Bytes> {
        let mut notice = self.begin(client, method, true, params);
        notice.direction = Direction::ServerToClient;
        notice.server = Some(server.clone());
        if !self.is_wanted(client, &notice) {
            return None;
        }
        let text = self.to_client(notice).await?;
        Some(app_uris::notice(&client.view, server, method, text))
    }
}

/// An exchange for a message, without a target yet.
pub(crate) fn new_exchange(
    caller: &Caller,
    method: &Method,
    notification: bool,
    params: Option<Bytes>,
) -> Exchange {
    let request = Payload::from(params);
    let trace = traceparent(request.raw());
    Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        started: Instant::now(),
        principal: caller.principal.clone(),
        direction: Direction::ClientToServer,
        method: method.clone(),
        notification,
        transport: caller.transport,
        client_addr: caller.client_addr,
        session: caller.session.as_ref().map(|session| session.id.clone()),
        session_calls: caller.session.as_ref().map_or(0, |session| session.requests()),
        revision: caller.revision,
        server: None,
        target: Target::None,
        request,
        response: None,
        labels: Default::default(),
        obligations: Vec::new(),
        trace,
    }
}

/// The trace id of `_meta.traceparent` (W3C Trace Context: `00-TRACE-SPAN-FLAGS`).
fn traceparent(params: &Bytes) -> Option<String> {
    if !may_have(params, "traceparent") {
        return None;
    }
    let parent = Object::parse(params.clone()).ok()?.object("_meta")?.string("traceparent")?;
    let trace = parent.split('-').nth(1)?;
    let legal = trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit());
    legal.then(|| trace.to_owned())
}

/// Refuses methods that look like a known one, from either side: policies would decide about an
/// unknown method, and the receiver could carry out the known one.
///
/// # Errors
/// `method-unknown`.
pub(crate) fn reject_lookalike_method(method: &Method) -> Result<(), Refusal> {
    if method.passes_for_known() {
        let words = "method name differs from a known method only in case or look-alike characters";
        return Err(Refusal::new(Code::MethodUnknown, words));
    }
    Ok(())
}

/// Whether a response has the shape that JSON-RPC and MCP require.
pub(crate) fn well_formed(answer: &Answer) -> Result<(), String> {
    let no_object = || "its `result` or `error` is not an object".to_owned();
    match answer {
        // The text is valid JSON, so its first byte shows the type. Parsing could be expensive.
        Answer::Result(result) if result.raw().trim_ascii_start().starts_with(b"{") => Ok(()),
        Answer::Result(_) => Err(no_object()),
        Answer::Error(error) => {
            let object = Object::parse(error.raw().clone()).map_err(|_| no_object())?;
            if object.get("code").is_none() || object.string("message").is_none() {
                return Err("its `error` lacks `code` or `message`".into());
            }
            Ok(())
        }
    }
}
