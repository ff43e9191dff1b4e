//! The system calls that a contained server may make, in the engine's format. Which they are stands
//! in `portcullis-syscalls`, for the sandbox too.

use std::{fs, sync::LazyLock};

use sha2::{Digest, Sha256};

/// The profile as the engine takes it.
pub(super) static JSON: LazyLock<String> =
    LazyLock::new(|| portcullis_syscalls::container_profile().to_string());

/// The first 16 hex digits of the profile's SHA-256: enough to tell two versions apart.
pub(super) static DIGEST: LazyLock<String> =
    LazyLock::new(|| hex::encode(&Sha256::digest(JSON.as_bytes())[..8]));

/// Whether that is what an engine was given: its text, or a file of it.
pub(super) fn is_ours(given: &str) -> bool {
    given == *JSON
        || (given.starts_with('/') && fs::read_to_string(given).is_ok_and(|text| text == *JSON))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_it_is_ours_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("list");
        let given = place.to_str().expect("its path");
        fs::write(&place, &*JSON).expect("written");
        assert!(is_ours(given) && is_ours(&JSON));
        fs::write(&place, "{}").expect("written");
        assert!(!is_ours(given) && !is_ours("unconfined"));
    }
}
