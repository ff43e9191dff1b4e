//! Admission: limits of a principal's messages in the proxy, by their number and by the memory of
//! large ones.

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

/// Permits beside `limits.concurrent` for cancellations and responses only: a client without a free
/// permit must be able to free one.
const RESERVE: usize = 16;
/// A principal's permit for one message and its response, returned on drop.
pub struct ConcurrencyPermit {
    _permit: OwnedSemaphorePermit,
    /// Whether it is from the reserve for messages that end others.
    reserved: bool,
}

impl ConcurrencyPermit {
    /// The text of a response, which holds the permit until its last part is dropped.
    pub(crate) fn hold(self, text: Bytes) -> Bytes {
        Bytes::from_owner(TextWithPermit { text, _concurrency_permit: self })
    }

    /// Whether the permit is valid for this message.
    pub(crate) fn suits(&self, frame: &Frame) -> bool {
        !self.reserved
            || match &frame.kind {
                Kind::Request { .. } => false,
                Kind::Notification { method, .. } => method.as_str() == Method::CANCELLED,
                Kind::Result { .. } | Kind::Error { .. } => true,
            }
    }
}

/// The permits of one principal.
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

    /// Whether no permit is in use.
    fn rest(&self, most: usize) -> bool {
        self.all.available_permits() >= most && self.reserve.available_permits() >= RESERVE
    }
}

/// A response's text with the permit of its message.
struct TextWithPermit {
    text: Bytes,
    _concurrency_permit: ConcurrencyPermit,
}

impl AsRef<[u8]> for TextWithPermit {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Limits the messages of each principal.
pub struct Admission {
    /// Limit of one principal's messages in flight.
    concurrent: usize,
    /// Permits by principal.
    permits: Mutex<HashMap<PrincipalKind, PrincipalLimits>>,
    memory: MessageMemory,
}

impl Admission {
    /// Admits `concurrent` messages of each principal at once, in `memory` bytes for all. Memory is
    /// raised if one message at its caps needs it.
    pub(crate) fn new(concurrent: usize, memory: usize, caps: Caps) -> Self {
        let memory = MessageMemory::new(memory, caps);
        Self { concurrent, permits: Mutex::default(), memory }
    }

    /// Acquires a permit for one message of a principal, before the message is read, so that the
    /// memory of one principal's messages is limited.
    ///
    /// # Errors
    /// `rate-limited` if no permit is left.
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
    /// `rate-limited` if no permit is free after that time.
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
        // Principals come from the config, so there are few. Idle ones are forgotten.
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

    /// Admits a message that arrived under this permit. The reserve is only for messages that free
    /// permits. The parsed form counts as memory until the reservation is dropped.
    ///
    /// # Errors
    /// `rate-limited` if the message is not admitted.
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

    /// Receives the body of a client's message.
    pub fn incoming<'a>(&'a self, principal: &'a Principal) -> Incoming<'a> {
        Incoming::new(&self.memory, &principal.kind)
    }

    /// Counts a message that arrived whole, like the messages of [`incoming`](Self::incoming).
    ///
    /// # Errors
    /// `rate-limited` if there is no memory for it.
    pub fn arrived(&self, principal: &Principal, text: Bytes) -> Result<Bytes, Refusal> {
        self.memory.hold(&principal.kind, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_holds_its_permit_until_dropped() {
        let permits = Arc::new(Semaphore::new(1));
        let permit = permits.clone().try_acquire_owned().unwrap();
        let call_permit = ConcurrencyPermit { _permit: permit, reserved: false };
        let text = call_permit.hold(Bytes::from_static(b"{}"));
        let part = text.slice(1..);
        drop(text);
        assert_eq!(permits.available_permits(), 0);
        drop(part);
        assert_eq!(permits.available_permits(), 1);
    }

    #[test]
    fn reserved_permits_are_for_messages_that_free_permits() {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let call_permit = ConcurrencyPermit { _permit: permit, reserved: true };
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
            assert_eq!(call_permit.suits(&frame), suits, "{text}");
        }
    }
}
