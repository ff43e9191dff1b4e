//! CPU work on heavy messages: large ones, and ones with many values. It runs beside the async
//! workers, a few pieces at once, and parties take turns: a client or server that sends many heavy
//! messages delays its own messages, and others by at most one piece of work.
//!
//! A heavy message is parsed, decided, checked, recorded and rewritten in code that does not yield.
//! Moving single steps to other threads would miss steps that are added later. So the whole future
//! of a message is polled here: [`in_turns`] takes a turn for each poll, which runs on a thread of
//! low priority. Long blocking steps run on other such threads, by [`off_workers`], so that the
//! caller's deadline applies.

use std::{
    future::poll_fn,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
};

use futures_util::future::BoxFuture;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::process::{getpid, getpriority_process, setpriority_process};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{AcquireError, oneshot},
    task::{block_in_place, yield_now},
};

use portcullis_foundation::fair_semaphore::{FairPermit, FairSemaphore};
use portcullis_protocol::{identity::PrincipalKind, names::ServerName};

/// Weight, in bytes of plain text, up to which an async worker processes a message. A heavier
/// message takes turns.
pub const LARGE_BYTES: usize = 32 << 10;

/// Weight of a value or a key, in bytes of plain text.
const VALUE_BYTES: usize = 64;

/// Amount of work that a text causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(usize);

impl Weight {
    /// Weight before any text.
    pub const NONE: Self = Self(0);

    /// Weight of unparsed text. Commas, colons and brackets count as values and keys, including
    /// those in strings.
    pub fn of<T: AsRef<[u8]> + ?Sized>(text: &T) -> Self {
        Self::of_bytes(text.as_ref())
    }

    // Not generic, so that it is compiled with this crate's optimization.
    #[inline(never)]
    fn of_bytes(text: &[u8]) -> Self {
        if text.len() > LARGE_BYTES {
            return Self(text.len());
        }
        // Chunks whose count fits into a byte are counted with vector instructions.
        let marks = |chunk: &[u8]| -> u8 {
            chunk.iter().map(|b| u8::from(matches!(b, b',' | b':' | b'[' | b'{'))).sum()
        };
        let marks: usize = text.chunks(u8::MAX.into()).map(|chunk| usize::from(marks(chunk))).sum();
        Self(text.len().max(marks * VALUE_BYTES))
    }

    fn is_large(self) -> bool {
        self.0 > LARGE_BYTES
    }
}

/// Party whose message is processed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Client(PrincipalKind),
    Server(ServerName),
    /// Callers of a network that have not authenticated.
    Network(IpAddr),
}

/// Niceness of the threads for heavy messages, on top of the proxy's own. The work of other messages
/// preempts them, and they still advance on a busy machine.
const NICENESS: i32 = 10;

/// Number of heavy messages that are processed at once: half of the processors, so that the rest
/// remains for others.
static AT_ONCE: LazyLock<usize> =
    LazyLock::new(|| (thread::available_parallelism().map_or(1, usize::from) / 2).max(1));

/// Number of heavy messages that are processed at once.
pub fn heavy_at_once() -> usize {
    *AT_ONCE
}

static TURNS: LazyLock<FairSemaphore<Party>> = LazyLock::new(|| FairSemaphore::new(*AT_ONCE));

/// Threads that poll heavy messages. `None` if the system starts no threads: then async workers do
/// the work.
static POLLING: LazyLock<Option<ThreadPool>> = LazyLock::new(|| threads("heavy"));

/// Threads for the blocking work of [`off_workers`], apart from those that poll: a poll never waits
/// for a long scan.
static BLOCKING: LazyLock<Option<ThreadPool>> = LazyLock::new(|| threads("heavy-work"));

/// Threads of low priority. Threads that they start inherit it, so long steps of a message use
/// [`off_workers`] instead of `spawn_blocking`.
fn threads(name: &'static str) -> Option<ThreadPool> {
    let started = ThreadPoolBuilder::new()
        .num_threads(*AT_ONCE)
        .thread_name(move |i| format!("{name}-{i}"))
        .start_handler(|_| {
            // That of the main thread: this thread may have been started by one of low priority.
            // If it fails, the work is only less fair.
            let _ = getpriority_process(Some(getpid()))
                .and_then(|own| setpriority_process(None, own + NICENESS));
        })
        .build();
    started.inspect_err(|error| tracing::error!(%error, "no threads for heavy messages")).ok()
}

tokio::task_local! {
    /// Weight of the heaviest text so far in this task's work.
    static IN_HAND: Arc<AtomicUsize>;
}

/// Runs the work on a message of this weight. While the message is heavy, each poll of `work` waits
/// for a turn of `party` and blocks no async worker. `work` becomes heavy when [`grow`] reports it,
/// for example with a large answer to a small request.
///
/// Within the work on another message, `work` is part of that work and is charged to its party: a
/// turn is never awaited while another is held.
pub fn in_turns<F>(
    party: Party,
    weight: Weight,
    work: F,
) -> impl Future<Output = F::Output> + use<F>
where
    F: Future<Output: Send> + Send,
{
    // Boxed, so that the caller's future does not grow by the size of the work.
    let work = Box::pin(work);
    async move {
        if IN_HAND.try_with(|_| ()).is_ok() {
            grow(weight).await;
            return work.await;
        }
        take_turns(party, weight, work).await
    }
}

async fn take_turns<F>(party: Party, weight: Weight, mut work: Pin<Box<F>>) -> F::Output
where
    F: Future<Output: Send> + Send,
{
    let in_hand = Arc::new(AtomicUsize::new(weight.0));
    let mut waiting: Option<BoxFuture<'static, Result<FairPermit, AcquireError>>> = None;
    poll_fn(move |context| {
        if in_hand.load(Ordering::Relaxed) <= LARGE_BYTES {
            return IN_HAND.sync_scope(in_hand.clone(), || work.as_mut().poll(context));
        }
        let turn = waiting.get_or_insert_with(|| {
            let party = party.clone();
            Box::pin(async move { TURNS.next(&party).await })
        });
        let Poll::Ready(turn) = turn.as_mut().poll(context) else { return Poll::Pending };
        waiting = None;
        let waker = context.waker();
        let polled = beside_workers(|| {
            let mut context = Context::from_waker(waker);
            IN_HAND.sync_scope(in_hand.clone(), || work.as_mut().poll(&mut context))
        });
        drop(turn);
        polled
    })
    .await
}

/// Reports that the work on a message now includes a text of this weight, such as an answer. If
/// that makes it heavy, the caller continues in the next turn of the message's party.
pub async fn grow(weight: Weight) {
    if !weight.is_large() {
        return;
    }
    let before = IN_HAND.try_with(|in_hand| in_hand.fetch_max(weight.0, Ordering::Relaxed));
    if before.is_ok_and(|before| before <= LARGE_BYTES) {
        yield_now().await;
    }
}

/// Weight of the heaviest text so far in the work that is being polled.
pub fn in_hand() -> Weight {
    Weight(IN_HAND.try_with(|in_hand| in_hand.load(Ordering::Relaxed)).unwrap_or_default())
}

/// Runs `work` on a thread that polls heavy messages, and waits for it. The async runtime moves the other
/// tasks of this worker to another thread.
fn beside_workers<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let runtime = match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => runtime,
        // A single-threaded runtime, as in tests, has no thread to move its tasks to.
        _ => return work(),
    };
    block_in_place(|| match &*POLLING {
        Some(threads) => threads.install(|| {
            let _runtime = runtime.enter();
            work()
        }),
        None => work(),
    })
}

/// The work panicked, or the proxy shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work did not finish")]
pub struct Unfinished;

/// Runs blocking work on a thread of low priority. The work continues if the caller stops
/// waiting.
///
/// # Errors
/// [`Unfinished`].
pub async fn off_workers<T, W>(work: W) -> Result<T, Unfinished>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (reply, done) = oneshot::channel();
    let work = move || {
        // The hook for panics logs it; here it would end the process.
        if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
            // The caller may have stopped waiting.
            let _ = reply.send(result);
        }
    };
    match &*BLOCKING {
        Some(threads) => threads.spawn(work),
        None => drop(tokio::task::spawn_blocking(work)),
    }
    done.await.map_err(|_| Unfinished)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    const LARGE: Weight = Weight(LARGE_BYTES + 1);

    #[test]
    fn many_values_weigh_more_than_their_bytes() {
        let object = |keys: usize| {
            let members: Vec<_> = (0..keys).map(|i| format!("\"k{i}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(Weight::of(&object(2900)).is_large());
        assert!(!Weight::of(&object(100)).is_large());
        let nested = format!("[{}]", vec!["[[[[[[[[0]]]]]]]]"; 100].join(","));
        assert!(Weight::of(&nested).is_large());
        assert!(!Weight::of(&"a".repeat(LARGE_BYTES)).is_large());
        assert!(Weight::of(&"a".repeat(LARGE_BYTES + 1)).is_large());
        for marks in [254, 255, 256, 510, 511] {
            assert_eq!(Weight::of(&",".repeat(marks)), Weight(marks * VALUE_BYTES), "{marks}");
        }
    }

    fn client(name: &str) -> Party {
        Party::Client(PrincipalKind::Local { user: name.into() })
    }

    fn is_large() -> bool {
        IN_HAND.with(|in_hand| in_hand.load(Ordering::Relaxed) > LARGE_BYTES)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn heavy_work_uses_at_most_its_share_of_processors() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let all = (0..16).map(|i| {
            let (now, most) = (now.clone(), most.clone());
            tokio::spawn(in_turns(client(&i.to_string()), LARGE, async move {
                for _ in 0..4 {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                    yield_now().await;
                }
            }))
        });
        for done in join_all(all).await {
            done.unwrap();
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        assert!(most.load(Ordering::SeqCst) <= (processors / 2).max(1));
    }

    /// Field 19 of `/proc/PID/stat` (`proc_pid_stat(5)`).
    fn niceness() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let behind_name = stat.rsplit(')').next().unwrap();
        behind_name.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn heavy_work_has_lower_priority_and_the_runtime() {
        let own = niceness();
        let heavy = in_turns(client("nice"), LARGE, async {
            let nested = tokio::spawn(async { niceness() }).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            (niceness(), nested)
        });
        let lower = (own + NICENESS).min(19);
        assert_eq!(tokio::spawn(heavy).await.unwrap(), (lower, own));
        assert_eq!(off_workers(niceness).await, Ok(lower));
    }

    #[tokio::test]
    async fn panicking_work_is_unfinished() {
        assert_eq!(off_workers(|| panic!("of a test")).await, Err::<(), _>(Unfinished));
        assert_eq!(off_workers(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn work_becomes_heavy_when_its_text_grows() {
        in_turns(client("grows"), Weight::NONE, async {
            assert!(!is_large());
            grow(Weight(LARGE_BYTES)).await;
            assert!(!is_large());
            grow(LARGE).await;
            assert!(is_large());
            grow(LARGE).await;
        })
        .await;
        // Outside of a message it has no effect.
        grow(LARGE).await;
    }

    #[tokio::test]
    async fn nested_work_does_not_wait_again() {
        let inner = async {
            yield_now().await;
            assert!(is_large());
            7
        };
        let outer = in_turns(client("outer"), LARGE, async {
            in_turns(client("inner"), LARGE, inner).await
        });
        assert_eq!(outer.await, 7);
        let inner = async { assert!(is_large()) };
        let outer = async { in_turns(client("inner"), LARGE, inner).await };
        in_turns(client("outer"), Weight::NONE, outer).await;
    }
}
