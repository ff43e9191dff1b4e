//! The way of a client's message, from its arrival to its answer. [`Pipeline::handle`] shows all of it:
//!
//! | stage | what it does |
//! |---|---|
//! | client | who sends the message, with what the client declares |
//! | route | which server, tool, prompt or resource it is about |
//! | request chain | the interceptors: rate limits, policies, names of arguments, schemas, secrets, plugins |
//! | obligations | what policies ask for: counts under `@rate`, labels, a person's approval |
//! | intent | the record of the call, on disk before the call leaves |
//! | dispatch | the answer: of the proxy itself, or of a server |
//! | response chain | the interceptors again |
//! | outcome | the record of how it ended |
//! | encode | the answer as text |
//!
//! INVARIANTS
//! - No message reaches a server, and no answer a client, but through [`Pipeline::handle`] and
//!   [`Stages`].
//! - The intent is on disk before a call leaves; where it cannot be, the call is not made.
//! - However an exchange ends (answer, refusal, failure, cancellation), it is recorded.

mod builtin_methods;
mod call;
mod client_messages;
mod lists;
mod mirrored_headers;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    admission::{Admission, ConcurrencyPermit},
    clients::Clients,
    recorder::{ExchangeRecord, Recorder},
    router::{Route, Router},
    server_requests::ServerRequests,
    session::{ClientCapabilities, InFlight, Opening, Session, Sessions},
    stages::{Caller, ClientContext, Stages, reject_lookalike_method, well_formed},
    subscriptions::Subscriptions,
    tasks::Tasks,
    upstream_call::InFlightCalls,
};
use portcullis_audit::Conclusion;
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{
    codec::{Frame, Id, Kind, Object, may_have},
    exchange::{Answer, Exchange, Method, Payload, Phase, Revision, Target},
    refusal::{Code, Refusal},
    seal::Seal,
};
use portcullis_telemetry::ToolCall;
use portcullis_upstream::Server;

use builtin_methods::BuiltinMethods;
use call::ServerCalls;

/// Notifications of one exchange that may wait for a client that does not read.
const MAX_NOTICES: usize = 256;

/// Takes messages of clients through all stages.
pub(crate) struct Pipeline {
    stages: Arc<Stages>,
    router: Arc<Router>,
    sessions: Arc<Sessions>,
    admission: Arc<Admission>,
    clients: Arc<Clients>,
    subscriptions: Arc<Subscriptions>,
    server_tasks: Arc<Tasks>,
    builtin: BuiltinMethods,
    calls: ServerCalls,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What a pipeline is made of.
pub(crate) struct PipelineParts {
    pub stages: Arc<Stages>,
    pub router: Arc<Router>,
    pub sessions: Arc<Sessions>,
    pub admission: Arc<Admission>,
    pub clients: Arc<Clients>,
    pub subscriptions: Arc<Subscriptions>,
    pub server_requests: Arc<ServerRequests>,
    pub server_tasks: Arc<Tasks>,
    pub in_flight: Arc<InFlightCalls>,
    pub seal: Arc<Seal>,
    /// Entries of a page of a list.
    pub page: usize,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
}

/// A message in the pipeline.
pub struct ExchangeHandle {
    /// Notifications for the client that belong to it, as they come.
    pub notices: mpsc::Receiver<Bytes>,
    pub response: oneshot::Receiver<ExchangeResponse>,
    /// Dropping it cancels the exchange.
    pub cancel: DropGuard,
}

/// How a message ended, as its client is told.
#[derive(Debug)]
pub struct ExchangeResponse {
    /// The text of the answer; for a notification only that of its refusal, which a transport
    /// with a channel for it may hand out. It holds its principal's [`ConcurrencyPermit`] until
    /// it is dropped, so that answers that nobody reads are bounded as messages are.
    pub text: Option<Bytes>,
    /// The code of a refusal.
    pub refused: Option<Code>,
    /// The code of the JSON-RPC error that `text` is, a server's or of a refusal.
    pub error: Option<i64>,
    /// The session that an `initialize` opened.
    pub session: Option<Arc<Session>>,
}

impl ExchangeResponse {
    /// No answer: to a notification, a response, or a cancelled request.
    pub(crate) const NONE: Self = Self { text: None, refused: None, error: None, session: None };

    /// A refusal, as this text.
    pub(crate) fn refused(text: Bytes, code: Code) -> Self {
        let error = Some(code.rpc().into());
        Self { text: Some(text), refused: Some(code), error, session: None }
    }
}

/// How an exchange ended.
enum Outcome {
    /// With this answer, `result` or `error`.
    Answered(Answer),
    /// The request or the answer was refused.
    Refused(Refusal),
    /// There is no answer.
    Failed(Refusal),
    Cancelled,
}

impl From<Result<Answer, Refusal>> for Outcome {
    fn from(answer: Result<Answer, Refusal>) -> Self {
        answer.map_or_else(Self::Failed, Self::Answered)
    }
}

/// A client's message with its client.
struct Message<'a> {
    client: &'a ClientContext,
    frame: &'a Frame,
    /// Where notifications go that belong to it.
    notices: &'a mpsc::Sender<Bytes>,
}

/// What answers an exchange.
enum Destination {
    /// The proxy itself.
    Builtin,
    /// Nobody answers a notification. It may be for one server.
    Notification(Option<Arc<Server>>),
    /// The stream of `subscriptions/listen`.
    Listen,
    /// A server that is asked to tell of a resource's changes, or not to any more.
    ResourceUpdates(Arc<Server>),
    LogLevel,
    Server(Arc<Server>),
    /// All servers have the method, and it goes to one only.
    Ambiguous,
}

impl Destination {
    fn of(exchange: &Exchange, server: Option<Arc<Server>>) -> Self {
        if exchange.notification {
            return Self::Notification(server);
        }
        match (exchange.method.as_str(), server) {
            _ if BuiltinMethods::has(&exchange.method) => Self::Builtin,
            (Method::LISTEN, _) => Self::Listen,
            (Method::SET_LEVEL, _) => Self::LogLevel,
            (Method::SUBSCRIBE | Method::UNSUBSCRIBE, Some(server)) => {
                Self::ResourceUpdates(server)
            }
            (_, Some(server)) => Self::Server(server),
            (_, None) => Self::Ambiguous,
        }
    }
}

impl Pipeline {
    pub fn new(parts: PipelineParts) -> Arc<Self> {
        let PipelineParts { stages, router, tasks, closing, server_tasks, .. } = parts;
        let builtin = BuiltinMethods::new(
            stages.clone(),
            router.clone(),
            parts.seal,
            server_tasks.clone(),
            parts.page,
        );
        let calls = ServerCalls::new(
            stages.clone(),
            parts.server_requests,
            parts.in_flight,
            tasks.clone(),
            closing.clone(),
        );
        Arc::new(Self {
            stages,
            router,
            sessions: parts.sessions,
            admission: parts.admission,
            clients: parts.clients,
            subscriptions: parts.subscriptions,
            server_tasks,
            builtin,
            calls,
            tasks,
            closing,
        })
    }

    /// Starts a message on its way, under the permit that its principal took for it. It goes on by
    /// itself; dropping the handle cancels it.
    pub fn start(
        self: &Arc<Self>,
        caller: Caller,
        frame: Frame,
        permit: ConcurrencyPermit,
    ) -> ExchangeHandle {
        let (notices, receiver) = mpsc::channel(MAX_NOTICES);
        let (sender, response) = oneshot::channel();
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let pipeline = self.clone();
        let party = Party::Client(caller.principal.kind.clone());
        let weight = Weight::of(frame.raw());
        let work = async move {
            let admitted = pipeline.admission.admit(&permit, &caller.principal.kind, &frame);
            // Held until the exchange is over, and its parsed form with it.
            let mut response = match admitted {
                Ok(_parsed) => pipeline.handle(caller, frame, notices, cancel).await,
                Err(refusal) => pipeline.reject(&caller, &frame, refusal).await,
            };
            response.text = response.text.map(|text| permit.hold(text));
            // The client may be gone; what happened is recorded all the same.
            let _ = sender.send(response);
        };
        self.tasks.spawn(in_turns(party, weight, work));
        ExchangeHandle { notices: receiver, response, cancel: guard }
    }

    /// Takes one message of a client through all stages.
    async fn handle(
        &self,
        caller: Caller,
        frame: Frame,
        notices: mpsc::Sender<Bytes>,
        cancel: CancellationToken,
    ) -> ExchangeResponse {
        let (id, method, params) = match &frame.kind {
            Kind::Request { id, method, params } => (Some(id), method, params.clone()),
            Kind::Notification { method, params } => (None, method, params.clone()),
            Kind::Result { .. } | Kind::Error { .. } => {
                return self.on_client_response(&caller, &frame).await;
            }
        };
        let client = ClientContext::of(caller, &frame);
        let mut exchange = self.stages.begin(&client, method, id.is_none(), params);
        self.clients.note_client(&client).await;
        let measured = self.recorder().metrics.request(method, client.transport);
        let mut record = ExchangeRecord::default();
        record.stage("parse", frame.took);

        let in_flight = begin(&client, id, &cancel);
        // Has the server wait for the exchange to be over, should the config have another in its place.
        let mut counted = None;
        let admitted = match &in_flight {
            Ok(_) => tokio::select! {
                admitted = self.admit(&client, &mut exchange, &mut record, &mut counted) => admitted,
                () = cancel.cancelled() => Err(cancelled()),
            },
            Err(refusal) => Err(refusal.clone()),
        };
        let mut session = None;
        let outcome = match admitted {
            Err(refusal) => {
                self.recorder().record_refusal(&exchange, &record, &refusal).await;
                Outcome::Refused(refusal)
            }
            Ok(destination) => {
                let message = Message { client: &client, frame: &frame, notices: &notices };
                let outcome = tokio::select! {
                    answer = self.dispatch(message, &destination, &mut exchange, &mut record, &mut session) => answer.into(),
                    () = cancel.cancelled() => Outcome::Cancelled,
                };
                record.answered();
                let outcome = self.check_answer(&mut exchange, &mut record, outcome).await;
                self.conclude(&exchange, &record, outcome, session.as_deref()).await
            }
        };
        drop(in_flight);
        let response = self.encode(&exchange, id, outcome, session);
        self.measure(&exchange, &record, &response, measured);
        response
    }

    /// Everything before a call leaves: where it goes, whether it may, and the record of it.
    async fn admit(
        &self,
        client: &ClientContext,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
        counted: &mut Option<TaskTrackerToken>,
    ) -> Result<Destination, Refusal> {
        if self.closing.is_cancelled() {
            return Err(Refusal::new(Code::ShuttingDown, "the proxy is shutting down"));
        }
        if !has_method(client.revision, exchange.method.as_str()) {
            let words = "this protocol revision does not have this method";
            return Err(Refusal::new(Code::MethodUnknown, words));
        }
        reject_lookalike_method(&exchange.method)?;
        let server = self.route(client, exchange, record).await?;
        // A client that listens does so for as long as it likes, and goes on with the servers that there
        // are then.
        let counts = exchange.method.as_str() != Method::LISTEN;
        *counted = server.as_ref().filter(|_| counts).map(|server| server.counted());
        let sent = exchange.request.clone();
        self.stages.chain.pass(exchange, Phase::Request, &mut record.trail).await?;
        // What a server has, and how its tools are called, is for those alone whom the chain lets pass.
        if let Target::Tool { name, tool: None } = &exchange.target {
            return Err(self.builtin.unknown_tool(client, exchange, name));
        }
        mirrored_headers::check(self.recorder(), client, exchange, &sent)?;
        self.stages.obligations.apply(exchange, record).await?;
        // It was decided by the server's name, and so by what the config said of the server of that
        // name. The config may have changed since, and a person's approval takes time.
        if let Some(server) = server.as_ref().filter(|_| counts) {
            server.ensure_active()?;
        }
        self.recorder().record_intent(exchange, record).await.map_err(|error| {
            tracing::error!(decision = %exchange.id, %error, "call refused: it could not be recorded");
            Refusal::new(Code::AuditUnavailable, "the call could not be recorded, so it was not made")
                .detail(error.to_string())
        })?;
        Ok(Destination::of(exchange, server))
    }

    /// Finds what an exchange is about, and its server, if it is one server's.
    async fn route(
        &self,
        client: &ClientContext,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<Option<Arc<Server>>, Refusal> {
        let visible = self.stages.view(&client.principal);
        let began = Instant::now();
        let routed = match self.server_tasks.route(client, exchange).await {
            Ok(None) => {
                let (method, params) = (&exchange.method, exchange.request.raw());
                self.router.route(&client.view, method, params, &visible).await
            }
            Ok(Some(route)) => Ok(route),
            Err(refusal) => Err(refusal),
        };
        // What takes time here is a server: it is started, or asked for its lists.
        record.server_stage("route", began.elapsed());
        let Route { server, target, params } = match routed {
            Ok(route) => route,
            Err(refusal) => {
                let (method, params) = (&exchange.method, exchange.request.raw());
                (exchange.server, exchange.target) =
                    self.router.named(&client.view, method, params);
                return Err(refusal);
            }
        };
        record.image = server.as_ref().and_then(|server| client.image(server));
        exchange.server = server.as_ref().map(|server| server.name.clone());
        exchange.target = target;
        if let Some(params) = params {
            exchange.request = Payload::new(params);
        }
        Ok(server)
    }

    /// Gets the answer.
    async fn dispatch(
        &self,
        message: Message<'_>,
        destination: &Destination,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
        session: &mut Option<Arc<Session>>,
    ) -> Result<Answer, Refusal> {
        let client = message.client;
        match destination {
            Destination::Notification(server) => {
                self.on_notification(client, server.as_ref(), exchange).await;
                Ok(Answer::Result(Payload::new(Bytes::new())))
            }
            Destination::Builtin => {
                let result = self.builtin.answer(client, exchange).await?;
                if exchange.method.as_str() == Method::INITIALIZE {
                    let opened = self.open_session(client, exchange)?;
                    exchange.session = Some(opened.id.clone());
                    *session = Some(opened);
                }
                Ok(Answer::Result(Payload::new(result)))
            }
            Destination::Listen => {
                let Kind::Request { id, .. } = &message.frame.kind else { return Err(ambiguous()) };
                self.subscriptions.listen(client, id, exchange, message.notices).await
            }
            Destination::ResourceUpdates(server) => {
                self.subscriptions.subscribe(client, exchange, server).await
            }
            Destination::LogLevel => self.set_log_level(client, exchange).await,
            Destination::Server(server) => {
                record.asked();
                let answer = self.calls.call(message, server, exchange).await;
                // The server may have been started again, or for this client alone.
                record.image = client.image(server).or(record.image.take());
                let answer = answer?;
                self.server_tasks.note(client, server, exchange, &answer)?;
                Ok(answer)
            }
            Destination::Ambiguous => Err(ambiguous()),
        }
    }

    /// Sends the answer through the chain.
    async fn check_answer(
        &self,
        exchange: &mut Exchange,
        record: &mut ExchangeRecord,
        outcome: Outcome,
    ) -> Outcome {
        let Outcome::Answered(answer) = outcome else { return outcome };
        if exchange.notification {
            return Outcome::Answered(answer);
        }
        if let Err(why) = well_formed(&answer) {
            let refusal =
                Refusal::new(Code::ServerMisbehaved, "the server returned an invalid response");
            return Outcome::Failed(refusal.detail(why));
        }
        exchange.response = Some(answer);
        let passed = self.stages.chain.pass(exchange, Phase::Response, &mut record.trail).await;
        let obligations = &self.stages.obligations;
        match passed.and_then(|()| obligations.apply_labels(exchange, &record.trail.heard)) {
            Ok(()) => exchange.response.clone().map_or(Outcome::Cancelled, Outcome::Answered),
            // The refused answer is looked at for its record, and goes nowhere.
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    /// Records how an exchange that had left ended. What cannot be recorded is not handed out.
    async fn conclude(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        outcome: Outcome,
        session: Option<&Session>,
    ) -> Outcome {
        let end_session = |why| {
            if let Some(session) = session {
                self.sessions.close(&session.id, why);
            }
        };
        let conclusion = match &outcome {
            Outcome::Answered(_) => Conclusion::Delivered,
            Outcome::Failed(refusal) => Conclusion::Failed(refusal),
            Outcome::Refused(refusal) => Conclusion::Refused(refusal),
            Outcome::Cancelled => Conclusion::Cancelled,
        };
        if let Err(error) = self.recorder().record_outcome(exchange, record, conclusion).await {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
            end_session("its opening could not be recorded");
            let words = "the call was made, but its outcome could not be recorded";
            let refusal = Refusal::new(Code::AuditUnavailable, words);
            return Outcome::Refused(refusal.detail(error.to_string()));
        }
        if let Outcome::Failed(refusal) | Outcome::Refused(refusal) = &outcome {
            end_session("its opening was refused");
            // A plugin can quote an answer in it.
            let detail = refusal.detail.as_deref().map(|detail| self.recorder().shown(detail));
            tracing::info!(decision = %exchange.id, code = %refusal.code, detail, "call refused or failed");
        }
        outcome
    }

    fn open_session(
        &self,
        client: &ClientContext,
        exchange: &Exchange,
    ) -> Result<Arc<Session>, Refusal> {
        let greeting = Object::parse(exchange.request.raw().clone()).ok();
        let get = |key| greeting.as_ref().and_then(|greeting| greeting.get(key));
        let session = self.sessions.open(Opening {
            owner: client.principal.clone(),
            view: client.view.clone(),
            transport: client.transport,
            revision: exchange.revision,
            abilities: ClientCapabilities::new(get("capabilities")),
            info: get("clientInfo"),
        })?;
        self.recorder().metrics.sessions(self.sessions.count());
        tokio::spawn(self.clients.clone().follow_session(session.clone(), (**client).clone()));
        Ok(session)
    }

    /// The answer as text.
    fn encode(
        &self,
        exchange: &Exchange,
        id: Option<&Id>,
        outcome: Outcome,
        session: Option<Arc<Session>>,
    ) -> ExchangeResponse {
        let metrics = &self.recorder().metrics;
        match (outcome, id) {
            (Outcome::Answered(Answer::Result(result)), Some(id)) => {
                let text = Some(Frame::result(id, result.raw()));
                ExchangeResponse { text, session, ..ExchangeResponse::NONE }
            }
            (Outcome::Answered(Answer::Error(error)), Some(id)) => {
                let code = error.value().get("code").and_then(Value::as_i64);
                if let Some(code) = code {
                    metrics.error(code);
                }
                let text = Some(Frame::error(Some(id), error.raw()));
                ExchangeResponse { text, error: code, ..ExchangeResponse::NONE }
            }
            (Outcome::Refused(refusal) | Outcome::Failed(refusal), id) => {
                if id.is_some() {
                    metrics.refusal(refusal.code);
                    metrics.error(refusal.code.rpc().into());
                }
                let error = refusal.to_rpc_error(exchange.id).to_string();
                ExchangeResponse::refused(Frame::error(id, error.as_bytes()), refusal.code)
            }
            (Outcome::Answered(_), None) | (Outcome::Cancelled, _) => ExchangeResponse::NONE,
        }
    }

    fn measure(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        response: &ExchangeResponse,
        active: portcullis_telemetry::ActiveRequest,
    ) {
        use portcullis_telemetry::Outcome as Measured;
        let outcome = match (response.refused, &exchange.response) {
            (Some(_), _) => Measured::Refused,
            (None, Some(Answer::Error(_))) => Measured::Error,
            (None, Some(Answer::Result(result))) => {
                // Only tools have results that are failures.
                let failed = exchange.method.as_str() == Method::TOOLS_CALL
                    && may_have(result.raw(), "isError")
                    && Object::parse(result.raw().clone())
                        .is_ok_and(|o| o.get("isError").as_deref() == Some(b"true"));
                if failed { Measured::ToolError } else { Measured::Ok }
            }
            (None, None) if exchange.notification => Measured::Ok,
            (None, None) => Measured::Cancelled,
        };
        active.finish(outcome);
        if let Target::Tool { tool, .. } = &exchange.target {
            self.recorder().metrics.tool_call(ToolCall {
                server: exchange.server.as_ref(),
                tool: tool.as_deref(),
                principal: &exchange.principal,
                outcome,
                total: exchange.started.elapsed(),
                in_tool: record.served(),
            });
        }
    }

    /// Refuses a message that is not admitted.
    async fn reject(&self, caller: &Caller, frame: &Frame, refusal: Refusal) -> ExchangeResponse {
        let id = match &frame.kind {
            Kind::Request { id, .. } => Some(id),
            _ => None,
        };
        let (principal, message) = (Some(&*caller.principal), Some(&**frame.raw()));
        let (transport, address) = (caller.transport, caller.client_addr);
        let recorder = self.recorder();
        let text = recorder.reject(&refusal, transport, address, principal, message, id).await;
        ExchangeResponse::refused(text, refusal.code)
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.stages.recorder
    }
}

/// Has a client be able to cancel a request by its id.
///
/// # Errors
/// A refusal where the client has one of that id in flight.
fn begin(
    client: &ClientContext,
    id: Option<&Id>,
    cancel: &CancellationToken,
) -> Result<Option<InFlight>, Refusal> {
    if let (Some(_), Some(session)) = (id, &client.session) {
        session.count();
    }
    match (id, &client.calls) {
        (Some(id), Some(calls)) => calls.begin(id, cancel.clone()).map(Some),
        _ => Ok(None),
    }
}

fn cancelled() -> Refusal {
    Refusal::new(Code::Cancelled, "the client cancelled the request before it was decided")
}

fn ambiguous() -> Refusal {
    let words = "this method cannot be sent to all servers at once: use a server's own endpoint";
    Refusal::new(Code::MethodUnknown, words)
}

/// Whether a revision has a method. Methods that MCP does not know are the client's and the
/// server's affair.
fn has_method(revision: Revision, method: &str) -> bool {
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
