//! Full disks, damage, deadlines and concurrent producers.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use portcullis_audit::{
    Audit, Options, Query, Reader, Tailed, Unavailable,
    record::{Event, Kind, Record, RecordsLost},
};

use crate::common::{DEADLINE, call, find, intent, open, outcome, query};

/// A small file system of its own, for the full disk.
pub struct SmallDisk {
    pub dir: tempfile::TempDir,
}

impl SmallDisk {
    pub fn new(mebibytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("this test mounts a small tmpfs: run it as root, or in a user namespace");
        Self { dir }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(dir.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

async fn count(audit: &Audit, kind: &str) -> usize {
    find(audit, query(&format!("kind = {kind}"))).await.len()
}

#[tokio::test]
async fn disk_space_below_the_reserve_refuses_records() {
    let disk = SmallDisk::new(16);
    let full = Audit::open(&disk.dir.path().join("audit"), DEADLINE).unwrap_err();
    assert!(matches!(full, Unavailable::Full { .. }), "{full:?}");
    assert!(full.to_string().contains("less than 32 MiB are free"), "{full}");

    let options = Options { deadline: DEADLINE, reserve: 4 << 20, ..Options::default() };
    let audit = Audit::open_with(&disk.dir.path().join("audit"), options).unwrap();
    intent(&audit, &call()).await.unwrap();
    let filler = disk.dir.path().join("filler");
    fs::write(&filler, vec![0; 12 << 20]).unwrap();
    let full = intent(&audit, &call()).await.unwrap_err();
    assert!(matches!(full, Unavailable::Full { .. }), "{full:?}");
    fs::remove_file(&filler).unwrap();
    intent(&audit, &call()).await.unwrap();
}

#[tokio::test]
async fn full_disk_refuses_records_and_recovers() {
    let disk = SmallDisk::new(24);
    let dir = disk.dir.path().join("audit");
    let options = Options { deadline: DEADLINE, reserve: 0, ..Options::default() };
    let audit = Audit::open_with(&dir, options.clone()).unwrap();
    let filler = disk.dir.path().join("filler");
    fs::write(&filler, vec![0; 18 << 20]).unwrap();
    let mut written = 0;
    let full = loop {
        match intent(&audit, &call()).await {
            Ok(()) => written += 1,
            Err(unavailable) => break unavailable,
        }
    };
    // The next record may succeed: packing a block frees space.
    assert!(matches!(full, Unavailable::Full { .. }), "{full:?}");
    fs::remove_file(&filler).unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let audit = Audit::open_with(&dir, options).unwrap();
    // Records that were answered with an error may be there too; none that was acknowledged may
    // be missing.
    let found = count(&audit, "intent").await;
    assert!(found > written, "{found} of {}", written + 1);
    assert_eq!(count(&audit, "event").await, 0, "nothing was quarantined");
}

/// The file of commits of the newest segment.
fn commits(dir: &Path) -> PathBuf {
    let segment = segments(dir).pop().unwrap();
    let mut names: Vec<_> =
        fs::read_dir(segment).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("wal-"));
    names.sort();
    names.pop().unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn torn_commit_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for _ in 0..10 {
        intent(&audit, &call()).await.unwrap();
    }
    drop(audit);
    let mut bytes = fs::read(commits(dir.path())).unwrap();
    let torn = bytes[..100].to_vec();
    bytes.extend(torn);
    fs::write(commits(dir.path()), bytes).unwrap();

    let audit = open(dir.path());
    intent(&audit, &call()).await.unwrap();
    assert_eq!(count(&audit, "intent").await, 11);
    assert_eq!(count(&audit, "event").await, 0);
}

/// A flipped bit in a length, a zeroed head, and a commit removed from the middle.
#[tokio::test]
async fn truncated_good_commits_are_copied_and_reported() {
    for damage in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path());
        for _ in 0..20 {
            intent(&audit, &call()).await.unwrap();
        }
        drop(audit);
        let path = commits(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize + 8;
        match damage {
            0 => bytes[length + 2] ^= 0x40,
            1 => bytes[length..length + 8].fill(0),
            _ => drop(bytes.drain(length..2 * length)),
        }
        fs::write(&path, &bytes).unwrap();
        // A power cut can leave the head behind.
        fs::remove_file(dir.path().join("head")).unwrap();

        let audit = open(dir.path());
        intent(&audit, &call()).await.unwrap();
        let aside: Vec<_> = fs::read_dir(dir.path().join("quarantine")).unwrap().collect();
        let [Ok(kept)] = aside.as_slice() else { panic!("{damage}: {aside:?}") };
        assert_eq!(fs::read(kept.path()).unwrap(), bytes);
    }
}

#[tokio::test]
async fn replaced_digest_key_hides_no_records() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let calls: Vec<_> = (0..4200).map(|_| call()).collect();
    for written in
        futures_util::future::join_all(calls.iter().map(|call| intent(&audit, call))).await
    {
        written.unwrap();
    }
    drop(audit);
    fs::remove_file(dir.path().join("digest.key")).unwrap();
    let audit = open(dir.path());
    assert_eq!(audit.archive().show(calls[0].id).await.unwrap().lines.len(), 1);
}

#[tokio::test]
async fn records_lost_to_damage_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for _ in 0..100 {
        intent(&audit, &call()).await.unwrap();
    }
    drop(audit);
    let path = commits(dir.path());
    flip(&path, fs::metadata(&path).unwrap().len() as usize / 2);

    for opened in 0..2 {
        let audit = open(dir.path());
        intent(&audit, &call()).await.unwrap();
        let events = find(&audit, query("kind = event")).await;
        let [entry] = events.as_slice() else { panic!("{events:?}") };
        let Record::Event(event) = &entry.record else { panic!("{entry:?}") };
        let Event::RecordsLost(RecordsLost { from, until, reason }) = &event.what else {
            panic!("{event:?}")
        };
        assert_eq!((until.0, entry.seq), (100, *from));
        assert!((40..60).contains(&from.0), "{from}");
        assert!(reason.as_ref().unwrap().contains("frame"), "{reason:?}");
        assert_eq!(count(&audit, "intent").await, from.0 as usize + opened + 1);
    }
    let aside = fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!(aside, 1, "what was damaged is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_or_missing_index_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let calls: Vec<_> = (0..9000).map(|_| call()).collect();
    for written in
        futures_util::future::join_all(calls.iter().map(|call| intent(&audit, call))).await
    {
        written.unwrap();
    }
    drop(audit);
    let index = segments(dir.path()).pop().unwrap().join("index");
    for damage in 0..3 {
        match damage {
            0 => fs::remove_dir_all(&index).unwrap(),
            1 => fs::write(index.join("conf"), "no config of sled's").unwrap(),
            _ => {}
        }
        let audit = open(dir.path());
        intent(&audit, &call()).await.unwrap();
        assert_eq!(count(&audit, "intent").await, 9001 + damage);
        assert_eq!(count(&audit, "event").await, 0, "nothing was lost");
        let shown = audit.archive().show(calls[17].id).await.unwrap();
        assert_eq!(shown.lines.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_frame_loses_only_its_own_records() {
    for at in [2, 100] {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path());
        let calls: Vec<_> = (0..4500).map(|_| call()).collect();
        for written in
            futures_util::future::join_all(calls.iter().map(|call| intent(&audit, call))).await
        {
            written.unwrap();
        }
        drop(audit);
        let segment = segments(dir.path()).pop().unwrap();
        // In the length or in the body of the frame that begins the file.
        flip(&segment.join("records"), at);
        fs::remove_dir_all(segment.join("index")).unwrap();
        let size = fs::metadata(segment.join("records")).unwrap().len();

        let audit = open(dir.path());
        intent(&audit, &call()).await.unwrap();
        assert_eq!(count(&audit, "intent").await, 4501 - 256);
        let newest = audit.archive().query(Query::default()).await.unwrap();
        assert_eq!(newest.lines[0].seq().0, 4500, "the places of the lost ones stay taken");
        drop(audit);
        assert!(fs::metadata(segment.join("records")).unwrap().len() >= size, "nothing is cut");
    }
}

#[tokio::test]
async fn segments_form_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { deadline: DEADLINE, segment: Duration::from_millis(1), ..Options::default() };
    let mut calls = Vec::new();
    for opened in 0..2 {
        let audit = Audit::open_with(dir.path(), options.clone()).unwrap();
        for _ in 0..3 {
            let call = call();
            intent(&audit, &call).await.unwrap();
            // The next record is of another segment, as soon as the clock has gone on.
            tokio::time::sleep(Duration::from_millis(2)).await;
            outcome(&audit, &call).await.unwrap();
            calls.push(call);
        }
        assert!(segments(dir.path()).len() > 3 * (opened + 1));
        assert_eq!(count(&audit, "intent").await, calls.len());
        assert_eq!(count(&audit, "event").await, 0);
        for call in &calls {
            let shown = audit.archive().show(call.id).await.unwrap();
            let kinds: Vec<_> =
                shown.entries().unwrap().iter().map(|entry| entry.record.kind()).collect();
            assert_eq!(kinds, [Kind::Intent, Kind::Outcome]);
        }
    }
    let reader = Reader::open(dir.path(), DEADLINE, None).unwrap();
    let shown = reader.show(calls[0].id).await.unwrap();
    assert_eq!(shown.lines.len(), 2);
}

#[tokio::test]
async fn unusable_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let broken = Audit::open(&file.join("audit"), DEADLINE).unwrap_err();
    assert!(matches!(broken, Unavailable::Broken { .. }));
    assert!(broken.to_string().contains(&file.display().to_string()), "{broken}");
    let missing = Reader::open(&dir.path().join("none"), DEADLINE, None).unwrap_err();
    assert!(matches!(missing, Unavailable::Missing { .. }));
    assert!(!dir.path().join("none").exists());
}

#[tokio::test]
async fn store_is_private_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("audit");
    drop(open(&store));
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn lagging_follower_gets_the_number_of_missed_records() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let mut tail = audit.tail();
    let calls: Vec<_> = (0..1500).map(|_| call()).collect();
    let writes = calls.iter().map(|call| intent(&audit, call));
    for written in futures_util::future::join_all(writes).await {
        written.unwrap();
    }
    let Some(Tailed::Missed(missed)) = tail.next().await else { panic!("nothing was missed") };
    let mut seen = 0;
    while missed + seen < 1500 {
        assert!(matches!(tail.next().await, Some(Tailed::Record(_))));
        seen += 1;
    }
    drop(audit);
    assert_eq!(tail.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_producers_share_syncs() {
    const PRODUCERS: usize = 64;
    const CALLS: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let started = Instant::now();
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|_| {
            let audit = audit.clone();
            tokio::spawn(async move {
                for _ in 0..CALLS {
                    let call = call();
                    intent(&audit, &call).await.unwrap();
                    outcome(&audit, &call).await.unwrap();
                }
            })
        })
        .collect();
    for producer in producers {
        producer.await.unwrap();
    }
    let rate = (2 * PRODUCERS * CALLS) as f64 / started.elapsed().as_secs_f64();
    println!("{PRODUCERS} producers: {rate:.0} records a second");
    assert_eq!(count(&audit, "outcome").await, PRODUCERS * CALLS);
}
