//! What servers ask of clients.
//!
//! INVARIANTS
//! - A question is an exchange of its own: it passes the chain before a client sees it, and the
//!   client's answer passes it before the server does.
//! - It is on record before it leaves, and however it ends (answer, refusal, time, withdrawal).
//! - It goes to the client whose call the server answers, or for whom alone the server runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    client::ClientContext,
    pipeline::{RequestState, reject_lookalike_method, well_formed},
};
use crate::session::ClientReply;
use portcullis_audit::Conclusion;
use portcullis_chain::{Party, Weight, grow, in_turns};
use portcullis_protocol::{
    codec::{Frame, Id, Object, may_have},
    exchange::{Answer, Direction, Exchange, Method, Phase},
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_upstream::{Deadline, Instance, Running};

/// A question that passed the chain and is on record.
pub(super) struct ServerRequest {
    pub exchange: Exchange,
    passage: RequestState,
    /// Whether the server's message had `params`.
    sent: bool,
    put: Instant,
}

/// Where a question goes, and its answer.
pub(super) struct ReplyRoute {
    pub server: ServerName,
    /// Who asks, to be told of progress.
    pub instance: Option<(Arc<Instance>, Arc<Running>)>,
    /// The stream of the call that it belongs to; without one the client's own stream.
    pub out: Option<mpsc::Sender<Bytes>>,
    /// The call's clock, which stands still meanwhile.
    pub clock: Option<Deadline>,
    /// Cancelled once the call is over, which takes the question back.
    pub over: CancellationToken,
}

impl ServerRequest {
    /// `params` as they go to the client.
    pub fn params(&self) -> Option<&Bytes> {
        let raw = self.exchange.request.raw();
        (self.sent || raw != "{}").then_some(raw)
    }
}

impl Gateway {
    /// Takes a server's question through the chain, and records that it is put.
    ///
    /// # Errors
    /// The text of the refusal for the server. It is on record.
    pub(super) async fn admit_question(
        &self,
        guest: &ClientContext,
        server: &ServerName,
        id: &Id,
        method: &Method,
        params: Option<Bytes>,
    ) -> Result<ServerRequest, Bytes> {
        let sent = params.is_some();
        let mut exchange = self.begin(guest, method, false, params);
        exchange.direction = Direction::ServerToClient;
        exchange.server = Some(server.clone());
        let mut passage = RequestState::default();
        passage.image = self.router.server(server).and_then(|server| self.image(guest, &server));
        let admitted = async {
            if !guest.abilities.takes(method, exchange.request.value()) {
                return Err(Refusal::new(
                    Code::MethodUnknown,
                    "the client does not declare the capability for this request",
                ));
            }
            reject_lookalike_method(method)?;
            self.chain.pass(&mut exchange, Phase::Request, &mut passage.trail).await?;
            self.apply_obligations(&exchange, &mut passage).await
        };
        if let Err(refusal) = admitted.await {
            self.record_refusal(&exchange, &passage, &refusal).await;
            self.metrics.refusal(refusal.code);
            return Err(refused(id, &refusal, &exchange));
        }
        if let Err(error) = self.record_intent(&exchange, &mut passage).await {
            tracing::error!(decision = %exchange.id, %error, "server request refused: it could not be recorded");
            let refusal = Refusal::new(Code::AuditUnavailable, "the request could not be recorded");
            return Err(refused(id, &refusal, &exchange));
        }
        Ok(ServerRequest { exchange, passage, sent, put: Instant::now() })
    }

    /// Takes a client's answer through the chain, and records how the question ended. The text of
    /// the whole answer for the server.
    pub(super) async fn complete(
        &self,
        question: ServerRequest,
        id: &Id,
        answer: Result<Answer, Refusal>,
    ) -> Bytes {
        let ServerRequest { mut exchange, mut passage, put, .. } = question;
        passage.trail.stages.push(("client".into(), put.elapsed()));
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
                    let passed =
                        self.chain.pass(&mut exchange, Phase::Response, &mut passage.trail).await;
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
        if let Err(error) = self.record_outcome(&exchange, &passage, conclusion).await {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
            let refusal = Refusal::new(Code::AuditUnavailable, "the answer could not be recorded");
            return refused(id, &refusal, &exchange);
        }
        match (checked, &exchange.response) {
            (Ok(()), Some(Answer::Result(result))) => Frame::result(id, result.raw()),
            (Ok(()), Some(Answer::Error(error))) => Frame::error(Some(id), error.raw()),
            (Ok(()), None) => refused(id, &withdrawn(), &exchange),
            (Err((_, refusal)), _) => {
                self.metrics.refusal(refusal.code);
                refused(id, &refusal, &exchange)
            }
        }
    }

    /// Puts a server's request to the client of a legacy session, and sends its answer to the
    /// server. Goes on by itself until it is answered or withdrawn.
    pub(super) fn forward_to_client(
        self: &Arc<Self>,
        guest: ClientContext,
        way: ReplyRoute,
        (id, method, params): (Id, Method, Option<Bytes>),
        mut answer: oneshot::Sender<Bytes>,
    ) {
        let proxy = self.clone();
        let party = Party::Server(way.server.clone());
        let weight = params.as_ref().map_or(Weight::NONE, Weight::of);
        let work = async move {
            let text = match proxy.admit_question(&guest, &way.server, &id, &method, params).await {
                Ok(question) => {
                    let answered = proxy.await_client(&guest, &way, &question, &mut answer).await;
                    if let Ok(answer) = &answered {
                        grow(Weight::of(answer.payload().raw())).await;
                    }
                    proxy.complete(question, &id, answered).await
                }
                Err(text) => text,
            };
            let _ = answer.send(text);
        };
        self.tasks.spawn(in_turns(party, weight, work));
    }

    async fn await_client(
        &self,
        guest: &ClientContext,
        way: &ReplyRoute,
        question: &ServerRequest,
        server: &mut oneshot::Sender<Bytes>,
    ) -> Result<Answer, Refusal> {
        let Some(session) = &guest.session else { return Err(nobody()) };
        let params = question.params();
        let (params, token) = match params.and_then(token) {
            Some((object, meta, token)) => (Some((object, meta)), Some(token)),
            None => (None, None),
        };
        let mut ask = session.asks.begin(token)?;
        let swapped = params.map(|(object, meta)| {
            let own = ask.id().to_string();
            let meta = meta.with(&[("progressToken", Some(own.as_bytes()))]);
            object.with(&[("_meta", Some(&meta))])
        });
        let params = swapped.as_ref().or(question.params());
        let method = question.exchange.method.as_str();
        let text = Frame::request(ask.id(), method, params.map_or(&b""[..], |params| params));
        let _paused = way.clock.as_ref().map(Deadline::pause);
        let limit = Duration::from_secs(self.config.limits.question_s);
        let id = ask.id();
        let answered = async {
            let told = match &way.out {
                // The call waits for its client's answer, so its stream should have room for it.
                Some(out) => out.send(text).await.is_ok(),
                None => session.tell(text),
            };
            if !told {
                return None;
            }
            loop {
                match ask.next().await? {
                    ClientReply::Answer(answer) => return Some(answer),
                    ClientReply::Progress(params) => {
                        if let Some((instance, running)) = &way.instance {
                            let _ = instance.notify(running, Method::PROGRESS, params).await;
                        }
                    }
                }
            }
        };
        let refusal = tokio::select! {
            answer = answered => return answer.ok_or_else(nobody),
            () = way.over.cancelled() => withdrawn(),
            () = server.closed() => withdrawn(),
            () = session.ended().cancelled() => return Err(nobody()),
            () = tokio::time::sleep(limit) => {
                Refusal::new(Code::ClientTimeout, "the client did not answer in time")
                    .detail(format!("limits.question-s = {}", limit.as_secs()))
            }
        };
        // The client need not go on with it.
        let params = json!({ "requestId": id, "reason": refusal.message }).to_string();
        let text = Frame::notification(Method::CANCELLED, params.as_bytes());
        match &way.out {
            Some(out) => drop(out.try_send(text)),
            None => drop(session.tell(text)),
        }
        Err(refusal)
    }
}

/// `params` and their `_meta` where the server wants to hear of progress, and its token.
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

pub(super) fn withdrawn() -> Refusal {
    Refusal::new(Code::Cancelled, "the request was cancelled before it was answered")
}
