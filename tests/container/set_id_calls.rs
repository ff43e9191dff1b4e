//! The probe's ways to make a program with set-ID bits in a folder. For the sandbox's tests, too.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use tempfile::TempDir;

/// The attempts, by the probe's names.
pub const CALLS: [&str; 13] = [
    "set-id-chmod",
    "set-user-id-chmod",
    "set-group-id-chmod",
    "set-id-fchmod",
    "set-id-fchmodat",
    "set-id-fchmodat2",
    "set-id-open",
    "set-id-creat",
    "set-id-openat",
    "set-id-openat2",
    "set-id-tmpfile",
    "set-id-mknod",
    "file-capabilities",
];

/// A folder that any server may write to.
pub fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Checks the probe's report: it made each of these attempts, and each was refused.
pub fn assert_all_refused(report: &str) {
    let found: BTreeMap<String, String> = serde_json::from_str(report).expect(report);
    assert_eq!(found.len(), CALLS.len(), "{found:?}");
    for (call, outcome) in &found {
        assert!(["EPERM", "ENOSYS"].contains(&outcome.as_str()), "{call}: {outcome}");
    }
}
