//! Calls of one instance: in flight, and in the queue.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::timeout;

use super::call_error::CallError;
use portcullis_foundation::fair_semaphore::{FairPermit, FairSemaphore};
use portcullis_protocol::identity::PrincipalKind;

/// Time limit of a call in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls of one instance, and the time of its last use.
pub(super) struct ActiveCalls {
    most: usize,
    queue: usize,
    /// [`QUEUE_TIMEOUT`], except in tests.
    queue_timeout: Duration,
    /// Permits of the calls in flight. `None` stands for the proxy's own calls.
    permits: FairSemaphore<Option<PrincipalKind>>,
    calls: Mutex<Calls>,
    last_used: Mutex<Instant>,
}

#[derive(Default)]
struct Calls {
    /// Number of calls that were ever admitted. Each call has its own number.
    begun: u64,
    active: BTreeSet<u64>,
    /// Calls in the queue, by client.
    waiting: HashMap<PrincipalKind, usize>,
}

impl ActiveCalls {
    /// Admits at most `most` calls at a time. At most `queue` further calls wait.
    pub fn new(most: usize, queue: usize) -> Self {
        Self {
            most,
            queue,
            queue_timeout: QUEUE_TIMEOUT,
            permits: FairSemaphore::with_reserve(most),
            calls: Mutex::default(),
            last_used: Mutex::new(Instant::now()),
        }
    }

    /// Counts a call until the permit is dropped. A client's call waits in the queue if too many
    /// calls are in flight: clients take turns there, and one client has at most half of the queue.
    /// A call of the proxy itself (`None`) does not wait.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] if the queue is full, or after [`QUEUE_TIMEOUT`] in it.
    pub async fn admit(&self, client: Option<&PrincipalKind>) -> Result<CallPermit<'_>, CallError> {
        let who = client.cloned();
        if let Some(permit) = self.permits.try_next(&who) {
            return Ok(self.begin(permit));
        }
        let full = || CallError::Overloaded { what: "calls in flight", most: self.most };
        let _queued = self.enqueue(client.ok_or_else(full)?)?;
        match timeout(self.queue_timeout, self.permits.next(&who)).await {
            Ok(Ok(permit)) => Ok(self.begin(permit)),
            Ok(Err(_)) | Err(_) => Err(full()),
        }
    }

    fn begin(&self, permit: FairPermit) -> CallPermit<'_> {
        let mut calls = self.calls.lock();
        let number = calls.begun;
        calls.begun += 1;
        calls.active.insert(number);
        drop(calls);
        self.touch();
        CallPermit { number, of: self, _permit: permit }
    }

    /// Whether a call of this client would be refused now, because the queue is full.
    ///
    /// # Errors
    /// [`CallError::Overloaded`].
    pub fn ensure_room(&self, client: &PrincipalKind) -> Result<(), CallError> {
        match self.permits.has_free(&Some(client.clone())) {
            true => Ok(()),
            false => self.waiting(&self.calls.lock(), client).map(|_| ()),
        }
    }

    fn enqueue(&self, client: &PrincipalKind) -> Result<Queued<'_>, CallError> {
        let mut calls = self.calls.lock();
        let own = self.waiting(&calls, client)?;
        calls.waiting.insert(client.clone(), own + 1);
        Ok(Queued { client: client.clone(), of: self })
    }

    /// Number of this client's calls in the queue, if there is room for another one.
    fn waiting(&self, calls: &Calls, client: &PrincipalKind) -> Result<usize, CallError> {
        let own = calls.waiting.get(client).copied().unwrap_or_default();
        let all: usize = calls.waiting.values().sum();
        if all >= self.queue || own >= self.queue.div_ceil(2) {
            return Err(CallError::Overloaded { what: "calls in the queue", most: self.queue });
        }
        Ok(own)
    }

    /// Number of calls in flight.
    pub fn count(&self) -> usize {
        self.calls.lock().active.len()
    }

    /// Number of calls that were ever admitted.
    pub fn begun(&self) -> u64 {
        self.calls.lock().begun
    }

    /// Whether one of the first `begun` calls is still in flight.
    pub fn has_older(&self, begun: u64) -> bool {
        self.calls.lock().active.first().is_some_and(|first| *first < begun)
    }

    /// Notes a use of the instance.
    pub fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }

    /// Whether no call is in flight, and the last use is at least `idle` ago.
    pub fn is_idle(&self, idle: Duration) -> bool {
        self.count() == 0 && self.last_used.lock().elapsed() >= idle
    }
}

/// A call in the queue.
struct Queued<'a> {
    client: PrincipalKind,
    of: &'a ActiveCalls,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let mut calls = self.of.calls.lock();
        if let Some(own) = calls.waiting.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                calls.waiting.remove(&self.client);
            }
        }
    }
}

/// A call in flight.
pub(super) struct CallPermit<'a> {
    number: u64,
    of: &'a ActiveCalls,
    _permit: FairPermit,
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.of.calls.lock().active.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn admit(calls: &ActiveCalls) -> Result<CallPermit<'_>, CallError> {
        calls.admit(None).now_or_never().unwrap()
    }

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Client(name.parse().unwrap())
    }

    #[test]
    fn calls_are_limited_and_numbered() {
        let calls = ActiveCalls::new(2, 0);
        let first = admit(&calls).unwrap();
        let second = admit(&calls).unwrap();
        let full = CallError::Overloaded { what: "calls in flight", most: 2 };
        assert_eq!(admit(&calls).err(), Some(full));
        let full = CallError::Overloaded { what: "calls in the queue", most: 0 };
        let refused = calls.admit(Some(&client("a"))).now_or_never().unwrap();
        assert_eq!(refused.err(), Some(full));
        assert_eq!((calls.count(), calls.begun()), (2, 2));
        drop(first);
        let third = admit(&calls).unwrap();
        assert!(calls.has_older(2) && !calls.has_older(1));
        drop(second);
        assert!(!calls.has_older(2) && calls.has_older(3));
        drop(third);
        assert_eq!((calls.count(), calls.begun()), (0, 3));
    }

    #[tokio::test]
    async fn clients_take_turns_in_the_queue() {
        let calls = ActiveCalls::new(1, 4);
        let (busy, other) = (client("busy"), client("other"));
        let first = calls.admit(Some(&busy)).await.unwrap();
        let mut second = Box::pin(calls.admit(Some(&busy)));
        let mut third = Box::pin(calls.admit(Some(&busy)));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        let full = CallError::Overloaded { what: "calls in the queue", most: 4 };
        let refused = calls.admit(Some(&busy)).now_or_never().unwrap();
        assert_eq!(refused.err(), Some(full.clone()), "it has half of the queue");
        assert_eq!(calls.ensure_room(&busy), Err(full));
        assert_eq!(calls.ensure_room(&other), Ok(()));
        let mut late = Box::pin(calls.admit(Some(&other)));
        assert!((&mut late).now_or_never().is_none());
        drop(first);
        assert!((&mut second).now_or_never().is_none());
        let late = late.now_or_never().unwrap().unwrap();
        drop(late);
        let second = second.now_or_never().unwrap().unwrap();
        drop(third);
        drop(second);
        assert_eq!((calls.count(), calls.begun()), (0, 3));
        assert_eq!(calls.ensure_room(&busy), Ok(()));
        assert!(calls.calls.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn room_in_the_reserve_is_for_others() {
        let calls = ActiveCalls::new(16, 4);
        let (busy, other) = (client("busy"), client("other"));
        let held: Vec<_> =
            (0..14).map(|_| calls.admit(Some(&busy)).now_or_never().unwrap().unwrap()).collect();
        let mut queued: Vec<_> = (0..2).map(|_| Box::pin(calls.admit(Some(&busy)))).collect();
        assert!(queued.iter_mut().all(|call| call.now_or_never().is_none()));
        assert!(calls.ensure_room(&busy).is_err());
        assert_eq!(calls.ensure_room(&other), Ok(()));
        drop((queued, held));
        assert_eq!(calls.ensure_room(&busy), Ok(()));
    }

    #[tokio::test]
    async fn queued_call_is_refused_after_a_while() {
        let queue_timeout = Duration::from_millis(1);
        let calls = ActiveCalls { queue_timeout, ..ActiveCalls::new(1, 4) };
        let busy = client("busy");
        let _first = calls.admit(Some(&busy)).await.unwrap();
        let refused = calls.admit(Some(&busy)).await;
        let full = CallError::Overloaded { what: "calls in flight", most: 1 };
        assert_eq!(refused.err(), Some(full));
        assert!(calls.calls.lock().waiting.is_empty());
    }

    #[test]
    fn instance_with_calls_is_not_idle() {
        let calls = ActiveCalls::new(1, 0);
        assert!(calls.is_idle(Duration::ZERO));
        assert!(!calls.is_idle(Duration::from_secs(100)));
        let call = admit(&calls).unwrap();
        assert!(!calls.is_idle(Duration::ZERO));
        drop(call);
        assert!(calls.is_idle(Duration::ZERO));
    }
}
