//! CPU work on heavy messages: large ones, and ones of many values. It runs beside the async workers, a few pieces at once, and parties
//! take turns: one client or server that sends many heavy messages delays its own messages, and
//! others by one piece of work at most.
//!
//! A heavy message is parsed, decided, checked, recorded and rewritten in code that does not yield.
//! Moving single steps to other threads would leave out the step that somebody adds later. So the
//! whole future of a message is polled here: [`in_turns`] takes a turn for each poll, and tells the
//! runtime that the poll blocks.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
};

use futures_util::future::BoxFuture;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::AcquireError,
    task::{block_in_place, yield_now},
};

use portcullis_foundation::allocator;
use portcullis_foundation::fair_semaphore::{FairPermit, FairSemaphore};
use portcullis_protocol::{identity::PrincipalKind, names::ServerName};

/// Weight of the heaviest message that an async worker works on, in bytes of plain text. A heavier
/// message takes turns.
pub const LARGE_BYTES: usize = 32 << 10;

/// What a value or a key weighs, in bytes of plain text.
const VALUE_BYTES: usize = 64;

/// How much work a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(usize);

impl Weight {
    /// Nothing is in hand yet.
    pub const NONE: Self = Self(0);

    /// The weight of a text that was not parsed. Commas, colons and brackets are counted for its
    /// values and keys, those in strings among them.
    pub fn of<T: AsRef<[u8]> + ?Sized>(text: &T) -> Self {
        let text = text.as_ref();
        if text.len() > LARGE_BYTES {
            return Self(text.len());
        }
        let marks = text.iter().filter(|b| matches!(b, b',' | b':' | b'[' | b'{')).count();
        Self(text.len().max(marks * VALUE_BYTES))
    }

    fn is_large(self) -> bool {
        self.0 > LARGE_BYTES
    }
}

/// Whose message is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Client(PrincipalKind),
    Server(ServerName),
}

/// Half of the processors work on heavy messages at most, the rest is left to all others.
static TURNS: LazyLock<FairSemaphore<Party>> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    FairSemaphore::new((processors / 2).max(1))
});

tokio::task_local! {
    /// Weight of the heaviest text that the work of this task has had in hand.
    static IN_HAND: Arc<AtomicUsize>;
}

/// Runs the work on a message of this weight. While the message is heavy, each poll of `work`
/// waits for a turn of `party` and blocks no async worker. `work` becomes heavy when [`grow`] says
/// so, such as with a large answer to a small request.
///
/// Within the work on another message, `work` is part of that work: a turn is never awaited while
/// another is held.
pub fn in_turns<F: Future>(
    party: Party,
    weight: Weight,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    // Boxed, so that what awaits this does not grow by the size of the work.
    let work = Box::pin(work);
    async move {
        if IN_HAND.try_with(|_| ()).is_ok() {
            grow(weight).await;
            return work.await;
        }
        take_turns(party, weight, work).await
    }
}

async fn take_turns<F: Future>(party: Party, weight: Weight, mut work: Pin<Box<F>>) -> F::Output {
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
        let polled =
            beside_workers(|| IN_HAND.sync_scope(in_hand.clone(), || work.as_mut().poll(context)));
        drop(turn);
        if polled.is_ready() {
            allocator::freed(in_hand.load(Ordering::Relaxed));
        }
        polled
    })
    .await
}

/// Says that the work on a message has a text of this weight in hand, such as an answer. Where that
/// makes it heavy, the caller goes on in the next turn of the message's party.
pub async fn grow(weight: Weight) {
    if !weight.is_large() {
        return;
    }
    let before = IN_HAND.try_with(|in_hand| in_hand.fetch_max(weight.0, Ordering::Relaxed));
    if before.is_ok_and(|before| before <= LARGE_BYTES) {
        yield_now().await;
    }
}

/// Runs `work` on this thread. The runtime moves the other tasks of this worker to another thread.
fn beside_workers<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // A runtime of one thread, as tests have, has nobody to hand its tasks to.
        _ => work(),
    }
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
    }

    fn client(name: &str) -> Party {
        Party::Client(PrincipalKind::Local { user: name.into() })
    }

    fn is_large() -> bool {
        IN_HAND.with(|in_hand| in_hand.load(Ordering::Relaxed) > LARGE_BYTES)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn large_work_takes_no_more_than_its_share_of_processors() {
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

    #[tokio::test]
    async fn work_becomes_large_with_what_it_has_in_hand() {
        in_turns(client("grows"), Weight::NONE, async {
            assert!(!is_large());
            grow(Weight(LARGE_BYTES)).await;
            assert!(!is_large());
            grow(LARGE).await;
            assert!(is_large());
            grow(LARGE).await;
        })
        .await;
        // Outside of any message it does nothing.
        grow(LARGE).await;
    }

    #[tokio::test]
    async fn work_within_work_awaits_no_second_turn() {
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
