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
    Manifest, Message, Pin, Settings, Unusable, Verdict,
    bindings::{Plugin as World, PluginPre},
    guest::{Budget, Guest, Overtime, Starved},
    host::Host,
    load, output,
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
    #[error("it failed: {0}")]
    Own(String),
    #[error("its verdict is wrong: {0}")]
    Verdict(String),
}

/// A loaded plugin.
pub struct Plugin {
    inner: Arc<Inner>,
    manifest: Manifest,
    config: String,
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
    pub log: Option<Arc<str>>,
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
    ) -> Result<Self, Unusable> {
        load::load(path, pin, settings)
    }

    pub(super) fn new(
        template: Template,
        manifest: Manifest,
        config: String,
        sha256: String,
    ) -> Self {
        let inner = Inner {
            template,
            permits: Semaphore::new(AT_ONCE),
            ready: Mutex::new(Vec::with_capacity(READY)),
        };
        Self { inner: Arc::new(inner), manifest, config, sha256 }
    }

    /// What the plugin says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The operator's configuration for it, as JSON text for [`Message::config`].
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The digest of its file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The plugin's verdict, checked, from an instance that has seen no other message. Has to be
    /// called within a tokio runtime; dropping the future ends the guest.
    ///
    /// # Errors
    /// A [`Failure`], for the operator.
    pub async fn inspect(&self, message: Message) -> Result<Verdict, Failure> {
        let until = Instant::now() + self.inner.template.deadline;
        let inner = self.inner.clone();
        let mut work = Box::pin(async move { inner.work(message, until).await });
        if let std::task::Poll::Ready(verdict) = poll!(work.as_mut()) {
            return verdict;
        }
        // Not done within a tick or two, or no permit: go on where it holds up no message.
        match AbortOnDropHandle::new(self.inner.template.host.slow.spawn(work)).await {
            Ok(verdict) => verdict,
            Err(error) => Err(Failure::Trap(error.to_string())),
        }
    }
}

impl Inner {
    async fn work(self: Arc<Self>, message: Message, until: Instant) -> Result<Verdict, Failure> {
        let deadline = self.template.deadline;
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout_at(until.into(), self.permits.acquire())
                .await
                .map_err(|_| Failure::Deadline(deadline))?
                .map_err(|error| Failure::Trap(error.to_string()))?,
        };
        let ready = self.ready.lock().pop();
        let mut instance = match ready {
            Some(ready) => ready,
            None => self.template.prepare(until).await?,
        };
        let verdict = self.template.ask(&mut instance, &message, until).await;
        drop(permit);
        // What is left of the instance is cleared away, and the next one made, after the message
        // has gone on.
        let inner = self.clone();
        tokio::spawn(async move {
            drop(instance);
            inner.prepare_next().await;
        });
        verdict
    }

    async fn prepare_next(&self) {
        if self.ready.lock().len() >= READY {
            return;
        }
        // Should this fail, the next message makes its own and says why.
        if let Ok(next) = self.template.prepare(Instant::now() + self.template.deadline).await {
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
    ) -> Self {
        let budget = Budget::new(memory.saturating_mul(SHARES));
        Self { host, pre, log: None, memory, budget, deadline }
    }

    /// A store with every bound set.
    pub fn store(&self, until: Instant) -> Store<Guest> {
        let (log, budget) = (self.log.clone(), self.budget.clone());
        let guest = Guest::new(log, self.memory, budget, until, self.host.running());
        let mut store = Store::new(&self.host.engine, guest);
        store.limiter(|guest| guest);
        store.set_epoch_deadline(1);
        store.set_hostcall_fuel(OUTPUT_SLACK);
        store
    }

    async fn prepare(&self, until: Instant) -> Result<Prepared, Failure> {
        let mut store = self.store(until);
        store.epoch_deadline_callback(|guest| guest.data().tick(UpdateDeadline::Yield(1)));
        match self.pre.instantiate_async(&mut store).await {
            Ok(world) => {
                store.data_mut().running = None;
                Ok(Prepared { store, world })
            }
            Err(error) => Err(self.failure(&error, store.data(), self.deadline)),
        }
    }

    async fn ask(
        &self,
        Prepared { store, world }: &mut Prepared,
        message: &Message,
        until: Instant,
    ) -> Result<Verdict, Failure> {
        store.data_mut().until = until;
        store.data_mut().running = Some(self.host.running());
        store.set_epoch_deadline(INLINE_TICKS);
        let twice = message.payload.len().saturating_mul(2);
        store.set_hostcall_fuel(twice.saturating_add(OUTPUT_SLACK));
        let said = world.portcullis_interceptor_guest().call_inspect(&mut *store, message).await;
        store.data_mut().running = None;
        match said {
            Ok(Ok(verdict)) => output::check(verdict).map_err(Failure::Verdict),
            Ok(Err(own)) => Err(Failure::Own(output::excerpt(&own, 256))),
            Err(error) => Err(self.failure(&error, store.data(), self.deadline)),
        }
    }

    /// What an error of wasmtime's means.
    pub fn failure(&self, error: &wasmtime::Error, guest: &Guest, deadline: Duration) -> Failure {
        let cause = error.root_cause().to_string();
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
