//! CPU work on large messages. It runs beside the async workers, a few pieces at once, and parties
//! take turns: one client or server that sends many large messages delays its own messages, and
//! others by one piece of work at most.
//!
//! A large message is parsed, decided, checked, recorded and rewritten in code that does not yield.
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

use super::{Turn, Turns};
use crate::{allocator, identity::PrincipalKind, names::ServerName};

/// Bytes of the largest message that is worked on by an async worker: about a millisecond of work.
pub const LARGE_BYTES: usize = 32 << 10;

/// Whose message is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Client(PrincipalKind),
    Server(ServerName),
}

/// Half of the processors work on large messages at most, the rest is left to all others.
static TURNS: LazyLock<Turns<Party>> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Turns::new((processors / 2).max(1))
});

tokio::task_local! {
    /// Bytes of the largest text that the work of this task has had in hand.
    static IN_HAND: Arc<AtomicUsize>;
}

/// Runs the work on a message of `bytes` bytes. While the message is large, each poll of `work`
/// waits for a turn of `party` and blocks no async worker. `work` becomes large when [`grow`] says
/// so, such as with a large answer to a small request.
///
/// Within the work on another message, `work` is part of that work: a turn is never awaited while
/// another is held.
pub fn in_turns<F: Future>(
    party: Party,
    bytes: usize,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    // Boxed, so that what awaits this does not grow by the size of the work.
    let work = Box::pin(work);
    async move {
        if IN_HAND.try_with(|_| ()).is_ok() {
            grow(bytes).await;
            return work.await;
        }
        take_turns(party, bytes, work).await
    }
}

async fn take_turns<F: Future>(party: Party, bytes: usize, mut work: Pin<Box<F>>) -> F::Output {
    let in_hand = Arc::new(AtomicUsize::new(bytes));
    let mut waiting: Option<BoxFuture<'static, Result<Turn, AcquireError>>> = None;
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

/// Says that the work on a message has `bytes` more bytes in hand, such as an answer. Where that
/// makes it large, the caller goes on in the next turn of the message's party.
pub async fn grow(bytes: usize) {
    if bytes <= LARGE_BYTES {
        return;
    }
    let before = IN_HAND.try_with(|in_hand| in_hand.fetch_max(bytes, Ordering::Relaxed));
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
            tokio::spawn(in_turns(client(&i.to_string()), LARGE_BYTES + 1, async move {
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
        in_turns(client("grows"), 10, async {
            assert!(!is_large());
            grow(LARGE_BYTES).await;
            assert!(!is_large());
            grow(LARGE_BYTES + 1).await;
            assert!(is_large());
            grow(LARGE_BYTES + 1).await;
        })
        .await;
        // Outside of any message it does nothing.
        grow(LARGE_BYTES + 1).await;
    }

    #[tokio::test]
    async fn work_within_work_awaits_no_second_turn() {
        let inner = async {
            yield_now().await;
            assert!(is_large());
            7
        };
        let outer = in_turns(client("outer"), LARGE_BYTES + 1, async {
            in_turns(client("inner"), LARGE_BYTES + 1, inner).await
        });
        assert_eq!(outer.await, 7);
        let inner = async { assert!(is_large()) };
        let outer = async { in_turns(client("inner"), LARGE_BYTES + 1, inner).await };
        in_turns(client("outer"), 1, outer).await;
    }
}
