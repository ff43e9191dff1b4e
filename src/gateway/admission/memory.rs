//! Memory of large client messages, limited for all clients together and for each client.
//!
//! A message counts from its first bytes until its last part is dropped: while its body arrives,
//! while it waits for its server, and while its parsed form is kept. Small messages do not count:
//! their number is limited (`limits.concurrent`), and large messages of other clients must not
//! block a client with small ones.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use portcullis_chain::LARGE_BYTES;
use portcullis_foundation::fair_semaphore::{FairPermit, FairSemaphore};
use portcullis_protocol::{
    codec::{Caps, Counts},
    identity::PrincipalKind,
    refusal::{Code, Refusal},
};

/// Bytes that one permit stands for.
const UNIT: usize = 1 << 10;
/// Divisor of the memory for messages that gives one client's share.
const SHARE: usize = 4;
/// Bytes of one value or key in the parsed form of a message (`serde_json::Value`, with a key's
/// text and hash).
const NODE_BYTES: usize = 80;

/// Large bodies of one client that are received at once. The others wait unread, since receiving
/// many at once takes time from other clients and makes none of them faster.
const RECEIVED_AT_ONCE: usize = 8;

/// Memory for large messages.
#[derive(Debug)]
pub(crate) struct MessageMemory {
    /// Limit in bytes of all clients together.
    most: usize,
    /// Limit in bytes of one client.
    share: usize,
    /// Size in bytes of the largest body.
    largest: usize,
    all: Arc<Semaphore>,
    own: Mutex<HashMap<PrincipalKind, Weak<Semaphore>>>,
    /// Limits the large bodies that are received at once.
    receiving: FairSemaphore<PrincipalKind>,
}

/// Memory that is reserved for a message until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl MessageMemory {
    /// Memory of `most` bytes, or more if one message at the caps of a client needs it.
    pub fn new(most: usize, caps: Caps) -> Self {
        let one = caps.bytes.saturating_add(caps.nodes.saturating_mul(NODE_BYTES));
        let share = (most / SHARE).max(one);
        let most = most.max(share);
        let all = Self::semaphore(most);
        let receiving = FairSemaphore::for_each(RECEIVED_AT_ONCE);
        Self { most, share, largest: caps.bytes, all, own: Mutex::default(), receiving }
    }

    fn semaphore(bytes: usize) -> Arc<Semaphore> {
        let units = bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Arc::new(Semaphore::new(units))
    }

    /// Reserves memory for `bytes` more bytes, up to the limit of one client.
    ///
    /// # Errors
    /// `rate-limited` if the client, or all clients together, have reached the limit.
    pub fn reserve(&self, who: &PrincipalKind, bytes: usize) -> Result<Reservation, Refusal> {
        let bytes = bytes.min(self.share);
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let full = |_| {
            Refusal::new(Code::RateLimited, "the memory for large messages is exhausted")
                .detail(format!("limits.message-memory-bytes = {}", self.most))
                .retry_after(Duration::from_secs(1))
        };
        let own = self.own(who).try_acquire_many_owned(units).map_err(full)?;
        let all = self.all.clone().try_acquire_many_owned(units).map_err(full)?;
        Ok(Reservation { _own: own, _all: all })
    }

    /// Reserves memory for the parsed form of a large message.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reserve_parsed(
        &self,
        who: &PrincipalKind,
        counts: Counts,
    ) -> Result<Option<Reservation>, Refusal> {
        let bytes = counts.nodes.saturating_mul(NODE_BYTES);
        (bytes > LARGE_BYTES * 4).then(|| self.reserve(who, bytes)).transpose()
    }

    /// A text that keeps its reservation until its last part is dropped.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn hold(&self, who: &PrincipalKind, text: Bytes) -> Result<Bytes, Refusal> {
        let reserved = (text.len() > LARGE_BYTES).then(|| self.reserve(who, text.len()));
        Ok(with_reservations(text, reserved.transpose()?.into_iter().collect()))
    }

    fn own(&self, who: &PrincipalKind) -> Arc<Semaphore> {
        let mut all = self.own.lock();
        if let Some(own) = all.get(who).and_then(Weak::upgrade) {
            return own;
        }
        all.retain(|_, own| own.strong_count() > 0);
        let own = Self::semaphore(self.share);
        all.insert(who.clone(), Arc::downgrade(&own));
        own
    }
}

/// The body of a message while it arrives.
pub struct Incoming<'a> {
    memory: &'a MessageMemory,
    who: &'a PrincipalKind,
    text: BytesMut,
    reserved: Vec<Reservation>,
    /// Bytes that are reserved or need no reservation.
    covered: usize,
    /// Held while a large body is received.
    turn: Option<FairPermit>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(memory: &'a MessageMemory, who: &'a PrincipalKind) -> Self {
        let text = BytesMut::new();
        Self { memory, who, text, reserved: Vec::new(), covered: LARGE_BYTES, turn: None }
    }

    /// Bytes received so far.
    pub fn received(&self) -> usize {
        self.text.len()
    }

    /// Adds received bytes. Waits if the client sends many large bodies at once.
    ///
    /// # Errors
    /// `rate-limited` if there is no memory for them.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let needed = self.text.len() + bytes.len();
        if needed > self.covered {
            if self.turn.is_none() {
                let turn = self.memory.receiving.next(self.who).await;
                self.turn = turn.ok();
            }
            // Doubled each time, as the buffer grows.
            let covered = needed.max((2 * self.covered).min(self.memory.largest));
            let more = covered - self.covered;
            self.reserved.push(self.memory.reserve(self.who, more)?);
            self.covered += more;
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    /// The whole body, which keeps its reservation until its last part is dropped.
    pub fn finish(self) -> Bytes {
        let Self { text, reserved, .. } = self;
        with_reservations(text.freeze(), reserved)
    }
}

fn with_reservations(text: Bytes, reserved: Vec<Reservation>) -> Bytes {
    if reserved.is_empty() {
        return text;
    }
    Bytes::from_owner(Body { text, _reserved: reserved })
}

struct Body {
    text: Bytes,
    _reserved: Vec<Reservation>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const MIB: usize = 1 << 20;
    const CAPS: Caps = Caps { bytes: MIB, depth: 8, nodes: 100, keys: 100, object_keys: 100 };

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Local { user: name.into() }
    }

    #[test]
    fn largest_legal_message_always_fits() {
        let nodes = 1_000_000;
        let memory = MessageMemory::new(1, Caps { nodes, ..CAPS });
        let ann = client("ann");
        let _body = memory.reserve(&ann, MIB).unwrap();
        let counts = Counts { nodes, keys: 0 };
        let _parsed = memory.reserve_parsed(&ann, counts).unwrap().unwrap();
        assert!(memory.reserve(&ann, MIB).is_err());
    }

    #[test]
    fn memory_is_limited_by_client_and_in_total() {
        let memory = MessageMemory::new(8 * MIB, CAPS);
        let [ann, bob] = ["ann", "bob"].map(client);
        let first = memory.reserve(&ann, 2 * MIB).unwrap();
        let refused = memory.reserve(&ann, 1).unwrap_err();
        assert_eq!(refused.code, Code::RateLimited);
        let _bobs = memory.reserve(&bob, 2 * MIB).unwrap();
        drop(first);
        memory.reserve(&ann, 2 * MIB).unwrap();
        let others: Vec<_> = ["c", "d", "e"]
            .map(client)
            .iter()
            .map(|who| memory.reserve(who, 2 * MIB).unwrap())
            .collect();
        assert!(memory.reserve(&ann, 1).is_err());
        drop(others);
        // A request beyond the limit is cut to it, and passes if nothing else is reserved.
        memory.reserve(&ann, usize::MAX).unwrap();
    }

    #[tokio::test]
    async fn body_reserves_memory_until_its_last_part_is_dropped() {
        let memory = MessageMemory::new(8 * MIB, CAPS);
        let ann = client("ann");
        let mut body = Incoming::new(&memory, &ann);
        let chunk = [b' '; 100_000];
        while body.received() < 15 * 100_000 {
            body.push(&chunk).await.unwrap();
        }
        let text = body.finish();
        assert_eq!(text.len(), 1_500_000);
        let part = text.slice(7..9);
        drop(text);
        assert!(memory.reserve(&ann, MIB).is_err());
        drop(part);
        memory.reserve(&ann, 2 * MIB).unwrap();
        // Small bodies need no reservation.
        let _all = memory.reserve(&ann, 2 * MIB).unwrap();
        let mut body = Incoming::new(&memory, &ann);
        body.push(&chunk[..LARGE_BYTES]).await.unwrap();
        assert!(body.push(b" ").await.is_err());
        assert_eq!(body.finish().len(), LARGE_BYTES);
    }

    #[tokio::test]
    async fn concurrent_large_bodies_of_a_client_are_limited() {
        let memory = MessageMemory::new(64 * MIB, CAPS);
        let [ann, bob] = ["ann", "bob"].map(client);
        let large = vec![b' '; LARGE_BYTES + 1];
        let mut bodies = Vec::new();
        for _ in 0..RECEIVED_AT_ONCE {
            let mut body = Incoming::new(&memory, &ann);
            body.push(&large).await.unwrap();
            bodies.push(body);
        }
        let mut next = Incoming::new(&memory, &ann);
        assert!(next.push(&large).now_or_never().is_none());
        // Small bodies do not wait, and neither do those of other clients.
        let mut small = Incoming::new(&memory, &ann);
        small.push(b" ").now_or_never().unwrap().unwrap();
        let mut other = Incoming::new(&memory, &bob);
        other.push(&large).now_or_never().unwrap().unwrap();
        // A finished body lets the next one start, and keeps its reservation.
        let text = bodies.pop().unwrap().finish();
        next.push(&large).now_or_never().unwrap().unwrap();
        drop(text);
    }

    #[tokio::test]
    async fn abandoned_body_releases_its_memory() {
        let memory = MessageMemory::new(8 * MIB, CAPS);
        let ann = client("ann");
        for _ in 0..10 {
            let mut body = Incoming::new(&memory, &ann);
            body.push(&vec![b' '; 2 * MIB - LARGE_BYTES]).await.unwrap();
        }
    }
}
