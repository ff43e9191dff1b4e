//! Answers: one JSON text, or a stream of events that ends with it.

use std::{convert::Infallible, sync::Arc, task::Poll, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::SESSION;
use crate::{
    codec::one_line,
    exchange::Revision,
    proxy::{Answered, Ticket},
    refusal::Code,
    session::Session,
};

/// How long a call may be silent before its answer becomes a stream that can show signs of life.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a stream shows a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Codes of JSON-RPC and of MCP 2026-07-28. Between the last two there is that of a missing client
/// capability.
const METHOD_NOT_FOUND: i64 = -32601;
const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;

/// The HTTP methods of the endpoints: all but `POST` only in a legacy session.
const VERBS: &str = "POST, GET, DELETE";

/// The answer to a message that was refused before it was one.
pub(super) fn refused(code: Code, text: Bytes) -> Response {
    let status = StatusCode::from_u16(code.http()).unwrap_or(StatusCode::BAD_REQUEST);
    let status = match code {
        // What a path names.
        Code::Unknown => StatusCode::NOT_FOUND,
        // A refusal with a status of its own is no answer of 200.
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
    if code == Code::VerbUnknown {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(VERBS));
    }
    response
}

fn json(status: StatusCode, text: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Waits for what becomes of a message.
pub(super) async fn carry(
    mut ticket: Ticket,
    notification: bool,
    streams: bool,
    revision: Revision,
) -> Response {
    if !streams || notification {
        let answered = loop {
            tokio::select! {
                answered = &mut ticket.answer => break answered,
                // Nobody listens to them; the channel must not fill up.
                Some(_) = ticket.notices.recv() => {}
            }
        };
        return whole(answered.ok(), notification, revision);
    }
    let first = tokio::select! {
        biased;
        Some(notice) = ticket.notices.recv() => Some(notice),
        answered = &mut ticket.answer => return whole(answered.ok(), notification, revision),
        () = tokio::time::sleep(SILENCE) => None,
    };
    events(ticket, first)
}

fn whole(answered: Option<Answered>, notification: bool, revision: Revision) -> Response {
    let Some(answered) = answered else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if notification {
        return match (answered.refused, answered.text) {
            (None, _) => StatusCode::ACCEPTED.into_response(),
            (Some(_), Some(text)) => json(StatusCode::FORBIDDEN, text),
            (Some(_), None) => StatusCode::FORBIDDEN.into_response(),
        };
    }
    let status = match (answered.refused, answered.error) {
        (Some(Code::ShuttingDown), _) => StatusCode::SERVICE_UNAVAILABLE,
        // MCP 2026-07-28 gives these a status of their own, whoever says them.
        (_, Some(METHOD_NOT_FOUND)) if revision.is_modern() => StatusCode::NOT_FOUND,
        (_, Some(UNSUPPORTED_VERSION..=HEADER_MISMATCH)) if revision.is_modern() => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::OK,
    };
    let Some(text) = answered.text else {
        // Cancelled: nobody waits for it any more.
        return StatusCode::NO_CONTENT.into_response();
    };
    let mut response = json(status, text);
    if let Some(session) = answered.session
        && let Ok(id) = HeaderValue::from_str(session.id.expose())
    {
        response.headers_mut().insert(HeaderName::from_static(SESSION), id);
    }
    response
}

fn events(ticket: Ticket, first: Option<Bytes>) -> Response {
    let Ticket { notices, answer, cancel } = ticket;
    let notices = stream::iter(first).chain(ReceiverStream::new(notices)).map(event);
    // The notices' channel ends when the exchange does, so the answer comes last.
    let answer = stream::once(answer)
        .filter_map(|answered| async { answered.ok().and_then(|answered| answered.text) })
        .flat_map(|text| {
            let last = event(text.clone());
            // The text holds its principal's place. The stream is asked for what follows only
            // once there is room for it, that is when most of the text is written.
            stream::once(std::future::ready(last)).chain(stream::poll_fn(move |_| {
                let _ = &text;
                Poll::Ready(None)
            }))
        });
    let events = notices.chain(answer).map(move |event| {
        // Held until the stream is dropped: a client that goes away cancels its call.
        let _ = &cancel;
        Ok::<_, Infallible>(event)
    });
    sse(events)
}

/// The stream of a legacy session.
pub(super) fn listen(session: &Arc<Session>, closing: CancellationToken) -> Response {
    let messages =
        ReceiverStream::new(session.listen()).map(|text| Ok::<_, Infallible>(event(text)));
    let ended = session.ended().clone();
    sse(messages.take_until(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = closing.cancelled() => {}
        }
    }))
}

fn event(text: Bytes) -> Event {
    let line = one_line(text);
    Event::default().event("message").data(String::from_utf8_lossy(&line))
}

fn sse(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Proxies in between must not hold events back.
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
