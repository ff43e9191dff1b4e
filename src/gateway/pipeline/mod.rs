//! The stages of a client's message, from arrival to response. [`Pipeline::handle`] shows all:
//!
//! | stage | what it does |
//! |---|---|
//! | client | identifies the sender and its declared capabilities |
//! | route | finds the server, tool, prompt or resource |
//! | request chain | interceptors: rates, policies, names of arguments, schemas, secrets, plugins |
//! | obligations | fulfils those of policies: counts under `@rate`, labels, a person's approval |
//! | intent | records the call, on disk before the call leaves |
//! | dispatch | gets the response from the proxy itself or from a server |
//! | response chain | runs the interceptors again |
//! | outcome | records how the exchange ended |
//! | encode | returns the response as text |
//!
//! INVARIANTS
//! - Every message to a server and every response to a client passes [`Pipeline::handle`] and
//!   [`Stages`].
//! - The intent is on disk before a call leaves. If it cannot be written, the call is not made.
//! - Every end of an exchange is recorded: response, refusal, failure, cancellation.

mod builtin_methods;
mod call;
mod client_messages;
mod exchange_work;
mod lists;
mod mirrored_headers;
mod response_encoding;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::{
    admission::{Admission, ConcurrencyPermit},
    client_network::network,
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
use portcullis_chain::{Party, Weight};
use portcullis_foundation::fair_tasks::FairTasks;
use portcullis_protocol::{
    codec::{Frame, Id, Kind, Object, may_have},
    exchange::{Answer, Exchange, Method, Payload, Phase, Revision, Target},
    refusal::{Code, Refusal, without_marks},
    seal::Seal,
};
use portcullis_telemetry::ToolCall;
use portcullis_upstream::Server;

use builtin_methods::BuiltinMethods;
use call::ServerCalls;

pub use exchange_work::ExchangeWork;

/// Notifications of one exchange that may wait for a slow client.
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
    fair_tasks: FairTasks<Party>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Components of a [`Pipeline`].
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
    /// Entries on a page of a list.
    pub page: usize,
    pub fair_tasks: FairTasks<Party>,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
}

/// A message in the pipeline.
pub struct ExchangeHandle {
    /// Notifications that belong to the message, in order of arrival.
    pub notices: mpsc::Receiver<Bytes>,
    pub work: ExchangeWork,
    /// Cancels the exchange. The work then ends soon, and its end is recorded.
    pub cancel: CancellationToken,
}

/// Response to a client's message.
#[derive(Debug)]
pub struct ExchangeResponse {
    /// Text of the response. For a notification it is only the text of a refusal, which some
    /// transports can deliver. The text holds its principal's [`ConcurrencyPermit`] until it is
    /// dropped, so that unread responses are bounded like messages.
    pub text: Option<Bytes>,
    /// The code of a refusal.
    pub refused: Option<Code>,
    /// The code of the JSON-RPC error in `text`, a server's or a refusal's.
    pub error: Option<i64>,
    /// The session that an `initialize` opened.
    pub session: Option<Arc<Session>>,
}

impl ExchangeResponse {
    /// No response: for a notification or a response.
    pub(crate) const NONE: Self = Self { text: None, refused: None, error: None, session: None };

    /// The response for a refusal, with this text.
    pub(crate) fn refused(text: Bytes, code: Code) -> Self {
        let error = Some(code.rpc().into());
        Self { text: Some(text), refused: Some(code), error, session: None }
    }
}

/// How an exchange ended.
enum Outcome {
    /// With a response, `result` or `error`.
    Answered(Answer),
    /// By a refusal of the request or the response.
    Refused(Refusal),
    /// Without a response.
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
    /// Receives the notifications that belong to it.
    notices: &'a mpsc::Sender<Bytes>,
}

/// The part that answers an exchange.
enum Destination {
    /// The proxy itself.
    Builtin,
    /// A notification, which has no response. It may be for one server.
    Notification(Option<Arc<Server>>),
    /// The stream of `subscriptions/listen`.
    Listen,
    /// A server whose notifications of a resource's changes are requested or stopped.
    ResourceUpdates(Arc<Server>),
    LogLevel,
    Server(Arc<Server>),
    /// All servers have the method, but it must go to only one.
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
            fair_tasks: parts.fair_tasks,
            tasks,
            closing,
        })
    }

    /// The handling of a message, under the permit that its principal acquired for it. It advances
    /// while its work is polled. Dropping the work does not cancel it.
    pub fn start(
        self: &Arc<Self>,
        caller: Caller,
        frame: Frame,
        permit: ConcurrencyPermit,
    ) -> ExchangeHandle {
        let (notices, receiver) = mpsc::channel(MAX_NOTICES);
        let cancel = CancellationToken::new();
        let (pipeline, cancelled) = (self.clone(), cancel.clone());
        let party = Party::Client(caller.principal.kind.clone());
        let weight = Weight::of(frame.raw());
        let work = async move {
            let admitted = pipeline.admission.admit(&permit, &caller.principal.kind, &frame);
            // Held with the parsed message until the exchange is over.
            let mut response = match admitted {
                Ok(_parsed) => pipeline.handle(caller, frame, notices, cancelled).await,
                Err(refusal) => pipeline.reject(&caller, &frame, refusal).await,
            };
            response.text = response.text.map(|text| permit.hold(text));
            response
        };
        let work = ExchangeWork::new(work, party, weight, self.fair_tasks.clone(), &self.tasks);
        ExchangeHandle { notices: receiver, work, cancel }
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
        // Keeps a server that the config replaces alive until the exchange is over.
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

    /// The stages before a call leaves: route, request chain, obligations, intent.
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
        // A listening client has no time limit. When the config changes, it continues with the new
        // servers.
        let counts = exchange.method.as_str() != Method::LISTEN;
        *counted = server.as_ref().filter(|_| counts).map(|server| server.counted());
        let sent = exchange.request.clone();
        self.stages.decide(exchange, record).await?;
        // Only clients that the chain allows learn which tools exist and how they are called.
        if let Target::Tool { name, tool: None } = &exchange.target {
            return Err(self.builtin.unknown_tool(client, exchange, name));
        }
        mirrored_headers::check(self.recorder(), client, exchange, &sent)?;
        self.stages.obligations.apply(exchange, record).await?;
        // The decision was about the entry that had the server's name then. The config may have
        // changed since, because a person's approval takes time.
        if let Some(server) = server.as_ref().filter(|_| counts) {
            server.ensure_started()?;
        }
        let destination = Destination::of(exchange, server);
        if let Destination::Server(server) = &destination
            && !matches!(exchange.target, Target::None)
        {
            ServerCalls::ensure_room(client, server, exchange)?;
        }
        self.stages.record_intent(exchange, record).await?;
        Ok(destination)
    }

    /// Finds the target of an exchange, and its server if there is only one.
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
                self.router.route((client, &client.view), method, params, &visible).await
            }
            Ok(Some(route)) => Ok(route),
            Err(refusal) => Err(refusal),
        };
        // The time here is a server's: its start or its lists.
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

    /// Gets the response.
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
                self.subscriptions.subscribe(client, exchange, record, server).await
            }
            Destination::LogLevel => self.set_log_level(client, exchange).await,
            Destination::Server(server) => {
                record.mark_sent();
                let answer = self.calls.call(message, server, exchange, record).await;
                // A start of the server may have changed its image.
                record.image = client.image(server).or(record.image.take());
                let answer = answer?;
                self.server_tasks.note(client, server, exchange, &answer).await?;
                Ok(answer)
            }
            Destination::Ambiguous => Err(ambiguous()),
        }
    }

    /// Sends the response through the chain.
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
        exchange.response = Some(without_marks(answer));
        let passed = self.stages.chain.pass(exchange, Phase::Response, &mut record.trail).await;
        let obligations = &self.stages.obligations;
        match passed.and_then(|()| obligations.apply_labels(exchange, &record.trail.added_labels)) {
            Ok(()) => exchange.response.clone().map_or(Outcome::Cancelled, Outcome::Answered),
            // The refused response is kept for the record only.
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    /// Records the end of an exchange that has an intent. Without that record nothing is delivered.
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
            // A plugin's detail can quote a response.
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
        let initialize = Object::parse(exchange.request.raw().clone()).ok();
        let get = |key| initialize.as_ref().and_then(|initialize| initialize.get(key));
        let session = self.sessions.open(Opening {
            owner: client.principal.clone(),
            network: client.client_addr.map(|address| network(address.ip())),
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

    fn measure(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        response: &ExchangeResponse,
        active: portcullis_telemetry::ActiveRequest,
    ) {
        use portcullis_telemetry::Outcome as Measured;
        let outcome = match (response.refused, &exchange.response) {
            (Some(Code::Cancelled), _) => Measured::Cancelled,
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

/// Registers a request under its id, so that the client can cancel it.
///
/// # Errors
/// A refusal if the client already has a request with that id in flight.
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

/// Whether a revision has a method. Methods that MCP does not define are between the client and the
/// server.
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
