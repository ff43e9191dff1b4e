//! Keys that sign and verify checkpoints.
//!
//! The signing key is 32 random bytes in `audit-signing.key` of the state folder. It is outside of
//! the store's folder, so that neither a copy of the store nor write access to it reveals the key.
//! Beside it, `audit-verifier` has the store's name and the public verifier key.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use signed_note::NoteError;

use portcullis_foundation::atomic_file;
pub(super) use portcullis_foundation::note_key::NotSigned;
pub use portcullis_foundation::note_key::{IllegalVerifier, Verifier};
use portcullis_foundation::{
    key_file,
    note_key::{self, IllegalName},
};

/// File of the signing key in the state folder.
const FILE: &str = "audit-signing.key";
/// File of the verifier keys in the state folder.
pub(super) const VERIFIER: &str = "audit-verifier";

/// Origin of a store's checkpoints, which is also the name of its key.
pub(crate) fn origin(store: &str) -> String {
    format!("portcullis/{store}")
}

/// Faults of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "`{}` can be read or written by others, who could have signed checkpoints: `chmod 600` it \
         if you know that nobody did, else move it away (a new key is created; keep the old \
         verifier key for the checkpoints until now)", .0.display()
    )]
    Open(PathBuf),
    #[error(
        "`{}` is not a key of 32 bytes: restore it, or move it away (a new key is created; keep \
         the old verifier key for the checkpoints until now)", .0.display()
    )]
    Damaged(PathBuf),
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
    #[error(transparent)]
    Name(#[from] IllegalName),
}

impl From<key_file::Fault> for KeyFault {
    fn from(fault: key_file::Fault) -> Self {
        match fault {
            key_file::Fault::Io { path, source } => Self::Io { path, source },
            key_file::Fault::Open(path) => Self::Open(path),
            key_file::Fault::Damaged(path) => Self::Damaged(path),
            key_file::Fault::Random(error) => Self::Random(error),
        }
    }
}

/// Signs notes in the name of one store.
#[derive(Debug)]
pub(crate) struct Signer(note_key::Signer);

impl Signer {
    /// Key in the state folder for the store with this id; created if there is none.
    ///
    /// # Errors
    /// If the key cannot be read, created or trusted.
    pub(crate) fn open(state: &Path, store: &str) -> Result<Self, KeyFault> {
        let seed = key_file::load(state, FILE)?;
        Ok(Self(note_key::Signer::of(&origin(store), &seed)?))
    }

    /// Name of the key and first line of its checkpoints.
    pub(crate) fn origin(&self) -> &str {
        self.0.verifier().name()
    }

    /// Key that verifies its signatures.
    pub(crate) fn verifier(&self) -> &Verifier {
        self.0.verifier()
    }

    /// Note of this text with its signature.
    pub(super) fn sign(&self, text: &str) -> Result<String, NoteError> {
        self.0.sign(text)
    }

    /// Key for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(store: &str, seed: u8) -> Self {
        Self(note_key::Signer::of(&origin(store), &[seed; 32]).unwrap())
    }
}

/// Verifier keys of a folder, one per line, the newest last.
///
/// # Errors
/// If the file cannot be read or is not a list of keys.
pub fn read_verifiers(dir: &Path) -> io::Result<Vec<Verifier>> {
    match fs::read_to_string(dir.join(VERIFIER)) {
        Ok(text) => text.lines().map(|line| line.parse().map_err(io::Error::other)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds a verifier key to the keys of a folder.
pub(super) fn keep_verifier(dir: &Path, key: &Verifier) -> io::Result<()> {
    let mut keys = read_verifiers(dir)?;
    if keys.contains(key) {
        return Ok(());
    }
    keys.push(key.clone());
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    atomic_file::write(&dir.join(VERIFIER), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn key_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = Signer::open(&state, "ab").unwrap();
        assert_eq!(fs::metadata(state.join(FILE)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Signer::open(&state, "ab").unwrap().verifier(), first.verifier());
        assert_ne!(Signer::open(&state, "cd").unwrap().verifier(), first.verifier());
        let other = Signer::open(dir.path(), "ab").unwrap();
        assert_ne!(other.verifier(), first.verifier());
        fs::set_permissions(state.join(FILE), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Signer::open(&state, "ab"), Err(KeyFault::Open(_))));
        fs::set_permissions(state.join(FILE), fs::Permissions::from_mode(0o600)).unwrap();
        for bytes in [&[1; 31][..], &[1; 33], &[]] {
            fs::write(state.join(FILE), bytes).unwrap();
            assert!(matches!(Signer::open(&state, "ab"), Err(KeyFault::Damaged(_))));
        }
    }
}
