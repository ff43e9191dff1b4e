//! Damage to the files of a store: what is not damaged stays.

use std::{fs, path::Path};

use portcullis::audit::Audit;

use crate::common::{DEADLINE, call, intent, open};

/// More than a block, so that some of it is sealed.
const RECORDS: usize = 5000;

async fn filled(dir: &Path) {
    let audit = open(dir);
    let calls: Vec<_> = (0..RECORDS).map(|_| call()).collect();
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
        for frame in portcullis::audit::frames(bytes.as_slice()).map_while(Result::ok) {
            numbers.extend(frame.first..frame.first + u64::from(frame.count));
        }
    }
    numbers
}

#[tokio::test]
async fn a_damaged_frame_takes_no_other_with_it_when_the_index_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
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
