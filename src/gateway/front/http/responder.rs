//! Responses: one JSON text, or a stream of events that ends with it.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    super::{
        batch,
        in_flight::{Answer, InFlight, Output, Outputs, Progress},
    },
    SESSION, sse,
};
use crate::{
    Caller, ConcurrencyPermit, Gateway,
    session::{Reader, Session, Stream, TooSlow},
};
use portcullis_protocol::{
    codec::{Frame, Id},
    exchange::Revision,
    refusal::{Code, Refusal},
};

/// Silence after which a response becomes a stream, which can have keep-alives.
const SILENCE: Duration = Duration::from_secs(10);
/// The same for resumable streams: what breaks off before cannot be resumed.
const SILENCE_RESUMABLE: Duration = Duration::from_secs(1);

/// Codes of JSON-RPC and of MCP 2026-07-28. The code of a missing client capability lies between
/// the last two.
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;

/// The HTTP methods of the endpoints without a session.
const VERBS: HeaderValue = HeaderValue::from_static("POST");

/// The response to a request that was refused before it became a message.
pub(super) fn refused(code: Code, text: Bytes) -> Response {
    let status = StatusCode::from_u16(code.http()).unwrap_or(StatusCode::BAD_REQUEST);
    let status = match code {
        // A part of the path.
        Code::Unknown => StatusCode::NOT_FOUND,
        // A refusal without a status of its own must not be 200.
        _ if status.is_success() => StatusCode::BAD_REQUEST,
        _ => status,
    };
    let mut response = json(status, text);
    if code == Code::Unauthenticated {
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"portcullis\""),
        );
    }
    if code == Code::HttpMethodNotAllowed {
        response.headers_mut().insert(header::ALLOW, VERBS);
    }
    response
}

fn json(status: StatusCode, text: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Answers messages over HTTP.
#[derive(Clone)]
pub(super) struct Responder {
    pub proxy: Arc<Gateway>,
    pub caller: Caller,
    /// Whether the client accepts an event stream.
    pub streams: bool,
}

/// Form of a response.
enum ResponseMode {
    /// All answers as one text.
    Whole(Vec<Answer>),
    /// A stream of events.
    Events(Reader),
}

impl Responder {
    /// Handles a message and waits for its response.
    ///
    /// Nearly every message is handled here to its end, on the task of its connection. A task of
    /// its own delivers what needs a stream. In a legacy session, a message continues without its
    /// client: a broken connection cancels nothing there. Other clients cancel by disconnecting.
    pub async fn one(self, frame: Frame, call_permit: ConcurrencyPermit) -> Response {
        let mut progress = Progress::of(&self.proxy, self.caller.clone(), frame, call_permit);
        let guard = self.caller.session.is_none().then(|| progress.cancel.clone().drop_guard());
        let streams = self.streams && progress.id.is_some();
        let silence = tokio::time::sleep(self.silence());
        tokio::pin!(silence);
        let first = loop {
            tokio::select! {
                biased;
                output = progress.next() => match output {
                    Some(Output::Notice(text)) if streams => break Some(text),
                    // No stream for it.
                    Some(Output::Notice(_)) => {}
                    Some(Output::Answer(answer)) if answer.is_cancelled() => {
                        return self.cancelled(answer.answered.text);
                    }
                    Some(Output::Answer(answer)) => return single(answer, self.caller.revision),
                    None => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                },
                () = &mut silence, if streams => break None,
            }
        };
        progress.spawn();
        let (stream, reader) = self.open();
        tokio::spawn(self.deliver(stream, first, Outputs::of(vec![InFlight::Running(progress)])));
        // The task cancels from now on.
        guard.map(DropGuard::disarm);
        sse::response(events(reader))
    }

    /// Handles the messages of a batch and waits for all responses.
    ///
    /// # Errors
    /// A refusal of the whole text if it is not a batch.
    pub async fn batch(
        self,
        text: &Bytes,
        call_permit: ConcurrencyPermit,
    ) -> Result<Response, Refusal> {
        let sent = batch::take(&self.proxy, &self.caller, text, call_permit).await?;
        Ok(match self.clone().carry(sent).await {
            Some(ResponseMode::Whole(answers)) => {
                let mut requests =
                    answers.iter().filter(|answer| answer.expects_response).peekable();
                if requests.peek().is_some() && requests.all(Answer::is_cancelled) {
                    let requests = answers.into_iter().filter(|answer| answer.expects_response);
                    let errors = requests.filter_map(|answer| answer.answered.text).collect();
                    self.cancelled(batch::array(errors))
                } else {
                    all(answers)
                }
            }
            Some(ResponseMode::Events(reader)) => sse::response(events(reader)),
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        })
    }

    /// Delivers the responses to a batch on a task, which continues without the client: only
    /// sessions have batches.
    async fn carry(self, sent: Vec<InFlight>) -> Option<ResponseMode> {
        let (opened, waiting) = oneshot::channel();
        tokio::spawn(self.collect(sent, opened));
        waiting.await.ok()
    }

    /// Collects the responses until all have arrived or a stream is needed.
    async fn collect(self, sent: Vec<InFlight>, opened: oneshot::Sender<ResponseMode>) {
        let streams = self.streams && sent.iter().any(InFlight::expects_response);
        let mut output = Outputs::of(sent);
        let silence = tokio::time::sleep(self.silence());
        tokio::pin!(silence);
        let mut answers = Vec::new();
        let first = loop {
            tokio::select! {
                biased;
                next = output.next() => match next {
                    Some(Output::Answer(answer)) => answers.push(answer),
                    Some(Output::Notice(text)) if streams => break Some(text),
                    // No stream for it.
                    Some(Output::Notice(_)) => {}
                    None => return drop(opened.send(ResponseMode::Whole(answers))),
                },
                () = &mut silence, if streams => break None,
            }
        };
        let (stream, reader) = self.open();
        let _ = opened.send(ResponseMode::Events(reader));
        for text in answers.into_iter().filter_map(Answer::text) {
            stream.answer(text);
        }
        self.deliver(stream, first, output).await;
    }

    /// Silence after which the response becomes a stream.
    fn silence(&self) -> Duration {
        if self.caller.session.is_some() { SILENCE_RESUMABLE } else { SILENCE }
    }

    /// A stream for a response. That of a session can be resumed.
    fn open(&self) -> (Arc<Stream>, Reader) {
        let session = self.caller.session.as_ref();
        let stream = session.map_or_else(Stream::unresumable, |session| session.streams.open());
        // Earlier revisions have no events without data.
        if session.is_some_and(|session| session.revision >= Revision::V2025_11_25) {
            stream.prime();
        }
        let reader = stream.read();
        (stream, reader)
    }

    /// Delivers output on a stream: the first notification, then the rest. Clients without a session
    /// cancel by disconnecting.
    async fn deliver(self, stream: Arc<Stream>, first: Option<Bytes>, mut output: Outputs) {
        let mut next = first.map(Output::Notice);
        loop {
            match next.take() {
                Some(Output::Answer(answer)) => {
                    if let Some(text) = answer.text() {
                        stream.answer(text);
                    }
                }
                Some(Output::Notice(text)) => {
                    let sent = stream.send(text).await;
                    if sent == Err(TooSlow) {
                        let id = output.id.take();
                        drop(output);
                        stream.answer(self.too_slow(id.as_ref()).await);
                        break;
                    }
                }
                None => {}
            }
            next = tokio::select! {
                next = output.next() => next,
                () = stream.disconnected(), if self.caller.session.is_none() => return,
            };
            if next.is_none() {
                break;
            }
        }
        stream.end();
    }

    /// The response to a request that the client cancelled. A cancelled request should have no
    /// JSON-RPC response, but its POST must be answered with a stream or a JSON object. A client
    /// that accepts no stream gets an error, which it ignores.
    fn cancelled(&self, error: Option<Bytes>) -> Response {
        match self.streams {
            true => sse::response(stream::empty()),
            false => json(StatusCode::OK, error.unwrap_or_default()),
        }
    }

    async fn too_slow(&self, id: Option<&Id>) -> Bytes {
        let words = "client did not read the response stream in time";
        self.reject(&Refusal::new(Code::ClientTooSlow, words), id).await
    }

    async fn reject(&self, refusal: &Refusal, id: Option<&Id>) -> Bytes {
        let caller = &self.caller;
        let (transport, address) = (caller.transport, caller.client_addr);
        let principal = Some(&*caller.principal);
        self.proxy.recorder.reject(refusal, transport, address, principal, None, id).await
    }
}

fn single(Answer { answered, expects_response }: Answer, revision: Revision) -> Response {
    if !expects_response {
        return match (answered.refused, answered.text) {
            (None, _) => StatusCode::ACCEPTED.into_response(),
            (Some(_), Some(text)) => json(StatusCode::FORBIDDEN, text),
            (Some(_), None) => StatusCode::FORBIDDEN.into_response(),
        };
    }
    let status = match (answered.refused, answered.error) {
        (Some(Code::ShuttingDown), _) => StatusCode::SERVICE_UNAVAILABLE,
        // MCP 2026-07-28 defines statuses for these, from servers too. Its SDKs use 400 for all
        // invalid params, such as a resource that does not exist.
        (_, Some(METHOD_NOT_FOUND)) if revision.is_modern() => StatusCode::NOT_FOUND,
        (_, Some(INVALID_PARAMS | UNSUPPORTED_VERSION..=HEADER_MISMATCH))
            if revision.is_modern() =>
        {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::OK,
    };
    let mut response = json(status, answered.text.unwrap_or_default());
    if let Some(session) = answered.session
        && let Ok(id) = HeaderValue::from_str(session.id.expose())
    {
        response.headers_mut().insert(HeaderName::from_static(SESSION), id);
    }
    response
}

/// The response to a batch.
fn all(answers: Vec<Answer>) -> Response {
    if answers.iter().any(|answer| answer.expects_response) {
        return json(StatusCode::OK, batch::join(answers).unwrap_or_default());
    }
    let refused: Vec<_> =
        answers.into_iter().filter(|answer| answer.answered.refused.is_some()).collect();
    if refused.is_empty() {
        return StatusCode::ACCEPTED.into_response();
    }
    let texts = refused.into_iter().filter_map(|answer| answer.answered.text).collect();
    json(StatusCode::FORBIDDEN, batch::array(texts).unwrap_or_default())
}

/// The session's own stream, or the rest of a broken one.
pub(super) fn listen(
    session: &Arc<Session>,
    last: Option<&str>,
    closing: CancellationToken,
) -> Result<Response, Refusal> {
    let reader = match last {
        Some(last) => session.streams.resume(last)?,
        None => {
            let reader = session.listen();
            if session.revision >= Revision::V2025_11_25 {
                session.streams.own().prime();
            }
            reader
        }
    };
    let ended = session.ended().clone();
    Ok(sse::response(events(reader).take_until(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = closing.cancelled() => {}
        }
    })))
}

fn events(reader: Reader) -> impl futures_util::Stream<Item = [Bytes; 3]> + Send + 'static {
    stream::unfold(reader, async |mut reader| {
        let event = reader.next().await?;
        Some((sse::event(event), reader))
    })
}
