//! Requests of one client that are under way, so that it can cancel them by their ids.

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

/// The requests under way of a session, or of a client without one on a connection of its own.
#[derive(Default)]
pub struct Calls {
    under_way: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: HashMap<Id, CancellationToken>,
    ended: bool,
}

impl Calls {
    /// Makes a request one that can be cancelled, until the guard is dropped.
    ///
    /// # Errors
    /// A refusal where a request of the same id is under way: which of them an answer or a
    /// cancellation is for could not be told.
    pub fn begin(
        self: &Arc<Self>,
        id: &Id,
        cancel: CancellationToken,
    ) -> Result<InFlight, Refusal> {
        let mut state = self.under_way.lock();
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

    /// Cancels a request, if it is under way.
    pub fn cancel(&self, id: &Id) {
        if let Some(cancel) = self.under_way.lock().calls.get(id) {
            cancel.cancel();
        }
    }

    /// Cancels all requests, and those that are still to come.
    pub fn end(&self) {
        let mut state = self.under_way.lock();
        state.ended = true;
        for cancel in state.calls.values() {
            cancel.cancel();
        }
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.lock().calls.is_empty()
    }
}

/// A request that is under way.
pub struct InFlight {
    calls: Arc<Calls>,
    id: Id,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.calls.under_way.lock().calls.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_request_at_a_time() {
        let calls = Arc::new(Calls::default());
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let id = Id::from(1);
        let under_way = calls.begin(&id, first.clone()).unwrap();
        let refusal = calls.begin(&id, second.clone()).err().unwrap();
        assert_eq!(refusal.code, Code::InvalidRequest);
        calls.cancel(&id);
        assert!(first.is_cancelled() && !second.is_cancelled());
        drop(under_way);
        assert!(calls.is_empty());
        calls.end();
        let _late = calls.begin(&id, second.clone()).unwrap();
        assert!(second.is_cancelled());
    }
}
