//! Seccomp profile of containers in the engine's format. `portcullis-syscalls` has the table of
//! allowed calls, which the sandbox uses too.

use std::{fs, sync::LazyLock};

use sha2::{Digest, Sha256};

/// The profile in the form that the engine accepts.
pub(super) static JSON: LazyLock<String> =
    LazyLock::new(|| portcullis_syscalls::container_profile().to_string());

/// First 16 hex digits of the profile's SHA-256: enough to distinguish two versions.
pub(super) static DIGEST: LazyLock<String> =
    LazyLock::new(|| hex::encode(&Sha256::digest(JSON.as_bytes())[..8]));

/// Whether a container's profile is this one, as text or as a file with the text.
pub(super) fn is_ours(profile: &str) -> bool {
    profile == *JSON
        || (profile.starts_with('/') && fs::read_to_string(profile).is_ok_and(|text| text == *JSON))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_with_this_profile_match() {
        let folder = tempfile::tempdir().expect("a folder");
        let file_path = folder.path().join("list");
        let path = file_path.to_str().expect("its path");
        fs::write(&file_path, &*JSON).expect("written");
        assert!(is_ours(path) && is_ours(&JSON));
        fs::write(&file_path, "{}").expect("written");
        assert!(!is_ours(path) && !is_ours("unconfined"));
    }
}
