//! Small files of a store that are neither records nor proofs: `digest.key`, `store.json` and
//! `audit-verifier`. Every checkpoint signs their fingerprints, so that `verify` detects a changed
//! or removed file.

use std::{fs, io, path::Path};

use sha2::{Digest as _, Sha256};

use super::{
    Hash, key,
    verify::{Finding, FindingKind},
};
use crate::{
    digest::DigestKey,
    maintenance::{Cipher, MANIFEST},
};

/// Fingerprints of these files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Companions {
    /// [`DigestKey::fingerprint`] of the key in `digest.key`, which may be encrypted.
    pub digest_key: Hash,
    /// SHA-256 of `store.json`.
    pub manifest: Hash,
    /// SHA-256 of `audit-verifier`.
    pub verifiers: Hash,
}

impl Companions {
    /// Fingerprints of the store in `dir`, with this key for digests.
    pub fn read(dir: &Path, digest_key: Hash) -> io::Result<Self> {
        let of = |name| Ok::<_, io::Error>(hash(&fs::read(dir.join(name))?));
        Ok(Self { digest_key, manifest: of(MANIFEST)?, verifiers: of(key::VERIFIER)? })
    }

    /// Files whose fingerprints differ from those of `before`.
    pub fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let all = [
            (DigestKey::FILE, self.digest_key == before.digest_key),
            (MANIFEST, self.manifest == before.manifest),
            (key::VERIFIER, self.verifiers == before.verifiers),
        ];
        all.into_iter().filter_map(|(name, same)| (!same).then_some(name)).collect()
    }

    /// Findings about the files in `dir`, and notes about files that could not be checked.
    pub fn check(&self, dir: &Path, cipher: Option<&Cipher>) -> (Vec<Finding>, Vec<String>) {
        let (mut findings, mut notes) = (Vec::new(), Vec::new());
        let lost = "digests of old records can no longer be compared";
        let mut of_key = |why: String| {
            let message = format!("{why}: {lost}");
            findings
                .push(Finding::new(FindingKind::DigestKeyChanged, message).file(DigestKey::FILE));
        };
        match DigestKey::find(dir, cipher) {
            Ok(Some(key)) if key.fingerprint() == self.digest_key => {}
            Ok(Some(_)) => of_key("this is not the key that the newest checkpoint names".into()),
            Ok(None) => of_key("the file is not there".into()),
            Err(_) if cipher.is_none() && DigestKey::is_sealed(dir) => {
                notes.push("`digest.key` is encrypted and was not checked: give the key".into());
            }
            Err(error) => of_key(error.to_string()),
        }
        for (name, signed) in [(MANIFEST, self.manifest), (key::VERIFIER, self.verifiers)] {
            let why = match fs::read(dir.join(name)) {
                Ok(bytes) if hash(&bytes) == signed => continue,
                Ok(_) => "it is not the file that the newest checkpoint names".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => "it is not there".into(),
                Err(error) => error.to_string(),
            };
            findings.push(Finding::new(FindingKind::FileChanged, why).file(name));
        }
        (findings, notes)
    }
}

fn hash(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}
