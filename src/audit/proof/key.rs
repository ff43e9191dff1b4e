//! The key that checkpoints are signed with, and the one that they are checked with.
//!
//! The signing key is 32 random bytes in `audit-signing.key` of the state folder: not in the
//! store's own, so that neither a copy of the store nor whoever can write only there has it. Beside
//! it, `audit-verifier` says which store it signs for, in the form that everybody may have.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ed25519_dalek::SigningKey;
use signed_note::{
    Note, NoteError, StandardSigner, StandardVerifier, Verifier as _, VerifierList, key_id,
    new_ed25519_verifier_key,
};
use zeroize::Zeroizing;

use crate::{audit::life::write_durably, keyfile};

/// The file of the signing key, in the state folder.
const FILE: &str = "audit-signing.key";
/// The file of the verifier key, in the state folder.
pub(super) const VERIFIER: &str = "audit-verifier";
/// C2SP's number for Ed25519.
const ED25519: u8 = 1;

/// What the checkpoints of a store call themselves and their key.
pub(in crate::audit) fn origin(store: &str) -> String {
    format!("portcullis/{store}")
}

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "`{}` can be read or written by others, who could have signed checkpoints: `chmod 600` it \
         if you know that nobody did, else move it away (a new key is made; keep the old verifier \
         key for the checkpoints until now)", .0.display()
    )]
    Open(PathBuf),
    #[error(
        "`{}` is not a key of 32 bytes: restore it, or move it away (a new key is made; keep the \
         old verifier key for the checkpoints until now)", .0.display()
    )]
    Damaged(PathBuf),
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("`{0}` can't name a key")]
    Name(String),
}

impl From<keyfile::Fault> for KeyFault {
    fn from(fault: keyfile::Fault) -> Self {
        match fault {
            keyfile::Fault::Io { path, source } => Self::Io { path, source },
            keyfile::Fault::Open(path) => Self::Open(path),
            keyfile::Fault::Damaged(path) => Self::Damaged(path),
            keyfile::Fault::Random(error) => Self::Random(error),
        }
    }
}

/// Signs notes in the name of one store.
pub(in crate::audit) struct Signer {
    origin: String,
    signer: StandardSigner,
    verifier: Verifier,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.verifier).finish()
    }
}

impl Signer {
    /// The key in the state folder, made where there is none, for the store of that id.
    ///
    /// # Errors
    /// Where the key can't be read, made or trusted.
    pub(in crate::audit) fn open(state: &Path, store: &str) -> Result<Self, KeyFault> {
        let seed = keyfile::load(state, FILE)?;
        Self::of(&seed, store)
    }

    fn of(seed: &[u8; 32], store: &str) -> Result<Self, KeyFault> {
        let origin = origin(store);
        let illegal = || KeyFault::Name(origin.clone());
        let public = SigningKey::from_bytes(seed).verifying_key();
        let verifier: Verifier =
            new_ed25519_verifier_key(&origin, &public).parse().map_err(|_| illegal())?;
        let id = key_id(&origin, &[&[ED25519], public.as_bytes().as_slice()].concat());
        let secret = Zeroizing::new([&[ED25519], seed.as_slice()].concat());
        let secret = Zeroizing::new(BASE64_STANDARD.encode(&*secret));
        let text = Zeroizing::new(format!("PRIVATE+KEY+{origin}+{id:08x}+{}", *secret));
        let signer = StandardSigner::new(&text).map_err(|_| illegal())?;
        Ok(Self { origin, signer, verifier })
    }

    /// The name of the key and the first line of its checkpoints.
    pub(in crate::audit) fn origin(&self) -> &str {
        &self.origin
    }

    /// What its signatures are checked with.
    pub(in crate::audit) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The note of this text with the signature.
    pub(super) fn sign(&self, text: &str) -> Result<String, NoteError> {
        let mut note = Note::new(text.as_bytes(), &[])?;
        note.add_sigs(&[&self.signer])?;
        String::from_utf8(note.to_bytes()).map_err(|_| NoteError::MalformedNote)
    }

    /// A key for tests.
    #[cfg(test)]
    pub(in crate::audit) fn for_tests(store: &str, seed: u8) -> Self {
        Self::of(&[seed; 32], store).unwrap()
    }
}

/// A key that checkpoints are checked with, as text `NAME+HASH+BASE64` (C2SP signed-note).
#[derive(Clone)]
pub struct Verifier {
    text: String,
    key: StandardVerifier,
}

impl Verifier {
    /// The name of the key: the origin of its checkpoints.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// The text of a note, if this key has signed it. Signatures of others do not matter.
    pub(super) fn open(&self, note: &str) -> Result<String, NotSigned> {
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| NotSigned::Malformed)?;
        let known = VerifierList::new(vec![Box::new(self.key.clone())]);
        parsed.verify(&known).map_err(|error| match error {
            NoteError::UnverifiedNote => NotSigned::OtherKey,
            _ => NotSigned::Forged,
        })?;
        String::from_utf8(parsed.text().to_owned()).map_err(|_| NotSigned::Malformed)
    }

    /// The verifier keys that a folder has, one a line, the newest last.
    ///
    /// # Errors
    /// Where it can't be read, or is no key.
    pub fn read(dir: &Path) -> io::Result<Vec<Self>> {
        match fs::read_to_string(dir.join(VERIFIER)) {
            Ok(text) => text.lines().map(|line| line.parse().map_err(io::Error::other)).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Adds the key to those that a folder has.
    pub(super) fn keep(&self, dir: &Path) -> io::Result<()> {
        let mut keys = Self::read(dir)?;
        if keys.contains(self) {
            return Ok(());
        }
        keys.push(self.clone());
        let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
        write_durably(dir, VERIFIER, text.as_bytes())
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text that is no verifier key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no verifier key: `portcullis audit key` prints one, NAME+HASH+BASE64")]
pub struct IllegalVerifier;

impl FromStr for Verifier {
    type Err = IllegalVerifier;

    fn from_str(text: &str) -> Result<Self, IllegalVerifier> {
        let key = StandardVerifier::new(text).map_err(|_| IllegalVerifier)?;
        Ok(Self { text: text.to_owned(), key })
    }
}

/// Why a note is not taken for what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotSigned {
    #[error("it is no signed note")]
    Malformed,
    #[error("another key has signed it")]
    OtherKey,
    #[error("its signature is wrong")]
    Forged,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
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

    #[test]
    fn only_what_the_key_signed_is_opened() {
        let signer = Signer::for_tests("ab", 1);
        let verifier: Verifier = signer.verifier().to_string().parse().unwrap();
        assert_eq!(verifier.name(), "portcullis/ab");
        let note = signer.sign("one\ntwo\n").unwrap();
        assert_eq!(verifier.open(&note).unwrap(), "one\ntwo\n");
        assert_eq!(verifier.open(&note.replace("two", "too")), Err(NotSigned::Forged));
        assert_eq!(verifier.open("one\ntwo\n"), Err(NotSigned::Malformed));
        // The same key under another name, and another key under the same name.
        for other in [Signer::for_tests("cd", 1), Signer::for_tests("ab", 2)] {
            assert_eq!(other.verifier().open(&note), Err(NotSigned::OtherKey));
        }
        // A witness may sign it too.
        let mut both = note.clone();
        let witness = Signer::for_tests("witness", 3).sign("one\ntwo\n").unwrap();
        both.push_str(witness.rsplit_once("\n\n").unwrap().1);
        assert_eq!(verifier.open(&both).unwrap(), "one\ntwo\n");
    }
}
