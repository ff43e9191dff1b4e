//! Encryption at rest, backups, and calls that continue without a log.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use portcullis_audit::config::Encryption;
use portcullis_audit::{
    Audit, Keys, Limits, Options, Order, Query, Reader, RetentionReason, Unavailable,
    proof::verify::{Request, verify},
    record::{Event, Record, RecordsDropped},
};
use portcullis_vault::SecretRef;
use tempfile::TempDir;

use crate::{
    common::{DEADLINE, call, exchange, find, find_in, intent, open, outcome, query, refuse},
    store::SmallDisk,
};

/// Keys of the operator, each a file.
struct Safe(TempDir);

impl Safe {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let random = [uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()];
            fs::write(dir.path().join(name), random.map(|half| half.to_string()).concat()).unwrap();
        }
        Self(dir)
    }

    fn keys(&self, current: &str, old: &[&str]) -> Keys {
        let key =
            |name: &str| SecretRef { from: format!("file:{}", self.0.path().join(name).display()) };
        let old_keys = old.iter().map(|name| key(name)).collect();
        Keys::fetch(&Encryption { key: key(current), old_keys }).unwrap()
    }
}

fn encrypted(dir: &Path, keys: &Keys) -> Result<Audit, Unavailable> {
    let keys = Some(keys.clone());
    Audit::open_with(dir, Options { deadline: DEADLINE, keys, ..Options::default() })
}

/// All events on record, the oldest first.
async fn events(audit: &Audit) -> Vec<Event> {
    let query = Query { order: Order::OldestFirst, ..query("kind = event") };
    let happened = find(audit, query).await.into_iter().map(|entry| match entry.record {
        Record::Event(event) => event.what,
        other => panic!("{other:?}"),
    });
    happened.collect()
}

/// How many intents are on record, all of them readable.
async fn intents(reader: &portcullis_audit::Archive) -> usize {
    find_in(reader, query("kind = intent")).await.len()
}

/// All files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// A file of records.
fn commits_of(dir: &Path) -> PathBuf {
    let mut all = files(&dir.join("segments"));
    all.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let records = name == "records" || name.starts_with("wal-");
        records && fs::metadata(path).unwrap().len() > 200
    });
    all.sort();
    all.remove(0)
}

/// Files that hold one of these texts.
fn holding(dir: &Path, texts: &[&str]) -> Vec<PathBuf> {
    let mut found = files(dir);
    found.retain(|path| {
        let bytes = fs::read(path).unwrap();
        texts.iter().any(|text| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
    });
    found
}

/// Writes more than a block, so that there is a sealed one with its index, and one that grows.
async fn fill(audit: &Audit) {
    let mut writing = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let audit = audit.clone();
        writing.spawn(async move {
            for _ in 0..35 {
                let call = exchange("quetzalcoatl", "popocatepetl", "ixtaccihuatl");
                intent(&audit, &call).await.unwrap();
                outcome(&audit, &call).await.unwrap();
            }
        });
    }
    while let Some(done) = writing.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn encrypted_log_contains_no_plaintext() {
    const SAID: [&str; 6] =
        ["quetzalcoatl", "popocatepetl", "ixtaccihuatl", "tools/call", "principal", "\"seq\""];
    let (dir, plain, safe) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Safe::new());
    let audit = open(plain.path());
    fill(&audit).await;
    drop(audit);
    assert!(!holding(plain.path(), &SAID).is_empty(), "else the search finds nothing");

    let keys = safe.keys("a", &[]);
    let audit = encrypted(dir.path(), &keys).unwrap();
    fill(&audit).await;
    drop(audit);
    let audit = encrypted(dir.path(), &keys).unwrap();
    let here = audit.archive();
    assert_eq!(intents(here).await, 64 * 35);
    assert!(!find_in(here, query("client = quetzalcoatl")).await.is_empty());
    drop(audit);
    assert!(files(dir.path()).len() > 5);
    assert_eq!(holding(dir.path(), &SAID), Vec::<PathBuf>::new());
    // Nor is there the key by which guesses at the index could be checked.
    assert_ne!(fs::metadata(dir.path().join("digest.key")).unwrap().len(), 32);
}

#[tokio::test]
async fn missing_key_error_names_the_required_key() {
    let (dir, safe) = (tempfile::tempdir().unwrap(), Safe::new());
    let audit = encrypted(dir.path(), &safe.keys("a", &[])).unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let before = fs::read(dir.path().join("store.json")).unwrap();
    let wrong = safe.keys("b", &[]);
    for keys in [None, Some(&wrong)] {
        let deadline = Duration::from_secs(5);
        let refused = [
            Reader::open(dir.path(), deadline, keys).unwrap_err(),
            Audit::open_with(
                dir.path(),
                Options { deadline, keys: keys.cloned(), ..Options::default() },
            )
            .unwrap_err(),
        ];
        for unfit in refused {
            assert!(matches!(unfit, Unavailable::Unfit { .. }), "{unfit:?}");
            let words = unfit.to_string();
            assert!(words.contains("encrypted with the key"), "{words}");
            assert!(words.contains("audit.encryption.key"), "{words}");
        }
    }
    assert_eq!(fs::read(dir.path().join("store.json")).unwrap(), before);
}

#[tokio::test]
async fn key_rotation_keeps_old_records_readable() {
    let (dir, safe) = (tempfile::tempdir().unwrap(), Safe::new());
    // From no key to one, and to the next.
    let audit = open(dir.path());
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let audit = encrypted(dir.path(), &safe.keys("a", &[])).unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let audit = encrypted(dir.path(), &safe.keys("b", &["a"])).unwrap();
    intent(&audit, &call()).await.unwrap();
    assert_eq!(intents(audit.archive()).await, 3);
    let rotated = events(&audit).await;
    let rotated: Vec<_> = rotated
        .iter()
        .filter_map(|what| match what {
            Event::KeyRotated(rotated) => Some(&rotated.key_id),
            _ => None,
        })
        .collect();
    assert_eq!(rotated.len(), 2);
    assert_ne!(rotated[0], rotated[1]);
    drop(audit);
    let unfit = encrypted(dir.path(), &safe.keys("b", &[])).unwrap_err();
    assert!(unfit.to_string().contains(rotated[0].as_str()), "{unfit}");
    // The first record is readable by whoever has the file: it was written before.
    let back = encrypted(dir.path(), &safe.keys("a", &["b"])).unwrap();
    assert_eq!(intents(back.archive()).await, 3);
}

#[tokio::test]
async fn only_pass_mode_allows_unrecorded_calls_and_reports_them() {
    let disk = SmallDisk::new(24);
    let dir = disk.dir.path().join("audit");
    let options = Options { deadline: DEADLINE, reserve: 4 << 20, ..Options::default() };
    let audit = Audit::open_with(&dir, Options { pass: true, ..options.clone() }).unwrap();
    intent(&audit, &call()).await.unwrap();
    assert_eq!(audit.missed(), (None, 0));
    let filler = disk.dir.path().join("filler");
    fs::write(&filler, vec![0; 20 << 20]).unwrap();
    for _ in 0..3 {
        let call = call();
        intent(&audit, &call).await.unwrap();
        outcome(&audit, &call).await.unwrap();
    }
    refuse(&audit, &call(), portcullis_protocol::refusal::Code::PolicyDenied).await.unwrap();
    let (missing, total) = audit.missed();
    let missing = missing.expect("calls go on without a record");
    assert_eq!((missing.intents, missing.outcomes, missing.refusals, total), (3, 3, 1, 7));

    fs::remove_file(&filler).unwrap();
    let mended = async {
        while audit.missed().0.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, mended).await.expect("the store takes records again");
    let after = call();
    intent(&audit, &after).await.unwrap();
    let told = events(&audit).await;
    let [Event::RecordsDropped(dropped)] = &told[..] else { panic!("{told:?}") };
    let RecordsDropped { since, until, intents, outcomes, refusals, events } = dropped;
    assert_eq!((*intents, *outcomes, *refusals, *events), (3, 3, 1, 0));
    assert!(*since >= missing.since && since <= until);
    assert_eq!(self::intents(audit.archive()).await, 2);
    drop(audit);

    let audit = Audit::open_with(&dir, options).unwrap();
    fs::write(&filler, vec![0; 20 << 20]).unwrap();
    let refused = intent(&audit, &call()).await.unwrap_err();
    assert!(matches!(refused, Unavailable::Full { .. }), "{refused:?}");
    assert_eq!(audit.missed(), (None, 0));
}

#[tokio::test]
async fn backup_of_a_log_in_use_can_be_continued() {
    let (dir, safe) = (tempfile::tempdir().unwrap(), Safe::new());
    let (store, to) = (dir.path().join("audit"), dir.path().join("backup"));
    let keys = safe.keys("a", &[]);
    let audit = encrypted(&store, &keys).unwrap();
    let filling = tokio::spawn({
        let audit = audit.clone();
        async move {
            for _ in 0..3 {
                fill(&audit).await;
            }
        }
    });
    let mut last = 0;
    for _ in 0..4 {
        let backup = audit.back_up(to.clone()).await.unwrap();
        // Each is a whole log up to a record that was durable when it began.
        let copy = Reader::open(&to, DEADLINE, Some(&keys)).unwrap();
        let newest = copy.query(Query { limit: Some(1), ..query("") });
        let newest = newest.await.unwrap();
        assert_eq!(newest.unreadable, Vec::<String>::new());
        let has = newest.lines.first().map_or(0, |line| line.seq().0);
        assert!(has >= backup.last.unwrap_or(0), "{has}: {backup:?}");
        assert!(has >= last);
        last = has;
    }
    filling.await.unwrap();
    drop(audit);

    // Both the log and its copy can be verified, with the keys that records are encrypted with.
    for dir in [&store, &to] {
        let whole = Request { encryption: Some(keys.clone()), ..Request::of(dir.clone(), None) };
        let report = verify(&whole).unwrap();
        assert_eq!(report.findings, [], "{}", dir.display());
        assert!(report.records > last && report.checkpoints > 0, "{report:?}");
        let sealed = verify(&Request::of(dir.clone(), None)).unwrap_err();
        assert!(sealed.to_string().contains("encrypted"), "{sealed}");
        let records = commits_of(dir);
        let good = fs::read(&records).unwrap();
        let mut bytes = good.clone();
        bytes[100] ^= 1;
        fs::write(&records, bytes).unwrap();
        let report = verify(&whole).unwrap();
        assert!(!report.findings.is_empty(), "{}", dir.display());
        fs::write(&records, good).unwrap();
    }

    // Restored: opened by a proxy, and gone on with.
    let restored = encrypted(&to, &keys).unwrap();
    let before = intents(restored.archive()).await;
    intent(&restored, &call()).await.unwrap();
    assert_eq!(intents(restored.archive()).await, before + 1);
    let what = events(&restored).await;
    let lost = |what: &Event| matches!(what, Event::RecordsLost(_));
    assert!(!what.iter().any(lost), "{what:?}");
}

#[tokio::test]
async fn log_writable_by_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("audit");
    let audit = open(&store);
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    for mode in [0o720, 0o702, 0o777] {
        fs::set_permissions(&store, fs::Permissions::from_mode(mode)).unwrap();
        let refused = [
            Audit::open(&store, DEADLINE).unwrap_err(),
            Reader::open(&store, DEADLINE, None).unwrap_err(),
        ];
        for unfit in refused {
            assert!(unfit.to_string().contains("others can write to"), "{mode:o}: {unfit}");
        }
    }
    // Who could only read it could change nothing.
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(&store));
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn log_of_another_format_is_refused_unchanged() {
    for format in [0, 1, 3, u64::from(u32::MAX) + 3] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{{\"format\":{format},\"id\":\"unknown to us\"}}");
        fs::write(dir.path().join("store.json"), &text).unwrap();
        fs::create_dir(dir.path().join("segments")).unwrap();
        let refused = [
            Audit::open(dir.path(), DEADLINE).unwrap_err(),
            Reader::open(dir.path(), DEADLINE, None).unwrap_err(),
        ];
        for unfit in refused {
            let words = unfit.to_string();
            assert!(words.contains("use the version that wrote it"), "{words}");
            assert!(words.contains(&format!("format {format}")), "{words}");
        }
        let fault = verify(&Request::of(dir.path().into(), None)).unwrap_err();
        assert!(fault.to_string().contains("use the version that wrote it"), "{fault}");
        assert_eq!(fs::read_to_string(dir.path().join("store.json")).unwrap(), text);
        assert_eq!(fs::read_dir(dir.path().join("segments")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn pruned_segments_leave_their_proofs() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { deadline: DEADLINE, segment_bytes: 1, ..Options::default() };
    let audit = Audit::open_with(dir.path(), options.clone()).unwrap();
    // More than a block each: a segment ends when it has one packed.
    let segments = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir.join("segments"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let closed = |dir: &Path| {
        let all = segments(dir);
        let has = |name: &&String| dir.join("segments").join(name).join("segment.json").exists();
        all.iter().filter(has).count()
    };
    let enough = async {
        while closed(dir.path()) < 4 {
            fill(&audit).await;
        }
    };
    tokio::time::timeout(DEADLINE, enough).await.expect("segments that are closed");
    let before = segments(dir.path());
    let limits = Limits { age: None, size: Some(1) };

    let would = audit.prune(limits, None, true).await.unwrap();
    assert!(would.dropped.len() >= 3, "{would:?}");
    assert_eq!(segments(dir.path()), before, "a dry run drops nothing");
    assert!(!dir.path().join("dropped").exists());
    // Nothing is too old yet, and what was not exported is kept as long as it is not too much.
    let limits_of_age = Limits { age: Some(jiff::SignedDuration::from_hours(1)), size: None };
    let kept = audit.prune(limits_of_age, None, false).await.unwrap();
    assert_eq!((kept.dropped.len(), kept.held), (0, None));
    let now = Limits { age: Some(jiff::SignedDuration::ZERO), size: None };
    let held = audit.prune(now, Some(0), false).await.unwrap();
    assert_eq!((held.dropped.len(), held.held), (0, Some(0)));

    let pruned = audit.prune(limits, Some(0), false).await.unwrap();
    assert!(pruned.dropped.iter().all(|dropped| dropped.why == RetentionReason::SizeUndelivered));
    let left = segments(dir.path());
    assert_eq!(left, before[before.len() - left.len()..]);
    assert!(left.len() >= 2 && left.len() < before.len(), "{left:?} of {before:?}");
    for name in &before[..before.len() - left.len()] {
        assert!(dir.path().join("dropped").join(format!("{name}.proof")).exists(), "{name}");
    }
    let told = events(&audit).await;
    let told = told.iter().filter(|what| matches!(what, Event::SegmentDropped(_)));
    assert_eq!(told.count(), pruned.dropped.len());

    // The log goes on, now and after the next start.
    let first: u64 = left[0].parse().unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    fs::create_dir(dir.path().join("segments/0000000000000000.dropping")).unwrap();
    let audit = Audit::open_with(dir.path(), options).unwrap();
    assert!(!dir.path().join("segments/0000000000000000.dropping").exists());
    intent(&audit, &call()).await.unwrap();
    let oldest = Query { order: Order::OldestFirst, limit: Some(1), ..query("") };
    let oldest = audit.archive().query(oldest).await.unwrap();
    assert_eq!(oldest.lines[0].seq().0, first);
    assert!(!events(&audit).await.iter().any(|what| matches!(what, Event::RecordsLost(_))));
}
