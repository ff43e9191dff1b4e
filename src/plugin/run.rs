//! One message, one instance.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::poll;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::{Store, Trap, UpdateDeadline};

use super::{
    House, Manifest, Message, Pin, Settings, Unusable, Verdict,
    bindings::{Plugin as World, PluginPre},
    functions::{Shared, Values},
    guest::{Budget, Guest, Overtime, Stage, Starved},
    host::Host,
    load::{self, START},
    output,
};

/// Instances of one plugin at work at once. Guests never wait for anything, so more would not make
/// a plugin faster; this many let quick messages pass slow ones.
const AT_ONCE: usize = 32;
/// Instances that are made before they are needed.
const READY: usize = 2;
/// What the instances of a plugin may have together, as a multiple of what one may have.
const SHARES: usize = 8;
/// Ticks of the clock that a guest runs where the message is, before it goes on elsewhere.
const INLINE_TICKS: u64 = 2;
/// Bytes that a guest may hand back beyond twice the payload's.
const OUTPUT_SLACK: usize = 1 << 20;

/// Why a plugin reached no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("it was not done within {0:?}")]
    Deadline(Duration),
    #[error("it needs more than its {0} MiB of memory (`memory-mib`)")]
    Memory(usize),
    #[error("its instances need more than {0} MiB of memory together")]
    MemoryTogether(usize),
    #[error("it recursed beyond its stack")]
    Stack,
    #[error("it handed back more than twice the message and {} MiB", OUTPUT_SLACK >> 20)]
    Output,
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("it does not start: {0}")]
    Start(String),
    #[error("it failed: {0}")]
    Own(String),
    #[error("its verdict is wrong: {0}")]
    Verdict(String),
}

/// What came of asking a plugin.
#[derive(Debug)]
pub struct Said {
    pub verdict: Result<Verdict, Failure>,
    /// The HTTP requests that it made meanwhile: method, host and status of each.
    pub requests: Vec<String>,
    /// Bytes of memory that the instance had in the end.
    pub memory: usize,
}

impl From<Failure> for Said {
    fn from(failure: Failure) -> Self {
        Self { verdict: Err(failure), requests: Vec::new(), memory: 0 }
    }
}

/// A loaded plugin.
pub struct Plugin {
    inner: Arc<Inner>,
    manifest: Manifest,
    sha256: String,
}

struct Inner {
    template: Template,
    permits: Semaphore,
    ready: Mutex<Vec<Prepared>>,
}

/// All that it takes to make an instance.
pub(super) struct Template {
    pub host: &'static Host,
    pub pre: PluginPre<Guest>,
    /// What instances share, and what they are granted.
    pub shared: Arc<Shared>,
    /// What `start` is told: the JSON text of an object.
    pub config: Arc<str>,
    /// Bytes for one instance.
    memory: usize,
    budget: Arc<Budget>,
    pub deadline: Duration,
}

/// An instance that has seen no message yet.
struct Prepared {
    store: Store<Guest>,
    world: World,
}

impl Plugin {
    /// Loads a component. It blocks while it compiles: call it off the async threads.
    ///
    /// # Errors
    /// One [`Unusable`] for whatever is wrong with the file, its digest, what it imports and
    /// exports, its manifest, or the configuration for it.
    pub fn load(
        path: &std::path::Path,
        pin: Pin<'_>,
        settings: Settings,
        house: &House,
    ) -> Result<Self, Unusable> {
        load::Compiled::read(path, pin)?.plugin(settings, house)
    }

    pub(super) fn new(template: Template, manifest: Manifest, sha256: String) -> Self {
        let inner = Inner {
            template,
            permits: Semaphore::new(AT_ONCE),
            ready: Mutex::new(Vec::with_capacity(READY)),
        };
        Self { inner: Arc::new(inner), manifest, sha256 }
    }

    /// What the plugin says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it keeps, where it is granted that.
    pub fn values(&self) -> Option<&Values> {
        self.inner.template.shared.state.as_ref()
    }

    /// The digest of its file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The plugin's verdict, checked, from an instance that has seen no other message. Has to be
    /// called within a tokio runtime; dropping the future ends the guest.
    pub async fn inspect(&self, message: Message) -> Said {
        let until = Instant::now() + self.inner.template.deadline;
        let inner = self.inner.clone();
        let mut work = Box::pin(async move { inner.work(message, until).await });
        if let std::task::Poll::Ready(said) = poll!(work.as_mut()) {
            return said;
        }
        // Not done within a tick or two, or no permit: go on where it holds up no message.
        match AbortOnDropHandle::new(self.inner.template.host.slow.spawn(work)).await {
            Ok(said) => said,
            Err(error) => Failure::Trap(error.to_string()).into(),
        }
    }
}

impl Inner {
    async fn work(self: Arc<Self>, message: Message, until: Instant) -> Said {
        let deadline = self.template.deadline;
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => match tokio::time::timeout_at(until.into(), self.permits.acquire()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(closed)) => return Failure::Trap(closed.to_string()).into(),
                Err(_) => return Failure::Deadline(deadline).into(),
            },
        };
        let ready = self.ready.lock().pop();
        let mut instance = match ready {
            Some(ready) => ready,
            None => match self.template.prepare(until).await {
                Ok(prepared) => prepared,
                Err(failure) => return failure.into(),
            },
        };
        let said = self.template.ask(&mut instance, &message, until).await;
        drop(permit);
        // What is left of the instance is cleared away, and the next one made, after the message
        // has gone on.
        let inner = self.clone();
        tokio::spawn(async move {
            drop(instance);
            inner.prepare_next().await;
        });
        said
    }

    async fn prepare_next(&self) {
        if self.ready.lock().len() >= READY {
            return;
        }
        // Should this fail, the next message makes its own and says why.
        if let Ok(next) = self.template.prepare(Instant::now() + START).await {
            let mut ready = self.ready.lock();
            if ready.len() < READY {
                ready.push(next);
            }
        }
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
        let budget = Budget::new(memory.saturating_mul(SHARES));
        Self { host, pre, shared, config: "{}".into(), memory, budget, deadline }
    }

    /// A store with every bound set.
    pub fn store(&self, until: Instant) -> Store<Guest> {
        let (shared, budget) = (self.shared.clone(), self.budget.clone());
        let guest = Guest::new(shared, self.memory, budget, until, self.host.running());
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

    async fn prepare(&self, until: Instant) -> Result<Prepared, Failure> {
        let mut store = self.store(until);
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

    async fn ask(
        &self,
        Prepared { store, world }: &mut Prepared,
        message: &Message,
        until: Instant,
    ) -> Said {
        let guest = store.data_mut();
        guest.stage = Stage::Inspecting;
        guest.until = until;
        guest.lines = 0;
        guest.starved = None;
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
        let requests = std::mem::take(&mut guest.requests);
        Said { verdict, requests, memory: guest.memory }
    }

    /// What an error of wasmtime's means.
    pub fn failure(&self, error: &wasmtime::Error, guest: &Guest, deadline: Duration) -> Failure {
        let cause = guest.covered(error.root_cause().to_string());
        if error.is::<Overtime>() {
            Failure::Deadline(deadline)
        } else if let Some(starved) = guest.starved {
            match starved {
                Starved::Alone => Failure::Memory(self.memory >> 20),
                Starved::Together => Failure::MemoryTogether(self.budget.max() >> 20),
            }
        } else if error.downcast_ref() == Some(&Trap::StackOverflow) {
            Failure::Stack
        } else if cause.contains("fuel allocated for hostcalls") {
            // The type of this error is private to wasmtime.
            Failure::Output
        } else {
            Failure::Trap(output::excerpt(&cause, 256))
        }
    }
}
