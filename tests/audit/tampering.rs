//! Every change to a store is found, and an unchanged store passes.
//!
//! Each test edits the files of a store that the proxy's own code wrote, as an attacker could who
//! has all of them and knows the format, but has no signing key and cannot reach the state folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use assert_cmd::cargo::cargo_bin;
use portcullis_audit::{
    Audit, Options,
    proof::{
        Hash, Settings,
        verify::{FindingKind, Report, Request, verify},
    },
};
use portcullis_protocol::names::DecisionId;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    common::{DEADLINE, call, copy, find, intent, outcome, query},
    crash::Writer,
};

/// Enough for a sealed block and commits that are not sealed.
const RECORDS: usize = 4500;

fn settings(state: &Path) -> Settings {
    Settings { state: Some(state.to_owned()), records: 700, ..Settings::default() }
}

fn open(state: &Path, store: &Path) -> Audit {
    let checkpoints = settings(state);
    let options = Options { deadline: DEADLINE, checkpoints, ..Options::default() };
    Audit::open_with(store, options).unwrap()
}

async fn write(audit: &Audit, count: usize) -> Vec<DecisionId> {
    let each = |_| async {
        let call = call();
        intent(audit, &call).await.unwrap();
        call.id
    };
    let mut ids = Vec::new();
    while ids.len() < count {
        let batch = (count - ids.len()).min(256);
        ids.extend(futures_util::future::join_all((0..batch).map(each)).await);
    }
    ids
}

/// A state folder with its store in `audit`.
struct Log(TempDir);

impl Log {
    fn state(&self) -> &Path {
        self.0.path()
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store().join(name)
    }

    /// The one file whose name begins like this.
    fn find(&self, prefix: &str) -> PathBuf {
        let segment = self.path("segments/0000000000000000");
        let names = fs::read_dir(&segment).unwrap().map(|entry| entry.unwrap().path());
        let of = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
        names.filter(of).max().unwrap_or_else(|| panic!("no {prefix} in {}", segment.display()))
    }

    fn report(&self) -> Report {
        verify(&Request::of(self.store(), Some(self.state().to_owned()))).unwrap()
    }

    /// Words of what was found, each once.
    fn found(&self) -> Vec<FindingKind> {
        let mut found: Vec<_> = self.report().findings.iter().map(|f| f.what).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// A log of 4,500 records, made once and copied for each test.
fn log() -> Log {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().to_owned();
        let work = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let audit = open(&made, &made.join("audit"));
                for _ in 0..5 {
                    write(&audit, RECORDS / 5).await;
                    audit.checkpoint().await.unwrap();
                }
                drop(audit);
                // A checkpoint every so many records does not end at the last one.
                let audit = open(&made, &made.join("audit"));
                write(&audit, 10).await;
            });
        };
        std::thread::spawn(work).join().unwrap();
        dir
    });
    let log = Log(tempfile::tempdir().unwrap());
    copy(made.path(), log.state());
    log
}

/// The frames of a file: flags, first record, lines.
#[derive(Clone)]
struct Frame {
    flags: u8,
    first: u64,
    lines: Vec<String>,
}

fn frames(path: &Path) -> Vec<Frame> {
    let bytes = fs::read(path).unwrap();
    let mut frames = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let (flags, first) = (rest[8], u64::from_le_bytes(rest[9..17].try_into().unwrap()));
        let body = &rest[21..8 + length];
        let plain = if flags & 1 == 0 { body.to_vec() } else { zstd::decode_all(body).unwrap() };
        let lines = String::from_utf8(plain).unwrap().lines().map(str::to_owned).collect();
        frames.push(Frame { flags, first, lines });
        rest = &rest[8 + length..];
    }
    frames
}

/// Writes frames with right checksums.
fn put(path: &Path, frames: &[Frame]) {
    let mut file = Vec::new();
    for Frame { flags, first, lines } in frames {
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let body = if flags & 1 == 0 {
            body.into_bytes()
        } else {
            zstd::bulk::compress(body.as_bytes(), 3).unwrap()
        };
        let mut rest = vec![*flags];
        rest.extend(first.to_le_bytes());
        rest.extend(u32::try_from(lines.len()).unwrap().to_le_bytes());
        rest.extend(body);
        file.extend(u32::try_from(rest.len()).unwrap().to_le_bytes());
        file.extend(crc32fast::hash(&rest).to_le_bytes());
        file.extend(rest);
    }
    fs::write(path, file).unwrap();
}

/// Makes the chain right again, from the first line on.
fn chain(log: &Log) {
    let mut prev = Hash::ZERO;
    let mut last = 0;
    for path in [log.find("records"), log.find("wal-")] {
        let mut all = frames(&path);
        for line in all.iter_mut().flat_map(|frame| &mut frame.lines) {
            let at = line.find("\"prev\":\"").unwrap() + 8;
            line.replace_range(at..at + 64, &prev.to_string());
            prev = Hash::leaf(line.as_bytes());
            last += 1;
        }
        put(&path, &all);
    }
    fs::write(log.path("head"), format!("{:020} {prev}\n", last - 1)).unwrap();
}

#[test]
fn untouched_store_passes() {
    let log = log();
    let report = log.report();
    assert_eq!(report.findings, []);
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!((report.records, report.end), (RECORDS as u64 + 10, RECORDS as u64 + 10));
    assert_eq!(report.signed.unwrap().size, report.end);
    assert!(report.checkpoints >= 6);
    // Opened and closed once more.
    drop(open(log.state(), &log.store()));
    assert_eq!(log.found(), []);
    // A copy of the store alone says where its key is from.
    let copied = tempfile::tempdir().unwrap();
    copy(&log.store(), copied.path());
    let report = verify(&Request::of(copied.path().into(), None)).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.notes[0].contains("the store's own"), "{:?}", report.notes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_in_use_passes_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log(dir);
    let audit = open(log.state(), &log.store());
    let writer = tokio::spawn({
        let audit = audit.clone();
        async move {
            // More than two blocks, so that sealing goes on beneath.
            for _ in 0..40 {
                write(&audit, 256).await;
            }
        }
    });
    let mut seen = 0;
    while !writer.is_finished() {
        let request = Request::of(log.store(), Some(log.state().into()));
        let report = tokio::task::spawn_blocking(move || verify(&request)).await.unwrap().unwrap();
        assert_eq!(report.findings, []);
        assert!(report.end >= seen, "{} after {seen}", report.end);
        seen = report.end;
    }
    writer.await.unwrap();
    drop(audit);
    let report = log.report();
    assert_eq!((report.findings, report.end), (vec![], 40 * 256));
}

#[test]
fn store_of_a_killed_writer_passes() {
    let log = Log(tempfile::tempdir().unwrap());
    for kill in 0..5 {
        let mut writer = Writer::start(&log.store());
        assert_eq!(writer.acknowledged().take(50 + kill * 200).count(), 50 + kill * 200);
        writer.kill();
        // As it was left, then opened again and closed.
        for again in [false, true] {
            if again {
                drop(crate::common::open(&log.store()));
            }
            let report = verify(&Request::of(log.store(), None)).unwrap();
            assert_eq!(report.findings, [], "after kill {kill}, opened again: {again}");
        }
    }
}

#[test]
fn flipped_bits_are_found_with_their_position() {
    let log = log();
    let lengths = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize + 8
    };
    for (file, within) in [
        (log.find("records"), FindingKind::FrameDamaged),
        (log.find("wal-"), FindingKind::FrameDamaged),
        (log.path("head"), FindingKind::HeadDamaged),
        (log.path("checkpoints"), FindingKind::CheckpointForged),
    ] {
        let good = fs::read(&file).unwrap();
        let name = file.strip_prefix(log.store()).unwrap().to_str().unwrap().to_owned();
        // The whole first header, and places all over the file.
        let header = if within == FindingKind::FrameDamaged { 21 + lengths(&file) } else { 0 };
        let all = (0..good.len()).step_by((good.len() / 40).max(1)).chain(0..header.min(30));
        for at in all.chain([good.len() - 1]) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&file, bytes).unwrap();
            let report = log.report();
            let named = report.findings.iter().any(|f| f.file.as_deref() == Some(&name));
            assert!(named, "{name} byte {at}: {:?}", report.findings);
        }
        fs::write(&file, good).unwrap();
    }
    assert_eq!(log.found(), []);
}

#[test]
fn changed_record_is_found_with_a_recomputed_chain() {
    for file in ["records", "wal-"] {
        let log = log();
        let path = log.find(file);
        let mut all = frames(&path);
        let frame = all.len() / 2;
        let (first, line) = (all[frame].first, &mut all[frame].lines[0]);
        assert!(line.contains("ci-bot"), "{line}");
        *line = line.replace("ci-bot", "mallory");
        put(&path, &all);
        let report = log.report();
        let broken = report.findings.iter().find(|f| f.what == FindingKind::ChainBroken).unwrap();
        assert_eq!(broken.seq, Some(first + 1));
        chain(&log);
        assert_eq!(log.found(), [FindingKind::RootMismatch], "{file}");
        let report = log.report();
        let said = &report.findings[0];
        assert!(said.seq.unwrap() <= first, "{said}");
    }
}

#[test]
fn removed_inserted_or_moved_records_are_found() {
    type Edit = fn(&mut Vec<Frame>);
    let edits: [(&str, Edit); 5] = [
        ("deleted", |all| drop(all[3].lines.remove(100))),
        ("inserted", |all| {
            let line = all[3].lines[100].clone();
            all[3].lines.insert(100, line);
        }),
        ("swapped", |all| all[3].lines.swap(100, 101)),
        ("frames swapped", |all| all.swap(3, 4)),
        ("a frame removed", |all| drop(all.remove(3))),
    ];
    for (name, edit) in edits {
        let log = log();
        let path = log.find("records");
        let mut all = frames(&path);
        edit(&mut all);
        put(&path, &all);
        let found = log.found();
        let words =
            [FindingKind::RecordMisplaced, FindingKind::RecordMissing, FindingKind::ChainBroken];
        assert!(found.iter().any(|what| words.contains(what)), "{name}: {found:?}");
    }
    // One that is taken out, and all that follow numbered and chained anew.
    let log = log();
    let (records, wal) = (log.find("records"), log.find("wal-"));
    let mut lines: Vec<String> = Vec::new();
    for path in [&records, &wal] {
        lines.extend(frames(path).into_iter().flat_map(|frame| frame.lines));
    }
    lines.remove(1000);
    let mut prev = Hash::ZERO;
    for (seq, line) in lines.iter_mut().enumerate() {
        let (_, rest) = line.split_once(",\"recorded\"").unwrap();
        *line = format!("{{\"v\":1,\"seq\":{seq},\"recorded\"{rest}");
        let at = line.find("\"prev\":\"").unwrap() + 8;
        line.replace_range(at..at + 64, &prev.to_string());
        prev = Hash::leaf(line.as_bytes());
    }
    let (sealed, open) = lines.split_at(4096);
    let frame = |(at, lines): (usize, &[String]), flags| Frame {
        flags,
        first: at as u64 * 256,
        lines: lines.to_vec(),
    };
    put(&records, &sealed.chunks(256).enumerate().map(|part| frame(part, 1)).collect::<Vec<_>>());
    put(&wal, &[Frame { flags: 0, first: 4096, lines: open.to_vec() }]);
    fs::write(log.path("head"), format!("{:020} {prev}\n", lines.len() - 1)).unwrap();
    assert_eq!(log.found(), [FindingKind::RootMismatch, FindingKind::TailCut]);
}

#[test]
fn truncated_tail_is_found() {
    let cuts: [(&str, usize); 4] = [("wal-", 1), ("wal-", 5), ("records", 1), ("records", 9)];
    for (file, frames_cut) in cuts {
        let log = log();
        let path = log.find(file);
        let all = frames(&path);
        let left = &all[..all.len() - frames_cut];
        put(&path, left);
        assert!(!log.found().is_empty(), "{file} {frames_cut}");
        // All that is behind it with it, and the mark made right.
        if file == "records" {
            fs::remove_file(log.find("wal-")).unwrap();
        }
        if let Some(last) = left.last() {
            let seq = last.first + last.lines.len() as u64 - 1;
            let hash = Hash::leaf(last.lines.last().unwrap().as_bytes());
            fs::write(log.path("head"), format!("{seq:020} {hash}\n")).unwrap();
        }
        assert_eq!(log.found(), [FindingKind::TailCut], "{file} {frames_cut}");
        // The checkpoints that tell of them with them: the state folder still knows.
        let notes = fs::read_to_string(log.path("checkpoints")).unwrap();
        let first: String = notes.split_inclusive("\n\n").take(2).collect();
        fs::write(log.path("checkpoints"), first).unwrap();
        assert_eq!(
            log.found(),
            [FindingKind::TailCut, FindingKind::CheckpointMissing],
            "{file} {frames_cut}"
        );
    }
}

#[test]
fn rolled_back_store_is_found_after_new_records_too() {
    let log = log();
    let before = tempfile::tempdir().unwrap();
    copy(&log.store(), before.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { write(&open(log.state(), &log.store()), 100).await });
    fs::remove_dir_all(log.store()).unwrap();
    copy(before.path(), &log.store());
    assert_eq!(log.found(), [FindingKind::TailCut, FindingKind::CheckpointMissing]);
    // The proxy starts with it and goes on, beyond where it was.
    runtime.block_on(async { write(&open(log.state(), &log.store()), 300).await });
    assert_eq!(log.found(), [FindingKind::RootMismatch, FindingKind::CheckpointMissing]);
}

#[test]
fn swapped_store_is_found() {
    let (mine, theirs) = (log(), Log(tempfile::tempdir().unwrap()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { write(&open(theirs.state(), &theirs.store()), 100).await });
    fs::remove_dir_all(mine.store()).unwrap();
    copy(&theirs.store(), &mine.store());
    let found = mine.found();
    assert!(found.contains(&FindingKind::StoreSwapped), "{found:?}");
    assert!(found.contains(&FindingKind::CheckpointOtherStore), "{found:?}");
}

#[test]
fn removed_segment_is_found() {
    let log = log();
    fs::remove_dir_all(log.path("segments/0000000000000000")).unwrap();
    assert_eq!(log.found(), [FindingKind::TailCut]);
    fs::remove_dir_all(log.path("segments")).unwrap();
    fs::remove_file(log.path("head")).unwrap();
    assert_eq!(log.found(), [FindingKind::TailCut]);
}

#[test]
fn removed_changed_or_forged_checkpoints_are_found() {
    let log = log();
    let path = log.path("checkpoints");
    let good = fs::read_to_string(&path).unwrap();
    let parts: Vec<&str> = good.split_inclusive("\n\n").collect();
    let notes: Vec<String> = parts.chunks(2).map(<[&str]>::concat).collect();
    let found = |left: &[&String]| {
        fs::write(&path, left.iter().map(|note| note.as_str()).collect::<String>()).unwrap();
        log.found()
    };
    let all: Vec<&String> = notes.iter().collect();
    assert_eq!(found(&all), []);
    for gone in 0..all.len() {
        let mut left = all.clone();
        left.remove(gone);
        assert_eq!(found(&left), [FindingKind::CheckpointMissing], "checkpoint {gone}");
    }
    assert_eq!(found(&[]), [FindingKind::CheckpointMissing]);
    fs::remove_file(&path).unwrap();
    assert_eq!(log.found(), [FindingKind::CheckpointMissing]);
    fs::write(&path, good.replacen("number 2\n", "number 9\n", 1)).unwrap();
    assert_eq!(log.found(), [FindingKind::CheckpointForged]);

    // Records changed, chained anew, and signed by a key of the forger's own.
    fs::write(&path, &good).unwrap();
    let forger = tempfile::tempdir().unwrap();
    let records = log.find("records");
    let mut all = frames(&records);
    all[2].lines[7] = all[2].lines[7].replace("ci-bot", "mallory");
    put(&records, &all);
    chain(&log);
    fs::remove_file(&path).unwrap();
    fs::remove_dir_all(log.path("segments/0000000000000000/index")).unwrap();
    drop(open(forger.path(), &log.store()));
    let found = log.found();
    assert!(found.contains(&FindingKind::CheckpointOtherKey), "{found:?}");
    assert!(found.contains(&FindingKind::RootMismatch), "{found:?}");
}

#[test]
fn damaged_index_hides_no_record_and_passes_verification() {
    let log = log();
    let index = log.path("segments/0000000000000000/index/db");
    let good = fs::read(&index).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for at in (0..good.len()).step_by(good.len() / 5) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&index, bytes).unwrap();
        assert_eq!(log.found(), []);
        let audit = open(log.state(), &log.store());
        runtime.block_on(async {
            let all = find(&audit, query("client = ci-bot and tool = read")).await;
            assert_eq!(all.len(), RECORDS + 10, "byte {at}");
            for entry in [&all[3], &all[RECORDS / 2], &all[RECORDS]] {
                let shown = audit.archive().show(entry.record.id()).await.unwrap();
                assert_eq!(shown.lines.len(), 1, "byte {at}");
            }
        });
        drop(audit);
        assert_eq!(log.found(), []);
    }
}

#[test]
fn manipulated_index_is_found_on_request() {
    let indexes = ["audit", "verify", "--indexes", "--state-dir"];
    type Lie = fn(&sled::Db);
    let lies: [(&str, Lie); 4] = [
        ("nothing", |_| ()),
        ("a value that no record is found by", |index| {
            let (key, _) = index.scan_prefix(b"t").next().unwrap().unwrap();
            index.remove(key).unwrap();
        }),
        ("records that a value does not have", |index| {
            let (key, value) = index.scan_prefix(b"t").next().unwrap().unwrap();
            index.insert(key, &value[..value.len() / 2]).unwrap();
        }),
        ("a value that no record has", |index| {
            let (key, value) = index.scan_prefix(b"t").next().unwrap().unwrap();
            let mut key = key.to_vec();
            key[5] ^= 1;
            index.insert(key, value).unwrap();
        }),
    ];
    for (name, lie) in lies {
        let log = log();
        let state = log.state().to_str().unwrap();
        let index = sled::open(log.path("segments/0000000000000000/index")).unwrap();
        lie(&index);
        index.flush().unwrap();
        drop(index);
        let ended = portcullis(&[&indexes[..], &[state]].concat());
        let expected = if name == "nothing" { 0 } else { 11 };
        assert_eq!(ended.status.code(), Some(expected), "{name}: {ended:?}");
        let said = text(&ended).contains("index-mismatch segments/0000000000000000/index");
        assert_eq!(said, expected == 11, "{name}: {}", text(&ended));
        // The records are what they were.
        assert_eq!(log.found(), []);
    }
}

fn portcullis(args: &[&str]) -> Output {
    Command::new(cargo_bin("portcullis")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn verify_prints_findings_with_positions() {
    let log = log();
    let state = log.state().to_str().unwrap();
    let run = |args: &[&str]| portcullis(&[args, &["--state-dir", state]].concat());
    let good = run(&["audit", "verify"]);
    assert!(good.status.success(), "{good:?}");
    assert!(text(&good).contains("nothing is wrong; records 0 to 4509"), "{}", text(&good));
    let key = run(&["audit", "key"]);
    let key = text(&key).trim();
    let notes = fs::read_to_string(log.path("checkpoints")).unwrap();
    let third: String = notes.split_inclusive("\n\n").skip(4).take(2).collect();
    let given = log.state().join("given");
    fs::write(&given, third).unwrap();
    let given = given.to_str().unwrap();
    for since in ["2000", "2099-12-31", given] {
        let since = run(&["audit", "verify", "--key", key, "--since", since]);
        assert!(since.status.success(), "{since:?}");
        assert!(!text(&since).contains("records 0 to"), "{}", text(&since));
    }
    let early = run(&["audit", "verify", "--since", "2001-01-01"]);
    assert_eq!(early.status.code(), Some(1), "{early:?}");
    let nonsense = run(&["audit", "verify", "--since", "tomorrow"]);
    assert_eq!(nonsense.status.code(), Some(2), "{nonsense:?}");

    let path = log.find("records");
    let mut bytes = fs::read(&path).unwrap();
    bytes[30] ^= 1;
    fs::write(&path, bytes).unwrap();
    let bad = run(&["audit", "verify"]);
    assert_eq!(bad.status.code(), Some(11), "{bad:?}");
    let said = "frame-damaged segments/0000000000000000/records at byte 0 record 0: ";
    assert!(text(&bad).starts_with(said), "{}", text(&bad));
    let json = run(&["--format", "json", "audit", "verify"]);
    assert_eq!(json.status.code(), Some(11));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["findings"][0]["what"], "frame-damaged");
    assert_eq!(json["findings"][0]["seq"], 0);
    let none = portcullis(&["audit", "verify", "--store", "/nonexistent"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
}

#[test]
fn proofs_are_valid_only_for_their_record() {
    let log = log();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let id = runtime.block_on(async {
        let audit = open(log.state(), &log.store());
        let call = call();
        intent(&audit, &call).await.unwrap();
        outcome(&audit, &call).await.unwrap();
        let proof = audit.prove(call.id).await.unwrap();
        assert!(proof.check(&audit.verifier().unwrap()).is_ok());
        call.id.to_string()
    });
    let state = log.state().to_str().unwrap();
    let run = |args: &[&str]| portcullis(&[args, &["--state-dir", state]].concat());
    let proof = run(&["audit", "prove", &id]);
    assert!(proof.status.success(), "{proof:?}");
    let key = run(&["audit", "key"]);
    let key = text(&key).trim().to_owned();
    let consistency = run(&["audit", "consistency", "900", "4500"]);
    assert!(consistency.status.success(), "{consistency:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("proof.json");
    let check = |verb: &str, proof: &str, key: &str| {
        fs::write(&file, proof).unwrap();
        portcullis(&["audit", verb, "--check", file.to_str().unwrap(), "--key", key])
    };
    for (verb, made) in [("prove", &proof), ("consistency", &consistency)] {
        let holds = check(verb, text(made), &key);
        assert!(holds.status.success(), "{holds:?}");
        assert!(text(&holds).contains("the proof holds"), "{}", text(&holds));
        // A changed line, a changed hash, another key.
        let mut changed: Value = serde_json::from_slice(&made.stdout).unwrap();
        match verb {
            "prove" => {
                let line = changed["records"][0]["line"].as_str().unwrap();
                changed["records"][0]["line"] = line.replace("ci-bot", "mallory").into();
            }
            _ => changed["path"][0] = Hash::ZERO.to_string().into(),
        }
        let refuted = check(verb, &changed.to_string(), &key);
        assert_eq!(refuted.status.code(), Some(11), "{refuted:?}");
        let other = tempfile::tempdir().unwrap();
        drop(open(other.path(), &other.path().join("audit")));
        let other = portcullis(&["audit", "key", "--state-dir", other.path().to_str().unwrap()]);
        let refuted = check(verb, text(made), text(&other).trim());
        assert_eq!(refuted.status.code(), Some(11), "{refuted:?}");
        assert_eq!(check(verb, "{}", &key).status.code(), Some(1));
    }
    let shown: Value = serde_json::from_slice(&proof.stdout).unwrap();
    assert_eq!(shown["records"].as_array().unwrap().len(), 2);
}

#[test]
fn witnesses_get_checkpoints_in_order_and_after_failures() {
    use portcullis_audit::proof::Witness;
    let log = Log(tempfile::tempdir().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("not/yet/there");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let syslog = Witness::syslog(&format!("udp://{}", socket.local_addr().unwrap())).unwrap();
    let opened = || {
        let witnesses = vec![Witness::File(file.clone()), syslog.clone()];
        let checkpoints = Settings { witnesses, ..settings(log.state()) };
        let options = Options { deadline: DEADLINE, checkpoints, ..Options::default() };
        Audit::open_with(&log.store(), options).unwrap()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let audit = opened();
        write(&audit, 10).await;
        audit.checkpoint().await.unwrap();
    });
    assert!(!file.exists());
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let audit = opened();
    let told = || fs::read_to_string(&file).unwrap_or_default();
    let own = fs::read_to_string(log.path("checkpoints")).unwrap();
    let began = std::time::Instant::now();
    while told() != own {
        assert!(began.elapsed() < DEADLINE, "{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(audit);
    // The datagrams are a log by themselves.
    let mut logged = String::new();
    let mut buffer = [0; 4096];
    while logged.matches("checkpoint - {").count() < 2 {
        let length = socket.recv(&mut buffer).unwrap();
        let message = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(message.starts_with("<110>1 ") && message.is_ascii(), "{message}");
        logged.push_str(message);
        logged.push('\n');
    }
    let syslog = elsewhere.path().join("syslog");
    fs::write(&syslog, logged).unwrap();
    for witness in [&file, &syslog] {
        let witnesses = vec![witness.clone()];
        let request = Request { witnesses, ..Request::of(log.store(), Some(log.state().into())) };
        assert_eq!(verify(&request).unwrap().findings, []);
    }
}

/// The verifier shares no code with the proxy, so the format is as documented.
#[test]
fn independent_verifier_agrees() {
    let log = log();
    let keys = fs::read_to_string(log.path("audit-verifier")).unwrap();
    let (key, dir) = (keys.trim(), tempfile::tempdir().unwrap());
    let mut lines: Vec<String> = Vec::new();
    for path in [log.find("records"), log.find("wal-")] {
        lines.extend(frames(&path).into_iter().flat_map(|frame| frame.lines));
    }
    let records = dir.path().join("records.jsonl");
    let run = |lines: &[String], key: &str| {
        fs::write(&records, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
        let script =
            concat!(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), "/tests/audit/verify.py");
        let mut python = Command::new("python3");
        python.args([script, key]).args([&log.path("checkpoints"), &records]);
        python.output().unwrap()
    };
    let good = run(&lines, key);
    assert_eq!(text(&good), "verified: 4510 records\n", "{good:?}");
    let refused = |lines: &[String], key: &str, why: &str| {
        let output = run(lines, key);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    };
    refused(&lines[..4000], key, "were signed");
    let mut changed = lines.clone();
    changed[2000] = changed[2000].replace("ci-bot", "mallory");
    refused(&changed, key, "record 2001 does not name the one before it");
    changed.remove(2000);
    refused(&changed, key, "record 2000 is not there");
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path(), &other.path().join("audit")));
    let other = fs::read_to_string(other.path().join("audit-verifier")).unwrap();
    refused(&lines, other.trim(), "not of this log");
}
