//! Streams of messages to a client, each a bounded queue with one reader.
//!
//! Those of a legacy session outlive their reader for a while: what was sent last and what is not
//! sent yet is kept, so that a client whose connection broke can go on where it was
//! (`Last-Event-ID`, revision 2025-11-25). What is kept is bounded in events, bytes and time for
//! each stream, and in bytes for each principal over all its sessions.
//!
//! INVARIANT: a reader that takes nothing for [`PATIENCE`], or falls behind what cannot wait, is cut
//! off. Nobody but its own call waits for it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::refusal::{Code, Refusal};

/// Events that a stream keeps.
const EVENTS: usize = 256;
/// Bytes that a stream keeps. One event may have more.
const BYTES: usize = 1 << 20;
/// Bytes that all streams of one principal's sessions keep.
const BUDGET: usize = 16 << 20;
/// How long a message may wait for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a stream is kept that has no reader.
const KEPT: Duration = Duration::from_secs(60);
/// Streams that a session keeps after their end.
const STREAMS: usize = 64;
/// The stream that a session has for what belongs to none of its requests.
const OWN: u64 = 0;

/// Bytes that may be kept for one principal.
#[derive(Debug, Default)]
pub struct Budget(AtomicUsize);

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        self.0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= BUDGET)
            })
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The streams of one session.
pub struct Streams {
    budget: Arc<Budget>,
    own: Arc<Stream>,
    of_requests: Mutex<OfRequests>,
}

#[derive(Default)]
struct OfRequests {
    last: u64,
    streams: BTreeMap<u64, Arc<Stream>>,
}

impl Streams {
    /// A session's streams, of which nothing is sent yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        let own = Arc::new(Stream::new(OWN, Some(budget.clone())));
        Self { budget, own, of_requests: Mutex::default() }
    }

    /// The budget that they share.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The stream for what belongs to no request.
    pub fn own(&self) -> &Arc<Stream> {
        &self.own
    }

    /// A new stream, for the answers to one POST.
    pub fn open(&self) -> Arc<Stream> {
        let mut all = self.of_requests.lock();
        all.last += 1;
        let stream = Arc::new(Stream::new(all.last, Some(self.budget.clone())));
        let number = stream.number;
        all.streams.insert(number, stream.clone());
        sweep(&mut all.streams);
        stream
    }

    /// The rest of the stream that an event's id names, from behind that event on. A reader that
    /// it still has ends.
    ///
    /// # Errors
    /// A refusal where the id is none of this session's, or its stream is not kept any more.
    pub fn resume(&self, last: &str) -> Result<Reader, Refusal> {
        let gone = || {
            Refusal::new(Code::InvalidRequest, "the stream that `Last-Event-ID` names is not kept")
        };
        let (number, event) = last.split_once('-').ok_or_else(gone)?;
        let (number, event): (u64, u64) = (
            u64::from_str_radix(number, 16).map_err(|_| gone())?,
            event.parse().map_err(|_| gone())?,
        );
        let stream = match number {
            OWN => self.own.clone(),
            number => self.of_requests.lock().streams.get(&number).cloned().ok_or_else(gone)?,
        };
        stream.resume(event).ok_or_else(gone)
    }

    /// Forgets the streams that nobody came back for.
    pub fn sweep(&self) {
        sweep(&mut self.of_requests.lock().streams);
    }

    /// Ends them all.
    pub fn end(&self) {
        self.own.end();
        self.of_requests.lock().streams.clear();
    }
}

fn sweep(streams: &mut BTreeMap<u64, Arc<Stream>>) {
    streams.retain(|_, stream| !stream.is_over());
    let ended: Vec<_> =
        streams.iter().filter(|(_, s)| s.state.lock().ended).map(|(number, _)| *number).collect();
    for number in ended.iter().take(ended.len().saturating_sub(STREAMS)) {
        streams.remove(number);
    }
}

/// One stream.
pub struct Stream {
    number: u64,
    /// Of a stream that can be resumed.
    budget: Option<Arc<Budget>>,
    patience: Duration,
    state: Mutex<State>,
    news: watch::Sender<()>,
}

struct State {
    /// What is kept: what was sent, and behind it what was not.
    events: VecDeque<Kept>,
    /// The number of the first event that is kept.
    first: u64,
    /// The number of the event that is to be sent next.
    next: u64,
    /// Bytes that are not sent yet.
    waiting: usize,
    /// Bytes that the budget was charged with.
    charged: usize,
    ended: bool,
    /// The reader that the stream has, by number; earlier ones end.
    reader: u64,
    heard: bool,
    /// Since when nobody reads.
    since: Instant,
}

/// An event.
struct Kept {
    /// None once it was sent and is not kept to be sent again.
    text: Option<Bytes>,
    /// What the budget was charged with for it.
    charged: usize,
}

/// A reader took nothing for too long.
#[derive(Debug, PartialEq, Eq)]
pub struct TooSlow;

impl Stream {
    /// A stream that ends with its reader.
    pub fn fleeting() -> Arc<Self> {
        Arc::new(Self::new(OWN, None))
    }

    fn new(number: u64, budget: Option<Arc<Budget>>) -> Self {
        let state = State {
            events: VecDeque::new(),
            first: 1,
            next: 1,
            waiting: 0,
            charged: 0,
            ended: false,
            reader: 0,
            heard: false,
            since: Instant::now(),
        };
        let (state, news) = (Mutex::new(state), watch::Sender::new(()));
        Self { number, budget, patience: PATIENCE, state, news }
    }

    /// Sends a message. The oldest events are forgotten for it; a reader that did not have them
    /// yet is cut off.
    pub fn push(&self, text: Bytes) {
        self.add(&mut self.state.lock(), text);
        self.news.send_replace(());
    }

    /// Sends a message, once the reader has taken enough of what waits.
    ///
    /// # Errors
    /// [`TooSlow`] where it took nothing for too long. Of a stream that can be resumed it is cut
    /// off instead, and the message is kept.
    pub async fn send(&self, text: Bytes) -> Result<(), TooSlow> {
        let mut news = self.news.subscribe();
        let mut read = None;
        loop {
            {
                let mut state = self.state.lock();
                let room = state.unread() < EVENTS && state.waiting <= BYTES;
                if room || !state.heard {
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
                while news.changed().await.is_ok() {
                    let state = self.state.lock();
                    if !state.heard || Some(state.next) != read {
                        break;
                    }
                }
            };
            let _ = timeout(self.patience, taken).await;
        }
        self.news.send_replace(());
        Ok(())
    }

    fn add(&self, state: &mut State, text: Bytes) {
        if state.ended {
            return;
        }
        let bytes = text.len();
        let charged = self.charge(bytes);
        while state.events.len() >= EVENTS || state.charged + charged > BYTES {
            if !state.forget_first(self.budget.as_deref()) {
                break;
            }
        }
        if !state.heard && charged < bytes {
            // For nobody in particular no more is kept than the budget has.
            while state.forget_first(self.budget.as_deref()) {}
        }
        state.charged += charged;
        state.waiting += bytes;
        state.events.push_back(Kept { text: Some(text), charged });
    }

    /// Charges the budget, where there is one that has enough.
    fn charge(&self, bytes: usize) -> usize {
        let taken = bytes <= BYTES && self.budget.as_ref().is_some_and(|budget| budget.take(bytes));
        if taken { bytes } else { 0 }
    }

    /// Sends the event without a message by which a client has an id to resume from.
    pub fn prime(&self) {
        self.push(Bytes::new());
    }

    /// Sends an answer, whatever waits: its text holds its principal's place, which bounds how
    /// many do.
    pub fn answer(&self, text: Bytes) {
        let mut state = self.state.lock();
        if !state.ended {
            state.waiting += text.len();
            state.events.push_back(Kept { text: Some(text), charged: 0 });
        }
        drop(state);
        self.news.send_replace(());
    }

    /// Ends the stream.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if !state.ended {
            state.ended = true;
            if !state.heard {
                state.since = Instant::now();
            }
        }
        drop(state);
        self.news.send_replace(());
    }

    /// Reads what is not sent yet, in the place of whoever read until now.
    pub fn read(self: &Arc<Self>) -> Reader {
        self.reader(&mut self.state.lock())
    }

    /// Reads what is sent from now on, in the place of whoever read until now.
    pub fn join(self: &Arc<Self>) -> Reader {
        let mut state = self.state.lock();
        state.next = state.end();
        state.waiting = 0;
        self.reader(&mut state)
    }

    /// Reads again what was sent behind an event.
    fn resume(self: &Arc<Self>, last: u64) -> Option<Reader> {
        let mut state = self.state.lock();
        if last >= state.end() || state.reader == 0 {
            return None;
        }
        let from = (last + 1).max(state.first);
        let rest = state.events.iter().skip(usize::try_from(from - state.first).ok()?);
        let (mut waiting, mut lost) = (0, from > last + 1);
        for kept in rest.clone() {
            match &kept.text {
                Some(text) => waiting += text.len(),
                None => lost = true,
            }
        }
        if lost {
            // Without its last event a stream that has ended is of no use.
            if state.ended && rest.last().is_none_or(|kept| kept.text.is_none()) {
                return None;
            }
            tracing::info!(stream = self.number, "a stream is resumed without all of its events");
        }
        state.next = from;
        state.waiting = waiting;
        Some(self.reader(&mut state))
    }

    fn reader(self: &Arc<Self>, state: &mut State) -> Reader {
        state.reader += 1;
        state.heard = true;
        let reader =
            Reader { stream: self.clone(), number: state.reader, news: self.news.subscribe() };
        self.news.send_replace(());
        reader
    }

    /// Whether somebody reads, or may come back to.
    pub fn is_heard(&self) -> bool {
        let state = self.state.lock();
        let comes_back = self.budget.is_some() && state.reader > 0 && state.since.elapsed() < KEPT;
        !state.ended && (state.heard || comes_back)
    }

    /// Done once nobody reads any more.
    pub async fn left(&self) {
        let mut news = self.news.subscribe();
        while self.state.lock().heard {
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether it has ended and nobody may come back for it any more.
    fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended && !state.heard && state.since.elapsed() >= KEPT
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.state.get_mut().charged);
        }
    }
}

impl State {
    /// The number of the event after the last.
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn unread(&self) -> usize {
        usize::try_from(self.end().saturating_sub(self.next)).unwrap_or(usize::MAX)
    }

    fn forget_first(&mut self, budget: Option<&Budget>) -> bool {
        let Some(kept) = self.events.pop_front() else { return false };
        if self.first >= self.next {
            self.waiting -= kept.text.as_ref().map_or(0, Bytes::len);
        }
        self.first += 1;
        self.charged -= kept.charged;
        if let Some(budget) = budget {
            budget.give_back(kept.charged);
        }
        true
    }

    fn cut_off(&mut self) {
        tracing::warn!("a client reads too slowly and is cut off");
        self.reader += 1;
        self.heard = false;
        self.since = Instant::now();
    }
}

/// One who reads a stream.
pub struct Reader {
    stream: Arc<Stream>,
    number: u64,
    news: watch::Receiver<()>,
}

/// A message of a stream, or the empty text that gives a client an id to resume from.
#[derive(Debug)]
pub struct Event {
    /// Of a stream that can be resumed.
    pub id: Option<String>,
    pub text: Bytes,
}

impl Reader {
    /// The next event; none where the stream has ended, is read by another, or is too fast.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            self.news.borrow_and_update();
            match self.look() {
                Look::Event(event) => return Some(event),
                Look::Over => return None,
                Look::Wait => {}
            }
            if self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    fn look(&mut self) -> Look {
        let stream = &self.stream;
        let mut guard = stream.state.lock();
        let state = &mut *guard;
        if state.reader != self.number {
            return Look::Over;
        }
        if state.next < state.first {
            state.cut_off();
            return Look::Over;
        }
        let rest = usize::try_from(state.next - state.first).unwrap_or(usize::MAX);
        let found = state.events.iter_mut().enumerate().skip(rest);
        let mut found = found.filter_map(|(at, kept)| Some((at, kept.text.take()?, kept)));
        let Some((at, text, kept)) = found.next() else {
            return if state.ended { Look::Over } else { Look::Wait };
        };
        let number = state.first + at as u64;
        state.next = number + 1;
        state.waiting -= text.len();
        if kept.charged == text.len() {
            kept.text = Some(text.clone());
        } else {
            // A copy, for the answer that is sent holds its principal's place.
            kept.charged = stream.charge(text.len());
            state.charged += kept.charged;
            if kept.charged > 0 {
                kept.text = Some(Bytes::copy_from_slice(&text));
            }
        }
        while state.first < state.next && (stream.budget.is_none() || state.charged > BYTES) {
            state.forget_first(stream.budget.as_deref());
        }
        drop(guard);
        stream.news.send_replace(());
        let id = stream.budget.as_ref().map(|_| format!("{:x}-{number}", stream.number));
        Look::Event(Event { id, text })
    }
}

enum Look {
    Event(Event),
    Wait,
    Over,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.stream.state.lock();
        if state.reader == self.number {
            state.heard = false;
            state.since = Instant::now();
            drop(state);
            self.stream.news.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    async fn drain(reader: &mut Reader) -> Vec<(String, Bytes)> {
        let mut events = Vec::new();
        while let Look::Event(event) = reader.look() {
            events.push((event.id.unwrap_or_default(), event.text));
        }
        events
    }

    #[tokio::test]
    async fn a_stream_goes_on_behind_the_last_event_that_came() {
        let streams = Streams::new(Arc::default());
        let (one, two) = (streams.open(), streams.open());
        let mut reader = one.read();
        one.prime();
        one.push(text("a"));
        two.read();
        two.push(text("x"));
        let seen = drain(&mut reader).await;
        assert_eq!(seen, [("1-1".into(), text("")), ("1-2".into(), text("a"))]);
        drop(reader);
        one.push(text("b"));
        one.answer(text("c"));
        one.end();
        for (last, rest) in [("1-1", "abc"), ("1-2", "bc"), ("1-3", "c"), ("1-4", "")] {
            let mut reader = streams.resume(last).ok().unwrap();
            let rest: Vec<_> = rest.chars().map(|c| text(&c.to_string())).collect();
            let texts: Vec<_> = drain(&mut reader).await.into_iter().map(|(_, t)| t).collect();
            assert_eq!(texts, rest, "{last}");
            assert!(reader.next().await.is_none());
        }
        for strange in ["1-5", "3-1", "0-1", "1", "", "1-x", "ffffffffffffffffff-1"] {
            let refusal = streams.resume(strange).err().unwrap();
            assert_eq!(refusal.code, Code::InvalidRequest, "{strange}");
        }
    }

    #[tokio::test]
    async fn a_new_reader_takes_the_place_of_the_old() {
        let streams = Streams::new(Arc::default());
        streams.own().push(text("before anybody listens"));
        let mut first = streams.own().join();
        streams.own().push(text("a"));
        assert_eq!(first.next().await.unwrap().text, "a");
        let mut second = streams.own().join();
        streams.own().push(text("b"));
        assert!(first.next().await.is_none());
        assert_eq!(second.next().await.unwrap().text, "b");
        drop(first);
        assert!(streams.own().is_heard());
        drop(second);
        streams.end();
        assert!(!streams.own().is_heard());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let budget = Arc::new(Budget::default());
        let streams = Streams::new(budget.clone());
        let kept = || budget.0.load(Ordering::Relaxed);
        let mib = Bytes::from(vec![b'x'; BYTES]);
        for _ in 0..40 {
            let stream = streams.open();
            drop(stream.read());
            for _ in 0..3 {
                stream.push(mib.clone());
            }
            assert!(stream.state.lock().charged <= BYTES);
        }
        assert!(kept() <= BUDGET);
        drop(streams);
        assert_eq!(kept(), 0);

        let streams = Streams::new(budget.clone());
        let stream = streams.open();
        let mut reader = stream.read();
        for n in 0..EVENTS + 1 {
            stream.push(text(&n.to_string()));
        }
        assert!(reader.next().await.is_none(), "cut off");
        drop(reader);
        // It comes back for the rest, and for an answer that is too large to be sent twice.
        stream.answer(Bytes::from(vec![b'x'; 2 * BYTES]));
        stream.end();
        let mut reader = streams.resume("1-1").ok().unwrap();
        assert_eq!(drain(&mut reader).await.len(), EVENTS + 1);
        assert!(streams.resume(&format!("1-{EVENTS}")).is_err());
        drop((reader, streams, stream));
        assert_eq!(kept(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_waited_for_only_so_long() {
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
                stream.left().await;
                assert!(reader.next().await.is_none());
            } else {
                assert_eq!(stream.send(text("x")).await, Err(TooSlow));
                assert!(reader.next().await.is_some());
            }
        }
    }

    #[test]
    fn a_session_keeps_so_many_streams() {
        let streams = Streams::new(Arc::default());
        let under_way = streams.open();
        for _ in 0..2 * STREAMS {
            streams.open().end();
        }
        let kept = streams.of_requests.lock().streams.len();
        assert!(kept <= STREAMS + 2, "{kept}");
        assert!(streams.of_requests.lock().streams.contains_key(&under_way.number));
    }
}
