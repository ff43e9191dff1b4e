//! Keyed digests: equal texts are seen to be equal, and a guess can't be checked by whoever has
//! the records but not the key.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::record::Body;

/// The file of the key, in the store's folder.
const FILE: &str = "digest.key";
const BYTES: usize = 32;

/// What is digested, so that a digest of one kind says nothing of another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Domain {
    Request,
    Response,
    ArgumentKey,
    IndexTerm,
}

/// The store's key for digests. Made once, at random, and kept in `digest.key` (mode 0600).
#[derive(Clone)]
pub struct DigestKey(Hmac<Sha256>);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey(…)")
    }
}

impl DigestKey {
    /// Reads the key of the store in `dir`, or makes one.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        match Self::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        // Written whole under another name first: a half-written key would lock the store.
        let fresh = dir.join("digest.key.new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(dir)?.sync_all()?;
        Self::from_bytes(&bytes)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let mode = file.metadata()?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{} can be read by others (mode {mode:o}): run `chmod 600` on it, or delete it \
                 for a new key (digests of old and new records can then not be compared)",
                path.display()
            )));
        }
        let mut bytes = Vec::with_capacity(BYTES + 1);
        file.take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() != BYTES {
            return Err(io::Error::other(format!(
                "{} is not a key of {BYTES} bytes: restore it, or delete it for a new key \
                 (digests of old and new records can then not be compared)",
                path.display()
            )));
        }
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        Hmac::new_from_slice(bytes).map(Self).map_err(io::Error::other)
    }

    fn mac(&self, domain: Domain, text: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(&[domain as u8]);
        mac.update(text);
        mac.finalize().into_bytes().into()
    }

    /// Size and keyed digest of a text.
    pub(super) fn body(&self, domain: Domain, text: &[u8]) -> Body {
        Body {
            bytes: text.len() as u64,
            digest: format!("hmac-sha256:{}", hex::encode(self.mac(domain, text))),
        }
    }

    /// A short digest of a value of an indexed field, so that an index tells nobody what records
    /// hold.
    pub(super) fn term(&self, field: u8, value: &str) -> [u8; 8] {
        let mac = self.mac(Domain::IndexTerm, &[&[field], value.as_bytes()].concat());
        mac.first_chunk().copied().unwrap_or_default()
    }

    /// A short stand-in for a key of an object that may hold data.
    pub(super) fn stand_in(&self, key: &str) -> String {
        let mac = self.mac(Domain::ArgumentKey, key.as_bytes());
        format!("#{}", hex::encode(&mac[..4]))
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::from_bytes(&[7; BYTES]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_kept_and_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DigestKey::open(dir.path()).unwrap().body(Domain::Request, b"{}");
        let again = DigestKey::open(dir.path()).unwrap().body(Domain::Request, b"{}");
        assert_eq!(first, again);
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(DigestKey::open(other.path()).unwrap().body(Domain::Request, b"{}"), first);
    }

    #[test]
    fn a_readable_or_short_key_is_refused_with_a_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        DigestKey::open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(DigestKey::open(dir.path()).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(DigestKey::open(dir.path()).unwrap_err().to_string().contains("32 bytes"));
    }

    #[test]
    fn domains_do_not_mix() {
        let key = DigestKey::for_tests();
        assert_ne!(key.body(Domain::Request, b"x"), key.body(Domain::Response, b"x"));
    }
}
