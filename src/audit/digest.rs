//! Keyed digests: equal texts have equal digests, and a guess can only be checked with the key.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use portcullis_foundation::atomic_file;
use ring::hmac;

use super::{
    maintenance::{Cipher, CipherFault},
    proof::Hash,
    record::Body,
};

const BYTES: usize = 32;
/// Maximum size of the key file, encrypted or not.
const LARGEST: u64 = 4096;

/// Kind of text. Digests of different kinds are unrelated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Domain {
    Request,
    Response,
    ArgumentKey,
    IndexTerm,
    Fingerprint,
}

/// Digest key of a store. Random, and kept in `digest.key` (mode 0600).
#[derive(Clone)]
pub struct DigestKey(hmac::Key);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

impl DigestKey {
    /// Name of the key file in the store's folder.
    pub(super) const FILE: &str = "digest.key";

    /// Reads the key of the store in `dir`, or creates it. The key is encrypted if records are:
    /// otherwise a reader of the files could check guesses at values in the index. `signed` is the
    /// fingerprint in the newest checkpoint.
    ///
    /// # Errors
    /// If the key cannot be read or created, or does not match `signed`.
    pub(super) fn open(
        dir: &Path,
        cipher: Option<&Cipher>,
        signed: Option<Hash>,
    ) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        let stored = match Self::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let bytes = match &stored {
            Some(stored) => Self::unsealed(stored, cipher)
                .map_err(|fault| io::Error::other(format!("{}: {fault}", path.display())))?,
            None => random()?,
        };
        let refused = |what: &str| {
            io::Error::other(format!(
                "{} is not {what}: restore it, or delete it for a new key (digests of old and new \
                 records can then not be compared)",
                path.display()
            ))
        };
        if bytes.len() != BYTES {
            return Err(refused(&format!("a key of {BYTES} bytes")));
        }
        let key = Self::from_bytes(&bytes);
        match (&stored, signed) {
            (Some(_), Some(signed)) if key.fingerprint() != signed => {
                return Err(refused("the key that the newest checkpoint names"));
            }
            (None, Some(_)) => tracing::warn!(
                "digest.key of the audit log is missing; a new key was created. Digests of old \
                 and new records cannot be compared"
            ),
            _ => {}
        }
        let current = match (&stored, cipher) {
            (None, _) => false,
            (Some(stored), None) => stored.len() == BYTES,
            (Some(stored), Some(cipher)) => {
                stored.len() > BYTES && Cipher::needs(stored) == Some(cipher.id())
            }
        };
        if !current {
            let text = match cipher {
                Some(cipher) => {
                    cipher.seal(Self::FILE.as_bytes(), &bytes).map_err(io::Error::other)?
                }
                None => bytes.clone(),
            };
            // Written atomically: a truncated key would make the store unusable.
            atomic_file::write(&dir.join(Self::FILE), &text)?;
        }
        Ok(key)
    }

    /// Reads the key for reading records. Without a key file, returns a temporary key and writes
    /// nothing.
    pub(super) fn for_reading(dir: &Path, cipher: Option<&Cipher>) -> io::Result<Self> {
        match Self::find(dir, cipher)? {
            Some(key) => Ok(key),
            None => Ok(Self::from_bytes(&random()?)),
        }
    }

    /// Reads the key of the store in `dir`, or of a copy of it. Ignores the file's mode.
    pub(super) fn find(dir: &Path, cipher: Option<&Cipher>) -> io::Result<Option<Self>> {
        let stored = match fs::File::open(dir.join(Self::FILE)).and_then(bytes_of) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let bytes = Self::unsealed(&stored, cipher).map_err(io::Error::other)?;
        if bytes.len() != BYTES {
            return Err(io::Error::other(format!("it is not a key of {BYTES} bytes")));
        }
        Ok(Some(Self::from_bytes(&bytes)))
    }

    /// Whether the key of the store in `dir` is encrypted.
    pub(super) fn is_sealed(dir: &Path) -> bool {
        let stored = fs::File::open(dir.join(Self::FILE)).and_then(bytes_of);
        stored.is_ok_and(|stored| Cipher::needs(&stored).is_some())
    }

    /// Fingerprint that identifies the key without revealing it.
    pub(super) fn fingerprint(&self) -> Hash {
        Hash(self.mac(Domain::Fingerprint, b"digest.key"))
    }

    fn unsealed(stored: &[u8], cipher: Option<&Cipher>) -> Result<Vec<u8>, CipherFault> {
        match (Cipher::needs(stored), cipher) {
            (Some(_), Some(cipher)) => cipher.open(Self::FILE.as_bytes(), stored),
            (Some(id), None) => Err(CipherFault::Needs(id)),
            (None, _) => Ok(stored.to_vec()),
        }
    }

    fn read(path: &Path) -> io::Result<Vec<u8>> {
        let file = fs::File::open(path)?;
        let mode = file.metadata()?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{} can be read by others (mode {mode:o}): run `chmod 600` on it, or delete it \
                 for a new key (digests of old and new records can then not be compared)",
                path.display()
            )));
        }
        bytes_of(file)
    }

    /// Key from raw bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    fn mac(&self, domain: Domain, text: &[u8]) -> [u8; BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[domain as u8]);
        context.update(text);
        let mut mac = [0; BYTES];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Size and keyed digest of a text.
    pub(super) fn body(&self, domain: Domain, text: &[u8]) -> Body {
        Body {
            bytes: text.len() as u64,
            digest: ["hmac-sha256:", &hex::encode(self.mac(domain, text))].concat(),
        }
    }

    /// Short digest of a value of an indexed field, so that an index does not reveal what records
    /// contain.
    pub(super) fn term(&self, field: u8, value: &str) -> [u8; 8] {
        let mac = self.mac(Domain::IndexTerm, &[&[field], value.as_bytes()].concat());
        mac.first_chunk().copied().unwrap_or_default()
    }

    /// Short digest that replaces an object key that may contain data.
    pub(super) fn key_digest(&self, key: &str) -> String {
        let mac = self.mac(Domain::ArgumentKey, key.as_bytes());
        format!("#{}", hex::encode(&mac[..4]))
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::from_bytes(&[7; BYTES])
    }
}

fn bytes_of(file: fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn random() -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = DigestKey::FILE;

    fn open(dir: &Path) -> io::Result<DigestKey> {
        DigestKey::open(dir, None, None)
    }

    #[test]
    fn key_persists_and_is_private_to_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap().body(Domain::Request, b"{}");
        let again = open(dir.path()).unwrap().body(Domain::Request, b"{}");
        assert_eq!(first, again);
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(open(other.path()).unwrap().body(Domain::Request, b"{}"), first);
    }

    #[test]
    fn readable_or_short_key_is_refused_with_a_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open(dir.path()).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("32 bytes"), "{error}");
    }

    #[test]
    fn changed_key_is_refused_and_missing_key_is_created() {
        let dir = tempfile::tempdir().unwrap();
        let signed = open(dir.path()).unwrap().fingerprint();
        let again = |signed| DigestKey::open(dir.path(), None, Some(signed));
        assert_eq!(again(signed).unwrap().fingerprint(), signed);
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        for at in 0..BYTES {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let error = again(signed).unwrap_err().to_string();
            assert!(error.contains("newest checkpoint"), "byte {at}: {error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(DigestKey::find(dir.path(), None).unwrap().is_none());
        DigestKey::for_reading(dir.path(), None).unwrap();
        assert!(!path.exists(), "a reader makes no key");
        assert_ne!(again(signed).unwrap().fingerprint(), signed);
    }

    #[test]
    fn digests_of_different_domains_differ() {
        let key = DigestKey::for_tests();
        assert_ne!(key.body(Domain::Request, b"x"), key.body(Domain::Response, b"x"));
    }
}
