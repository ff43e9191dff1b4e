//! Clocks that go back, jump ahead or stop.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::Timestamp;
use portcullis_audit::{Audit, Line, LineHead, Options, frames};

use crate::common::{DEADLINE, call, intent};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// Noon of some day.
const NOON: i64 = 1_795_262_400;

/// A store by a clock that the test sets, in seconds since 1970.
fn open(dir: &Path, clock: &Arc<AtomicI64>) -> Audit {
    let clock = clock.clone();
    let now = move || Timestamp::from_second(clock.load(Ordering::Relaxed)).unwrap();
    let options = Options { deadline: DEADLINE, clock: Arc::new(now), ..Options::default() };
    Audit::open_with(dir, options).unwrap()
}

/// The heads of all records in the store's files, in order.
fn heads(dir: &Path) -> Vec<LineHead> {
    let mut heads = Vec::new();
    for segment in fs::read_dir(dir.join("segments")).unwrap() {
        for file in fs::read_dir(segment.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() && path.extension().is_none() {
                let bytes = fs::read(&path).unwrap();
                for frame in frames(bytes.as_slice()) {
                    let frame = frame.unwrap();
                    heads.extend(frame.lines().map(|line| {
                        serde_json::from_slice::<Line>(&line).unwrap().head().unwrap()
                    }));
                }
            }
        }
    }
    heads.sort_by_key(|head| head.seq);
    // A record can be in both files for a moment.
    heads.dedup();
    heads
}

#[tokio::test]
async fn clock_that_goes_back_loses_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(AtomicI64::new(NOON));
    // Ahead and back again, over the ends of days, with and without a restart between.
    let times = [0, -1, -HOUR, DAY, DAY - 1, HOUR, -2 * DAY, 2 * DAY, 0, 0, 2 * DAY + 1];
    for (turn, time) in times.into_iter().enumerate() {
        clock.store(NOON + time, Ordering::Relaxed);
        let audit = open(dir.path(), &clock);
        intent(&audit, &call()).await.unwrap();
        clock.store(NOON + time - 3 * HOUR, Ordering::Relaxed);
        intent(&audit, &call()).await.unwrap();
        drop(audit);
        let heads = heads(dir.path());
        assert_eq!(heads.len(), 2 * (turn + 1));
        assert!(heads.iter().map(|head| head.seq.0).eq(0..heads.len() as u64), "a gap");
        assert!(heads.is_sorted_by_key(|head| head.recorded), "{heads:#?}");
    }
    let heads = heads(dir.path());
    let last = heads.last().unwrap().recorded;
    assert_eq!(last.as_second(), NOON + 2 * DAY + 1, "it goes on once the clock has caught up");
    // A day each, and none begun again.
    assert_eq!(fs::read_dir(dir.path().join("segments")).unwrap().count(), 3);
}
