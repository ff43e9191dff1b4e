//! Resumable streams of legacy sessions. Sent and unsent events are kept for a while, so that a
//! client whose connection broke can resume (`Last-Event-ID`, revision 2025-11-25). Kept events are
//! limited in number, bytes and time for each stream, and in bytes for each principal over all its
//! sessions.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::{
    budget::Budget,
    stream::{OWN, Reader, Stream},
};
use portcullis_protocol::refusal::{Code, Refusal};

/// Ended streams that a session keeps.
const STREAMS: usize = 64;

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
    /// A session's streams, without events.
    pub fn new(budget: Arc<Budget>) -> Self {
        let own = Arc::new(Stream::new(OWN, Some(budget.clone())));
        Self { budget, own, of_requests: Mutex::default() }
    }

    /// The shared budget of the streams.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The stream for messages that belong to no request.
    pub fn own(&self) -> &Arc<Stream> {
        &self.own
    }

    /// A new stream for the responses to one POST.
    pub fn open(&self) -> Arc<Stream> {
        let mut all = self.of_requests.lock();
        all.last += 1;
        let stream = Arc::new(Stream::new(all.last, Some(self.budget.clone())));
        all.streams.insert(stream.number, stream.clone());
        sweep(&mut all.streams);
        stream
    }

    /// The rest of a stream after the event with this id. An existing reader of the stream ends.
    ///
    /// # Errors
    /// A refusal if the id is not of this session, if its stream is not kept any more, or if no event
    /// follows.
    pub fn resume(&self, last: &str) -> Result<Reader, Refusal> {
        let gone =
            || Refusal::new(Code::InvalidRequest, "the stream of this `Last-Event-ID` has expired");
        let (number, event) = last.split_once('-').ok_or_else(gone)?;
        let (number, event): (u64, u64) = (
            u64::from_str_radix(number, 16).map_err(|_| gone())?,
            event.parse().map_err(|_| gone())?,
        );
        let stream = match number {
            OWN => self.own.clone(),
            number => self.of_requests.lock().streams.get(&number).cloned().ok_or_else(gone)?,
        };
        if stream.ended_with(event) {
            // A client that got an empty stream would resume that one, too. With 405, the
            // specification lets an endpoint offer no stream, so clients stop without an error.
            let words = "the stream has ended, and no event follows this `Last-Event-ID`";
            return Err(Refusal::new(Code::HttpMethodNotAllowed, words));
        }
        stream.resume(event).ok_or_else(gone)
    }

    /// Removes the streams that were not resumed in time.
    pub fn sweep(&self) {
        sweep(&mut self.of_requests.lock().streams);
    }

    /// Ends all streams.
    pub fn end(&self) {
        self.own.end();
        self.of_requests.lock().streams.clear();
    }
}

fn sweep(streams: &mut BTreeMap<u64, Arc<Stream>>) {
    streams.retain(|_, stream| !stream.is_over());
    let ended: Vec<_> =
        streams.iter().filter(|(_, s)| s.has_ended()).map(|(number, _)| *number).collect();
    for number in ended.iter().take(ended.len().saturating_sub(STREAMS)) {
        streams.remove(number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::stream::{BYTES, EVENTS};
    use super::*;
    use bytes::Bytes;

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    async fn drain(reader: &mut Reader) -> Vec<(String, Bytes)> {
        let mut events = Vec::new();
        while let Some(Some(event)) = reader.next().now_or_never() {
            events.push((event.id.unwrap_or_default(), event.text));
        }
        events
    }

    #[tokio::test]
    async fn stream_resumes_after_the_last_received_event() {
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
        for (last, rest) in [("1-1", "abc"), ("1-2", "bc"), ("1-3", "c")] {
            let mut reader = streams.resume(last).ok().unwrap();
            let rest: Vec<_> = rest.chars().map(|c| text(&c.to_string())).collect();
            let texts: Vec<_> = drain(&mut reader).await.into_iter().map(|(_, t)| t).collect();
            assert_eq!(texts, rest, "{last}");
            assert!(reader.next().await.is_none());
        }
        let over = streams.resume("1-4").err().unwrap();
        assert_eq!(over.code, Code::HttpMethodNotAllowed);
        for strange in ["1-5", "3-1", "0-1", "1", "", "1-x", "ffffffffffffffffff-1"] {
            let refusal = streams.resume(strange).err().unwrap();
            assert_eq!(refusal.code, Code::InvalidRequest, "{strange}");
        }
    }

    #[tokio::test]
    async fn new_reader_replaces_the_old_one() {
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
        assert!(streams.own().has_reader());
        drop(second);
        streams.end();
        assert!(!streams.own().has_reader());
    }

    #[tokio::test]
    async fn buffered_events_are_limited() {
        let budget = Arc::new(Budget::default());
        let streams = Streams::new(budget.clone());
        let buffered = || budget.used();
        let mib = Bytes::from(vec![b'x'; BYTES]);
        for _ in 0..40 {
            let stream = streams.open();
            drop(stream.read());
            for _ in 0..3 {
                stream.push(mib.clone());
            }
        }
        assert!(!budget.is_exceeded());
        drop(streams);
        assert_eq!(buffered(), 0);

        let streams = Streams::new(budget.clone());
        let stream = streams.open();
        let mut reader = stream.read();
        for n in 0..EVENTS + 1 {
            stream.push(text(&n.to_string()));
        }
        assert!(reader.next().await.is_none(), "cut off");
        drop(reader);
        // The client resumes for the rest, and for a response too large to be sent twice.
        stream.answer(Bytes::from(vec![b'x'; 2 * BYTES]));
        stream.end();
        let mut reader = streams.resume("1-1").ok().unwrap();
        assert_eq!(drain(&mut reader).await.len(), EVENTS + 1);
        assert!(streams.resume(&format!("1-{EVENTS}")).is_err());
        drop((reader, streams, stream));
        assert_eq!(buffered(), 0);
    }

    #[test]
    fn kept_streams_of_a_session_are_limited() {
        let streams = Streams::new(Arc::default());
        let request = streams.open();
        for _ in 0..2 * STREAMS {
            streams.open().end();
        }
        let retained = streams.of_requests.lock().streams.len();
        assert!(retained <= STREAMS + 2, "{retained}");
        assert!(streams.of_requests.lock().streams.contains_key(&request.number));
    }
}
