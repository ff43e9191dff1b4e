//! Requests of one client in flight, which it can cancel by their ids.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use portcullis_protocol::{
    codec::Id,
    refusal::{Code, Refusal},
};

/// The requests in flight of a session, or of a connection without one.
#[derive(Default)]
pub struct Calls {
    in_flight: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: HashMap<Id, CancellationToken>,
    ended: bool,
}

impl Calls {
    /// Registers a request as cancellable until the guard is dropped.
    ///
    /// # Errors
    /// A refusal if a request of the same id is in flight: a response or a cancellation would be
    /// ambiguous.
    pub fn begin(
        self: &Arc<Self>,
        id: &Id,
        cancel: CancellationToken,
    ) -> Result<InFlight, Refusal> {
        let mut state = self.in_flight.lock();
        if state.ended {
            cancel.cancel();
        }
        match state.calls.entry(id.clone()) {
            Entry::Occupied(_) => Err(Refusal::new(
                Code::InvalidRequest,
                "a request with this id is already in flight",
            )),
            Entry::Vacant(place) => {
                place.insert(cancel);
                Ok(InFlight { calls: self.clone(), id: id.clone() })
            }
        }
    }

    /// Cancels a request if it is in flight.
    pub fn cancel(&self, id: &Id) {
        if let Some(cancel) = self.in_flight.lock().calls.get(id) {
            cancel.cancel();
        }
    }

    /// Cancels all requests in flight, and all later ones.
    pub fn end(&self) {
        let mut state = self.in_flight.lock();
        state.ended = true;
        for cancel in state.calls.values() {
            cancel.cancel();
        }
    }

    /// Whether no request is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.lock().calls.is_empty()
    }
}

/// A request in flight.
pub struct InFlight {
    calls: Arc<Calls>,
    id: Id,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.calls.in_flight.lock().calls.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_in_flight_cannot_be_reused() {
        let calls = Arc::new(Calls::default());
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let id = Id::from(1);
        let in_flight = calls.begin(&id, first.clone()).unwrap();
        let refusal = calls.begin(&id, second.clone()).err().unwrap();
        assert_eq!(refusal.code, Code::InvalidRequest);
        calls.cancel(&id);
        assert!(first.is_cancelled() && !second.is_cancelled());
        drop(in_flight);
        assert!(calls.is_empty());
        calls.end();
        let _late = calls.begin(&id, second.clone()).unwrap();
        assert!(second.is_cancelled());
    }
}
