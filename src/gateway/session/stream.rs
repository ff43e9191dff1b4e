//! A stream of messages to a client: a bounded queue with one reader.
//!
//! INVARIANT: a reader is disconnected if it reads nothing for [`PATIENCE`], or falls behind
//! messages that cannot wait. Only its own call waits for it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use super::budget::Budget;

/// Limit of events that a stream keeps.
pub(super) const EVENTS: usize = 256;
/// Limit of bytes that a stream keeps. A single event may be larger.
pub(super) const BYTES: usize = 1 << 20;
/// Time for which a message may wait for a slow reader.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time for which a stream without a reader is kept.
const KEPT: Duration = Duration::from_secs(60);
/// Number of a session's stream for messages that belong to no request.
pub(super) const OWN: u64 = 0;

/// A stream.
pub struct Stream {
    pub(super) number: u64,
    /// Present if the stream can be resumed.
    budget: Option<Arc<Budget>>,
    patience: Duration,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

struct State {
    /// Kept events: the sent ones, then the unsent ones.
    events: VecDeque<BufferedEvent>,
    /// Number of the first kept event.
    first: u64,
    /// Number of the event to send next.
    next: u64,
    /// Unsent bytes.
    waiting: usize,
    /// Bytes charged to the budget.
    charged: usize,
    ended: bool,
    /// Number of the present reader; earlier ones end.
    reader: u64,
    has_reader: bool,
    /// Time since which there is no reader.
    since: Instant,
}

/// An event.
struct BufferedEvent {
    /// Empty after it was sent, if it is not kept for a resumption.
    text: Option<Bytes>,
    /// Bytes charged to the budget for it.
    charged: usize,
}

/// Error: a reader read nothing for too long.
#[derive(Debug, PartialEq, Eq)]
pub struct TooSlow;

impl Stream {
    /// A stream that ends with its reader.
    pub fn unresumable() -> Arc<Self> {
        Arc::new(Self::new(OWN, None))
    }

    pub(super) fn new(number: u64, budget: Option<Arc<Budget>>) -> Self {
        let state = State {
            events: VecDeque::new(),
            first: 1,
            next: 1,
            waiting: 0,
            charged: 0,
            ended: false,
            reader: 0,
            has_reader: false,
            since: Instant::now(),
        };
        let (state, changes) = (Mutex::new(state), watch::Sender::new(()));
        Self { number, budget, patience: PATIENCE, state, changes }
    }

    /// Sends a message. The oldest events are dropped to make room; a reader that did not have them
    /// yet is disconnected.
    pub fn push(&self, text: Bytes) {
        self.add(&mut self.state.lock(), text);
        self.changes.send_replace(());
    }

    /// Sends a message when the reader has made enough room.
    ///
    /// # Errors
    /// [`TooSlow`] if the reader read nothing for too long. If the stream can be resumed, the
    /// reader is disconnected instead, and the message is kept.
    pub async fn send(&self, text: Bytes) -> Result<(), TooSlow> {
        let mut changes = self.changes.subscribe();
        let mut read = None;
        loop {
            {
                let mut state = self.state.lock();
                let room = state.unread() < EVENTS && state.waiting <= BYTES;
                if room || !state.has_reader {
                    self.add(&mut state, text);
                    break;
                }
                if read == Some(state.next) {
                    if self.budget.is_none() {
                        return Err(TooSlow);
                    }
                    state.cut_off();
                    self.add(&mut state, text);
                    break;
                }
                read = Some(state.next);
            }
            let taken = async {
                while changes.changed().await.is_ok() {
                    let state = self.state.lock();
                    if !state.has_reader || Some(state.next) != read {
                        break;
                    }
                }
            };
            let _ = timeout(self.patience, taken).await;
        }
        self.changes.send_replace(());
        Ok(())
    }

    fn add(&self, state: &mut State, text: Bytes) {
        if state.ended {
            return;
        }
        let (bytes, budget) = (text.len(), self.budget.as_deref());
        loop {
            let behind = state.unread() >= EVENTS || state.waiting > BYTES;
            let full = behind || state.events.len() >= EVENTS || state.charged + bytes > BYTES;
            // Sent events go first; unsent ones if there is no reader or it is behind.
            let dispensable = state.first < state.next || !state.has_reader || behind;
            if !(full && dispensable && state.forget_first(budget)) {
                break;
            }
        }
        let mut charged = self.charge(state, bytes);
        while charged < bytes && !state.has_reader && state.forget_first(budget) {
            charged = self.charge(state, bytes);
        }
        state.charged += charged;
        state.waiting += bytes;
        state.events.push_back(BufferedEvent { text: Some(text), charged });
    }

    /// The charge for these bytes: all, or nothing if the budget is exhausted.
    fn charge(&self, state: &State, bytes: usize) -> usize {
        let room = state.charged + bytes <= BYTES;
        let taken = room && self.budget.as_ref().is_some_and(|budget| budget.take(bytes));
        if taken { bytes } else { 0 }
    }

    /// Sends the event without a message that gives the client an id to resume from.
    pub fn prime(&self) {
        self.push(Bytes::new());
    }

    /// Sends a response regardless of waiting events: its text holds its principal's permit, which
    /// limits their number.
    pub fn answer(&self, text: Bytes) {
        let mut state = self.state.lock();
        if !state.ended {
            state.waiting += text.len();
            state.events.push_back(BufferedEvent { text: Some(text), charged: 0 });
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Ends the stream.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if !state.ended {
            state.ended = true;
            if !state.has_reader {
                state.since = Instant::now();
            }
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Reads the unsent events, replacing the present reader.
    pub fn read(self: &Arc<Self>) -> Reader {
        self.reader(&mut self.state.lock())
    }

    /// Reads the events from now on, replacing the present reader.
    pub fn join(self: &Arc<Self>) -> Reader {
        let mut state = self.state.lock();
        state.next = state.end();
        state.waiting = 0;
        self.reader(&mut state)
    }

    /// Whether this was the last event of the stream, which has ended.
    pub(super) fn ended_with(&self, last: u64) -> bool {
        let state = self.state.lock();
        state.ended && last.checked_add(1) == Some(state.end())
    }

    /// Reads the events after this one again.
    pub(super) fn resume(self: &Arc<Self>, last: u64) -> Option<Reader> {
        let mut state = self.state.lock();
        if last >= state.end() || state.reader == 0 {
            return None;
        }
        let from = (last + 1).max(state.first);
        let rest = state.events.iter().skip(usize::try_from(from - state.first).ok()?);
        let (mut waiting, mut lost) = (0, from > last + 1);
        for event in rest.clone() {
            match &event.text {
                Some(text) => waiting += text.len(),
                None => lost = true,
            }
        }
        if lost {
            // An ended stream is useless without its last event.
            if state.ended && rest.last().is_none_or(|event| event.text.is_none()) {
                return None;
            }
            tracing::info!(stream = self.number, "stream resumed with events missing");
        }
        state.next = from;
        state.waiting = waiting;
        Some(self.reader(&mut state))
    }

    fn reader(self: &Arc<Self>, state: &mut State) -> Reader {
        state.reader += 1;
        state.has_reader = true;
        let reader = Reader {
            stream: self.clone(),
            number: state.reader,
            changes: self.changes.subscribe(),
        };
        self.changes.send_replace(());
        reader
    }

    /// Whether the stream has a reader, or may get one again.
    pub fn has_reader(&self) -> bool {
        let state = self.state.lock();
        let comes_back = self.budget.is_some() && state.reader > 0 && state.since.elapsed() < KEPT;
        !state.ended && (state.has_reader || comes_back)
    }

    /// Completes when the reader is gone.
    pub async fn disconnected(&self) {
        let mut changes = self.changes.subscribe();
        while self.state.lock().has_reader {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Time since which the stream has no reader; `None` if it has one.
    pub(super) fn unread_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (!state.has_reader).then_some(state.since)
    }

    /// Whether no further events will follow.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Whether it has ended and cannot be resumed any more.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended && !state.has_reader && state.since.elapsed() >= KEPT
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.release(self.state.get_mut().charged);
        }
    }
}

impl State {
    /// The number after the last event.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn unread(&self) -> usize {
        to_index(self.end() - self.next.max(self.first))
    }

    fn forget_first(&mut self, budget: Option<&Budget>) -> bool {
        let Some(event) = self.events.pop_front() else { return false };
        if self.first >= self.next {
            self.waiting -= event.text.as_ref().map_or(0, Bytes::len);
        }
        self.first += 1;
        self.charged -= event.charged;
        if let Some(budget) = budget {
            budget.release(event.charged);
        }
        true
    }

    fn cut_off(&mut self) {
        tracing::warn!("client reads too slowly; closing the connection");
        self.reader += 1;
        self.has_reader = false;
        self.since = Instant::now();
    }
}

/// Reader of a stream.
pub struct Reader {
    stream: Arc<Stream>,
    number: u64,
    changes: watch::Receiver<()>,
}

/// A message of a stream, or the empty text that gives a client an id to resume from.
#[derive(Debug)]
pub struct Event {
    /// Present if the stream can be resumed.
    pub id: Option<String>,
    pub text: Bytes,
}

impl Reader {
    /// The next event; `None` if the stream has ended, has another reader, or was too fast.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            self.changes.borrow_and_update();
            match self.next_event() {
                NextEvent::Event(event) => return Some(event),
                NextEvent::Over => return None,
                NextEvent::Wait => {}
            }
            if self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    fn next_event(&mut self) -> NextEvent {
        let stream = &self.stream;
        let mut guard = stream.state.lock();
        let state = &mut *guard;
        if state.reader != self.number {
            return NextEvent::Over;
        }
        if state.next < state.first {
            state.cut_off();
            return NextEvent::Over;
        }
        let rest = to_index(state.next - state.first);
        let found = state.events.iter_mut().enumerate().skip(rest);
        let mut found = found.filter_map(|(at, event)| Some((at, event.text.take()?, event)));
        let Some((at, text, event)) = found.next() else {
            return if state.ended { NextEvent::Over } else { NextEvent::Wait };
        };
        let number = state.first + at as u64;
        state.next = number + 1;
        state.waiting -= text.len();
        if event.charged == text.len() {
            event.text = Some(text.clone());
        } else {
            // Sent events give way to it.
            let (bytes, budget) = (text.len(), stream.budget.as_deref());
            while bytes <= BYTES
                && state.charged + bytes > BYTES
                && state.first < number
                && state.forget_first(budget)
            {}
            let charged = stream.charge(state, bytes);
            state.charged += charged;
            if charged > 0
                && let Some(event) = state.events.get_mut(to_index(number - state.first))
            {
                // A copy, since the response holds its principal's permit.
                *event = BufferedEvent { text: Some(Bytes::copy_from_slice(&text)), charged };
            }
        }
        if stream.budget.is_none() {
            while state.first < state.next && state.forget_first(None) {}
        }
        drop(guard);
        stream.changes.send_replace(());
        let id = stream.budget.as_ref().map(|_| format!("{:x}-{number}", stream.number));
        NextEvent::Event(Event { id, text })
    }
}

/// A difference of numbers as an index, or an index beyond all kept events.
fn to_index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

enum NextEvent {
    Event(Event),
    Wait,
    Over,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.stream.state.lock();
        if state.reader == self.number {
            state.has_reader = false;
            state.since = Instant::now();
            drop(state);
            self.stream.changes.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[tokio::test]
    async fn stalled_reader_is_waited_for_with_a_deadline() {
        let hasty = |number, budget| {
            let mut stream = Stream::new(number, budget);
            stream.patience = Duration::from_millis(1);
            Arc::new(stream)
        };
        let budget = Some(Arc::new(Budget::default()));
        for (stream, resumable) in [(hasty(OWN, None), false), (hasty(1, budget), true)] {
            let mut reader = stream.read();
            let mut sent = 0;
            while sent < 2 * EVENTS {
                if stream.state.lock().unread() == EVENTS {
                    reader.next().await.unwrap();
                }
                stream.send(text("x")).await.unwrap();
                sent += 1;
            }
            if resumable {
                stream.send(text("x")).await.unwrap();
                stream.disconnected().await;
                assert!(reader.next().await.is_none());
            } else {
                assert_eq!(stream.send(text("x")).await, Err(TooSlow));
                assert!(reader.next().await.is_some());
            }
        }
    }

    #[tokio::test]
    async fn slow_reader_gets_every_event() {
        let budget = Arc::new(Budget::default());
        let stream = Arc::new(Stream::new(1, Some(budget)));
        let mut reader = stream.read();
        let sent = tokio::spawn(async move {
            for n in 0..10_u8 {
                stream.send(Bytes::from(vec![n; BYTES * 2 / 3])).await.unwrap();
            }
            stream.answer(Bytes::from(vec![10; 3 * BYTES]));
            stream.end();
        });
        for n in 0..=10 {
            assert_eq!(reader.next().await.unwrap().text[0], n);
        }
        assert!(reader.next().await.is_none());
        sent.await.unwrap();
    }
}
