//! Creates instances of a plugin, and calls them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{Store, Trap, UpdateDeadline};

use super::{
    Failure, Inspection, Message,
    bindings::{Plugin as World, PluginPre},
    functions::shared::Shared,
    guest::{DeadlineExceeded, Guest, OutOfMemory, Stage},
    host::Host,
    limits::MAX_EXTRA_OUTPUT_BYTES,
    output,
    quotas::{CallerQuota, Exhausted, Quotas},
};

/// Number of ticks that a guest runs on the message's thread before it continues elsewhere.
const MAX_INLINE_TICKS: u64 = 2;

/// Everything needed to create an instance.
pub struct Template {
    pub host: &'static Host,
    pub pre: PluginPre<Guest>,
    /// State and grants that instances share.
    pub shared: Arc<Shared>,
    /// Input of `start`: the JSON text of an object.
    pub config: Arc<str>,
    /// Memory limit of one instance in bytes.
    memory: usize,
    /// Quotas of all instances together.
    pub shares: Arc<Quotas>,
    pub deadline: Duration,
    /// Whether messages pass if the plugin fails.
    pub fail_open: bool,
}

/// A started instance.
pub struct Prepared {
    store: Store<Guest>,
    world: World,
}

impl Prepared {
    /// Its memory in bytes.
    pub fn memory(&self) -> usize {
        self.store.data().memory
    }

    /// Assigns the instance to a caller.
    pub fn join(&mut self, part: &Arc<CallerQuota>) -> Result<(), Exhausted> {
        self.store.data_mut().join(part)
    }

    /// Releases the instance from its caller.
    pub fn leave(&mut self) {
        self.store.data_mut().leave();
    }
}

impl Template {
    /// `memory` is the limit of one instance in bytes.
    pub fn new(
        host: &'static Host,
        pre: PluginPre<Guest>,
        memory: usize,
        deadline: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        let shares = Quotas::of(memory);
        Self { host, pre, shared, config: "{}".into(), memory, shares, deadline, fail_open: false }
    }

    /// Store with every limit set, for messages of that caller, or without a caller.
    pub fn store(&self, until: Instant, part: Option<&Arc<CallerQuota>>) -> Store<Guest> {
        let (shared, shares) = (self.shared.clone(), self.shares.clone());
        let running = self.host.running();
        let guest = Guest::new(shared, self.memory, shares, part.cloned(), until, running);
        let mut store = Store::new(&self.host.engine, guest);
        store.limiter(|guest| guest);
        store.set_epoch_deadline(1);
        store.set_hostcall_fuel(MAX_EXTRA_OUTPUT_BYTES);
        store
    }

    /// Started instance, or the plugin's reason why it does not start.
    pub async fn begin(&self, store: &mut Store<Guest>) -> wasmtime::Result<Result<World, String>> {
        let world = self.pre.instantiate_async(&mut *store).await?;
        let guest = world.portcullis_interceptor_guest();
        let begun = guest.call_start(&mut *store, &self.config).await?;
        Ok(match begun {
            Ok(()) => Ok(world),
            Err(own) => Err(output::excerpt(&store.data().covered(own), 256)),
        })
    }

    /// Started instance, ready for calls.
    ///
    /// # Errors
    /// The reason why there is none.
    pub async fn prepare(
        &self,
        until: Instant,
        part: Option<&Arc<CallerQuota>>,
    ) -> Result<Prepared, Failure> {
        let mut store = self.store(until, part);
        store.epoch_deadline_callback(|guest| guest.data().tick(UpdateDeadline::Yield(1)));
        match self.begin(&mut store).await {
            Ok(Ok(world)) => {
                store.data_mut().running = None;
                Ok(Prepared { store, world })
            }
            Ok(Err(own)) => Err(Failure::Start(own)),
            Err(error) => Err(self.failure(&error, store.data(), self.deadline)),
        }
    }

    /// Verdict of an instance about a message. After a failure the instance must not be used again.
    pub async fn ask(
        &self,
        Prepared { store, world }: &mut Prepared,
        message: &Message,
        until: Instant,
    ) -> Inspection {
        let guest = store.data_mut();
        guest.stage = Stage::Inspecting;
        guest.until = until;
        guest.starved = None;
        if guest.shared.http.is_some() {
            guest.exchange.clone_from(&message.exchange);
        }
        guest.running = Some(self.host.running());
        store.set_epoch_deadline(MAX_INLINE_TICKS);
        let twice = message.payload.len().saturating_mul(2);
        store.set_hostcall_fuel(twice.saturating_add(MAX_EXTRA_OUTPUT_BYTES));
        let result = world.portcullis_interceptor_guest().call_inspect(&mut *store, message).await;
        let verdict = match result {
            Ok(Ok(verdict)) => output::check(verdict, &self.shared.veil).map_err(Failure::Verdict),
            Ok(Err(own)) => Err(Failure::Own(output::excerpt(&store.data().covered(own), 256))),
            Err(error) => Err(self.failure(&error, store.data(), self.deadline)),
        };
        let guest = store.data_mut();
        guest.running = None;
        // Afterwards, so that lines written at the start count for its first message.
        guest.lines = 0;
        let requests = std::mem::take(&mut guest.requests);
        Inspection { verdict, requests, memory: guest.memory }
    }

    /// Failure because other messages use the memory.
    pub fn spent(&self, spent: Exhausted) -> Failure {
        match spent {
            Exhausted::Part => Failure::MemoryOfCaller(self.shares.part_of_one() >> 20),
            Exhausted::All => Failure::MemoryTogether(self.shares.memory().max() >> 20),
        }
    }

    /// Failure for an error of wasmtime.
    pub fn failure(&self, error: &wasmtime::Error, guest: &Guest, deadline: Duration) -> Failure {
        let cause = guest.covered(error.root_cause().to_string());
        if error.is::<DeadlineExceeded>() {
            Failure::Deadline(deadline)
        } else if error.downcast_ref() == Some(&Trap::StackOverflow) {
            Failure::Stack
        } else if let Some(starved) = guest.starved.filter(|_| may_be_out_of_memory(error)) {
            match starved {
                OutOfMemory::Alone => Failure::Memory(self.memory >> 20),
                OutOfMemory::Together(spent) => self.spent(spent),
            }
        } else if cause.contains("fuel allocated for hostcalls") {
            // The type of this error is private to wasmtime.
            Failure::Output
        } else {
            Failure::Trap(output::excerpt(&cause, 256))
        }
    }
}

/// Whether a guest that got no memory may end this way: it aborts, or writes to where the memory
/// would be. Another trap has another cause.
fn may_be_out_of_memory(error: &wasmtime::Error) -> bool {
    matches!(
        error.downcast_ref::<Trap>(),
        None | Some(Trap::UnreachableCodeReached | Trap::MemoryOutOfBounds)
    )
}
