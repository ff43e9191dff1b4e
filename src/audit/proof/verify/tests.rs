//! Verification of a handmade store after changes to it. `tests/audit/tampering.rs` tests the same
//! with a store that the proxy wrote.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    digest::DigestKey,
    line::{Line, LineHead, Seq},
    proof::{
        Companions, Frontier, Signer, TILE,
        checkpoint::{Checkpoint, Pace, Signed},
        checkpoint_file::CheckpointFile,
        note_file,
        pruned_segment::{Part, PrunedSegmentProof},
    },
    store::frame::{self, Pack},
};

/// Records of the first segment, all sealed; of the second, with a sealed first block; and of the
/// whole log.
const SEGMENT: u64 = 700;
const SEALED: u64 = 1300;
const END: u64 = 1310;

struct TestStore {
    dir: tempfile::TempDir,
    signer: Signer,
    lines: Vec<Bytes>,
}

fn lines(count: u64, change: impl Fn(u64) -> &'static str) -> Vec<Bytes> {
    let mut prev = Hash::ZERO;
    (0..count)
        .map(|seq| {
            let after = SignedDuration::from_secs(i64::try_from(seq / 10).unwrap());
            let recorded = Timestamp::from_second(1_795_000_000).unwrap() + after;
            let head = LineHead { seq: Seq(seq), recorded, prev };
            let line = Line::write(head, format!("{{\"x\":\"{}\"}}", change(seq)).as_bytes());
            prev = line.hash();
            line.text().clone()
        })
        .collect()
}

fn put(dir: &Path, name: &str, frames: &[(u64, &[Bytes])], pack: Pack) {
    let mut bytes = Vec::new();
    for (first, lines) in frames {
        frame::write(&mut bytes, *first, lines, pack, None).unwrap();
    }
    fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
    fs::write(dir.join(name), bytes).unwrap();
}

fn tree(lines: &[Bytes]) -> Frontier {
    Frontier::of_tiles([], lines.iter().map(|line| Hash::leaf(line)))
}

/// Writes the segments of these records: frames end at tiles and at the segment's end.
fn write(dir: &Path, lines: &[Bytes]) {
    let frames = |from: u64, to: u64| {
        let mut frames = Vec::new();
        let mut at = from;
        while at < to {
            let end = ((at / TILE + 1) * TILE).min(to);
            frames.push((at, &lines[at as usize..end as usize]));
            at = end;
        }
        frames
    };
    let closed = &lines[..SEGMENT as usize];
    put(dir, "segments/0000000000000000/records", &frames(0, SEGMENT), Pack::Zstd);
    let json = serde_json::json!({
        "first": 0, "end": SEGMENT, "begin": Timestamp::UNIX_EPOCH,
        "ended": LineHead::read(&closed[SEGMENT as usize - 1]).unwrap().recorded,
        "last": Hash::leaf(&closed[SEGMENT as usize - 1]), "tree": tree(closed),
    });
    let path = dir.join("segments/0000000000000000/segment.json");
    fs::write(path, json.to_string()).unwrap();
    let second = format!("segments/{SEGMENT:016}");
    put(dir, &format!("{second}/records"), &frames(SEGMENT, SEALED), Pack::Zstd);
    let open: Vec<_> =
        (SEALED..END).map(|seq| (seq, &lines[seq as usize..=seq as usize])).collect();
    put(dir, &format!("{second}/wal-{SEALED:016}"), &open, Pack::Plain);
    let last = Hash::leaf(&lines[END as usize - 1]);
    fs::write(dir.join("head"), format!("{:020} {last}\n", END - 1)).unwrap();
}

fn sign(dir: &Path, signer: &Signer, lines: &[Bytes], sizes: &[u64]) {
    let mut ledger = CheckpointFile::open(dir, &[signer.verifier().clone()]).unwrap();
    let key = DigestKey::open(dir, None, None).unwrap();
    let companions = Companions::read(dir, key.fingerprint()).unwrap();
    for &size in sizes {
        let part = &lines[..size as usize];
        let newest = ledger.newest();
        let time = part
            .last()
            .map_or(Timestamp::UNIX_EPOCH, |line| LineHead::read(line).unwrap().recorded);
        let checkpoint = Checkpoint {
            origin: signer.origin().into(),
            size,
            root: tree(part).root(),
            number: newest.map_or(0, |newest| newest.checkpoint.number + 1),
            before: newest.map_or(Hash::ZERO, |newest| newest.hash),
            last: part.last().map_or(Hash::ZERO, |line| Hash::leaf(line)),
            time,
            next: Pace { records: 300, time: Duration::from_secs(60) },
            companions,
        };
        ledger.append(checkpoint.sign(signer).unwrap()).unwrap();
    }
}

const SIZES: [u64; 6] = [0, 256, 300, 700, 1000, 1305];

fn test_store() -> TestStore {
    let dir = tempfile::tempdir().unwrap();
    let store = Manifest::open(dir.path()).unwrap();
    let signer = Signer::open(dir.path(), &store.id).unwrap();
    key::keep_verifier(dir.path(), signer.verifier()).unwrap();
    let lines = lines(END, |_| "as it was");
    write(dir.path(), &lines);
    sign(dir.path(), &signer, &lines, &SIZES);
    TestStore { dir, signer, lines }
}

impl TestStore {
    fn request(&self) -> Request {
        Request { dir: self.dir.path().to_owned(), ..Request::default() }
    }

    fn report(&self) -> Report {
        verify(&self.request()).unwrap()
    }

    /// Kinds of findings, without duplicates.
    fn found(&self) -> Vec<FindingKind> {
        let mut found: Vec<_> = self.report().findings.iter().map(|f| f.what).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

const FIRST: &str = "segments/0000000000000000/records";
const WAL: &str = "segments/0000000000000700/wal-0000000000001300";

#[test]
fn untouched_store_passes() {
    let test_store = test_store();
    let report = test_store.report();
    assert_eq!(report.findings, []);
    assert_eq!((report.first, report.end, report.records), (0, END, END));
    assert_eq!((report.checkpoints, report.signed.unwrap().size), (6, 1305));
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    let keys = vec![test_store.signer.verifier().clone()];
    let report = verify(&Request { keys, ..test_store.request() }).unwrap();
    assert_eq!((report.findings, report.notes), (vec![], vec![]));
    for (since, first, records) in
        [(0, 0, END), (299, 256, END), (700, 700, 610), (9999, 1305, 610)]
    {
        let report =
            verify(&Request { since: Some(Since::Size(since)), ..test_store.request() }).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!((report.first, report.records), (first, records), "{since}");
        assert_eq!(report.signed.unwrap().size, 1305);
    }
}

#[test]
fn flipped_bits_in_record_files_are_found() {
    let test_store = test_store();
    for (name, step) in [(FIRST, 97), (WAL, 13)] {
        let good = fs::read(test_store.path(name)).unwrap();
        for at in (0..good.len()).step_by(step).chain(0..24) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(test_store.path(name), &bytes).unwrap();
            let report = test_store.report();
            let finding = report.findings.iter().find(|f| f.what == FindingKind::FrameDamaged);
            let finding = finding.unwrap_or_else(|| panic!("{name} {at}: {report:?}"));
            assert_eq!(finding.file.as_deref(), Some(name));
            assert!(finding.offset.unwrap() <= at as u64);
        }
        fs::write(test_store.path(name), &good).unwrap();
    }
    assert_eq!(test_store.found(), []);
}

#[test]
fn records_after_damage_are_checked_against_checkpoints() {
    let test_store = test_store();
    let mut bytes = fs::read(test_store.path(FIRST)).unwrap();
    let length = u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize + 8;
    // Header of the second frame.
    for at in [0, 3, 9, 17] {
        let mut bytes = bytes.clone();
        bytes[length + at] ^= 0x40;
        fs::write(test_store.path(FIRST), &bytes).unwrap();
        let report = test_store.report();
        let found: Vec<_> = report.findings.iter().map(|f| (f.what, f.seq, f.offset)).collect();
        assert_eq!(found, [(FindingKind::FrameDamaged, Some(256), Some(length as u64))], "{at}");
        // Checkpoints at 0 and 256, and those within the second segment.
        assert_eq!((report.checkpoints, report.signed.unwrap().size), (4, 1305));
    }
    bytes.truncate(length + 100);
    fs::write(test_store.path(FIRST), &bytes).unwrap();
    assert_eq!(test_store.found(), [FindingKind::FrameDamaged]);
    bytes.truncate(length);
    fs::write(test_store.path(FIRST), &bytes).unwrap();
    assert_eq!(test_store.found(), [FindingKind::RecordMissing, FindingKind::IndexMismatch]);
}

#[test]
fn segment_metadata_is_checked_against_the_records() {
    let test_store = test_store();
    let path = test_store.path("segments/0000000000000000/segment.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to) in
        [("\"end\":700", "\"end\":701"), ("\"peaks\":[\"", "\"peaks\":[\"0"), ("{", "[")]
    {
        let other = good.replacen(from, to, 1);
        assert_ne!(other, good);
        fs::write(&path, other).unwrap();
        assert_eq!(test_store.found(), [FindingKind::IndexMismatch], "{to}");
    }
    let root = tree(&test_store.lines[..512]).root().to_string();
    assert!(good.contains(&root));
    fs::write(&path, good.replace(&root, &Hash::ZERO.to_string())).unwrap();
    assert_eq!(test_store.found(), [FindingKind::IndexMismatch]);
    // A verification that begins there finds it too.
    let report =
        verify(&Request { since: Some(Since::Size(700)), ..test_store.request() }).unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| f.what).collect();
    assert_eq!(found, [FindingKind::RootMismatch]);
}

#[test]
fn changed_record_is_found_with_a_recomputed_chain() {
    let test_store = test_store();
    // One line and its checksum.
    let mut lines = test_store.lines.clone();
    let text = String::from_utf8(lines[400].to_vec()).unwrap().replace("was", "is");
    lines[400] = Bytes::from(text);
    write(test_store.dir.path(), &lines);
    let report = test_store.report();
    let found: Vec<_> = report.findings.iter().map(|f| (f.what, f.seq)).collect();
    assert_eq!(
        found,
        [(FindingKind::ChainBroken, Some(401)), (FindingKind::RootMismatch, Some(300))]
    );
    // The whole chain after it too.
    write(
        test_store.dir.path(),
        &super::tests::lines(END, |seq| if seq == 400 { "is" } else { "as it was" }),
    );
    let report = test_store.report();
    let found: Vec<_> = report.findings.iter().map(|f| (f.what, f.seq)).collect();
    assert_eq!(found, [(FindingKind::RootMismatch, Some(300))]);
    assert!(report.findings[0].message.contains("300 to 699"), "{}", report.findings[0]);
}

#[test]
fn removed_inserted_or_moved_records_are_found() {
    let test_store = test_store();
    let of = |lines: &[Bytes]| {
        let frames: Vec<_> = lines.chunks(256).zip([0, 256, 512]).map(|(l, at)| (at, l)).collect();
        put(test_store.dir.path(), FIRST, &frames, Pack::Zstd);
        test_store.found()
    };
    let mut without = test_store.lines[..SEGMENT as usize].to_vec();
    without.remove(100);
    let found = of(&without);
    assert!(
        found.contains(&FindingKind::RecordMisplaced) && found.contains(&FindingKind::ChainBroken)
    );
    let mut twice = test_store.lines[..SEGMENT as usize].to_vec();
    twice.insert(100, twice[99].clone());
    assert!(of(&twice).contains(&FindingKind::RecordMisplaced));
    let mut swapped = test_store.lines[..SEGMENT as usize].to_vec();
    swapped.swap(100, 101);
    assert!(of(&swapped).contains(&FindingKind::RecordMisplaced));
    let all: Vec<_> = test_store.lines[..SEGMENT as usize].chunks(256).collect();
    put(test_store.dir.path(), FIRST, &[(0, all[0]), (512, all[2]), (256, all[1])], Pack::Zstd);
    assert_eq!(test_store.found(), [FindingKind::RecordMissing, FindingKind::RecordMisplaced]);
    put(
        test_store.dir.path(),
        FIRST,
        &[(0, all[0]), (0, all[0]), (256, all[1]), (512, all[2])],
        Pack::Zstd,
    );
    assert_eq!(test_store.found(), [FindingKind::RecordMisplaced]);
    put(test_store.dir.path(), FIRST, &[(0, all[0]), (512, all[2])], Pack::Zstd);
    assert_eq!(test_store.found(), [FindingKind::RecordMissing]);
}

#[test]
fn truncated_tail_is_found() {
    let test_store = test_store();
    let good = fs::read(test_store.path(WAL)).unwrap();
    let frame = u32::from_le_bytes(*good.first_chunk().unwrap()) as usize + 8;
    // The last commit, which no checkpoint covers.
    fs::write(test_store.path(WAL), &good[..frame * 9]).unwrap();
    assert_eq!(test_store.found(), [FindingKind::TailCut]);
    fs::write(test_store.path(WAL), &good[..frame * 9 + 10]).unwrap();
    assert_eq!(test_store.found(), [FindingKind::FrameDamaged]);
    // `head` too: records without a checkpoint are not proven.
    let last = Hash::leaf(&test_store.lines[END as usize - 2]);
    fs::write(test_store.path("head"), format!("{:020} {last}\n", END - 2)).unwrap();
    let report = test_store.report();
    assert_eq!(report.findings, []);
    assert!(report.notes[1].contains("not finished"), "{:?}", report.notes);
    // A checkpoint covers these records.
    fs::write(test_store.path(WAL), &good[..frame * 4]).unwrap();
    fs::remove_file(test_store.path("head")).unwrap();
    assert_eq!(test_store.found(), [FindingKind::TailCut, FindingKind::HeadMissing]);
    fs::remove_file(test_store.path(WAL)).unwrap();
    assert_eq!(test_store.found(), [FindingKind::TailCut, FindingKind::HeadMissing]);
    // `head` names another record, or is unreadable.
    fs::write(test_store.path(WAL), &good).unwrap();
    fs::write(test_store.path("head"), format!("{:020} {}\n", END - 1, Hash::ZERO)).unwrap();
    assert_eq!(test_store.found(), [FindingKind::HeadMismatch]);
    fs::write(test_store.path("head"), "nothing\n").unwrap();
    assert_eq!(test_store.found(), [FindingKind::HeadDamaged]);
}

#[test]
fn removed_or_emptied_head_is_found() {
    let test_store = test_store();
    let length = fs::read(test_store.path("head")).unwrap().len();
    fs::write(test_store.path("head"), vec![0; length]).unwrap();
    assert_eq!(test_store.found(), [FindingKind::HeadMissing]);
    fs::remove_file(test_store.path("head")).unwrap();
    assert_eq!(test_store.found(), [FindingKind::HeadMissing]);
}

#[test]
fn changed_or_removed_side_file_is_found() {
    let test_store = test_store();
    for (name, what) in [
        ("digest.key", FindingKind::DigestKeyChanged),
        ("store.json", FindingKind::FileChanged),
        ("audit-verifier", FindingKind::FileChanged),
    ] {
        let good = fs::read(test_store.path(name)).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(test_store.path(name), bytes).unwrap();
            // An unreadable `store.json` or key ends the verification.
            let request = Request {
                keys: vec![test_store.signer.verifier().clone()],
                ..test_store.request()
            };
            if let Ok(report) = verify(&request) {
                let found: Vec<_> = report.findings.iter().map(|f| f.what).collect();
                assert!(found.contains(&what), "byte {at} of {name}: {found:?}");
            }
        }
        if name != "store.json" {
            fs::remove_file(test_store.path(name)).unwrap();
            let keys = vec![test_store.signer.verifier().clone()];
            let report = verify(&Request { keys, ..test_store.request() }).unwrap();
            let found: Vec<_> = report.findings.iter().map(|f| f.what).collect();
            assert_eq!(found, [what], "{name}");
        }
        fs::write(test_store.path(name), good).unwrap();
    }
    assert_eq!(test_store.found(), []);
    // The proxy created a new key after the old one was lost: checkpoints reveal it.
    fs::remove_file(test_store.path("digest.key")).unwrap();
    sign(test_store.dir.path(), &test_store.signer, &test_store.lines, &[END]);
    let report = test_store.report();
    assert_eq!(report.findings, []);
    let noted = report.notes.iter().any(|note| {
        note.contains("`digest.key` was replaced between the checkpoints 5 and 6")
            && note.contains("before record 1310 can no longer be compared")
    });
    assert!(noted, "{:?}", report.notes);
}

#[test]
fn unfinished_sealing_is_not_damage() {
    let test_store = test_store();
    let records = test_store.path("segments/0000000000000700/records");
    let good = fs::read(&records).unwrap();
    let mut sealing = Vec::new();
    let open = &test_store.lines[SEALED as usize..];
    frame::write(&mut sealing, SEALED, open, Pack::Zstd, None).unwrap();
    for cut in [1, 20, sealing.len() / 2, sealing.len()] {
        fs::write(&records, [&good, &sealing[..cut]].concat()).unwrap();
        let report = test_store.report();
        assert_eq!((report.findings, report.end), (vec![], END), "{cut}");
    }
    // Without the commits, the remaining records count.
    fs::write(&records, [&good, &sealing[..20]].concat()).unwrap();
    fs::remove_file(test_store.path(WAL)).unwrap();
    assert_eq!(test_store.found(), [FindingKind::FrameDamaged, FindingKind::TailCut]);
}

#[test]
fn missing_segment_needs_a_retention_proof() {
    let test_store = test_store();
    let gone = test_store.path("segments/0000000000000000");
    fs::rename(&gone, test_store.path("aside")).unwrap();
    assert_eq!(test_store.found(), [FindingKind::RecordMissing]);
    let part = &test_store.lines[..SEGMENT as usize];
    let hash = |lines: &[Bytes]| lines.iter().map(|line| Hash::leaf(line)).collect::<Vec<_>>();
    let tile = |at: usize| Part::Tile(tree(&part[at..at + 256]).root());
    let mut stub = PrunedSegmentProof {
        first: 0,
        end: SEGMENT,
        began: LineHead::read(&part[0]).unwrap().recorded,
        ended: LineHead::read(&part[part.len() - 1]).unwrap().recorded,
        last: Hash::leaf(&part[part.len() - 1]),
        parts: [tile(0), tile(256)]
            .into_iter()
            .chain(hash(&part[512..]).into_iter().map(Part::Leaf))
            .collect(),
    };
    stub.split::<()>(&SIZES, |range| Ok(hash(&part[range.start as usize..range.end as usize])))
        .unwrap();
    stub.write(test_store.dir.path(), &test_store.signer).unwrap();
    let report = test_store.report();
    assert_eq!(report.findings, []);
    assert_eq!((report.first, report.checkpoints), (SEGMENT, 6));
    // Proof of another signer, a changed proof, and a proof of other records.
    let path = PrunedSegmentProof::path(test_store.dir.path(), 0);
    let good = fs::read(&path).unwrap();
    let other =
        Signer::for_tests(test_store.signer.origin().strip_prefix("portcullis/").unwrap(), 9);
    stub.write(test_store.dir.path(), &other).unwrap();
    assert_eq!(test_store.found(), [FindingKind::ProofDamaged]);
    fs::write(&path, &good[..good.len() - 70]).unwrap();
    assert_eq!(test_store.found(), [FindingKind::ProofDamaged]);
    stub.parts[0] = Part::Tile(Hash::ZERO);
    stub.write(test_store.dir.path(), &test_store.signer).unwrap();
    assert_eq!(test_store.found(), [FindingKind::RootMismatch]);
    fs::write(&path, &good).unwrap();
    // A segment in both places is being dropped.
    fs::rename(test_store.path("aside"), &gone).unwrap();
    assert_eq!(test_store.found(), []);
}

#[test]
fn missing_or_foreign_checkpoints_are_found() {
    let test_store = test_store();
    let path = test_store.path(CHECKPOINTS);
    let good = fs::read_to_string(&path).unwrap();
    let notes: Vec<_> = good.split_inclusive("\n\n").collect();
    let notes: Vec<_> = notes.chunks(2).map(|pair| pair.concat()).collect();
    let keys = vec![test_store.signer.verifier().clone()];
    let without = |gone: &[usize]| {
        let left = notes.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        fs::write(&path, left.map(|(_, note)| note.as_str()).collect::<String>()).unwrap();
        test_store.found()
    };
    assert_eq!(without(&[]), []);
    assert_eq!(without(&[0]), [FindingKind::CheckpointMissing]);
    assert_eq!(without(&[2, 3]), [FindingKind::CheckpointMissing]);
    assert_eq!(without(&[0, 1, 2, 3, 4, 5]), [FindingKind::CheckpointMissing]);
    fs::remove_file(&path).unwrap();
    assert_eq!(test_store.found(), [FindingKind::CheckpointMissing]);
    fs::write(&path, [1, 0, 2, 3, 4, 5].map(|at| notes[at].as_str()).concat()).unwrap();
    assert!(test_store.found().contains(&FindingKind::CheckpointMisplaced));
    // The newest checkpoints: a witness or the state folder has them.
    assert_eq!(without(&[5]), []);
    fs::write(test_store.path(NEWEST), &notes[5]).unwrap();
    assert_eq!(test_store.found(), [FindingKind::CheckpointMissing]);
    fs::remove_file(test_store.path(NEWEST)).unwrap();
    let logged = format!(
        "<110>1 - {}\n",
        serde_json::json!({ "checkpoint": notes[5].trim_end_matches('\n').to_owned() + "\n" })
    );
    for witness in [good.as_str(), logged.as_str()] {
        fs::write(test_store.path("witness"), witness).unwrap();
        let witnesses = vec![test_store.path("witness")];
        let report =
            verify(&Request { witnesses, keys: keys.clone(), ..test_store.request() }).unwrap();
        let found: Vec<_> = report.findings.iter().map(|f| f.what).collect();
        assert_eq!(found, [FindingKind::CheckpointMissing], "{report:?}");
    }
    // Every bit of the checkpoints.
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&path, bytes).unwrap();
        assert!(!test_store.found().is_empty(), "byte {at}");
    }
    // Another key signs them, and other records.
    fs::remove_file(&path).unwrap();
    let id = test_store.signer.origin().strip_prefix("portcullis/").unwrap();
    let forger = Signer::for_tests(id, 9);
    sign(test_store.dir.path(), &forger, &test_store.lines, &SIZES);
    assert_eq!(test_store.found(), [FindingKind::CheckpointOtherKey]);
}

#[test]
fn swapped_or_rolled_back_store_is_found() {
    let (mine, theirs) = (test_store(), test_store());
    let keys = vec![mine.signer.verifier().clone()];
    let report = verify(&Request { keys, ..theirs.request() }).unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| f.what).collect();
    assert!(
        found.contains(&FindingKind::StoreSwapped)
            && found.contains(&FindingKind::CheckpointOtherStore)
    );
    // Rollback: the checkpoint in the state folder is newer.
    let state = tempfile::tempdir().unwrap();
    let notes = fs::read_to_string(mine.path(CHECKPOINTS)).unwrap();
    let text = note_file::split(notes.as_bytes()).notes.last().unwrap().1.to_vec();
    fs::write(state.path().join(NEWEST), &text).unwrap();
    key::keep_verifier(state.path(), mine.signer.verifier()).unwrap();
    let earlier = tempfile::tempdir().unwrap();
    for name in ["store.json", "digest.key", "audit-verifier"] {
        fs::copy(mine.path(name), earlier.path().join(name)).unwrap();
    }
    let lines = mine.lines.clone();
    put(earlier.path(), FIRST, &[(0, &lines[..256]), (256, &lines[256..300])], Pack::Zstd);
    sign(earlier.path(), &mine.signer, &lines, &SIZES[..3]);
    let last = Hash::leaf(&lines[299]);
    fs::write(earlier.path().join("head"), format!("{:020} {last}\n", 299)).unwrap();
    let request = Request {
        dir: earlier.path().into(),
        state: Some(state.path().into()),
        ..Request::default()
    };
    let found: Vec<_> = verify(&request).unwrap().findings.iter().map(|f| f.what).collect();
    assert_eq!(found, [FindingKind::CheckpointMissing, FindingKind::TailCut]);
    assert!(Signed::unchecked(std::str::from_utf8(&text).unwrap()).is_some());
}

#[test]
fn overdue_checkpoint_is_found() {
    let test_store = test_store();
    fs::remove_file(test_store.path(CHECKPOINTS)).unwrap();
    sign(test_store.dir.path(), &test_store.signer, &test_store.lines, &[0]);
    // 1310 records, ten a second: no checkpoint is due yet.
    assert_eq!(test_store.found(), []);
    let lines = lines(END, |_| "as it was");
    let late: Vec<_> = {
        let mut prev = Hash::ZERO;
        let later = |line: &Bytes| {
            let head = LineHead::read(line).unwrap();
            let after = SignedDuration::from_secs(i64::try_from(head.seq.0).unwrap());
            let line = Line::write(
                LineHead { recorded: head.recorded + after, prev, ..head },
                b"{\"x\":1}",
            );
            prev = line.hash();
            line.text().clone()
        };
        lines.iter().map(later).collect()
    };
    write(test_store.dir.path(), &late);
    assert_eq!(test_store.found(), [FindingKind::CheckpointOverdue]);
}
