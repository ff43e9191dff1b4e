//! One call to a server, translated between the eras of client and server.
//!
//! A server of either era may send requests to its client during a call. The four cases:
//!
//! | client | server | |
//! |---|---|---|
//! | legacy | legacy | the server request goes to the client on the call's stream |
//! | legacy | modern | `input_required`: its requests are sent, the call is repeated with answers |
//! | modern | legacy | `input_required`: the call is suspended until the client answers |
//! | modern | modern | `input_required` is forwarded; the server's state is sealed to the client |
//!
//! A call can wait: for the start of its server, in the queue of an instance, for answers of the
//! client. If policies, the client or the server's entry changed meanwhile, it is decided again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Message, mirrored_headers};
use crate::{
    recorder::ExchangeRecord,
    server_requests::{
        EarlierAnswers, PendingInput, ReplyRoute, ServerRequests, State, SuspendedCall, TTL,
    },
    stages::{ClientContext, Stages},
    upstream_call::{CallEvent, InFlightCalls, UpstreamCall},
};
use portcullis_audit::record::DropReason;
use portcullis_chain::{Party, Weight, grow, in_turns};
use portcullis_protocol::{
    codec::{
        Frame, Id, Kind, Object,
        era::{self, ClientDetails, ResultKind, TASKS_EXTENSION},
        may_have,
    },
    exchange::{Answer, Exchange, Method, Payload, Revision, Target},
    refusal::{Code, Refusal},
};
use portcullis_upstream::{
    Call, CallError, Deadline, Instance, Reply, Running, Server, ServerMessage,
};

/// Times that a modern server may require input of a legacy client before the call fails.
const ROUNDS: usize = 32;
/// Server requests that one call may contain.
const QUESTIONS: usize = 64;
/// Bytes of server requests that a suspended call may keep.
const PARKED_BYTES: usize = 1 << 20;
/// Time in which further server requests join the first one in the same `input_required`.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Pause before a call is repeated for a modern server that required no input.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Result of driving a call.
enum CallOutcome {
    Over(Result<Reply, CallError>),
    /// The server sent requests for a modern client.
    Asks(UpstreamCall, Vec<PendingInput>),
}

/// The fixed parts of a call, also when it is repeated.
struct CallContext<'a> {
    client: &'a ClientContext,
    frame: &'a Frame,
    server: &'a Arc<Server>,
    exchange: &'a Exchange,
    notices: &'a mpsc::Sender<Bytes>,
}

/// Whether any replica of a stateless server can answer this request. Requests about a task go to
/// the instance that has it (in 2026-07-28 the server decides which calls become tasks, for clients
/// that support tasks). Subscriptions and notifications stay at one instance, too.
fn suits_any_replica(client: &ClientContext, exchange: &Exchange) -> bool {
    match exchange.method.as_str() {
        Method::TOOLS_CALL if client.abilities.extension(TASKS_EXTENSION) => false,
        Method::TOOLS_CALL => {
            let params = exchange.request.value();
            params.get("task").is_none() && params.get("requestState").is_none()
        }
        Method::PROMPTS_GET | Method::RESOURCES_READ | Method::COMPLETE => true,
        _ => false,
    }
}

/// Whether a legacy server runs the called tool only as a task.
fn runs_only_as_task(exchange: &Exchange) -> bool {
    let Target::Tool { tool: Some(tool), .. } = &exchange.target else { return false };
    let support = tool.definition.value().pointer("/execution/taskSupport");
    support.and_then(Value::as_str) == Some("required")
}

/// Whether a modern result says that the call continues as a task.
fn is_task(result: &Bytes) -> bool {
    may_have(result, "\"task\"")
        && Object::parse(result.clone())
            .is_ok_and(|result| ResultKind::of(&result) == ResultKind::Task)
}

/// Sends calls to servers.
pub(super) struct ServerCalls {
    stages: Arc<Stages>,
    requests: Arc<ServerRequests>,
    in_flight: Arc<InFlightCalls>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl ServerCalls {
    pub fn new(
        stages: Arc<Stages>,
        requests: Arc<ServerRequests>,
        in_flight: Arc<InFlightCalls>,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        Self { stages, requests, in_flight, tasks, closing }
    }

    /// Refuses a request that the queue of its instance has no room for. It would be refused when
    /// it is sent, too. Without an intent, that costs less, so an overload leaves more for others.
    /// A request that resumes a suspended call passes: that call is in flight, and its end makes
    /// room.
    ///
    /// # Errors
    /// `server-overloaded`.
    pub fn ensure_room(
        client: &ClientContext,
        server: &Arc<Server>,
        exchange: &Exchange,
    ) -> Result<(), Refusal> {
        if exchange.request.value().get("requestState").is_some() {
            return Ok(());
        }
        let Some(mut instance) = server.at(client.party_key(server).as_ref()) else {
            return Ok(());
        };
        if suits_any_replica(client, exchange) {
            instance = server.least_busy(&instance);
        }
        let room = instance.ensure_room(&client.principal.kind);
        room.map_err(|failure| failure.refusal(&server.name))
    }

    /// Sends a request to a server and returns the response in the client's era.
    ///
    /// # Errors
    /// A refusal if there is no response.
    pub async fn call(
        &self,
        Message { client, frame, notices }: Message<'_>,
        server: &Arc<Server>,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<Answer, Refusal> {
        let context = CallContext { client, frame, server, exchange, notices };
        let state = if client.revision.is_modern() {
            self.requests.open_state(server, exchange)?
        } else {
            None
        };
        let mut answers = EarlierAnswers::default();
        let edits = match state {
            None => Vec::new(),
            // The state that the client returns is the server's own again.
            Some(State::Server(own)) => vec![("requestState", Some(Value::from(own).to_string()))],
            Some(State::Parked(parked)) => {
                if let Some(call) = self.requests.suspended.take(&parked)? {
                    return self.resume(&context, record, call).await;
                }
                // The call ended with an earlier run of the proxy, so it begins again.
                answers = EarlierAnswers::of(parked, exchange.request.raw());
                vec![("requestState", None), ("inputResponses", None)]
            }
        };
        let (mut instance, mut running) =
            client.instance(server).await.map_err(|failure| failed(&failure, &context))?;
        if suits_any_replica(client, exchange) {
            let other = server.least_busy(&instance);
            if let Some(runs) = other.peek() {
                (instance, running) = (other, runs);
            }
        }
        let revision = running.handshake.revision;
        if client.revision.is_modern() && !revision.is_modern() && runs_only_as_task(exchange) {
            let words = "the tool runs only as a task, which this client's revision does not have";
            return Err(Refusal::new(Code::TaskUnsupported, words));
        }
        let mut params = outgoing(&context, revision);
        if let (false, Some(text)) = (edits.is_empty(), &params) {
            let edits: Vec<_> = edits
                .iter()
                .map(|(key, value)| (*key, value.as_ref().map(String::as_bytes)))
                .collect();
            params = Object::parse(text.clone()).ok().map(|params| params.with(&edits));
        }
        let modern = revision.is_modern();
        for _ in 0..ROUNDS {
            let at = (&instance, &running);
            let sent = self.send(&context, record, at, params.as_ref(), &mut answers).await?;
            let reply = match sent {
                CallOutcome::Over(reply) => reply.map_err(|failure| failed(&failure, &context))?,
                CallOutcome::Asks(dialogue, open) => {
                    let at = (instance, running);
                    return self.park(&context, SuspendedCall::new(dialogue, open, at));
                }
            };
            let input_required = match &reply {
                Reply::Result(result) if modern && !client.revision.is_modern() => {
                    Object::parse(result.clone())
                        .ok()
                        .filter(|result| ResultKind::of(result) == ResultKind::InputRequired)
                }
                _ => None,
            };
            let Some(input_required) = input_required else {
                return self.translate_reply(&context, revision, reply);
            };
            let answers = self.collect_inputs(&context, &input_required).await?;
            params = Some(with_answers(params.as_ref(), &input_required, &answers));
        }
        let failure = CallError::Misbehaved(format!("it requested more input {ROUNDS} times"));
        Err(failed(&failure, &context))
    }

    /// Sends a call to an instance and drives it.
    async fn send(
        &self,
        context: &CallContext<'_>,
        record: &mut ExchangeRecord,
        (instance, running): (&Arc<Instance>, &Arc<Running>),
        params: Option<&Bytes>,
        answers: &mut EarlierAnswers,
    ) -> Result<CallOutcome, Refusal> {
        let server = context.server;
        let clock = Deadline::new(server.deadline());
        let call = self.call_of(context, record, params.cloned(), clock);
        let (at, running_at) = (instance.clone(), running.clone());
        let dialogue = UpstreamCall::begin(&self.in_flight, server, at, running_at, call);
        self.drive_call(context, record, (instance, running), dialogue, answers).await
    }

    fn call_of(
        &self,
        context: &CallContext<'_>,
        record: &ExchangeRecord,
        params: Option<Bytes>,
        clock: Deadline,
    ) -> Call {
        let exchange = context.exchange;
        Call {
            method: exchange.method.clone(),
            name: match &exchange.target {
                _ if Method::TASK.contains(&exchange.method.as_str()) => {
                    let params = exchange.request.value();
                    params.get("taskId").and_then(Value::as_str).map(str::to_owned)
                }
                Target::Tool { name, .. } | Target::Prompt { name, .. } => Some(name.clone()),
                Target::Resource { uri } => Some(uri.clone()),
                Target::None => None,
            },
            headers: mirrored_headers::for_server(&self.stages.recorder, context.client, exchange),
            params,
            frame: Some(context.frame.clone()),
            messages: None,
            client: Some(context.client.principal.kind.clone()),
            clock,
            send_check: Some(self.stages.send_check(exchange, record, context.server)),
        }
    }

    /// Drives a call to its end: forwards the server's notifications and requests meanwhile. A call
    /// that waited is decided again before it is sent, if its decision no longer holds.
    async fn drive_call(
        &self,
        context: &CallContext<'_>,
        record: &mut ExchangeRecord,
        (instance, running): (&Arc<Instance>, &Arc<Running>),
        mut dialogue: UpstreamCall,
        answers: &mut EarlierAnswers,
    ) -> Result<CallOutcome, Refusal> {
        let CallContext { client, server, exchange, notices, .. } = context;
        // Pending server requests are withdrawn if the call ends before they are answered.
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let mut put = 0;
        let mut open: Vec<PendingInput> = Vec::new();
        let mut together = None;
        loop {
            let turn = tokio::select! {
                biased;
                turn = dialogue.next() => turn,
                // Requests that the server sends together reach the client together.
                () = expired(together), if !open.is_empty() => {
                    return Ok(CallOutcome::Asks(dialogue, open));
                }
            };
            // Its deadline and its response advance while the message is processed.
            if matches!(turn, CallEvent::FromServer(_)) {
                dialogue.spawn();
            }
            match turn {
                CallEvent::Over(reply) => {
                    if let Ok(Reply::Result(text) | Reply::Error(text)) = &reply {
                        grow(Weight::of(text)).await;
                    }
                    return Ok(CallOutcome::Over(reply));
                }
                CallEvent::Outdated => {
                    self.stages.renew_decision(exchange, record, server).await?;
                    dialogue.renew(self.stages.send_check(exchange, record, server));
                }
                CallEvent::FromServer(ServerMessage::Notification { method, params }) => {
                    grow(params.as_ref().map_or(Weight::NONE, Weight::of)).await;
                    self.forward_notification(context, method, params).await;
                }
                CallEvent::FromServer(ServerMessage::Request { id, method, params, answer }) => {
                    put += 1;
                    let suspended_bytes: usize = open.iter().map(PendingInput::size).sum();
                    let size = params.as_ref().map_or(0, Bytes::len);
                    let parks = client.session.is_none();
                    if put > QUESTIONS || (parks && suspended_bytes + size > PARKED_BYTES) {
                        let text =
                            self.requests.refuse(&server.name, Some(&id), &method, params).await;
                        let _ = answer.send(text);
                        continue;
                    }
                    if client.session.is_some() {
                        let route = ReplyRoute {
                            server: server.name.clone(),
                            instance: Some((instance.clone(), running.clone())),
                            out: Some((*notices).clone()),
                            clock: Some(dialogue.clock().clone()),
                            over: over.clone(),
                        };
                        self.requests.forward_to_client(
                            (*client).clone(),
                            route,
                            (id, method, params),
                            answer,
                        );
                        continue;
                    }
                    // On a task of its own, so that it is recorded to its end.
                    let (requests, client, server) =
                        (self.requests.clone(), (*client).clone(), server.name.clone());
                    let party = Party::Server(server.clone());
                    let weight = params.as_ref().map_or(Weight::NONE, Weight::of);
                    let admitted = self.tasks.spawn(in_turns(party, weight, async move {
                        let admitted = requests.admit(&client, &server, &id, &method, params).await;
                        match admitted {
                            Ok(question) => {
                                Some(PendingInput::new(&requests, question, id, answer))
                            }
                            Err(text) => {
                                let _ = answer.send(text);
                                None
                            }
                        }
                    }));
                    if let Ok(Some(question)) = admitted.await {
                        if let Some(result) = answers.take(question.digest()) {
                            self.complete(context, question, result).await;
                            continue;
                        }
                        together.get_or_insert_with(|| tokio::time::Instant::now() + AT_ONCE);
                        open.push(question);
                    }
                }
            }
        }
    }

    /// Forwards a server's notification to the waiting client, through the chain.
    async fn forward_notification(
        &self,
        context: &CallContext<'_>,
        method: Method,
        params: Option<Bytes>,
    ) {
        let (client, server) = (context.client, &context.server.name);
        if let Some(text) = self.stages.notice_to(client, server, &method, params).await
            // A client that does not read loses notifications, but not its response.
            && let Err(TrySendError::Full(_)) = context.notices.try_send(text)
        {
            let drops = &self.stages.recorder.drops;
            drops.count(server, &client.principal.kind, DropReason::Unread);
        }
    }

    /// Suspends a call and returns the server's requests to its client.
    fn park(
        &self,
        context: &CallContext<'_>,
        mut parked: SuspendedCall,
    ) -> Result<Answer, Refusal> {
        if self.closing.is_cancelled() {
            return Err(Refusal::new(Code::ShuttingDown, "the proxy is shutting down"));
        }
        parked.pause();
        let requests: Vec<_> = parked.open.iter().map(PendingInput::request).collect();
        let limit = self.requests.timeout.min(TTL);
        let owner = context.client.principal.kind.clone();
        let state = State::Parked(self.requests.suspended.park(owner, parked, limit)?);
        let state = self.requests.seal_state(context.server, context.exchange, &state)?;
        let parts: [&[u8]; 5] = [
            b"{\"resultType\":\"input_required\",\"inputRequests\":{",
            &requests.join(&b","[..]),
            b"},\"requestState\":",
            &state,
            b"}",
        ];
        Ok(Answer::Result(Payload::new(parts.concat().into())))
    }

    /// Resumes a suspended call with the client's answers.
    async fn resume(
        &self,
        context: &CallContext<'_>,
        record: &mut ExchangeRecord,
        mut parked: SuspendedCall,
    ) -> Result<Answer, Refusal> {
        let responses = Object::parse(context.exchange.request.raw().clone())
            .ok()
            .and_then(|params| params.object("inputResponses"));
        for open in std::mem::take(&mut parked.open) {
            match responses.as_ref().and_then(|responses| responses.get(open.key())) {
                Some(result) => self.complete(context, open, result).await,
                None => parked.open.push(open),
            }
        }
        if !parked.open.is_empty() {
            return self.park(context, parked);
        }
        let (dialogue, (instance, running)) = parked.resume();
        let mut answers = EarlierAnswers::default();
        let at = (&instance, &running);
        match self.drive_call(context, record, at, dialogue, &mut answers).await? {
            CallOutcome::Over(reply) => {
                let reply = reply.map_err(|failure| failed(&failure, context))?;
                self.translate_reply(context, running.handshake.revision, reply)
            }
            CallOutcome::Asks(dialogue, open) => {
                self.park(context, SuspendedCall::new(dialogue, open, (instance, running)))
            }
        }
    }

    /// Answers a server request with the client's response, on a task of its own, so that it is
    /// recorded to its end.
    async fn complete(&self, context: &CallContext<'_>, request: PendingInput, response: Bytes) {
        let party = Party::Client(context.client.principal.kind.clone());
        let weight = Weight::of(&response);
        let settled = in_turns(party, weight, request.complete(response));
        drop(self.tasks.spawn(settled).await);
    }

    /// Sends all requests in a modern server's result to a legacy client. Returns the answers by
    /// their keys.
    async fn collect_inputs(
        &self,
        context: &CallContext<'_>,
        input_required: &Object,
    ) -> Result<Vec<(String, Bytes)>, Refusal> {
        let misbehaved =
            || failed(&CallError::Misbehaved("its `inputRequests` are malformed".into()), context);
        let Some(requests) = input_required.get("inputRequests") else {
            tokio::time::sleep(RETRY_INTERVAL).await;
            return Ok(Vec::new());
        };
        let requests = Object::parse(requests)
            .ok()
            .filter(|requests| requests.keys().count() <= QUESTIONS)
            .ok_or_else(misbehaved)?;
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        let mut waiting = Vec::new();
        for key in requests.keys() {
            let request = requests.object(key).ok_or_else(misbehaved)?;
            let method = request.string("method").ok_or_else(misbehaved)?;
            let (sender, answer) = oneshot::channel();
            let route = ReplyRoute {
                server: context.server.name.clone(),
                instance: None,
                out: Some(context.notices.clone()),
                clock: None,
                over: over.clone(),
            };
            // The id is unused: the server identifies the request by its key.
            let question = (Id::from(0), Method::new(&method), request.get("params"));
            self.requests.forward_to_client(context.client.clone(), route, question, sender);
            waiting.push((key.to_owned(), method, answer));
        }
        let mut answers = Vec::new();
        for (key, method, answer) in waiting {
            let text = answer.await.unwrap_or_default();
            let frame = Object::parse(text).map_err(|_| misbehaved())?;
            match frame.get("result") {
                Some(result) => answers.push((key, result)),
                // An unanswered form counts as cancelled; other requests have no such answer.
                None if method == Method::ELICIT => {
                    answers.push((key, Bytes::from_static(b"{\"action\":\"cancel\"}")));
                }
                None => {
                    return Err(Refusal::new(
                        Code::ClientUnavailable,
                        "the server requested input that the client did not provide",
                    )
                    .detail("its `inputRequests` were not all answered"));
                }
            }
        }
        Ok(answers)
    }

    /// Translates a server's reply to the client's era.
    fn translate_reply(
        &self,
        context: &CallContext<'_>,
        revision: Revision,
        reply: Reply,
    ) -> Result<Answer, Refusal> {
        let (method, client) = (&context.exchange.method, context.client.revision);
        match reply {
            Reply::Error(error) => {
                let error = era::error(error, method, revision, client);
                Ok(Answer::Error(Payload::new(error)))
            }
            Reply::Result(result) => {
                let result = era::result(result, method, revision, client)
                    .map_err(|why| failed(&CallError::Misbehaved(why.into()), context))?;
                if client.is_modern()
                    && !context.client.abilities.extension(TASKS_EXTENSION)
                    && is_task(&result)
                {
                    let why = "it created a task for a client that does not declare tasks";
                    return Err(failed(&CallError::Misbehaved(why.into()), context));
                }
                if revision.is_modern() && client.is_modern() {
                    return self.sealed(context, result);
                }
                Ok(Answer::Result(Payload::new(result)))
            }
        }
    }

    /// A modern result with the server's `requestState` sealed into one of the proxy's.
    fn sealed(&self, context: &CallContext<'_>, result: Bytes) -> Result<Answer, Refusal> {
        let plain = |result| Ok(Answer::Result(Payload::new(result)));
        if !may_have(&result, "requestState") {
            return plain(result);
        }
        let Ok(object) = Object::parse(result.clone()) else { return plain(result) };
        if ResultKind::of(&object) != ResultKind::InputRequired {
            return plain(result);
        }
        match object.string("requestState") {
            Some(own) => {
                let state = self.requests.seal_state(
                    context.server,
                    context.exchange,
                    &State::Server(own),
                )?;
                plain(object.with(&[("requestState", Some(&state))]))
            }
            None => plain(result),
        }
    }
}

/// Waits until a time, or for ever if there is none yet.
async fn expired(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn failed(failure: &CallError, context: &CallContext<'_>) -> Refusal {
    let (decision, server) = (context.exchange.id, &context.server.name);
    tracing::warn!(%decision, %server, %failure, "call failed");
    failure.refusal(server)
}

/// The `params` of the next attempt: with the client's answers and the server's own state.
fn with_answers(
    params: Option<&Bytes>,
    input_required: &Object,
    answers: &[(String, Bytes)],
) -> Bytes {
    let empty = Bytes::from_static(b"{}");
    let pairs: Vec<_> = answers.iter().map(|(key, text)| (key.as_str(), Some(&text[..]))).collect();
    let responses = Object::parse(empty.clone()).map(|object| object.with(&pairs)).ok();
    let state = input_required.get("requestState");
    let edits = [
        ("inputResponses", responses.as_deref().filter(|_| !answers.is_empty())),
        ("requestState", state.as_deref()),
    ];
    let params = params.unwrap_or(&empty);
    Object::parse(params.clone()).map_or_else(|_| params.clone(), |object| object.with(&edits))
}

/// The `params` for a server, in the server's era; as the client sent them if the chain did not
/// change them.
fn outgoing(context: &CallContext<'_>, server: Revision) -> Option<Bytes> {
    let raw = context.exchange.request.raw();
    let client = context.client;
    let client_details = ClientDetails {
        revision: client.revision,
        capabilities: client.abilities.raw().clone(),
        info: client.info.clone(),
        level: client.level.map(|level| level.as_str()),
    };
    if let Some(translated) = era::params(raw, &context.exchange.method, &client_details, server) {
        return Some(translated);
    }
    let sent = match &context.frame.kind {
        Kind::Request { params, .. } | Kind::Notification { params, .. } => params.is_some(),
        _ => false,
    };
    (sent || raw.as_ref() != b"{}").then(|| raw.clone())
}
