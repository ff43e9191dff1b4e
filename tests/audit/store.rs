//! Full disks, damage, deadlines, many producers.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use portcullis::audit::{
    Audit, Filter, Options, PAGE_MAX, Reader, Tailed, Unavailable,
    record::{Happening, Kind, Record},
};

use crate::common::{DEADLINE, call, intent, open, outcome};

/// A small file system of its own, for the full disk.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u32) -> Self {
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

async fn count(audit: &Audit, kind: Kind) -> usize {
    let mut filter = Filter { kind: Some(kind), limit: Some(PAGE_MAX), ..Filter::default() };
    let mut count = 0;
    loop {
        let page = audit.archive().query(filter.clone()).await.unwrap();
        assert_eq!(page.unreadable, Vec::<String>::new());
        count += page.entries.len();
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return count,
        }
    }
}

#[tokio::test]
async fn a_store_below_the_reserve_does_not_open_or_take_records() {
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
async fn a_disk_that_fills_up_under_the_store_refuses_and_recovers() {
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
    assert!(matches!(full, Unavailable::Full { .. }), "{full:?}");
    assert!(matches!(intent(&audit, &call()).await, Err(Unavailable::Full { .. })));
    fs::remove_file(&filler).unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let audit = Audit::open_with(&dir, options).unwrap();
    // Records that were answered with an error may be there too; none that was acknowledged may
    // be missing.
    let found = count(&audit, Kind::Intent).await;
    assert!(found > written, "{found} of {}", written + 1);
    assert_eq!(count(&audit, Kind::Event).await, 0, "nothing was quarantined");
}

#[tokio::test]
async fn a_damaged_segment_is_put_aside_loudly_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for _ in 0..100 {
        intent(&audit, &call()).await.unwrap();
    }
    drop(audit);
    let damaged = segments(dir.path()).pop().unwrap();
    fs::write(damaged.join("conf"), "no config of sled's").unwrap();

    let audit = open(dir.path());
    intent(&audit, &call()).await.unwrap();
    let events = Filter { kind: Some(Kind::Event), ..Filter::default() };
    let page = audit.archive().query(events).await.unwrap();
    let [entry] = page.entries.as_slice() else { panic!("{page:?}") };
    let Record::Event(event) = &entry.record else { panic!("{entry:?}") };
    let Happening::SegmentQuarantined { segment, .. } = &event.what else { panic!("{event:?}") };
    let aside = dir.path().join("quarantine").join(damaged.file_name().unwrap());
    assert_eq!(Path::new(segment), aside);
    assert!(aside.join("db").exists(), "what was written is kept");
    assert_eq!(count(&audit, Kind::Intent).await, 1);
    assert_eq!(segments(dir.path()).len(), 1);
}

#[tokio::test]
async fn records_that_damage_took_are_told_of() {
    for whole_page in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let audit = open(dir.path());
        for _ in 0..100 {
            intent(&audit, &call()).await.unwrap();
        }
        drop(audit);
        let log = segments(dir.path()).pop().unwrap().join("db");
        let mut bytes = fs::read(&log).unwrap();
        let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
        let flipped = if whole_page { 4096 } else { 1 };
        bytes[middle..middle + flipped].iter_mut().for_each(|byte| *byte ^= 0x40);
        fs::write(&log, bytes).unwrap();

        for opened in 0..2 {
            let audit = open(dir.path());
            intent(&audit, &call()).await.unwrap();
            let events = Filter { kind: Some(Kind::Event), ..Filter::default() };
            let page = audit.archive().query(events).await.unwrap();
            let [entry] = page.entries.as_slice() else { panic!("{page:?}") };
            let Record::Event(event) = &entry.record else { panic!("{entry:?}") };
            assert!(matches!(event.what, Happening::RecordsLost { .. }), "{event:?}");
            let all = Filter { limit: Some(PAGE_MAX), ..Filter::default() };
            let page = audit.archive().query(all).await.unwrap();
            assert!(page.unreadable[0].contains("are lost"), "{:?}", page.unreadable);
            let left = page.entries.len();
            assert!((3 + opened..102).contains(&left), "{left} are left and can be read");
        }
    }
}

#[tokio::test]
async fn a_damaged_segment_of_another_day_is_noted_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let old = dir.path().join("segments").join("20200101T000000.000000");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("db"), "").unwrap();
    fs::write(old.join("conf"), "no config of sled's").unwrap();

    let audit = open(dir.path());
    let page = audit.archive().query(Filter::default()).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!(page.unreadable.len(), 1);
    assert!(page.unreadable[0].contains("20200101T000000.000000"), "{:?}", page.unreadable);
    intent(&audit, &call()).await.unwrap();
}

#[tokio::test]
async fn records_of_two_days_are_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let call = call();
    intent(&audit, &call).await.unwrap();
    drop(audit);
    // A segment of an earlier day goes on to the beginning of the next one.
    let old = segments(dir.path()).pop().unwrap();
    fs::rename(&old, old.with_file_name("20200101T000000.000000")).unwrap();

    let audit = open(dir.path());
    outcome(&audit, &call).await.unwrap();
    assert_eq!(segments(dir.path()).len(), 2);
    let shown = audit.archive().show(call.id).await.unwrap();
    let kinds: Vec<_> = shown.entries.iter().map(|entry| entry.record.kind()).collect();
    assert_eq!(kinds, [Kind::Intent, Kind::Outcome]);
    let page = audit.archive().query(Filter::default()).await.unwrap();
    assert_eq!(page.entries, shown.entries[1..], "an intent with an outcome is not shown");
    drop(audit);

    let reader = Reader::open(dir.path(), DEADLINE).unwrap();
    assert_eq!(reader.show(call.id).await.unwrap(), shown);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_or_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let broken = Audit::open(&file.join("audit"), DEADLINE).unwrap_err();
    assert!(matches!(broken, Unavailable::Broken { .. }));
    assert!(broken.to_string().contains(&file.display().to_string()), "{broken}");
    let missing = Reader::open(&dir.path().join("none"), DEADLINE).unwrap_err();
    assert!(matches!(missing, Unavailable::Missing { .. }));
    assert!(!dir.path().join("none").exists());
}

#[tokio::test]
async fn the_store_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("audit");
    drop(open(&store));
    assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_follower_that_lags_is_told_how_much_it_missed() {
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
        assert!(matches!(tail.next().await, Some(Tailed::Entry(_))));
        seen += 1;
    }
    drop(audit);
    assert_eq!(tail.next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_producers_share_the_syncs() {
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
    assert_eq!(count(&audit, Kind::Outcome).await, PRODUCERS * CALLS);
}
