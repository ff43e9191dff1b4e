//! One exchange, from arrival to answer.
//!
//! INVARIANTS
//! - No message reaches a server, and no answer a client, but through [`Gateway::handle`] or
//!   [`Gateway::on_server_message`](super::Gateway::on_server_message).
//! - The intent is on disk before a call leaves; where it cannot be, the call is not made.
//! - However an exchange ends (answer, refusal, failure, cancellation), it is recorded.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};

use super::{
    Caller, ExchangeResponse, Gateway, argument_names::check_argument_names, client::ClientContext,
    visibility::PrincipalView,
};
use crate::session::{ClientCapabilities, Opening, Session};
use portcullis_audit::Conclusion;
use portcullis_chain::ChainTrace;
use portcullis_protocol::{
    codec::{Frame, Id, Kind, Object, may_have},
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Revision, Target},
    names::DecisionId,
    refusal::{Code, Refusal},
};
use portcullis_telemetry::ToolCall;
use portcullis_upstream::Server;

/// How an exchange that left ended.
enum Disposition {
    /// With this answer, `result` or `error`.
    Answered(Answer),
    /// The server gave none.
    Failed(Refusal),
    /// The answer was refused.
    Refused(Refusal),
    Cancelled,
}

/// What is carried along an exchange's way, beside the exchange itself.
#[derive(Default)]
pub(super) struct RequestState {
    pub trail: ChainTrace,
    /// When a server was asked.
    asked: Option<Instant>,
    /// The time that servers took.
    in_server: Duration,
    session: Option<Arc<Session>>,
    /// The digest of the image that the server runs from.
    pub image: Option<String>,
    /// Has the server wait for it to be over, should the config have another in its place.
    pub counted: Option<TaskTrackerToken>,
}

impl RequestState {
    /// The time that the server took, where it was asked.
    pub fn served(&self) -> Option<Duration> {
        self.asked.map(|_| self.in_server)
    }
}

impl Gateway {
    /// Takes one message of a client through all stages.
    pub(super) async fn handle(
        self: &Arc<Self>,
        caller: Caller,
        frame: Frame,
        notices: mpsc::Sender<Bytes>,
        cancel: CancellationToken,
    ) -> ExchangeResponse {
        let (id, method, params) = match &frame.kind {
            Kind::Request { id, method, params } => (Some(id.clone()), method, params.clone()),
            Kind::Notification { method, params } => (None, method, params.clone()),
            Kind::Result { .. } | Kind::Error { .. } => {
                return self.on_client_response(&caller, &frame).await;
            }
        };
        let caller = ClientContext::of(caller, &frame);
        let mut exchange = self.begin(&caller, method, id.is_none(), params);
        self.note_client(&caller).await;
        let active = self.metrics.request(method, caller.transport);
        let mut passage = RequestState::default();
        passage.trail.stages.push(("parse".into(), frame.took));
        let under_way = match (&id, &caller.calls) {
            (Some(id), Some(calls)) => calls.begin(id, cancel.clone()).map(Some),
            _ => Ok(None),
        };
        if let (Some(_), Some(session)) = (&id, &caller.session) {
            session.count();
        }
        let admitted = match &under_way {
            Err(refusal) => Some(Err(refusal.clone())),
            Ok(_) => tokio::select! {
                admitted = self.request_phase(&caller, &mut exchange, &mut passage) => Some(admitted),
                () = cancel.cancelled() => None,
            },
        };
        let end = match admitted {
            Some(Err(refusal)) => {
                self.record_refusal(&exchange, &passage, &refusal).await;
                Err(refusal)
            }
            Some(Ok(server)) => {
                let end = tokio::select! {
                    end = self.dispatch(&caller, &frame, server, &mut exchange, &mut passage, &notices) => end,
                    () = cancel.cancelled() => Disposition::Cancelled,
                };
                if let Some(asked) = passage.asked {
                    let took = asked.elapsed();
                    passage.in_server += took;
                    passage.trail.stages.push(("server".into(), took));
                }
                let end = self.response_phase(&mut exchange, &mut passage, end).await;
                self.finish(&exchange, &passage, end).await
            }
            None => {
                let refusal = Refusal::new(
                    Code::Cancelled,
                    "the client cancelled the request before it was decided",
                );
                self.record_refusal(&exchange, &passage, &refusal).await;
                Err(refusal)
            }
        };
        drop(under_way);
        let answered = self.encode(&exchange, id.as_ref(), end, passage.session.clone());
        self.measure(&exchange, &passage, &answered, active);
        answered
    }

    /// Everything before a call leaves: where it goes, whether it may, and the record of it.
    async fn request_phase(
        &self,
        guest: &ClientContext,
        exchange: &mut Exchange,
        passage: &mut RequestState,
    ) -> Result<Option<Arc<Server>>, Refusal> {
        if self.closing.is_cancelled() {
            return Err(Refusal::new(Code::ShuttingDown, "the proxy is shutting down"));
        }
        if !method_of(exchange.method.as_str(), guest.revision) {
            let words = "this protocol revision does not have this method";
            return Err(Refusal::new(Code::MethodUnknown, words));
        }
        reject_lookalike_method(&exchange.method)?;
        let sight = PrincipalView(self.gate.sight(&guest.principal));
        let began = Instant::now();
        let routed = match self.task_route(guest, exchange).await {
            Ok(None) => {
                let (method, params) = (&exchange.method, exchange.request.raw());
                self.router.route(&guest.view, method, params, &sight).await
            }
            Ok(Some(route)) => Ok(route),
            Err(refusal) => Err(refusal),
        };
        // What takes time here is a server: it is started, or asked for its lists.
        let took = began.elapsed();
        passage.in_server += took;
        passage.trail.stages.push(("route".into(), took));
        let route = match routed {
            Ok(route) => route,
            Err(refusal) => {
                let (method, params) = (&exchange.method, exchange.request.raw());
                (exchange.server, exchange.target) = self.router.named(&guest.view, method, params);
                return Err(refusal);
            }
        };
        passage.image = route.server.as_ref().and_then(|server| self.image(guest, server));
        // Who listens does so for as long as it likes, and goes on at whatever is there by then.
        let counts = exchange.method.as_str() != Method::LISTEN;
        passage.counted = route.server.as_ref().filter(|_| counts).map(|server| server.counted());
        exchange.server = route.server.as_ref().map(|server| server.name.clone());
        exchange.target = route.target;
        if let Some(params) = route.params {
            exchange.request = Payload::new(params);
        }
        let sent = exchange.request.clone();
        self.chain.pass(exchange, Phase::Request, &mut passage.trail).await?;
        if let Target::Tool { name, tool: None } = &exchange.target {
            return Err(self.unknown_tool(guest, exchange, name));
        }
        check_argument_names(exchange)?;
        self.check_mirrored_headers(guest, exchange, &sent)?;
        self.apply_obligations(exchange, passage).await?;
        // It was decided by the server's name, and so by what the config says of the one that has this
        // name by now; what a person approved meanwhile, too.
        if let Some(server) = route.server.as_ref().filter(|_| counts) {
            server.ensure_active()?;
        }
        self.record_intent(exchange, passage).await.map_err(|error| {
            tracing::error!(decision = %exchange.id, %error, "call refused: it could not be recorded");
            Refusal::new(Code::AuditUnavailable, "the call could not be recorded, so it was not made")
                .detail(error.to_string())
        })?;
        Ok(route.server)
    }

    /// Gets the answer: from the proxy itself, or from a server.
    async fn dispatch(
        self: &Arc<Self>,
        guest: &ClientContext,
        frame: &Frame,
        server: Option<Arc<Server>>,
        exchange: &mut Exchange,
        passage: &mut RequestState,
        notices: &mpsc::Sender<Bytes>,
    ) -> Disposition {
        if exchange.notification {
            self.on_notification(guest, server.as_ref(), exchange).await;
            return Disposition::Answered(Answer::Result(Payload::new(Bytes::new())));
        }
        match self.answer_builtin(guest, exchange).await {
            Ok(Some(result)) => {
                if exchange.method.as_str() == Method::INITIALIZE {
                    match self.open_session(guest, exchange) {
                        Ok(session) => {
                            exchange.session = session.as_ref().map(|session| session.id.clone());
                            passage.session = session;
                        }
                        Err(refusal) => return Disposition::Failed(refusal),
                    }
                }
                return Disposition::Answered(Answer::Result(Payload::new(result)));
            }
            Ok(None) => {}
            Err(refusal) => return Disposition::Failed(refusal),
        }
        let answer = match (exchange.method.as_str(), &frame.kind, server) {
            (Method::LISTEN, Kind::Request { id, .. }, _) if guest.revision.is_modern() => {
                self.listen(guest, id, exchange, notices).await
            }
            (Method::SUBSCRIBE | Method::UNSUBSCRIBE, _, Some(server))
                if !guest.revision.is_modern() =>
            {
                self.subscribe(guest, exchange, &server).await
            }
            (Method::SET_LEVEL, ..) if !guest.revision.is_modern() => {
                self.set_log_level(guest, exchange).await
            }
            (_, _, None) => Err(Refusal::new(
                Code::MethodUnknown,
                "this method cannot be sent to all servers at once: use a server's own endpoint",
            )),
            (_, _, Some(server)) => {
                passage.asked = Some(Instant::now());
                let answer = self.call_server(guest, frame, &server, exchange, notices).await;
                // It may have been started anew, or for this client alone.
                passage.image = self.image(guest, &server).or(passage.image.take());
                answer.and_then(|answer| {
                    self.note_task(guest, &server, exchange, &answer)?;
                    Ok(answer)
                })
            }
        };
        answer.map_or_else(Disposition::Failed, Disposition::Answered)
    }

    /// Sends a notification of a server through the chain; the text for the client, if it may pass.
    pub(super) async fn to_client(&self, mut notice: Exchange) -> Option<Bytes> {
        let mut passage = RequestState::default();
        let passed = async {
            reject_lookalike_method(&notice.method)?;
            self.chain.pass(&mut notice, Phase::Request, &mut passage.trail).await?;
            self.apply_obligations(&notice, &mut passage).await
        };
        if let Err(refusal) = passed.await {
            self.record_refusal(&notice, &passage, &refusal).await;
            return None;
        }
        match self.record_intent(&notice, &mut passage).await {
            Ok(()) => Some(Frame::notification(notice.method.as_str(), notice.request.raw())),
            Err(error) => {
                tracing::error!(decision = %notice.id, %error, "notification dropped: it could not be recorded");
                None
            }
        }
    }

    /// Sends the answer through the chain.
    async fn response_phase(
        &self,
        exchange: &mut Exchange,
        passage: &mut RequestState,
        end: Disposition,
    ) -> Disposition {
        let Disposition::Answered(answer) = end else { return end };
        if exchange.notification {
            return Disposition::Answered(answer);
        }
        if let Err(why) = well_formed(&answer) {
            let refusal =
                Refusal::new(Code::ServerMisbehaved, "the server returned an invalid response");
            return Disposition::Failed(refusal.detail(why));
        }
        exchange.response = Some(answer);
        let passed = self.chain.pass(exchange, Phase::Response, &mut passage.trail).await;
        match passed.and_then(|()| self.apply_labels(exchange, &passage.trail.heard)) {
            Ok(()) => match exchange.response.clone() {
                Some(answer) => Disposition::Answered(answer),
                None => Disposition::Cancelled,
            },
            // What was refused is looked at for its record, and goes nowhere.
            Err(refusal) => Disposition::Refused(refusal),
        }
    }

    /// Records how an exchange ended. What cannot be recorded is not handed out.
    async fn finish(
        &self,
        exchange: &Exchange,
        passage: &RequestState,
        end: Disposition,
    ) -> Result<Option<Answer>, Refusal> {
        let conclusion = match &end {
            Disposition::Answered(_) => Conclusion::Delivered,
            Disposition::Failed(refusal) => Conclusion::Failed(refusal),
            Disposition::Refused(refusal) => Conclusion::Refused(refusal),
            Disposition::Cancelled => Conclusion::Cancelled,
        };
        if let Err(error) = self.record_outcome(exchange, passage, conclusion).await {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
            if let Some(session) = &passage.session {
                self.sessions.close(&session.id, "its opening could not be recorded");
            }
            return Err(Refusal::new(
                Code::AuditUnavailable,
                "the call was made, but its outcome could not be recorded",
            )
            .detail(error.to_string()));
        }
        match end {
            Disposition::Answered(answer) => Ok(Some(answer)),
            Disposition::Cancelled => Ok(None),
            Disposition::Failed(refusal) | Disposition::Refused(refusal) => {
                if let Some(session) = &passage.session {
                    self.sessions.close(&session.id, "its opening was refused");
                }
                // A plugin can quote an answer in it.
                let detail = refusal.detail.as_deref().map(|detail| self.shown(detail));
                tracing::info!(decision = %exchange.id, code = %refusal.code, detail, "call refused or failed");
                Err(refusal)
            }
        }
    }

    fn open_session(
        self: &Arc<Self>,
        guest: &ClientContext,
        exchange: &Exchange,
    ) -> Result<Option<Arc<Session>>, Refusal> {
        let greeting = Object::parse(exchange.request.raw().clone()).ok();
        let get = |key| greeting.as_ref().and_then(|greeting| greeting.get(key));
        let session = self.sessions.open(Opening {
            owner: guest.principal.clone(),
            view: guest.view.clone(),
            transport: guest.transport,
            revision: exchange.revision,
            abilities: ClientCapabilities::new(get("capabilities")),
            info: get("clientInfo"),
        })?;
        self.metrics.sessions(self.sessions.count());
        let (proxy, opened, caller) = (self.clone(), session.clone(), (**guest).clone());
        tokio::spawn(async move {
            proxy.note_session(&opened, &caller).await;
            proxy.depart(&opened).await;
        });
        Ok(Some(session))
    }

    fn encode(
        &self,
        exchange: &Exchange,
        id: Option<&Id>,
        end: Result<Option<Answer>, Refusal>,
        session: Option<Arc<Session>>,
    ) -> ExchangeResponse {
        let Some(id) = id else {
            let refusal = end.err();
            let text = refusal.as_ref().map(|refusal| {
                let error = refusal.to_rpc_error(exchange.id).to_string();
                Frame::error(None, error.as_bytes())
            });
            let refused = refusal.map(|refusal| refusal.code);
            let error = refused.map(|code| code.rpc().into());
            return ExchangeResponse { text, refused, error, session: None };
        };
        match end {
            Ok(Some(Answer::Result(result))) => {
                let text = Some(Frame::result(id, result.raw()));
                ExchangeResponse { text, refused: None, error: None, session }
            }
            Ok(Some(Answer::Error(error))) => {
                let code = error.value().get("code").and_then(Value::as_i64);
                if let Some(code) = code {
                    self.metrics.error(code);
                }
                ExchangeResponse {
                    text: Some(Frame::error(Some(id), error.raw())),
                    refused: None,
                    error: code,
                    session: None,
                }
            }
            Ok(None) => ExchangeResponse { text: None, refused: None, error: None, session: None },
            Err(refusal) => {
                self.metrics.refusal(refusal.code);
                let code = refusal.code.rpc().into();
                self.metrics.error(code);
                let error = refusal.to_rpc_error(exchange.id).to_string();
                let text = Some(Frame::error(Some(id), error.as_bytes()));
                ExchangeResponse {
                    text,
                    refused: Some(refusal.code),
                    error: Some(code),
                    session: None,
                }
            }
        }
    }

    fn measure(
        &self,
        exchange: &Exchange,
        passage: &RequestState,
        answered: &ExchangeResponse,
        active: portcullis_telemetry::ActiveRequest,
    ) {
        use portcullis_telemetry::Outcome;
        let outcome = match (answered.refused, &exchange.response) {
            (Some(_), _) => Outcome::Refused,
            (None, Some(Answer::Error(_))) => Outcome::Error,
            (None, Some(Answer::Result(result))) => {
                // Only tools have results that are failures.
                let failed = exchange.method.as_str() == Method::TOOLS_CALL
                    && may_have(result.raw(), "isError")
                    && Object::parse(result.raw().clone())
                        .is_ok_and(|o| o.get("isError").as_deref() == Some(b"true"));
                if failed { Outcome::ToolError } else { Outcome::Ok }
            }
            (None, None) if exchange.notification => Outcome::Ok,
            (None, None) => Outcome::Cancelled,
        };
        active.finish(outcome);
        if let Target::Tool { tool, .. } = &exchange.target {
            self.metrics.tool_call(ToolCall {
                server: exchange.server.as_ref(),
                tool: tool.as_deref(),
                principal: &exchange.principal,
                outcome,
                total: exchange.started.elapsed(),
                in_tool: passage.served(),
            });
        }
    }
}

/// A message as an exchange that is about nothing yet.
pub(super) fn begin(
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

/// Refuses what passes for a method that is known here, whoever says it: it would be decided as one
/// that nobody knows, and done as one that everybody does.
///
/// # Errors
/// `method-unknown`.
pub(super) fn reject_lookalike_method(method: &Method) -> Result<(), Refusal> {
    if method.passes_for_known() {
        let words = "method name differs from a known method only in case or look-alike characters";
        return Err(Refusal::new(Code::MethodUnknown, words));
    }
    Ok(())
}

/// Whether a revision has a method. Methods that MCP does not know are the client's and the
/// server's affair.
fn method_of(method: &str, revision: Revision) -> bool {
    match method {
        Method::INITIALIZE
        | Method::PING
        | Method::SET_LEVEL
        | Method::SUBSCRIBE
        | Method::UNSUBSCRIBE
        | Method::TASKS_RESULT
        | Method::TASKS_LIST => !revision.is_modern(),
        Method::DISCOVER | Method::LISTEN | "tasks/update" => revision.is_modern(),
        _ => true,
    }
}

/// Whether an answer has the shape that JSON-RPC and MCP give it.
pub(super) fn well_formed(answer: &Answer) -> Result<(), String> {
    let no_object = || "its `result` or `error` is not an object".to_owned();
    match answer {
        // Its text is JSON, so its first byte says what it is: it may be large.
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
