//! Cache of verified image signatures, in files sealed with the state folder's key.
//!
//! Invariant: the cache only adds signatures. It never proves that a signer did not sign.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use portcullis_foundation::atomic_file;
use portcullis_oci::Digest;
use portcullis_protocol::seal::{self, Seal};
use portcullis_provenance::{Signed, SignedContent};

/// Purpose of the seal.
const PURPOSE: &str = "provenance of an image";
/// Validity of a file. A signature stays valid; another set of trusted signers has another
/// file.
const HOLDS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Age of a registry's answer from which a start queries the registry again.
pub(super) const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// Time without a new query of a registry: after an answer (`ASKED`), and after a failure without
/// known signatures (`UNTOLD`).
pub(super) const ASKED: Duration = Duration::from_secs(300);
pub(super) const UNTOLD: Duration = Duration::from_secs(30);
/// Maximum number of images for which these times are kept.
const IMAGES: usize = 256;
/// Maximum number of repositories of one image whose query times are stored.
const REPOSITORIES: usize = 64;
/// Maximum size of a file: a sealed file is a third larger than its content.
const LARGEST: u64 = 2 * seal::LARGEST as u64;
/// Longest wait for another process that adds to a file, such as a command beside the proxy.
const TURN: Duration = Duration::from_secs(10);

/// A repository and the cache key of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Repository(pub String, pub Digest);

/// Stored signatures of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CachedSignatures {
    /// Verified signatures and attestations of all repositories.
    pub signed: Vec<Signed>,
    /// Time of the last query of each repository, in seconds since 1970.
    queried: BTreeMap<String, u64>,
}

/// Union of known and new signatures. Contents of attestations are dropped: a start only needs
/// their existence.
pub(super) fn added(mut cached: Vec<Signed>, found: &[Signed]) -> Vec<Signed> {
    for one in found {
        let mut one = one.clone();
        if let SignedContent::Attestation { predicate, .. } = &mut one.what {
            *predicate = None;
        }
        if !cached.iter().any(|cached| is_same(cached, &one)) {
            cached.push(one);
        }
    }
    cached
}

fn is_same(one: &Signed, other: &Signed) -> bool {
    (&one.by, &one.what) == (&other.by, &other.what)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Cache of verified signatures, with a sealed file for each image.
pub(super) struct SignatureCache {
    state_dir: PathBuf,
    /// `None` without a key for the seal, which the start of the proxy reports.
    seal: OnceLock<Option<Seal>>,
    /// Times before which the registry of an image is not queried.
    rests: Mutex<HashMap<Repository, Instant>>,
    /// Images that policies refused since their last query.
    refused: Mutex<HashSet<Repository>>,
}

impl SignatureCache {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            rests: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    fn seal(&self) -> Option<&Seal> {
        self.seal.get_or_init(|| Seal::load(&self.state_dir).ok()).as_ref()
    }

    fn folder(&self) -> PathBuf {
        self.state_dir.join("provenance")
    }

    fn path(&self, key: Digest) -> PathBuf {
        self.folder().join(key.hex())
    }

    /// Whether the registry is not queried at present.
    pub fn rests(&self, repository: &Repository) -> bool {
        self.rests.lock().get(repository).is_some_and(|until| Instant::now() < *until)
    }

    pub fn rest(&self, repository: Repository, duration: Duration) {
        let mut rests = self.rests.lock();
        if rests.len() >= IMAGES {
            rests.clear();
        }
        rests.insert(repository, Instant::now() + duration);
    }

    pub fn refuse(&self, repository: Repository) {
        let mut refused = self.refused.lock();
        if refused.len() >= IMAGES {
            refused.clear();
        }
        refused.insert(repository);
    }

    /// Whether the registry answered recently, and policies have not refused the image since.
    pub fn is_fresh(&self, cached: &CachedSignatures, repository: &Repository) -> bool {
        let now = seconds(SystemTime::now());
        // A time in the future means that the clock was set back.
        let age = cached.queried.get(&repository.0).and_then(|queried| now.checked_sub(*queried));
        age.is_some_and(|age| age < FRESH.as_secs()) && !self.refused.lock().contains(repository)
    }

    pub fn find(&self, key: Digest) -> Option<CachedSignatures> {
        let path = self.path(key);
        if fs::metadata(&path).ok()?.len() > LARGEST {
            return None;
        }
        let text = fs::read_to_string(&path).ok()?;
        let opened = self.seal()?.open(PURPOSE, key.hex().as_bytes(), &text);
        let read = opened
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        read.map_err(|why| {
            tracing::warn!(file = %path.display(), why, "stored image signatures are invalid; fetching them again");
        })
        .ok()
    }

    /// Adds the answer of a registry to the cache.
    pub fn keep(&self, repository: Repository, signed: &[Signed], now: SystemTime) {
        self.refused.lock().remove(&repository);
        self.rest(repository.clone(), ASKED);
        if signed.is_empty() && !self.path(repository.1).exists() {
            return;
        }
        if let Err(why) = self.add(repository, signed, now) {
            tracing::warn!(%why, "image signatures could not be stored; the next start fetches them again");
        }
    }

    fn add(&self, repository: Repository, signed: &[Signed], now: SystemTime) -> io::Result<()> {
        let Repository(name, key) = repository;
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        let _turn = self.turn()?;
        let mut cached = self.find(key).unwrap_or_default();
        // New signatures move to the end.
        let found = added(Vec::new(), signed);
        cached.signed.retain(|one| !found.iter().any(|found| is_same(one, found)));
        cached.signed.extend(found);
        cached.queried.insert(name, seconds(now));
        while cached.queried.len() > REPOSITORIES {
            let oldest = cached.queried.iter().min_by_key(|(_, queried)| **queried);
            let Some(oldest) = oldest.map(|(repository, _)| repository.clone()) else { break };
            cached.queried.remove(&oldest);
        }
        let mut bytes = serde_json::to_vec(&cached)?;
        // A larger file could not be read again. Drop the oldest signatures.
        while bytes.len() > seal::LARGEST && !cached.signed.is_empty() {
            let mut over = bytes.len() - seal::LARGEST;
            while over > 0 && !cached.signed.is_empty() {
                over = over.saturating_sub(serde_json::to_vec(&cached.signed.remove(0))?.len());
            }
            bytes = serde_json::to_vec(&cached)?;
        }
        if cached.signed.is_empty() {
            return Ok(());
        }
        let seal = self.seal().ok_or_else(|| io::Error::other("there is no key to seal it"))?;
        let sealed = seal.seal(PURPOSE, key.hex().as_bytes(), &bytes, HOLDS);
        atomic_file::write(
            &self.folder().join(key.hex()),
            sealed.map_err(io::Error::other)?.as_bytes(),
        )
    }

    /// Exclusive right to add to a file, until this is dropped. Locks the folder, since the files
    /// are replaced.
    ///
    /// # Errors
    /// An error if another process holds the lock for too long, or the folder cannot be locked.
    fn turn(&self) -> io::Result<File> {
        let folder = File::open(self.folder())?;
        let since = Instant::now();
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(TryLockError::WouldBlock) if since.elapsed() < TURN => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_protocol::claims::Attested;
    use portcullis_provenance::By;

    use super::*;
    use crate::SignedBy;

    fn signed(name: &str, what: SignedContent) -> Signed {
        Signed { by: By::Key { name: name.into() }, what, at: Digest::of(b"signature") }
    }

    fn at(repository: &str, key: Digest) -> Repository {
        Repository(repository.to_owned(), key)
    }

    #[test]
    fn only_own_entries_of_the_same_image_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (this, that) = (Digest::of(b"this"), Digest::of(b"that"));
        let first = SignatureCache::new(folder.path());
        assert_eq!(first.find(this), None);
        first.keep(at("here", this), &[signed("a", SignedContent::Signature)], SystemTime::now());
        // Another start of the proxy.
        let again = SignatureCache::new(folder.path());
        assert_eq!(again.find(this).unwrap().signed, [signed("a", SignedContent::Signature)]);
        assert_eq!(again.find(that), None);
        // A file under another name, a changed file, and one of another state folder are invalid.
        fs::copy(again.path(this), again.path(that)).unwrap();
        assert_eq!(again.find(that), None);
        let mut text = fs::read_to_string(again.path(this)).unwrap();
        let other = tempfile::tempdir().unwrap();
        let elsewhere = SignatureCache::new(other.path());
        fs::create_dir(other.path().join("provenance")).unwrap();
        fs::write(elsewhere.path(this), &text).unwrap();
        assert_eq!(elsewhere.find(this), None);
        let last = text.pop().unwrap();
        text.push(if last == 'A' { 'B' } else { 'A' });
        fs::write(again.path(this), text).unwrap();
        assert_eq!(again.find(this), None);
    }

    #[test]
    fn recently_queried_registry_is_not_queried_again() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        for message in [&[][..], &[signed("a", SignedContent::Signature)]] {
            let cache = SignatureCache::new(folder.path());
            cache.keep(at("here", key), message, SystemTime::now());
            assert!(cache.rests(&at("here", key)));
            // The pause is valid for this run, this image and this repository only.
            assert!(!cache.rests(&at("there", key)));
            assert!(!cache.rests(&at("here", Digest::of(b"that"))));
            assert!(!SignatureCache::new(folder.path()).rests(&at("here", key)));
            cache.rest(at("here", key), Duration::ZERO);
            assert!(!cache.rests(&at("here", key)));
        }
    }

    #[test]
    fn entries_accumulate_and_expire_by_repository() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let cache = SignatureCache::new(folder.path());
        let now = SystemTime::now();
        let scan = || SignedContent::Attestation {
            predicate_type: "scan".into(),
            predicate: Some(7.into()),
        };
        // One registry hides its signatures; the other has a different one.
        cache.keep(
            at("here", key),
            &[signed("a", SignedContent::Signature), signed("a", scan())],
            now,
        );
        cache.keep(at("there", key), &[signed("b", SignedContent::Signature)], now - FRESH);
        cache.keep(at("here", key), &[], now);
        cache.keep(at("here", key), &[signed("a", scan())], now);
        let cached = cache.find(key).unwrap();
        let by = SignedBy::from(&*cached.signed);
        let attested = Attested { by: "a".into(), of_type: "scan".into() };
        assert_eq!((&*by.signers, &*by.attested), (&["a".into(), "b".into()][..], &[attested][..]));
        assert_eq!(cached.signed.len(), 3);

        let fresh = |repository: &str| cache.is_fresh(&cached, &at(repository, key));
        assert!(fresh("here"));
        // A day old, and never queried.
        assert!(!fresh("there") && !fresh("elsewhere"));
        // Queried before the clock was set back.
        cache.keep(at("here", key), &[], now + FRESH);
        assert!(!cache.is_fresh(&cache.find(key).unwrap(), &at("here", key)));

        // Policies refused it, until it is queried again.
        cache.keep(at("here", key), &[], now);
        let cached = cache.find(key).unwrap();
        cache.refuse(at("here", key));
        assert!(!cache.is_fresh(&cached, &at("here", key)));
        cache.keep(at("here", key), &[], now);
        assert!(cache.is_fresh(&cached, &at("here", key)));
    }

    #[test]
    fn cached_repositories_are_limited() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let cache = SignatureCache::new(folder.path());
        let signed = [signed("a", SignedContent::Signature)];
        for n in 0..=REPOSITORIES {
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - n as u64);
            cache.keep(at(&format!("r{n}"), key), &signed, when);
        }
        let cached = cache.find(key).unwrap();
        assert_eq!(cached.queried.len(), REPOSITORIES);
        assert!(cached.queried.contains_key("r0"));
    }

    #[test]
    fn concurrent_findings_are_all_stored() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        // One cache for each, as for several processes.
        let each: Vec<_> = (0..8).map(|n| (n, SignatureCache::new(folder.path()))).collect();
        std::thread::scope(|scope| {
            for (n, cache) in &each {
                scope.spawn(move || {
                    let signed = [signed(&n.to_string(), SignedContent::Signature)];
                    cache.keep(at("here", key), &signed, SystemTime::now());
                });
            }
        });
        assert_eq!(SignatureCache::new(folder.path()).find(key).unwrap().signed.len(), each.len());
    }

    #[test]
    fn oldest_findings_are_evicted() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let cache = SignatureCache::new(folder.path());
        let attests = |n: usize| {
            let predicate_type = format!("{n}{}", "x".repeat(seal::LARGEST / 3));
            signed("a", SignedContent::Attestation { predicate_type, predicate: None })
        };
        let found = |cache: &SignatureCache| {
            let cached = cache.find(key).unwrap().signed;
            (0..5).filter(|n| cached.contains(&attests(*n))).collect::<Vec<_>>()
        };
        for (n, all) in [(0, &[0][..]), (1, &[0, 1]), (2, &[1, 2]), (1, &[1, 2]), (3, &[1, 3])] {
            cache.keep(at("here", key), &[attests(n)], SystemTime::now());
            assert_eq!(found(&cache), all, "{n}");
        }
        // A signature that is too large is not stored, and displaces no other.
        let huge = "x".repeat(seal::LARGEST);
        let huge =
            signed("a", SignedContent::Attestation { predicate_type: huge, predicate: None });
        cache.keep(at("here", key), &[huge], SystemTime::now());
        assert_eq!(found(&cache), [1, 3]);
    }
}
