//! How much of its messages a principal may have in the proxy at once: by their number, and by the
//! memory that large ones take.

mod memory;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use portcullis_protocol::{
    codec::{Caps, Frame, Kind},
    exchange::Method,
    identity::{Principal, PrincipalKind},
    refusal::{Code, Refusal},
};

pub use memory::Incoming;
use memory::{MessageMemory, Reservation};

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
    pub(crate) fn hold(self, text: Bytes) -> Bytes {
        Bytes::from_owner(Held { text, _place: self })
    }

    /// Whether it is one for this message.
    pub(crate) fn suits(&self, frame: &Frame) -> bool {
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
pub(crate) struct PrincipalLimits {
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

/// Bounds the messages of each principal.
pub struct Admission {
    /// Messages in flight of one principal.
    concurrent: usize,
    /// Messages in flight, by principal.
    permits: Mutex<HashMap<PrincipalKind, PrincipalLimits>>,
    memory: MessageMemory,
}

impl Admission {
    /// Admits `concurrent` messages of each principal at once, of `memory` bytes together, and in any
    /// case one at its caps.
    pub(crate) fn new(concurrent: usize, memory: usize, caps: Caps) -> Self {
        let memory = MessageMemory::new(memory, caps);
        Self { concurrent, permits: Mutex::default(), memory }
    }

    /// A permit for one message of a principal: taken before the message is read, so that what is
    /// held of one principal's messages is bounded.
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

    /// Like [`acquire`](Self::acquire), but waits a while for a permit.
    ///
    /// # Errors
    /// `rate-limited` where there is none left by then.
    pub async fn acquire_within(
        &self,
        principal: &Principal,
        timeout: Duration,
    ) -> Result<ConcurrencyPermit, Refusal> {
        let permits = self.permits(principal);
        match tokio::time::timeout(timeout, permits.all.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(ConcurrencyPermit { _permit: permit, reserved: false }),
            Ok(Err(_)) | Err(_) => self.acquire_reserved(permits.reserve),
        }
    }

    fn acquire_reserved(&self, reserve: Arc<Semaphore>) -> Result<ConcurrencyPermit, Refusal> {
        let permit = reserve.try_acquire_owned().map_err(|_| self.over_limit())?;
        Ok(ConcurrencyPermit { _permit: permit, reserved: true })
    }

    fn permits(&self, principal: &Principal) -> PrincipalLimits {
        let most = self.concurrent;
        let mut all = self.permits.lock();
        // Principals come from the config, so there are few; those at rest are forgotten.
        if all.len() > 1_000 {
            all.retain(|_, permits| !permits.rest(most));
        }
        all.entry(principal.kind.clone()).or_insert_with(|| PrincipalLimits::new(most)).clone()
    }

    fn over_limit(&self) -> Refusal {
        Refusal::new(Code::RateLimited, "too many concurrent requests for this client")
            .detail(format!("limits.concurrent = {}", self.concurrent))
            .retry_after(Duration::from_millis(100))
    }

    /// Admits a message that arrived under this permit: the reserve is for messages that free others,
    /// and the parsed form takes memory, which it has until the reservation is dropped.
    ///
    /// # Errors
    /// `rate-limited` where it is not admitted.
    pub(crate) fn admit(
        &self,
        permit: &ConcurrencyPermit,
        principal: &PrincipalKind,
        frame: &Frame,
    ) -> Result<Option<Reservation>, Refusal> {
        if !permit.suits(frame) {
            return Err(self.over_limit());
        }
        self.memory.reserve_parsed(principal, frame.counts)
    }

    /// A body of this client, as it arrives.
    pub fn incoming<'a>(&'a self, principal: &'a Principal) -> Incoming<'a> {
        Incoming::new(&self.memory, &principal.kind)
    }

    /// A message of this client that arrived whole, counted as [`incoming`](Self::incoming) ones are.
    ///
    /// # Errors
    /// `rate-limited` where there is no memory for it.
    pub fn arrived(&self, principal: &Principal, text: Bytes) -> Result<Bytes, Refusal> {
        self.memory.hold(&principal.kind, text)
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
