//! The wasmtime engine of all plugins, its clock, and the threads for slow guests.

use std::{
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Maximum of `memory-mib`.
pub const MAX_MEMORY_MIB: u64 = 256;
/// Limit of the elements of all tables of an instance.
pub const MAX_TABLE_ELEMENTS: usize = 20_000;
/// Stack of a guest in bytes.
const STACK_BYTES: usize = 512 << 10;
/// Limit of instances of all plugins: enough for thirty plugins with running, ready and kept ones.
/// Each reserves address space, not memory.
const MAX_INSTANCES: u32 = 4_000;
/// Bytes of an ended instance's memory, tables and stack that are zeroed and kept, so that the next
/// one causes no page faults there.
const KEPT_MEMORY_BYTES: usize = 2 << 20;
const KEPT_TABLE_BYTES: usize = 16 << 10;
const KEPT_STACK_BYTES: usize = 64 << 10;
/// Interval between checks of a running guest's deadline.
const TICK_INTERVAL: Duration = Duration::from_millis(2);
/// Number of ticks without a guest after which the clock stops.
const IDLE_TICKS: u32 = 50;

/// State that all plugins share.
pub struct Host {
    pub engine: Engine,
    clock: Arc<Clock>,
    /// Runs guests that did not finish within a tick or two: a spinning guest uses these threads,
    /// not those that serve messages.
    pub slow: Runtime,
}

static HOST: LazyLock<Result<Host, String>> = LazyLock::new(Host::new);

impl Host {
    /// The host, created when the first plugin is loaded.
    pub fn shared() -> Result<&'static Self, String> {
        HOST.as_ref().map_err(Clone::clone)
    }

    fn new() -> Result<Self, String> {
        let engine = Engine::new(&config()).map_err(|error| format!("{error:#}"))?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let slow = Builder::new_multi_thread()
            .worker_threads(cores.min(4))
            .thread_name("plugin")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let clock = Clock::start(engine.clone()).map_err(|error| error.to_string())?;
        Ok(Self { engine, clock, slow })
    }

    /// Keeps the clock running while a guest runs.
    pub fn running(&self) -> Running {
        self.clock.active.fetch_add(1, Ordering::SeqCst);
        if self.clock.stopped.swap(false, Ordering::SeqCst) {
            self.clock.thread.get().map(thread::Thread::unpark);
        }
        Running(self.clock.clone())
    }
}

fn config() -> Config {
    let mut pool = PoolingAllocationConfig::new();
    // Components in languages other than Rust consist of many modules, some of which have memories.
    pool.total_component_instances(MAX_INSTANCES)
        .total_core_instances(8 * MAX_INSTANCES)
        .total_memories(MAX_INSTANCES + MAX_INSTANCES / 2)
        .total_tables(2 * MAX_INSTANCES)
        .total_stacks(MAX_INSTANCES)
        .max_core_instances_per_component(64)
        .max_memories_per_component(4)
        .max_tables_per_component(16)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size((MAX_MEMORY_MIB as usize) << 20)
        .linear_memory_keep_resident(KEPT_MEMORY_BYTES)
        .table_keep_resident(KEPT_TABLE_BYTES)
        .async_stack_keep_resident(KEPT_STACK_BYTES)
        // If the kernel reports it, only written pages are zeroed.
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(STACK_BYTES + (512 << 10))
        .wasm_backtrace_max_frames(None)
        .wasm_memory64(false);
    config
}

/// Advances the engine's epoch while guests run, and uses no time otherwise.
struct Clock {
    active: AtomicUsize,
    stopped: AtomicBool,
    thread: OnceLock<thread::Thread>,
}

impl Clock {
    fn start(engine: Engine) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Self {
            active: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let of_thread = clock.clone();
        let handle = thread::Builder::new()
            .name("plugin-clock".into())
            .spawn(move || of_thread.tick(&engine))?;
        let _ = clock.thread.set(handle.thread().clone());
        Ok(clock)
    }

    fn tick(&self, engine: &Engine) {
        let mut idle = 0;
        loop {
            thread::sleep(TICK_INTERVAL);
            engine.increment_epoch();
            idle = if self.active.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
            if idle >= IDLE_TICKS {
                // `stopped` is set before `active` is read, and `running` counts before it reads
                // `stopped`, so one of the two sees the other.
                self.stopped.store(true, Ordering::SeqCst);
                while self.active.load(Ordering::SeqCst) == 0 && self.stopped.load(Ordering::SeqCst)
                {
                    thread::park();
                }
                self.stopped.store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

/// Marks a running guest until it is dropped.
pub struct Running(Arc<Clock>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}
