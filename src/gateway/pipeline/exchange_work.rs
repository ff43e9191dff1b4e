//! The work on an exchange, which its owner polls until the response.

use std::{
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::task::TaskTracker;

use super::ExchangeResponse;
use portcullis_chain::{Party, Weight, in_hand, in_turns};
use portcullis_foundation::fair_tasks::FairTasks;

/// The work on an exchange: a future with the response. The response is missing only if the work
/// panicked, or the process is ending.
///
/// INVARIANT: every exchange reaches its end, so that it is recorded, unless the work panics. If its
/// owner drops the work before the response, the work continues on a task of its own.
pub struct ExchangeWork {
    state: State,
    turns: Option<(Party, Weight)>,
    tasks: FairTasks<Party>,
}

enum State {
    /// Polled by the owner: no task, no channel and no other thread between them.
    Inline(BoxFuture<'static, Option<ExchangeResponse>>),
    Spawned(oneshot::Receiver<Option<ExchangeResponse>>),
    Over,
}

impl ExchangeWork {
    /// Work on a message of this weight, for a task of its own in `tasks`. `count` counts it until
    /// its end.
    pub(super) fn new(
        work: impl Future<Output = ExchangeResponse> + Send + 'static,
        party: Party,
        weight: Weight,
        tasks: FairTasks<Party>,
        count: &TaskTracker,
    ) -> Self {
        let counted = count.token();
        // A panic ends this exchange, and not those of its owner.
        let work = AssertUnwindSafe(work).catch_unwind().map(move |ended| {
            drop(counted);
            ended.ok()
        });
        Self { state: State::Inline(work.boxed()), turns: Some((party, weight)), tasks }
    }

    /// Moves the work to a task of its own, so that it advances while its owner does something else.
    pub fn spawn(&mut self) {
        // Without a runtime, the process is ending.
        if Handle::try_current().is_err() {
            return;
        }
        self.state = match (mem::replace(&mut self.state, State::Over), self.turns.take()) {
            (State::Inline(work), Some((party, weight))) => {
                let (done, response) = oneshot::channel();
                let payer = party.clone();
                self.tasks.spawn(move || payer.clone(), async move {
                    // Its owner may have stopped waiting.
                    let _ = done.send(in_turns(party, weight, work).await);
                });
                State::Spawned(response)
            }
            (state, _) => state,
        };
    }
}

impl Future for ExchangeWork {
    type Output = Option<ExchangeResponse>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let response = match &mut this.state {
            State::Inline(work) => {
                let polled = work.as_mut().poll(context);
                // Where the work is spawned, the weight of its texts so far is not known.
                if let Some((_, weight)) = &mut this.turns {
                    *weight = (*weight).max(in_hand());
                }
                polled
            }
            State::Spawned(task) => Pin::new(task).poll(context).map(|ended| ended.ok().flatten()),
            State::Over => Poll::Ready(None),
        };
        if response.is_ready() {
            self.state = State::Over;
        }
        response
    }
}

impl Drop for ExchangeWork {
    fn drop(&mut self) {
        // A task that was spawned before continues by itself.
        self.spawn();
    }
}
