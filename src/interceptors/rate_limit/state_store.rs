//! Counts of a limit: a governor state store that separates proposing from charging, and whose size
//! does not depend on clients.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use governor::{nanos::Nanos, state::StateStore};
use parking_lot::Mutex;

use portcullis_protocol::{identity::PrincipalKind, names::ServerName};

/// Limit of the tools of one client and server with separate counts.
pub const MAX_TOOLS_PER_OWNER: usize = 1_024;

/// Number of charges between two sweeps of expired counts.
const CHARGES_PER_SWEEP: u32 = 4_096;

/// Owner of a count. The config bounds the number of owners, because it names all clients and
/// servers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub client: Option<PrincipalKind>,
    pub server: Option<ServerName>,
}

/// Tool, as far as a limit distinguishes tools.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Tool {
    Known(Arc<str>),
    /// Any tool, an unknown tool, or one beyond [`MAX_TOOLS_PER_OWNER`].
    Other,
}

/// Key of one count.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub owner: Owner,
    pub tool: Tool,
}

/// Counts of one limit. A count is GCRA's theoretical arrival time.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    arrivals: HashMap<Owner, HashMap<Tool, Nanos>>,
    /// New value that the last check proposed.
    proposed: Nanos,
    charges: u32,
}

impl Counts {
    /// Removes counts that equal a fresh one.
    fn sweep(&mut self, elapsed: Nanos) {
        self.arrivals.retain(|_, tools| {
            tools.retain(|_, arrival| *arrival > elapsed);
            !tools.is_empty()
        });
    }
}

impl Store {
    /// Key that counts a message: its own, or the shared one if the owner has too many.
    pub(super) fn slot(&self, mut key: Key, elapsed: Nanos) -> Key {
        let mut counts = self.0.lock();
        if let Entry::Occupied(mut tools) = counts.arrivals.entry(key.owner.clone()) {
            let tools = tools.get_mut();
            if tools.len() >= MAX_TOOLS_PER_OWNER && !tools.contains_key(&key.tool) {
                tools.retain(|_, arrival| *arrival > elapsed);
                if tools.len() >= MAX_TOOLS_PER_OWNER {
                    key.tool = Tool::Other;
                }
            }
        }
        key
    }

    /// Stores the value that the last check proposed for the key.
    pub(super) fn charge(&self, key: Key, elapsed: Nanos) {
        let mut counts = self.0.lock();
        let proposed = counts.proposed;
        counts.arrivals.entry(key.owner).or_default().insert(key.tool, proposed);
        counts.charges += 1;
        if counts.charges >= CHARGES_PER_SWEEP {
            counts.charges = 0;
            counts.sweep(elapsed);
        }
    }

    /// Number of stored counts.
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
        // Not stored yet: `charge` stores it after every other limit agreed.
        counts.proposed = next;
        Ok(outcome)
    }
}
