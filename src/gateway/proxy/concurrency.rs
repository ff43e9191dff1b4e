//! How much a principal may have under way at once.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Caller, ExchangeResponse, Gateway};
use portcullis_protocol::{
    codec::{Frame, Kind},
    exchange::Method,
    identity::Principal,
    refusal::{Code, Refusal},
};

/// Places that a principal has beside `limits.concurrent`, for cancellations and answers alone: a
/// client all of whose places are taken must be able to free one.
const RESERVE: usize = 16;
/// A principal's place for one message and its answer; given up when it is dropped.
pub struct ConcurrencyPermit {
    _permit: OwnedSemaphorePermit,
    /// One of those that are kept for messages by which others end.
    reserved: bool,
}

impl ConcurrencyPermit {
    /// The text of an answer, which holds the place until nobody has it any more.
    pub(super) fn hold(self, text: Bytes) -> Bytes {
        Bytes::from_owner(Held { text, _place: self })
    }

    /// Whether it is one for this message.
    pub(super) fn suits(&self, frame: &Frame) -> bool {
        !self.reserved
            || match &frame.kind {
                Kind::Request { .. } => false,
                Kind::Notification { method, .. } => method.as_str() == Method::CANCELLED,
                Kind::Result { .. } | Kind::Error { .. } => true,
            }
    }
}

/// The places of one principal.
#[derive(Clone)]
pub(super) struct PrincipalLimits {
    all: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

impl PrincipalLimits {
    fn new(most: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { all: semaphore(most), reserve: semaphore(RESERVE) }
    }

    /// Whether none is taken.
    fn rest(&self, most: usize) -> bool {
        self.all.available_permits() >= most && self.reserve.available_permits() >= RESERVE
    }
}

/// An answer's text with the place of its message.
struct Held {
    text: Bytes,
    _place: ConcurrencyPermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Gateway {
    /// A place among the messages that a principal may have under way: taken before a message is
    /// read, so that what is held of one principal's messages is bounded.
    ///
    /// # Errors
    /// `rate-limited` where there is none left.
    pub fn acquire(&self, principal: &Principal) -> Result<ConcurrencyPermit, Refusal> {
        let permits = self.permits(principal);
        match permits.all.try_acquire_owned() {
            Ok(permit) => Ok(ConcurrencyPermit { _permit: permit, reserved: false }),
            Err(_) => self.acquire_reserved(permits.reserve),
        }
    }

    /// Like [`enter`](Self::acquire), but waits a while for a place.
    ///
    /// # Errors
    /// `rate-limited` where there is none left by then.
    pub async fn enter_within(
        &self,
        principal: &Principal,
        patience: Duration,
    ) -> Result<ConcurrencyPermit, Refusal> {
        let permits = self.permits(principal);
        match tokio::time::timeout(patience, permits.all.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(ConcurrencyPermit { _permit: permit, reserved: false }),
            Ok(Err(_)) | Err(_) => self.acquire_reserved(permits.reserve),
        }
    }

    fn acquire_reserved(&self, reserve: Arc<Semaphore>) -> Result<ConcurrencyPermit, Refusal> {
        let permit = reserve.try_acquire_owned().map_err(|_| self.over_limit())?;
        Ok(ConcurrencyPermit { _permit: permit, reserved: true })
    }

    fn permits(&self, principal: &Principal) -> PrincipalLimits {
        let most = self.config.limits.concurrent;
        let mut all = self.permits.lock();
        // Principals come from the config, so there are few; those at rest are forgotten.
        if all.len() > 1_000 {
            all.retain(|_, permits| !permits.rest(most));
        }
        all.entry(principal.kind.clone()).or_insert_with(|| PrincipalLimits::new(most)).clone()
    }

    fn over_limit(&self) -> Refusal {
        Refusal::new(Code::RateLimited, "too many concurrent requests for this client")
            .detail(format!("limits.concurrent = {}", self.config.limits.concurrent))
            .retry_after(Duration::from_millis(100))
    }

    /// Whether a message may have its place: the reserve is for messages that free others.
    ///
    /// # Errors
    /// `rate-limited` where it may not.
    pub(super) fn fits(&self, place: &ConcurrencyPermit, frame: &Frame) -> Result<(), Refusal> {
        if place.suits(frame) { Ok(()) } else { Err(self.over_limit()) }
    }

    /// Refuses a message for which there is no place or no memory.
    pub(super) async fn reject_over_limit(
        &self,
        caller: &Caller,
        frame: &Frame,
        refusal: Refusal,
    ) -> ExchangeResponse {
        let id = match &frame.kind {
            Kind::Request { id, .. } => Some(id),
            _ => None,
        };
        let (principal, message) = (Some(&*caller.principal), Some(&**frame.raw()));
        let text =
            self.reject(&refusal, caller.transport, caller.client_addr, principal, message, id);
        let (refused, error) = (Some(refusal.code), Some(refusal.code.rpc().into()));
        ExchangeResponse { text: Some(text.await), refused, error, session: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_place_until_nobody_has_it_any_more() {
        let permits = Arc::new(Semaphore::new(1));
        let permit = permits.clone().try_acquire_owned().unwrap();
        let place = ConcurrencyPermit { _permit: permit, reserved: false };
        let text = place.hold(Bytes::from_static(b"{}"));
        let part = text.slice(1..);
        drop(text);
        assert_eq!(permits.available_permits(), 0);
        drop(part);
        assert_eq!(permits.available_permits(), 1);
    }

    #[test]
    fn the_reserve_is_for_what_frees_places() {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let place = ConcurrencyPermit { _permit: permit, reserved: true };
        let caps = portcullis_protocol::codec::Caps {
            bytes: 1 << 10,
            depth: 8,
            nodes: 100,
            keys: 100,
            object_keys: 100,
        };
        for (text, suits) in [
            (
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
                true,
            ),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, true),
            (r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#, true),
            (r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{}}"#, false),
            (r#"{"jsonrpc":"2.0","id":1,"method":"notifications/cancelled"}"#, false),
        ] {
            let frame = Frame::parse(Bytes::from_static(text.as_bytes()), caps).unwrap();
            assert_eq!(place.suits(&frame), suits, "{text}");
        }
    }
}
