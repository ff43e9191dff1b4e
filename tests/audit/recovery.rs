//! Damage to the files of a store: undamaged records survive.

use std::{fs, path::Path};

use portcullis_audit::Audit;

use crate::common::{DEADLINE, call, intent, open};

/// More than a block, so that some of it is sealed.
const RECORDS: usize = 5000;

async fn filled(dir: &Path, records: usize) {
    let audit = open(dir);
    let calls: Vec<_> = (0..records).map(|_| call()).collect();
    let writes = calls.iter().map(|call| intent(&audit, call));
    for written in futures_util::future::join_all(writes).await {
        written.unwrap();
    }
}

fn segment(dir: &Path) -> std::path::PathBuf {
    let mut found = fs::read_dir(dir.join("segments")).unwrap();
    found.next().unwrap().unwrap().path()
}

/// Every number of a record that the files of the newest segment have.
fn numbers(dir: &Path) -> Vec<u64> {
    let segment = segment(dir);
    let mut files: Vec<_> =
        fs::read_dir(&segment).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    let mut numbers = Vec::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        for frame in portcullis_audit::frames(bytes.as_slice()).map_while(Result::ok) {
            numbers.extend(frame.first..frame.first + u64::from(frame.count));
        }
    }
    numbers
}

#[tokio::test]
async fn rebuilt_index_loses_only_the_damaged_frame() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), RECORDS).await;
    assert_eq!(numbers(dir.path()).len(), RECORDS);
    let records = segment(dir.path()).join("records");
    let mut bytes = fs::read(&records).unwrap();
    let size = bytes.len();
    bytes[size / 3] ^= 0x10;
    fs::write(&records, bytes).unwrap();
    fs::remove_dir_all(segment(dir.path()).join("index")).unwrap();

    let audit = Audit::open(dir.path(), DEADLINE).unwrap();
    intent(&audit, &call()).await.unwrap();
    drop(audit);
    let left = fs::metadata(&records).unwrap().len();
    assert_eq!(left, size as u64, "records behind the damage were cut off");
}

#[tokio::test]
async fn stale_commits_do_not_remove_sealed_records() {
    for whole in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 9000).await;
        let segment = segment(dir.path());
        let bytes = fs::read(segment.join("records")).unwrap();
        // The commits of the first block, or some of them, though it is sealed.
        let (mut end, mut records) = (0, 0);
        while records < if whole { 4096 } else { 1024 } {
            let length = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap());
            end += length as usize + 8;
            records += 256;
        }
        fs::write(segment.join("wal-0000000000000000"), &bytes[..end]).unwrap();
        fs::remove_dir_all(segment.join("index")).unwrap();
        let audit = open(dir.path());
        intent(&audit, &call()).await.unwrap();
        drop(audit);
        let mut left = numbers(dir.path());
        left.sort_unstable();
        assert_eq!(left, (0..9001).collect::<Vec<_>>(), "{whole}");
    }
}

#[tokio::test]
async fn unwritable_index_blocks_and_hides_no_records() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    intent(&audit, &call()).await.unwrap();
    // The first block creates the index, which cannot be created here.
    let index = segment(dir.path()).join("index");
    fs::write(&index, "no folder").unwrap();
    let calls: Vec<_> = (0..RECORDS).map(|_| call()).collect();
    for written in
        futures_util::future::join_all(calls.iter().map(|call| intent(&audit, call))).await
    {
        written.unwrap();
    }
    let sealed = async {
        while !segment(dir.path()).join("records").metadata().is_ok_and(|meta| meta.len() > 0) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, sealed).await.expect("a block is sealed");
    for call in [&calls[0], &calls[2000], &calls[RECORDS - 1]] {
        assert_eq!(audit.archive().show(call.id).await.unwrap().lines.len(), 1);
    }
    let all = crate::common::find(&audit, crate::common::query("client = ci-bot")).await;
    assert_eq!(all.len(), RECORDS + 1);
    drop(audit);
    fs::remove_file(&index).unwrap();
    let audit = open(dir.path());
    let shown = audit.archive().show(calls[0].id).await.unwrap();
    assert_eq!(shown.lines.len(), 1);
}
