//! Batches of revision 2025-03-26: each element is a separate message with its own permit, decision
//! and record. The responses are sent together.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::in_flight::{Answer, InFlight};
use crate::{Caller, ConcurrencyPermit, ExchangeResponse, Gateway, session::Session};
use portcullis_protocol::{
    codec::{Frame, Id, Kind, elements},
    exchange::{Method, Revision},
    refusal::{Code, Refusal},
};

/// Messages in one batch.
const MOST: usize = 64;

/// Whether a session's revision has batches.
pub(super) fn are_taken_in(session: &Session) -> bool {
    session.revision == Revision::V2025_03_26
}

/// A message of a batch: admitted, or refused with a recorded refusal.
enum Element {
    Admitted(Frame, ConcurrencyPermit),
    Refused(ExchangeResponse),
}

/// Starts handling each message of a batch. No message starts before all refusals are recorded, so
/// that nothing has begun if the client leaves meanwhile.
///
/// # Errors
/// A refusal of the whole text if it is not a batch.
pub(super) async fn take(
    proxy: &Arc<Gateway>,
    caller: &Caller,
    text: &Bytes,
    call_permit: ConcurrencyPermit,
) -> Result<Vec<InFlight>, Refusal> {
    let mut call_permits = Some(call_permit);
    let mut settled = Vec::new();
    for element in elements(text, MOST, proxy.request_caps())? {
        let (refusal, id) = match Frame::parse(element.clone(), proxy.request_caps()) {
            Err(flaw) => (flaw.into(), None),
            Ok(frame) => match admit(proxy, caller, &frame, &mut call_permits) {
                Ok(call_permit) => {
                    settled.push(Element::Admitted(frame, call_permit));
                    continue;
                }
                Err(refusal) => (refusal, id(&frame).cloned()),
            },
        };
        let (transport, address) = (caller.transport, caller.client_addr);
        let (principal, message) = (Some(&*caller.principal), Some(&*element));
        let turned = proxy
            .recorder
            .reject(&refusal, transport, address, principal, message, id.as_ref())
            .await;
        settled.push(Element::Refused(ExchangeResponse::refused(turned, refusal.code)));
    }
    let started = settled.into_iter().map(|element| match element {
        Element::Admitted(frame, call_permit) => {
            InFlight::take(proxy, caller.clone(), frame, call_permit)
        }
        // An invalid message may have been a request.
        Element::Refused(answered) => {
            InFlight::Settled(Answer { answered, expects_response: true })
        }
    });
    Ok(started.collect())
}

fn admit(
    proxy: &Gateway,
    caller: &Caller,
    frame: &Frame,
    call_permit: &mut Option<ConcurrencyPermit>,
) -> Result<ConcurrencyPermit, Refusal> {
    if let Kind::Request { method, .. } = &frame.kind
        && method.as_str() == Method::INITIALIZE
    {
        return Err(Refusal::new(Code::InvalidRequest, "`initialize` must not be part of a batch"));
    }
    match call_permit.take() {
        Some(call_permit) => Ok(call_permit),
        None => proxy.admission.acquire(&caller.principal),
    }
}

fn id(frame: &Frame) -> Option<&Id> {
    match &frame.kind {
        Kind::Request { id, .. } => Some(id),
        _ => None,
    }
}

/// Several responses as one text, which holds the permits of all of them.
struct Joined {
    text: Bytes,
    _of: Vec<Bytes>,
}

impl AsRef<[u8]> for Joined {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// The responses to requests as one array; `None` if there are none.
pub(super) fn join(answers: impl IntoIterator<Item = Answer>) -> Option<Bytes> {
    array(answers.into_iter().filter_map(Answer::text).collect())
}

/// Texts as one array; `None` without texts.
pub(super) fn array(texts: Vec<Bytes>) -> Option<Bytes> {
    if texts.is_empty() {
        return None;
    }
    let mut joined =
        BytesMut::with_capacity(texts.iter().map(|text| text.len() + 1).sum::<usize>() + 1);
    let mut separator = b'[';
    for text in &texts {
        joined.put_u8(separator);
        joined.put_slice(text);
        separator = b',';
    }
    joined.put_u8(b']');
    Some(Bytes::from_owner(Joined { text: joined.freeze(), _of: texts }))
}
