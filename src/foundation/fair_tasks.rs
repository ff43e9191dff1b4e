//! Tasks of many parties on one async runtime, which get processor time in equal parts.
//!
//! A runtime of tokio polls its tasks in the order in which they were woken. A client with a hundred
//! connections then gets a hundred times the processor time of a client with one, if there is not
//! enough for both. Here the next task is one of the party that has used the least time (start-time
//! fair queueing). A party that was idle starts with the time of the one that is served now: it
//! neither pays for its past nor saves time for later.
//!
//! A few tasks of the runtime, the pumps, poll all tasks here. A task that wakes itself while it is
//! polled is polled again at once. The runtime would queue it and wake another worker for it, which
//! costs two system calls and a change of the processor.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::poll_fn,
    hash::Hash,
    mem,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
};

/// Polls of a task in a row, after which another one has its turn.
const POLLS: usize = 8;
/// Idle parties that are kept at least.
const KEPT: usize = 64;

/// Tasks of the parties `K`. Dropping the last clone ends all tasks.
#[derive(Clone)]
pub struct FairTasks<K: Key> {
    owner: Arc<Owner<K>>,
}

/// A party, by which tasks are grouped.
pub trait Key: Clone + Eq + Hash + Send + Sync + 'static {}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Key for K {}

/// Ends all tasks on drop.
struct Owner<K: Key>(Arc<Shared<K>>);

struct Shared<K: Key> {
    state: Mutex<State<K>>,
    /// Number of tasks of the runtime that poll.
    pumps: usize,
}

struct State<K: Key> {
    // Found twelve times for a request.
    parties: HashMap<K, Party<K>, ahash::RandomState>,
    /// Parties with woken tasks, by the time that they have used.
    order: BTreeMap<Place, K>,
    /// Number of the next place.
    places: u64,
    /// Time of the party that was served last.
    clock: u64,
    /// Number of parties at which the idle ones are dropped, with what they used.
    full: usize,
    /// The pumps without work.
    idle: Vec<IdlePump>,
    /// Number of pumps that have not ended.
    running: usize,
    /// Whether all tasks have ended for good.
    closed: bool,
    /// All tasks by number, to end them.
    tasks: HashMap<u64, Arc<Task<K>>>,
    next: u64,
}

/// A pump that waits for a woken task.
struct IdlePump {
    number: usize,
    waker: Waker,
    /// See [`Pump::event`].
    event: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl IdlePump {
    fn wake(self) {
        match self.event {
            // The counter of an event cannot overflow: a pump is woken once each time it is idle.
            Some(event) if Handle::try_current().is_err() => {
                if rustix::io::write(event.get_ref(), &1_u64.to_ne_bytes()).is_err() {
                    self.waker.wake();
                }
            }
            _ => self.waker.wake(),
        }
    }
}

/// Time used, in nanoseconds, and a number that is unique and decides between equal times.
type Place = (u64, u64);

/// A party with woken tasks, or one that had some.
struct Party<K: Key> {
    used: u64,
    /// Its place in [`State::order`], if it has woken tasks.
    place: Option<Place>,
    woken: VecDeque<Arc<Task<K>>>,
}

impl<K: Key> Party<K> {
    fn new(used: u64) -> Self {
        Self { used, place: None, woken: VecDeque::new() }
    }
}

/// A task. Its waker is the task itself.
struct Task<K: Key> {
    number: u64,
    shared: Weak<Shared<K>>,
    party: Box<dyn Fn() -> K + Send + Sync>,
    phase: AtomicU8,
    future: Mutex<Option<Work>>,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Phases of a task.
mod phase {
    /// Waits for a wake.
    pub const WAITING: u8 = 0;
    /// Waits for its turn.
    pub const QUEUED: u8 = 1;
    pub const POLLED: u8 = 2;
    /// Polled, and woken since.
    pub const WOKEN: u8 = 3;
    pub const ENDED: u8 = 4;
}

impl<K: Key> FairTasks<K> {
    /// Tasks that are polled by at most this number of threads at once.
    pub fn new(pumps: usize) -> Self {
        let state = State {
            parties: HashMap::default(),
            order: BTreeMap::new(),
            places: 0,
            clock: 0,
            full: KEPT,
            idle: Vec::new(),
            running: 0,
            closed: false,
            tasks: HashMap::new(),
            next: 0,
        };
        let shared = Shared { state: Mutex::new(state), pumps: pumps.max(1) };
        Self { owner: Arc::new(Owner(Arc::new(shared))) }
    }

    /// Runs `work` on the current runtime. `party` names the party that each of its turns is charged
    /// to. A panic ends the task alone.
    ///
    /// # Panics
    /// Outside of a runtime, if it is the first task.
    pub fn spawn(
        &self,
        party: impl Fn() -> K + Send + Sync + 'static,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let shared = &self.owner.0;
        let mut state = shared.state.lock();
        let missing = state.running..shared.pumps;
        state.running = shared.pumps;
        let number = state.next;
        state.next += 1;
        let task = Arc::new(Task {
            number,
            shared: Arc::downgrade(shared),
            party: Box::new(party),
            phase: AtomicU8::new(phase::WAITING),
            future: Mutex::new(Some(Box::pin(work))),
        });
        state.tasks.insert(number, task.clone());
        drop(state);
        // Without the lock: a runtime that is ending drops them at once.
        missing.for_each(|pump| drop(Handle::current().spawn(Pump::new(pump, shared).run())));
        task.wake();
    }
}

impl<K: Key> Drop for Owner<K> {
    fn drop(&mut self) {
        self.0.end_all();
        let mut state = self.0.state.lock();
        state.closed = true;
        let idle = mem::take(&mut state.idle);
        drop(state);
        idle.into_iter().for_each(IdlePump::wake);
    }
}

impl<K: Key> Shared<K> {
    /// Queues a woken task, and wakes a pump for it.
    fn push(&self, task: Arc<Task<K>>) {
        // Outside the lock: it is code of others.
        let party = (task.party)();
        let mut state = self.state.lock();
        state.push(party, task);
        let pump = state.idle.pop();
        drop(state);
        if let Some(pump) = pump {
            pump.wake();
        }
    }

    /// Ends all tasks: their futures are dropped.
    fn end_all(&self) {
        let tasks = mem::take(&mut self.state.lock().tasks);
        for task in tasks.into_values() {
            task.phase.store(phase::ENDED, Ordering::Release);
            // If the task is being polled, also by the caller, its poll ends it.
            task.end();
        }
    }
}

impl<K: Key> State<K> {
    fn push(&mut self, key: K, task: Arc<Task<K>>) {
        if self.parties.len() >= self.full {
            self.parties.retain(|_, party| party.place.is_some());
            // At twice the kept ones, so that a sweep costs little per new party.
            self.full = KEPT.max(2 * self.parties.len());
        }
        let party = self.parties.entry(key.clone()).or_insert_with(|| Party::new(0));
        party.woken.push_back(task);
        if party.place.is_none() {
            party.used = party.used.max(self.clock);
            let place = (party.used, self.places);
            self.places += 1;
            party.place = Some(place);
            self.order.insert(place, key);
        }
    }

    /// The next task, and its party.
    fn pop(&mut self) -> Option<(K, Arc<Task<K>>)> {
        let (place, key) = self.order.pop_first()?;
        self.clock = self.clock.max(place.0);
        let party = self.parties.get_mut(&key)?;
        let task = party.woken.pop_front();
        party.place = (!party.woken.is_empty()).then_some(place);
        if party.place.is_some() {
            self.order.insert(place, key.clone());
        }
        Some((key, task?))
    }

    /// Adds the nanoseconds of a turn to what its party has used.
    fn charge(&mut self, key: &K, time: u64) {
        // A party without further tasks may have been dropped since.
        let clock = self.clock;
        let party = match self.parties.get_mut(key) {
            Some(party) => party,
            None => self.parties.entry(key.clone()).or_insert(Party::new(clock)),
        };
        party.used = party.used.saturating_add(time);
        if self.order.is_empty() {
            // There is enough for all.
            self.clock = clock.max(party.used);
        }
        if let Some(place) = &mut party.place
            && let Some(key) = self.order.remove(place)
        {
            place.0 = party.used;
            self.order.insert(*place, key);
        }
    }
}

impl<K: Key> Task<K> {
    /// Polls the task in its turn.
    fn poll(self: &Arc<Self>) {
        let mut slot = self.future.lock();
        let waker = Waker::from(self.clone());
        let mut context = Context::from_waker(&waker);
        let mut from = phase::QUEUED;
        for _ in 0..POLLS {
            let Some(future) = slot.as_mut() else { return };
            if !self.change(from, phase::POLLED) {
                break;
            }
            // The hook for panics logs it.
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
            if !matches!(polled, Ok(Poll::Pending)) {
                self.phase.store(phase::ENDED, Ordering::Release);
            }
            if self.change(phase::POLLED, phase::WAITING) {
                drop(slot);
                fence(Ordering::SeqCst);
                if self.phase.load(Ordering::Acquire) == phase::ENDED {
                    self.end();
                }
                return;
            }
            from = phase::WOKEN;
        }
        if self.change(phase::WOKEN, phase::QUEUED) {
            drop(slot);
            if let Some(shared) = self.shared.upgrade() {
                shared.push(self.clone());
            }
            return;
        }
        // It has ended, now or by `end_all`.
        drop(slot);
        self.end();
        if let Some(shared) = self.shared.upgrade() {
            let ended = shared.state.lock().tasks.remove(&self.number);
            drop(ended);
        }
    }

    /// Drops the future, unless another thread has it: then that thread sees the end after it has
    /// released the future.
    fn end(&self) {
        fence(Ordering::SeqCst);
        let future = self.future.try_lock().and_then(|mut future| future.take());
        // The hook for panics logs it.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<K: Key> Wake for Task<K> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        loop {
            match self.phase.load(Ordering::Acquire) {
                phase::WAITING => {
                    if self.change(phase::WAITING, phase::QUEUED) {
                        if let Some(shared) = self.shared.upgrade() {
                            shared.push(self.clone());
                        }
                        return;
                    }
                }
                phase::POLLED => {
                    if self.change(phase::POLLED, phase::WOKEN) {
                        return;
                    }
                }
                // The next poll must see what happened before this wake-up, so the phase is written.
                same @ (phase::QUEUED | phase::WOKEN) => {
                    if self.change(same, same) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

/// Polls the tasks in their turns.
struct Pump<K: Key> {
    number: usize,
    shared: Weak<Shared<K>>,
    /// Wakes the pump from threads outside of the runtime, through the worker that waits for events.
    /// The runtime itself would wake another worker, which would wake a third one to look for more
    /// work. `None` without an event, as when the process has no file descriptors left.
    event: Option<Arc<AsyncFd<OwnedFd>>>,
}

/// A new event of the current runtime.
#[expect(unsafe_code, reason = "tokio registers descriptors only with a promise about them")]
fn event() -> Option<AsyncFd<OwnedFd>> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    // SAFETY: `AsyncFd` owns the descriptor, and an `OwnedFd` is open and the same until its drop.
    // Tested by `no_wake_from_outside_of_the_runtime_is_lost`.
    unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.ok()
}

impl<K: Key> Pump<K> {
    fn new(number: usize, shared: &Arc<Shared<K>>) -> Self {
        Self { number, shared: Arc::downgrade(shared), event: event().map(Arc::new) }
    }

    /// Ends when all tasks have ended for good.
    async fn run(self) {
        poll_fn(|context| self.turn(context)).await;
    }

    /// Polls one task, so that the runtime can poll its other tasks and read its events.
    fn turn(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else { return Poll::Ready(()) };
        let mut state = shared.state.lock();
        if state.closed {
            return Poll::Ready(());
        }
        state.idle.retain(|idle| idle.number != self.number);
        let turn = state.pop();
        drop(state);
        if let Some((party, task)) = turn {
            let start = Instant::now();
            task.poll();
            let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            shared.state.lock().charge(&party, time);
        }
        self.wait(&shared, context);
        Poll::Pending
    }

    /// Waits for a woken task.
    fn wait(&self, shared: &Shared<K>, context: &mut Context<'_>) {
        // Before it counts as idle: an event that is cleared here is of an earlier wake.
        if let Some(event) = &self.event {
            while let Poll::Ready(Ok(mut ready)) = event.poll_read_ready(context) {
                ready.clear_ready();
            }
        }
        let waker = context.waker();
        let mut state = shared.state.lock();
        if state.order.is_empty() && !state.closed {
            let (number, waker, event) = (self.number, waker.clone(), self.event.clone());
            state.idle.push(IdlePump { number, waker, event });
        } else {
            drop(state);
            waker.wake_by_ref();
        }
    }
}

impl<K: Key> Drop for Pump<K> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.state.lock();
        state.running = state.running.saturating_sub(1);
        let last = state.running == 0;
        drop(state);
        // The runtime is ending. Its own tasks would be dropped now, too.
        if last {
            shared.end_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use tokio::{
        runtime::{Builder, Runtime},
        sync::{mpsc, oneshot},
    };

    use super::*;

    fn threads(workers: usize) -> Runtime {
        Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap()
    }

    /// A task that does nothing.
    fn task<K: Key>(tasks: &FairTasks<K>, party: K) -> Arc<Task<K>> {
        Arc::new(Task {
            number: 0,
            shared: Arc::downgrade(&tasks.owner.0),
            party: Box::new(move || party.clone()),
            phase: AtomicU8::new(phase::QUEUED),
            future: Mutex::new(None),
        })
    }

    #[test]
    fn party_with_much_work_does_not_delay_others() {
        let tasks = FairTasks::new(1);
        let mut state = tasks.owner.0.state.lock();
        for _ in 0..100 {
            state.push("flood", task(&tasks, "flood"));
        }
        let mut order = Vec::new();
        for turn in 0..30 {
            // Others have one task each, which is woken again two turns after its last one.
            if turn % 3 == 0 {
                state.push("a", task(&tasks, "a"));
                state.push("b", task(&tasks, "b"));
            }
            let (party, _) = state.pop().unwrap();
            state.charge(&party, 10);
            order.push(party);
        }
        let count = |name| order.iter().filter(|party| **party == name).count();
        assert_eq!([count("a"), count("b"), count("flood")], [10, 10, 10], "{order:?}");
    }

    #[test]
    fn time_is_what_is_shared() {
        let tasks = FairTasks::new(1);
        let mut state = tasks.owner.0.state.lock();
        for _ in 0..100 {
            state.push("long", task(&tasks, "long"));
            state.push("short", task(&tasks, "short"));
        }
        let mut count = HashMap::<_, usize>::new();
        for _ in 0..44 {
            let (party, _) = state.pop().unwrap();
            state.charge(&party, if party == "long" { 100 } else { 10 });
            *count.entry(party).or_default() += 1;
        }
        assert_eq!([count["long"], count["short"]], [4, 40]);
    }

    #[test]
    fn idle_party_neither_saves_nor_owes_time() {
        let tasks = FairTasks::new(1);
        let mut state = tasks.owner.0.state.lock();
        let mut turns = |parties: &[&'static str], turns: usize| -> Vec<&'static str> {
            for &party in parties {
                state.push(party, task(&tasks, party));
            }
            let turns = (0..turns).map(|_| {
                let (party, _) = state.pop().unwrap();
                state.charge(&party, 10);
                party
            });
            turns.collect()
        };
        assert_eq!(turns(&["busy"; 5], 5), ["busy"; 5]);
        // The late one gets every other turn, not three turns at once.
        assert_eq!(
            turns(&["busy", "busy", "late", "late", "late"], 5),
            ["busy", "late", "busy", "late", "late"]
        );
    }

    #[test]
    fn idle_parties_are_dropped() {
        let tasks = FairTasks::new(1);
        let mut state = tasks.owner.0.state.lock();
        for _ in 0..100 * KEPT {
            state.push("one", task(&tasks, "one"));
            let (party, _) = state.pop().unwrap();
            state.charge(&party, 1);
        }
        assert_eq!(state.parties.len(), 1);
        drop(state);
        let tasks = FairTasks::new(1);
        let mut state = tasks.owner.0.state.lock();
        for party in 0..100 * KEPT {
            state.push(party, task(&tasks, party));
            let (party, _) = state.pop().unwrap();
            state.charge(&party, 1);
            assert!(state.parties.len() <= 2 * KEPT, "{}", state.parties.len());
        }
    }

    #[test]
    fn task_that_wakes_itself_is_polled_again_at_once() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = FairTasks::new(1);
            let (done, polls) = oneshot::channel();
            let mut done = Some(done);
            let mut polls_so_far = 0;
            let work = poll_fn(move |context| {
                polls_so_far += 1;
                if polls_so_far < 3 * POLLS {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let _ = done.take().unwrap().send(polls_so_far);
                Poll::Ready(())
            });
            tasks.spawn(|| (), work);
            assert_eq!(polls.await, Ok(3 * POLLS));
        });
    }

    #[test]
    fn no_wake_of_another_thread_is_lost() {
        threads(3).block_on(async {
            let tasks = FairTasks::new(2);
            let mut echoes = Vec::new();
            for party in 0..4 {
                let (ask, mut asked) = mpsc::channel::<u32>(1);
                let (reply, mut replies) = mpsc::channel::<u32>(1);
                tasks.spawn(move || party, async move {
                    while let Some(number) = asked.recv().await {
                        reply.send(number).await.unwrap();
                    }
                });
                echoes.push(tokio::spawn(async move {
                    for number in 0..5_000 {
                        ask.send(number).await.unwrap();
                        assert_eq!(replies.recv().await, Some(number));
                    }
                }));
            }
            for echo in echoes {
                echo.await.unwrap();
            }
        });
    }

    #[test]
    fn no_wake_from_outside_of_the_runtime_is_lost() {
        let (ask, asked) = std::sync::mpsc::channel::<oneshot::Sender<u32>>();
        let answers = thread::spawn(move || {
            for (number, reply) in (0..).zip(asked) {
                reply.send(number).unwrap();
            }
        });
        threads(2).block_on(async {
            let tasks = FairTasks::new(2);
            let mut ended = Vec::new();
            for party in 0..3 {
                let (ask, (end, done)) = (ask.clone(), oneshot::channel());
                ended.push(done);
                tasks.spawn(move || party, async move {
                    for _ in 0..5_000 {
                        let (reply, answer) = oneshot::channel();
                        ask.send(reply).unwrap();
                        answer.await.unwrap();
                    }
                    end.send(()).unwrap();
                });
            }
            for done in ended {
                done.await.unwrap();
            }
        });
        drop(ask);
        answers.join().unwrap();
    }

    #[test]
    fn panic_ends_one_task() {
        threads(1).block_on(async {
            let tasks = FairTasks::new(1);
            let (held, dropped) = oneshot::channel::<()>();
            tasks.spawn(|| (), async move {
                let _held = held;
                panic!("as in a bug");
            });
            assert!(dropped.await.is_err());
            let (done, waiting) = oneshot::channel();
            tasks.spawn(|| (), async move { done.send(7).unwrap() });
            assert_eq!(waiting.await, Ok(7));
        });
    }

    #[test]
    fn tasks_end_with_their_owner_and_with_the_runtime() {
        let runtime = threads(1);
        let waiting = |tasks: &FairTasks<()>| {
            let (held, dropped) = oneshot::channel::<()>();
            tasks.spawn(|| (), async move {
                let _held = held;
                pending().await
            });
            dropped
        };
        let mut later = None;
        runtime.block_on(async {
            let tasks = FairTasks::new(1);
            let ended = waiting(&tasks);
            drop(tasks.clone());
            drop(tasks);
            assert!(ended.await.is_err());
            let tasks = FairTasks::new(1);
            // Its tasks own it: only the end of the runtime ends them.
            later = Some(waiting(&tasks));
            tasks.clone().spawn(|| (), async move {
                let _tasks = tasks;
                pending().await
            });
        });
        let mut dropped = later.unwrap();
        assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(runtime);
        assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn owner_can_be_dropped_by_its_last_task() {
        threads(1).block_on(async {
            let tasks = FairTasks::new(1);
            let (held, dropped) = oneshot::channel::<()>();
            let (go, gone) = oneshot::channel::<()>();
            let own = tasks.clone();
            tasks.spawn(|| (), async move {
                let _held = held;
                let _ = gone.await;
                drop(own);
                pending().await
            });
            drop(tasks);
            go.send(()).unwrap();
            assert!(dropped.await.is_err());
        });
    }

    #[test]
    fn heavy_poll_holds_up_no_other_task() {
        threads(1).block_on(async {
            let tasks = FairTasks::new(2);
            let (done, mut waiting) = (Arc::new(AtomicUsize::new(0)), Vec::new());
            let (release, released) = std::sync::mpsc::channel::<()>();
            let (begun, started) = oneshot::channel();
            tasks.spawn(|| "heavy", async move {
                begun.send(()).unwrap();
                tokio::task::block_in_place(|| released.recv().unwrap());
            });
            started.await.unwrap();
            for _ in 0..10 {
                let (done, (end, ended)) = (done.clone(), oneshot::channel());
                waiting.push(ended);
                tasks.spawn(|| "light", async move {
                    done.fetch_add(1, Ordering::Relaxed);
                    end.send(thread::current().id()).unwrap();
                });
            }
            for ended in waiting {
                ended.await.unwrap();
            }
            assert_eq!(done.load(Ordering::Relaxed), 10);
            release.send(()).unwrap();
        });
    }
}
