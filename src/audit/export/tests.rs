//! Streams with faulty logs and targets.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    Item, Meters,
    cursor::{Cursor, CursorFile},
    exporter::{Parts, RecordFilter, Source, Stream, Timing},
    target::{Sink, Undelivered},
};
use crate::{
    line::{Line, LineHead, Seq},
    proof::Hash,
};

/// Long enough for a loaded machine. No passing test waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A log in memory.
struct Log {
    lines: Mutex<Vec<Line>>,
    first: AtomicU64,
    /// Records that cannot be read.
    bad: Mutex<std::ops::Range<usize>>,
    ends: watch::Sender<u64>,
}

impl Log {
    fn of(records: u64) -> Arc<Self> {
        let log = Arc::new(Self {
            lines: Mutex::default(),
            first: AtomicU64::new(0),
            bad: Mutex::new(0..0),
            ends: watch::channel(0).0,
        });
        log.write(records, "event");
        log
    }

    fn write(&self, records: u64, principal: &str) {
        let mut lines = self.lines.lock();
        for _ in 0..records {
            let head = LineHead {
                seq: Seq(lines.len() as u64),
                recorded: jiff::Timestamp::UNIX_EPOCH,
                prev: lines.last().map_or(Hash::ZERO, Line::hash),
            };
            let record = format!(
                r#"{{"record":"event","id":"019a4c7e-0000-7000-8000-000000000001","at":"2026-11-21T16:00:00Z","event":"proxy-started","version":"{principal}"}}"#
            );
            lines.push(Line::write(head, record.as_bytes()));
        }
        self.ends.send_replace(lines.len() as u64);
    }

    fn hash(&self, seq: usize) -> Hash {
        self.lines.lock()[seq].hash()
    }
}

impl Source for Log {
    fn ends(&self) -> watch::Receiver<u64> {
        self.ends.subscribe()
    }

    fn first(&self) -> u64 {
        self.first.load(Ordering::Relaxed)
    }

    fn lines(&self, from: u64, most: usize) -> Result<Vec<Line>, String> {
        let from = usize::try_from(from.max(self.first())).unwrap();
        let bad = self.bad.lock().clone();
        if bad.contains(&from) {
            return Err("a bad block".into());
        }
        let lines = self.lines.lock();
        let good = lines.iter().enumerate().skip(from).take_while(|(at, _)| !bad.contains(at));
        Ok(good.take(most).map(|(_, line)| line.clone()).collect())
    }

    fn behind(&self, from: u64) -> Option<u64> {
        let bad = self.bad.lock();
        (from + 1..*self.ends.borrow()).find(|seq| !bad.contains(&usize::try_from(*seq).unwrap()))
    }
}

/// A target that gives the answers of a list, and then always succeeds.
struct ScriptedSink {
    answers: VecDeque<Result<(), Undelivered>>,
    got: mpsc::UnboundedSender<Vec<u64>>,
}

#[async_trait]
impl Sink for ScriptedSink {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        // The test may have dropped the receiver.
        let _ = self.got.send(items.iter().map(|item| item.seq.0).collect());
        self.answers.pop_front().unwrap_or(Ok(()))
    }
}

/// A running stream, and the batches that its target received.
struct Watched {
    got: mpsc::UnboundedReceiver<Vec<u64>>,
    stop: watch::Sender<bool>,
    meters: Meters,
    task: JoinHandle<()>,
    cursor_file: CursorFile,
}

#[derive(Default)]
struct Setup {
    answers: Vec<Result<(), Undelivered>>,
    batch: usize,
    from_now: bool,
    wanted: Option<RecordFilter>,
}

fn cursor_file(store: &Path) -> CursorFile {
    CursorFile::new(store, "siem")
}

impl Setup {
    async fn start(self, log: &Arc<Log>, store: &Path) -> Watched {
        let (sender, got) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let meters = Meters::default();
        let parts = Parts {
            name: "siem".into(),
            target: "here".into(),
            log: "0f1e".into(),
            source: log.clone(),
            sink: Box::new(ScriptedSink { answers: self.answers.into(), got: sender }),
            wanted: self.wanted,
            batch: if self.batch == 0 { 100 } else { self.batch },
            from_now: self.from_now,
            cursor_file: cursor_file(store),
            pace: Timing {
                linger: Duration::ZERO,
                least: Duration::from_millis(1),
                most: Duration::from_millis(2),
                keep: Duration::ZERO,
            },
            meters: meters.clone(),
            next: Arc::default(),
            stop: stopped,
        };
        let stream = Stream::open(parts).await;
        Watched {
            got,
            stop,
            meters,
            task: tokio::spawn(stream.run()),
            cursor_file: cursor_file(store),
        }
    }
}

impl Watched {
    /// Receives batches until the target has this record.
    async fn until(&mut self, seq: u64) -> Vec<Vec<u64>> {
        let mut batches = Vec::new();
        while batches.last().and_then(|batch: &Vec<u64>| batch.last()) != Some(&seq) {
            let batch = tokio::time::timeout(DEADLINE, self.got.recv());
            batches.push(batch.await.expect("a batch in time").expect("a stream that runs"));
        }
        batches
    }

    /// Stops the stream and returns its cursor.
    async fn stop(self) -> Cursor {
        self.stop.send(true).unwrap();
        tokio::time::timeout(DEADLINE, self.task).await.expect("an end in time").unwrap();
        self.cursor_file.read().unwrap().unwrap()
    }
}

#[tokio::test]
async fn restart_resumes_after_the_delivered_records() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(250);
    let mut stream = Setup::default().start(&log, dir.path()).await;
    let batches = stream.until(249).await;
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    log.write(3, "more");
    assert_eq!(stream.until(252).await.concat(), [250, 251, 252]);
    assert_eq!(stream.meters.records.get(), 253);
    let cursor = stream.stop().await;
    assert_eq!((cursor.next, cursor.hash), (253, Some(log.hash(252))));
    log.write(1, "more");
    let mut stream = Setup::default().start(&log, dir.path()).await;
    assert_eq!(stream.until(253).await, [[253]]);
    stream.stop().await;
}

#[tokio::test]
async fn unacknowledged_batches_are_sent_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(5);
    let failed = || Err(Undelivered::Failed("no".into()));
    let later = Undelivered::Later { what: "busy".into(), wait: Duration::from_millis(3) };
    let answers = vec![failed(), Ok(()), failed(), Err(later)];
    let setup = Setup { answers, batch: 2, ..Setup::default() };
    let mut stream = setup.start(&log, dir.path()).await;
    let batches = stream.until(4).await;
    let expected: [&[u64]; 6] = [&[0, 1], &[0, 1], &[2, 3], &[2, 3], &[2, 3], &[4]];
    assert_eq!(batches, expected);
    assert_eq!(stream.meters.failures.get(), 3);
    assert_eq!(stream.stop().await.next, 5);
}

#[tokio::test]
async fn oversized_batch_is_halved() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(8);
    let large = || Err(Undelivered::TooLarge("no".into()));
    let setup = Setup { answers: vec![large(), large()], batch: 8, ..Setup::default() };
    let mut stream = setup.start(&log, dir.path()).await;
    let mut batches = stream.until(7).await;
    batches.extend(stream.until(7).await);
    let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 4, 2, 2, 2, 2]);
    stream.stop().await;
}

#[tokio::test]
async fn cursor_advances_past_filtered_records() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(10);
    let wanted: RecordFilter = Arc::new(|item| item.seq.0 % 4 == 0);
    let setup = Setup { wanted: Some(wanted), batch: 3, ..Setup::default() };
    let mut stream = setup.start(&log, dir.path()).await;
    assert_eq!(stream.until(8).await.concat(), [0, 4, 8]);
    assert_eq!(stream.stop().await.next, 10);
}

#[tokio::test]
async fn new_stream_can_start_at_the_end_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(10);
    let from_now = || Setup { from_now: true, ..Setup::default() };
    assert_eq!(from_now().start(&log, dir.path()).await.stop().await.next, 10);
    // A record written while the stream is stopped is not skipped.
    log.write(1, "more");
    let mut stream = from_now().start(&log, dir.path()).await;
    assert_eq!(stream.until(10).await, [[10]]);
    stream.stop().await;
}

#[tokio::test]
async fn invalid_cursor_restarts_at_the_first_record() {
    let log = Log::of(6);
    let write = |cursor: Cursor| {
        let dir = tempfile::tempdir().unwrap();
        cursor_file(dir.path()).write(&cursor).unwrap();
        dir
    };
    let garbage = tempfile::tempdir().unwrap();
    std::fs::create_dir(garbage.path().join("exports")).unwrap();
    std::fs::write(garbage.path().join("exports/siem.cursor"), "{").unwrap();
    for (why, dir) in [
        ("another log", write(Cursor::new("9999".into(), 3, Some(log.hash(2))))),
        ("beyond the end", write(Cursor::new("0f1e".into(), 7, Some(Hash([1; 32]))))),
        ("another history", write(Cursor::new("0f1e".into(), 3, Some(Hash([1; 32]))))),
        ("no cursor of ours", garbage),
    ] {
        let mut stream = Setup::default().start(&log, dir.path()).await;
        assert_eq!(stream.until(5).await.concat(), [0, 1, 2, 3, 4, 5], "{why}");
        stream.stop().await;
    }
}

#[tokio::test]
async fn pruned_records_are_counted_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(6);
    cursor_file(dir.path()).write(&Cursor::new("0f1e".into(), 1, Some(log.hash(0)))).unwrap();
    log.first.store(4, Ordering::Relaxed);
    let mut stream = Setup::default().start(&log, dir.path()).await;
    assert_eq!(stream.until(5).await, [[4, 5]]);
    assert_eq!(stream.meters.lost.get(), 3);
    stream.stop().await;
}

#[tokio::test]
async fn unreadable_records_are_skipped_after_retries() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(10);
    *log.bad.lock() = 3..5;
    let mut stream = Setup::default().start(&log, dir.path()).await;
    assert_eq!(stream.until(9).await, [vec![0, 1, 2], vec![5, 6, 7, 8, 9]]);
    assert_eq!(stream.meters.lost.get(), 2);
    assert!(stream.meters.failures.get() >= 5);
    stream.stop().await;
}

#[tokio::test]
async fn stop_delivers_pending_records_unless_the_target_fails() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::of(300);
    let cursor = Setup::default().start(&log, dir.path()).await.stop().await;
    assert_eq!(cursor.next, 300);

    let dir = tempfile::tempdir().unwrap();
    let answers = vec![Err(Undelivered::Failed("no".into())); 100_000];
    let setup = Setup { answers, ..Setup::default() };
    let mut stream = setup.start(&log, dir.path()).await;
    stream.until(99).await;
    assert_eq!(stream.stop().await.next, 0);
}
