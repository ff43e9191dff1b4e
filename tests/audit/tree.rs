//! Damaged inputs of the signed tree: nothing wrong is ever signed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};
use portcullis_audit::{
    Audit, Limits, Options,
    proof::{
        Settings,
        verify::{FindingKind, Report, Request, verify},
    },
};
use tempfile::TempDir;

use crate::common::{DEADLINE, call, copy, intent};

const DAY: i64 = 86_400;
/// Segments of a log, the newest of which is still written.
const SEGMENTS: usize = 4;
/// Records of each: tiles begin and end within.
const RECORDS: usize = 300;

/// A state folder with its store in `audit`.
struct Log(TempDir);

impl Log {
    fn store(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    /// Segments in order.
    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.store().join("segments")).unwrap();
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }

    fn report(&self) -> Report {
        verify(&Request::of(self.store(), Some(self.0.path().to_owned()))).unwrap()
    }

    fn checkpoints(&self) -> Vec<u8> {
        fs::read(self.store().join("checkpoints")).unwrap()
    }
}

fn open(dir: &Path, day: &Arc<AtomicI64>) -> Audit {
    let day = day.clone();
    let began = Timestamp::now() - SignedDuration::from_secs(100 * DAY);
    let clock = move || began + SignedDuration::from_secs(day.load(Ordering::Relaxed) * DAY);
    let state = Some(dir.to_owned());
    // Checkpoints on demand only.
    let checkpoints =
        Settings { state, records: u64::MAX, time: DEADLINE * 60, ..Default::default() };
    let clock = Arc::new(clock);
    let options = Options { deadline: DEADLINE, checkpoints, clock, ..Options::default() };
    Audit::open_with(&dir.join("audit"), options).unwrap()
}

async fn write(audit: &Audit, count: usize) {
    let each = |_| async { intent(audit, &call()).await.unwrap() };
    for written in (0..count).collect::<Vec<_>>().chunks(256) {
        futures_util::future::join_all(written.iter().map(each)).await;
    }
}

/// Waits until all segments but the newest are closed.
async fn closed(log: &Log) {
    let all = async {
        loop {
            let segments = log.segments();
            let (_, old) = segments.split_last().unwrap();
            if old.iter().all(|segment| segment.join("segment.json").exists()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, all).await.expect("segments are closed");
}

/// A log as a proxy leaves it that stops in order, and one as it is left by one that is killed,
/// with records that no checkpoint has. `pruned`: without its oldest segment.
async fn logs(pruned: bool) -> [Log; 2] {
    let log = Log(tempfile::tempdir().unwrap());
    let day = Arc::default();
    let audit = open(log.0.path(), &day);
    for _ in 0..SEGMENTS {
        day.fetch_add(1, Ordering::Relaxed);
        write(&audit, RECORDS).await;
        audit.checkpoint().await.unwrap();
    }
    closed(&log).await;
    if pruned {
        let limits =
            Limits { age: Some(SignedDuration::from_secs(98 * DAY + DAY / 2)), size: None };
        assert_eq!(audit.prune(limits, None, false).await.unwrap().dropped.len(), 1);
    }
    write(&audit, 250).await;
    let killed = Log(tempfile::tempdir().unwrap());
    copy(log.0.path(), killed.0.path());
    drop(audit);
    [log, killed]
}

/// Result of signing a damaged log after a proxy opened it and wrote to it.
#[derive(Debug, PartialEq)]
enum SigningOutcome {
    /// The proxy signed a checkpoint, and the log is valid.
    Signed,
    /// The proxy refused to sign.
    Refused,
}

async fn signing_outcome(log: &Log, what: &str) -> SigningOutcome {
    let before = log.checkpoints();
    let day = Arc::new(AtomicI64::new(50));
    let audit = open(log.0.path(), &day);
    write(&audit, 3).await;
    let made = audit.checkpoint().await;
    let status = audit.checkpoints();
    if status.forked {
        assert!(made.unwrap_err().to_string().contains("restore the log"), "{what}");
        assert!(status.failing.is_some(), "{what}");
        let limits = Limits { age: None, size: Some(1) };
        if let Ok(pruned) = audit.prune(limits, None, false).await {
            assert_eq!(pruned.dropped.len(), 0, "{what}: a proof was signed");
        }
        drop(audit);
        assert_eq!(log.checkpoints(), before, "{what}: something was signed");
        return SigningOutcome::Refused;
    }
    made.unwrap_or_else(|fault| panic!("{what}: {fault}"));
    closed(log).await;
    drop(audit);
    let report = log.report();
    assert_eq!(report.findings, [], "{what}");
    assert_eq!(report.signed.map(|signed| signed.size), Some(report.end), "{what}");
    // So it is the next time.
    drop(open(log.0.path(), &day));
    assert_eq!(log.report().findings, [], "{what}, opened again");
    SigningOutcome::Signed
}

type Damage = fn(&Path);

/// What can be done to what a segment says of itself.
const CLOSED: [(&str, Damage); 6] = [
    ("removed", |file| fs::remove_file(file).unwrap()),
    ("emptied", |file| fs::write(file, "").unwrap()),
    ("garbled", |file| fs::write(file, "{\"first\":0}").unwrap()),
    ("another tree", |file| {
        edit(file, |closed| {
            let peak = closed["tree"]["peaks"][0].as_str().unwrap().to_owned();
            let other = if peak.starts_with('0') { "1" } else { "0" };
            closed["tree"]["peaks"][0] = format!("{other}{}", &peak[1..]).into();
        })
    }),
    ("another end", |file| {
        edit(file, |closed| {
            let end = closed["end"].as_u64().unwrap();
            closed["end"] = (end + 1).into();
        })
    }),
    ("another last record", |file| {
        edit(file, |closed| {
            closed["last"] = "0".repeat(64).into();
        })
    }),
];

fn edit(file: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut closed = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut closed);
    fs::write(file, closed.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_segment_metadata_is_never_signed() {
    for pruned in [false, true] {
        for made in logs(pruned).await {
            for at in 0..SEGMENTS - 1 - usize::from(pruned) {
                for (name, damage) in CLOSED {
                    let log = Log(tempfile::tempdir().unwrap());
                    copy(made.0.path(), log.0.path());
                    damage(&log.segments()[at].join("segment.json"));
                    let what = format!("pruned {pruned}, segment {at}: {name}");
                    // All of it can be made again from records.
                    let found = match at {
                        _ if name.starts_with("another") => {
                            let found = log.report().findings;
                            assert!(
                                found.iter().all(|f| f.what == FindingKind::IndexMismatch),
                                "{what}"
                            );
                            assert_ne!(found, [], "{what}");
                            signing_outcome_after_repair(&log, &what).await
                        }
                        _ => signing_outcome(&log, &what).await,
                    };
                    assert_eq!(found, SigningOutcome::Signed, "{what}");
                }
            }
        }
    }
}

/// Like `signing_outcome`, except that the metadata of a middle segment may stay wrong: nothing reads it.
async fn signing_outcome_after_repair(log: &Log, what: &str) -> SigningOutcome {
    let day = Arc::new(AtomicI64::new(50));
    let audit = open(log.0.path(), &day);
    write(&audit, 3).await;
    audit.checkpoint().await.unwrap_or_else(|fault| panic!("{what}: {fault}"));
    drop(audit);
    let report = log.report();
    let others =
        report.findings.iter().filter(|finding| finding.what != FindingKind::IndexMismatch);
    assert_eq!(others.count(), 0, "{what}: {:?}", report.findings);
    assert_eq!(report.signed.map(|signed| signed.size), Some(report.end), "{what}");
    SigningOutcome::Signed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_without_pruning_proofs_is_not_signed() {
    for made in logs(true).await {
        // The oldest segment's own word is enough.
        fs::remove_dir_all(made.store().join("dropped")).unwrap();
        let log = Log(tempfile::tempdir().unwrap());
        copy(made.0.path(), log.0.path());
        for segment in log.segments() {
            let _ = fs::remove_file(segment.join("segment.json"));
        }
        assert_eq!(
            signing_outcome(&log, "no word of what was before").await,
            SigningOutcome::Refused
        );
    }
}

/// Opens the index of a segment and flips a bit of a hash in what it says of a block.
fn lie(segment: &Path) {
    let index = sled::open(segment.join("index")).unwrap();
    let (key, value) = index.scan_prefix(b"m").next().unwrap().unwrap();
    let mut bytes = value.to_vec();
    // Behind the hashes of records stands that of the last one.
    let at = bytes.len() - 32 - 7;
    bytes[at] ^= 1;
    index.insert(key, bytes).unwrap();
    index.flush().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_index_is_never_signed() {
    for made in logs(false).await {
        for at in 0..SEGMENTS {
            for name in ["removed", "flipped", "lies", "lies, and nothing says where it ends"] {
                let log = Log(tempfile::tempdir().unwrap());
                copy(made.0.path(), log.0.path());
                let segment = &log.segments()[at];
                let what = format!("segment {at}: index {name}");
                match name {
                    // The newest has no blocks yet, so it has no index.
                    _ if at + 1 == SEGMENTS => continue,
                    "removed" => fs::remove_dir_all(segment.join("index")).unwrap(),
                    "flipped" => {
                        let db = segment.join("index/db");
                        let mut bytes = fs::read(&db).unwrap();
                        for at in (0..bytes.len()).step_by(97) {
                            bytes[at] ^= 0x10;
                        }
                        fs::write(&db, bytes).unwrap();
                    }
                    "lies" => lie(segment),
                    _ => {
                        lie(segment);
                        fs::remove_file(segment.join("segment.json")).unwrap();
                    }
                }
                assert_eq!(signing_outcome(&log, &what).await, SigningOutcome::Signed, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_signed_records_are_not_signed_again() {
    for made in logs(false).await {
        // A tampered record in a store whose tree is made again: nothing has its old hash.
        let segment = &made.segments()[1];
        let records = segment.join("records");
        let mut bytes = fs::read(&records).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&records, bytes).unwrap();
        for segment in made.segments() {
            // The newest has neither.
            let _ = fs::remove_dir_all(segment.join("index"));
            let _ = fs::remove_file(segment.join("segment.json"));
        }
        assert_eq!(signing_outcome(&made, "a changed record").await, SigningOutcome::Refused);
        assert!(made.report().findings.iter().any(|f| f.what == FindingKind::FrameDamaged));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segment_with_an_absurd_number_does_not_delay_startup() {
    for first in ["9999999999999999", "0000000000100000"] {
        let log = Log(tempfile::tempdir().unwrap());
        let day = Arc::default();
        let audit = open(log.0.path(), &day);
        write(&audit, 10).await;
        drop(audit);
        fs::create_dir(log.store().join("segments").join(first)).unwrap();
        let audit = open(log.0.path(), &day);
        write(&audit, 10).await;
        audit.checkpoint().await.unwrap();
        assert_eq!(audit.checkpoints().size, 20);
        drop(audit);
        // The oldest one that claims them.
        let log = Log(tempfile::tempdir().unwrap());
        fs::create_dir_all(log.store()).unwrap();
        drop(open(log.0.path(), &day));
        fs::create_dir_all(log.store().join("segments").join(first)).unwrap();
        let audit = open(log.0.path(), &day);
        write(&audit, 10).await;
        assert!(audit.checkpoints().forked || audit.checkpoint().await.is_ok());
    }
}
