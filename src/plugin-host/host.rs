//! One wasmtime engine for all plugins, its clock, and the threads on which slow guests go on.

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

/// MiB that `memory-mib` may grant at most.
pub const MEMORY_MIB_MAX: u64 = 256;
/// Elements of all tables of an instance.
pub const TABLE_ELEMENTS: usize = 20_000;
/// Bytes of stack for a guest.
const STACK: usize = 512 << 10;
/// Instances at once, over all plugins: what thirty may have at work, ready and kept. Each reserves
/// address space, not memory.
const INSTANCES: u32 = 4_000;
/// Bytes of an instance's memory, its tables and its stack that are kept and zeroed when it ends, not
/// given back: what the next one would have to fault in again.
const KEPT: usize = 2 << 20;
const KEPT_TABLES: usize = 16 << 10;
const KEPT_STACK: usize = 64 << 10;
/// How often a running guest is asked whether its time is over.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without a guest after which the clock stops.
const IDLE_TICKS: u32 = 50;

/// What all plugins share.
pub struct Host {
    pub engine: Engine,
    clock: Arc<Clock>,
    /// Where guests go on that were not done within a tick or two: a guest that spins takes its
    /// time from these threads, not from those that carry messages.
    pub slow: Runtime,
}

static HOST: LazyLock<Result<Host, String>> = LazyLock::new(Host::new);

impl Host {
    /// The host, made when the first plugin is loaded.
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

    /// Keeps the clock going while a guest runs.
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
    // Components of other languages than Rust are made of many modules, of which some have memories.
    pool.total_component_instances(INSTANCES)
        .total_core_instances(8 * INSTANCES)
        .total_memories(INSTANCES + INSTANCES / 2)
        .total_tables(2 * INSTANCES)
        .total_stacks(INSTANCES)
        .max_core_instances_per_component(64)
        .max_memories_per_component(4)
        .max_tables_per_component(16)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size((MEMORY_MIB_MAX as usize) << 20)
        .linear_memory_keep_resident(KEPT)
        .table_keep_resident(KEPT_TABLES)
        .async_stack_keep_resident(KEPT_STACK)
        // Where the kernel can tell, only what was written is zeroed.
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(STACK)
        .async_stack_size(STACK + (512 << 10))
        .wasm_backtrace_max_frames(None)
        .wasm_memory64(false);
    config
}

/// Moves the engine's epoch on while guests run, and costs nothing while none does.
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
            thread::sleep(TICK);
            engine.increment_epoch();
            idle = if self.active.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
            if idle >= IDLE_TICKS {
                // `stopped` is set before `active` is read, and `running` counts before it reads
                // `stopped`: one of the two sees the other.
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

/// A guest runs as long as this lives.
pub struct Running(Arc<Clock>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}
