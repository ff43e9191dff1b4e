//! Where a limit keeps its counts: a governor state store that proposes and charges apart, and
//! whose size no client decides.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

use portcullis_protocol::{identity::PrincipalKind, names::ServerName};

/// Tools of one client and server that have a count of their own.
pub const TOOLS_PER_OWNER: usize = 1_024;

/// Charges between two sweeps of counts that have run out.
const SWEEP_EVERY: u32 = 4_096;

/// Whose count it is: bounded by the config, which names all clients and servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub client: Option<PrincipalKind>,
    pub server: Option<ServerName>,
}

/// A tool, as far as a limit tells tools apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Tool {
    Known(Arc<str>),
    /// Any tool, an unknown tool, or one beyond [`TOOLS_PER_OWNER`].
    Other,
}

/// One count of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub owner: Owner,
    pub tool: Tool,
}

/// The counts of one limit. A count is GCRA's theoretical arrival time.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    arrivals: HashMap<Owner, HashMap<Tool, Nanos>>,
    /// What the last check would make of its count.
    proposed: Nanos,
    charges: u32,
}

impl Counts {
    /// Drops what is no different from a count that was never begun.
    fn sweep(&mut self, elapsed: Nanos) {
        self.arrivals.retain(|_, tools| {
            tools.retain(|_, arrival| *arrival > elapsed);
            !tools.is_empty()
        });
    }
}

impl Store {
    /// The key under which a message is counted: its own, or the shared one where the owner has
    /// too many.
    pub(super) fn place(&self, mut key: Key, elapsed: Nanos) -> Key {
        let mut counts = self.0.lock();
        if let Entry::Occupied(mut tools) = counts.arrivals.entry(key.owner.clone()) {
            let tools = tools.get_mut();
            if tools.len() >= TOOLS_PER_OWNER && !tools.contains_key(&key.tool) {
                tools.retain(|_, arrival| *arrival > elapsed);
                if tools.len() >= TOOLS_PER_OWNER {
                    key.tool = Tool::Other;
                }
            }
        }
        key
    }

    /// Makes what the last check of this store proposed the count of the key.
    pub(super) fn charge(&self, key: Key, elapsed: Nanos) {
        let mut counts = self.0.lock();
        let proposed = counts.proposed;
        counts.arrivals.entry(key.owner).or_default().insert(key.tool, proposed);
        counts.charges += 1;
        if counts.charges >= SWEEP_EVERY {
            counts.charges = 0;
            counts.sweep(elapsed);
        }
    }

    /// Counts kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().arrivals.values().map(HashMap::len).sum()
    }
}

impl StateStore for Store {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut counts = self.0.lock();
        let arrival = counts.arrivals.get(&key.owner).and_then(|tools| tools.get(&key.tool));
        let (outcome, next) = decide(arrival.copied())?;
        // Not yet in its place: `charge` puts it there once every other limit agrees.
        counts.proposed = next;
        Ok(outcome)
    }
}
