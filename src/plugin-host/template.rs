//! How the instances of a plugin are made, and how one is asked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{Store, Trap, UpdateDeadline};

use super::{
    Failure, Message, Said,
    bindings::{Plugin as World, PluginPre},
    functions::Shared,
    guest::{DeadlineExceeded, Guest, OutOfMemory, Stage},
    host::Host,
    output,
    quotas::{CallerQuota, Exhausted, Quotas},
};

/// Ticks of the clock that a guest runs where the message is, before it goes on elsewhere.
const INLINE_TICKS: u64 = 2;
/// Bytes that a guest may hand back beyond twice the payload's.
pub const OUTPUT_SLACK: usize = 1 << 20;

/// All that it takes to make an instance.
pub struct Template {
    pub host: &'static Host,
    pub pre: PluginPre<Guest>,
    /// What instances share, and what they are granted.
    pub shared: Arc<Shared>,
    /// What `start` is told: the JSON text of an object.
    pub config: Arc<str>,
    /// Bytes for one instance.
    memory: usize,
    /// What instances have together.
    pub shares: Arc<Quotas>,
    pub deadline: Duration,
    /// Whether messages pass where the plugin fails.
    pub fail_open: bool,
}

/// An instance that has begun.
pub struct Prepared {
    store: Store<Guest>,
    world: World,
}

impl Prepared {
    /// Bytes of memory that it has.
    pub fn memory(&self) -> usize {
        self.store.data().memory
    }

    /// From now on it works for that caller.
    pub fn join(&mut self, part: &Arc<CallerQuota>) -> Result<(), Exhausted> {
        self.store.data_mut().join(part)
    }

    /// It works for nobody any more.
    pub fn leave(&mut self) {
        self.store.data_mut().leave();
    }
}

impl Template {
    /// `memory` is the bytes of one instance.
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

    /// A store with every bound set, for the messages of that caller or of nobody yet.
    pub fn store(&self, until: Instant, part: Option<&Arc<CallerQuota>>) -> Store<Guest> {
        let (shared, shares) = (self.shared.clone(), self.shares.clone());
        let running = self.host.running();
        let guest = Guest::new(shared, self.memory, shares, part.cloned(), until, running);
        let mut store = Store::new(&self.host.engine, guest);
        store.limiter(|guest| guest);
        store.set_epoch_deadline(1);
        store.set_hostcall_fuel(OUTPUT_SLACK);
        store
    }

    /// An instance that has begun, or in its own words why it does not.
    pub async fn begin(&self, store: &mut Store<Guest>) -> wasmtime::Result<Result<World, String>> {
        let world = self.pre.instantiate_async(&mut *store).await?;
        let guest = world.portcullis_interceptor_guest();
        let begun = guest.call_start(&mut *store, &self.config).await?;
        Ok(match begun {
            Ok(()) => Ok(world),
            Err(own) => Err(output::excerpt(&store.data().covered(own), 256)),
        })
    }

    /// An instance, ready to be asked.
    ///
    /// # Errors
    /// Why there is none.
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

    /// What an instance says of a message. One that fails must not be asked again.
    pub async fn ask(
        &self,
        Prepared { store, world }: &mut Prepared,
        message: &Message,
        until: Instant,
    ) -> Said {
        let guest = store.data_mut();
        guest.stage = Stage::Inspecting;
        guest.until = until;
        guest.starved = None;
        if guest.shared.http.is_some() {
            guest.exchange.clone_from(&message.exchange);
        }
        guest.running = Some(self.host.running());
        store.set_epoch_deadline(INLINE_TICKS);
        let twice = message.payload.len().saturating_mul(2);
        store.set_hostcall_fuel(twice.saturating_add(OUTPUT_SLACK));
        let asked = world.portcullis_interceptor_guest().call_inspect(&mut *store, message).await;
        let verdict = match asked {
            Ok(Ok(verdict)) => output::check(verdict, &self.shared.veil).map_err(Failure::Verdict),
            Ok(Err(own)) => Err(Failure::Own(output::excerpt(&store.data().covered(own), 256))),
            Err(error) => Err(self.failure(&error, store.data(), self.deadline)),
        };
        let guest = store.data_mut();
        guest.running = None;
        // Afterwards and not before: what it wrote when it began counts to its first message.
        guest.lines = 0;
        let requests = std::mem::take(&mut guest.requests);
        Said { verdict, requests, memory: guest.memory }
    }

    /// That there is no memory, for other messages have it.
    pub fn spent(&self, spent: Exhausted) -> Failure {
        match spent {
            Exhausted::Part => Failure::MemoryOfCaller(self.shares.part_of_one() >> 20),
            Exhausted::All => Failure::MemoryTogether(self.shares.memory().max() >> 20),
        }
    }

    /// What an error of wasmtime's means.
    pub fn failure(&self, error: &wasmtime::Error, guest: &Guest, deadline: Duration) -> Failure {
        let cause = guest.covered(error.root_cause().to_string());
        if error.is::<DeadlineExceeded>() {
            Failure::Deadline(deadline)
        } else if error.downcast_ref() == Some(&Trap::StackOverflow) {
            Failure::Stack
        } else if let Some(starved) = guest.starved.filter(|_| may_be_want(error)) {
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

/// Whether a guest that got no memory may end so: it gives up by itself, or writes to where the memory
/// would be. Another trap has another cause.
fn may_be_want(error: &wasmtime::Error) -> bool {
    matches!(
        error.downcast_ref::<Trap>(),
        None | Some(Trap::UnreachableCodeReached | Trap::MemoryOutOfBounds)
    )
}
