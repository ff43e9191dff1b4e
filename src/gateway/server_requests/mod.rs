//! Server requests: requests from servers to clients.
//!
//! INVARIANTS
//! - A server request is an exchange of its own: it passes the chain before a client gets it, and
//!   the client's response passes the chain before the server gets it.
//! - It is recorded before it leaves, and when it ends (response, refusal, timeout, withdrawal).
//! - It goes to the client of the call or of the dedicated instance that it comes from.

mod request_state;
mod suspended_calls;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    recorder::ExchangeRecord,
    router::Router,
    session::ClientReply,
    stages::{Caller, ClientContext, Stages, new_exchange, well_formed},
};
use portcullis_audit::Conclusion;
use portcullis_chain::{Party, Weight, grow, in_turns};
use portcullis_protocol::{
    codec::{Frame, Id, Object, may_have},
    exchange::{Answer, Direction, Exchange, Method, Phase, Revision, Transport, View},
    identity::{Principal, PrincipalKind},
    names::ServerName,
    refusal::{Code, Refusal},
    seal::Seal,
};
use portcullis_upstream::{Deadline, Instance, Running};

pub(crate) use request_state::{EarlierAnswers, State, TTL};
use suspended_calls::SuspendedCalls;
pub(crate) use suspended_calls::{PendingInput, SuspendedCall};

/// A server request that passed the chain and is on record.
pub(crate) struct ServerRequest {
    pub exchange: Exchange,
    record: ExchangeRecord,
    /// Whether the server's message had `params`.
    sent: bool,
    put: Instant,
}

/// Path of a server request to its client and of the response back.
pub(crate) struct ReplyRoute {
    pub server: ServerName,
    /// The requesting instance, for progress notifications.
    pub instance: Option<(Arc<Instance>, Arc<Running>)>,
    /// The stream of the call that it belongs to; if absent, the session's stream.
    pub out: Option<mpsc::Sender<Bytes>>,
    /// The call's deadline, which is paused meanwhile.
    pub clock: Option<Deadline>,
    /// Cancelled when the call is over, which withdraws the request.
    pub over: CancellationToken,
}

impl ServerRequest {
    /// The `params` for the client.
    pub fn params(&self) -> Option<&Bytes> {
        let raw = self.exchange.request.raw();
        (self.sent || raw != "{}").then_some(raw)
    }
}

/// Sends requests of servers to clients.
pub(crate) struct ServerRequests {
    stages: Arc<Stages>,
    router: Arc<Router>,
    tasks: TaskTracker,
    /// Time limit for a client's response.
    pub timeout: Duration,
    /// Calls that wait for responses of clients without a session.
    pub suspended: SuspendedCalls,
    /// Seals the state that such clients return.
    seal: Arc<Seal>,
}

impl ServerRequests {
    pub fn new(
        stages: Arc<Stages>,
        router: Arc<Router>,
        seal: Arc<Seal>,
        timeout: Duration,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let suspended = SuspendedCalls::new();
        Arc::new(Self { stages, router, tasks, timeout, suspended, seal })
    }

    /// Sends a server request through the chain and records its intent.
    ///
    /// # Errors
    /// The text of the refusal for the server. The refusal is on record.
    pub async fn admit(
        &self,
        client: &ClientContext,
        server: &ServerName,
        id: &Id,
        method: &Method,
        params: Option<Bytes>,
    ) -> Result<ServerRequest, Bytes> {
        let sent = params.is_some();
        let mut exchange = self.stages.begin(client, method, false, params);
        exchange.direction = Direction::ServerToClient;
        exchange.server = Some(server.clone());
        let mut record = ExchangeRecord::default();
        record.image = self.router.server(server).and_then(|server| client.image(&server));
        let admitted = async {
            if !client.abilities.takes(method, exchange.request.value()) {
                return Err(Refusal::new(
                    Code::MethodUnknown,
                    "the client does not declare the capability for this request",
                ));
            }
            self.stages.request(&mut exchange, &mut record).await
        };
        if let Err(refusal) = admitted.await {
            self.stages.recorder.record_refusal(&exchange, &record, &refusal).await;
            self.stages.recorder.metrics.refusal(refusal.code);
            return Err(refused(id, &refusal, &exchange));
        }
        if let Err(error) = self.stages.recorder.record_intent(&exchange, &mut record).await {
            tracing::error!(decision = %exchange.id, %error, "server request refused: it could not be recorded");
            let refusal = Refusal::new(Code::AuditUnavailable, "the request could not be recorded");
            return Err(refused(id, &refusal, &exchange));
        }
        Ok(ServerRequest { exchange, record, sent, put: Instant::now() })
    }

    /// Sends a client's response through the chain and records the outcome. Returns the text of the
    /// whole response for the server.
    pub async fn complete(
        &self,
        question: ServerRequest,
        id: &Id,
        answer: Result<Answer, Refusal>,
    ) -> Bytes {
        let ServerRequest { mut exchange, mut record, put, .. } = question;
        record.stage("client", put.elapsed());
        let checked = match answer {
            Err(refusal) => Err((false, refusal)),
            Ok(answer) => match well_formed(&answer) {
                Err(why) => Err((
                    false,
                    Refusal::new(Code::InvalidParams, "the client's answer is malformed")
                        .detail(why),
                )),
                Ok(()) => {
                    exchange.response = Some(answer);
                    let passed = self
                        .stages
                        .chain
                        .pass(&mut exchange, Phase::Response, &mut record.trail)
                        .await;
                    passed.map_err(|refusal| (true, refusal))
                }
            },
        };
        let conclusion = match &checked {
            Ok(()) => Conclusion::Delivered,
            Err((_, refusal)) if refusal.code == Code::Cancelled => Conclusion::Cancelled,
            Err((true, refusal)) => Conclusion::Refused(refusal),
            Err((false, refusal)) => Conclusion::Failed(refusal),
        };
        if let Err(error) =
            self.stages.recorder.record_outcome(&exchange, &record, conclusion).await
        {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
            let refusal = Refusal::new(Code::AuditUnavailable, "the answer could not be recorded");
            return refused(id, &refusal, &exchange);
        }
        match (checked, &exchange.response) {
            (Ok(()), Some(Answer::Result(result))) => Frame::result(id, result.raw()),
            (Ok(()), Some(Answer::Error(error))) => Frame::error(Some(id), error.raw()),
            (Ok(()), None) => refused(id, &withdrawn(), &exchange),
            (Err((_, refusal)), _) => {
                self.stages.recorder.metrics.refusal(refusal.code);
                refused(id, &refusal, &exchange)
            }
        }
    }

    /// Sends a server request to the client of a legacy session, and its response to the server.
    /// Runs on a task of its own until it is answered or withdrawn.
    pub fn forward_to_client(
        self: &Arc<Self>,
        client: ClientContext,
        route: ReplyRoute,
        (id, method, params): (Id, Method, Option<Bytes>),
        mut answer: oneshot::Sender<Bytes>,
    ) {
        let requests = self.clone();
        let party = Party::Server(route.server.clone());
        let weight = params.as_ref().map_or(Weight::NONE, Weight::of);
        let work = async move {
            let text = match requests.admit(&client, &route.server, &id, &method, params).await {
                Ok(question) => {
                    let answered =
                        requests.await_client(&client, &route, &question, &mut answer).await;
                    if let Ok(answer) = &answered {
                        grow(Weight::of(answer.payload().raw())).await;
                    }
                    requests.complete(question, &id, answered).await
                }
                Err(text) => text,
            };
            let _ = answer.send(text);
        };
        self.tasks.spawn(in_turns(party, weight, work));
    }

    /// Refuses a server's request or notification that has no client. Returns the text for the
    /// server.
    pub async fn refuse(
        &self,
        server: &ServerName,
        id: Option<&Id>,
        method: &Method,
        params: Option<Bytes>,
    ) -> Bytes {
        let refusal =
            Refusal::new(Code::MethodUnknown, "no client is connected that can answer this");
        if let Some(summary) =
            self.stages.recorder.refusals.of_server(server, refusal.code.as_str())
        {
            // Without a record of its own, it needs no other stages: it goes nowhere.
            self.stages.recorder.metrics.refusal(refusal.code);
            if id.is_some() {
                summary.on_record(&self.stages.recorder.audit).await;
            }
            return Frame::error(id, refusal.to_rpc_error(summary.id).to_string().as_bytes());
        }
        // The instance is shared, so its request belongs to no particular client.
        let nobody = Principal {
            kind: PrincipalKind::Anonymous,
            groups: Vec::new(),
            verified: false,
            key: None,
        };
        let caller = Caller {
            principal: Arc::new(nobody),
            transport: Transport::Stdio,
            client_addr: None,
            view: View::One(server.clone()),
            session: None,
            calls: None,
            revision: Revision::LATEST_LEGACY,
            headers: None,
        };
        let mut question = new_exchange(&caller, method, id.is_none(), params);
        question.direction = Direction::ServerToClient;
        question.server = Some(server.clone());
        let mut record = ExchangeRecord::default();
        let passed = self.stages.chain.pass(&mut question, Phase::Request, &mut record.trail).await;
        let refusal = match passed {
            Err(refusal) => refusal,
            Ok(()) => refusal,
        };
        self.stages.recorder.record_refusal(&question, &record, &refusal).await;
        self.stages.recorder.metrics.refusal(refusal.code);
        Frame::error(id, refusal.to_rpc_error(question.id).to_string().as_bytes())
    }

    async fn await_client(
        &self,
        client: &ClientContext,
        route: &ReplyRoute,
        question: &ServerRequest,
        server: &mut oneshot::Sender<Bytes>,
    ) -> Result<Answer, Refusal> {
        let Some(session) = &client.session else { return Err(nobody()) };
        let params = question.params();
        let (params, token) = match params.and_then(token) {
            Some((object, meta, token)) => (Some((object, meta)), Some(token)),
            None => (None, None),
        };
        let mut ask = session.pending_requests.begin(token)?;
        let swapped = params.map(|(object, meta)| {
            let own = ask.id().to_string();
            let meta = meta.with(&[("progressToken", Some(own.as_bytes()))]);
            object.with(&[("_meta", Some(&meta))])
        });
        let params = swapped.as_ref().or(question.params());
        let method = question.exchange.method.as_str();
        let text = Frame::request(ask.id(), method, params.map_or(&b""[..], |params| params));
        let _paused = route.clock.as_ref().map(Deadline::pause);
        let limit = self.timeout;
        let id = ask.id();
        let answered = async {
            let delivered = match &route.out {
                // The call waits for this response, so its stream should have room.
                Some(out) => out.send(text).await.is_ok(),
                None => session.send(text),
            };
            if !delivered {
                return None;
            }
            loop {
                match ask.next().await? {
                    ClientReply::Answer(answer) => return Some(answer),
                    ClientReply::Progress(params) => {
                        if let Some((instance, running)) = &route.instance {
                            let _ = instance.notify(running, Method::PROGRESS, params).await;
                        }
                    }
                }
            }
        };
        let refusal = tokio::select! {
            answer = answered => return answer.ok_or_else(nobody),
            () = route.over.cancelled() => withdrawn(),
            () = server.closed() => withdrawn(),
            () = session.ended().cancelled() => return Err(nobody()),
            () = tokio::time::sleep(limit) => {
                Refusal::new(Code::ClientTimeout, "the client did not answer in time")
                    .detail(format!("limits.question-s = {}", limit.as_secs()))
            }
        };
        // The client should cancel it.
        let params = json!({ "requestId": id, "reason": refusal.message }).to_string();
        let text = Frame::notification(Method::CANCELLED, params.as_bytes());
        match &route.out {
            Some(out) => drop(out.try_send(text)),
            None => drop(session.send(text)),
        }
        Err(refusal)
    }
}

/// `params`, their `_meta` and the progress token, if the server wants progress notifications.
fn token(params: &Bytes) -> Option<(Object, Object, Bytes)> {
    if !may_have(params, "progressToken") {
        return None;
    }
    let object = Object::parse(params.clone()).ok()?;
    let meta = object.object("_meta")?;
    let token = meta.get("progressToken")?;
    Some((object, meta, token))
}

fn refused(id: &Id, refusal: &Refusal, exchange: &Exchange) -> Bytes {
    Frame::error(Some(id), refusal.to_rpc_error(exchange.id).to_string().as_bytes())
}

fn nobody() -> Refusal {
    Refusal::new(Code::ClientUnavailable, "no client is connected that can answer this")
}

fn withdrawn() -> Refusal {
    Refusal::new(Code::Cancelled, "the request was cancelled before it was answered")
}
