//! Verified signatures of images, in files that only the owner of the state folder's seal can write.
//!
//! Invariant: what is kept adds, and says of nobody that they did not sign.

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
use portcullis_provenance::{Signed, What};

/// What the seal of a file is for.
const PURPOSE: &str = "provenance of an image";
/// How long a file holds. A signature stays valid; another set of trusted signers has
/// another file.
const HOLDS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long what a registry said of an image is not asked for again, where nothing speaks for asking.
pub(super) const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a registry is not asked again at all: after an answer, and after a failure where nothing is
/// known.
pub(super) const ASKED: Duration = Duration::from_secs(300);
pub(super) const UNTOLD: Duration = Duration::from_secs(30);
/// Images of which that is remembered.
const IMAGES: usize = 256;
/// So many repositories of one image have it on file when they were asked.
const REPOSITORIES: usize = 64;
/// Bytes of a file: a third more than what is sealed in it, and some.
const LARGEST: u64 = 2 * seal::LARGEST as u64;
/// How long who adds to a file waits for another to have done so, a command beside the proxy perhaps.
const TURN: Duration = Duration::from_secs(10);

/// A repository, and what was looked for there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Repository(pub String, pub Digest);

/// What is known of an image, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CachedSignatures {
    /// What was proved, wherever it was found.
    pub signed: Vec<Signed>,
    /// When which repository was asked: seconds since 1970.
    asked: BTreeMap<String, u64>,
}

/// What was proved before and what is proved now, each once. What is attested is not asked for at a start, only
/// that it is.
pub(super) fn added(mut known: Vec<Signed>, found: &[Signed]) -> Vec<Signed> {
    for one in found {
        let mut one = one.clone();
        if let What::Attestation { predicate, .. } = &mut one.what {
            *predicate = None;
        }
        if !known.iter().any(|known| is_same(known, &one)) {
            known.push(one);
        }
    }
    known
}

fn is_same(one: &Signed, other: &Signed) -> bool {
    (&one.by, &one.what) == (&other.by, &other.what)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Signatures that were verified, each in a sealed file of the state folder.
pub(super) struct SignatureCache {
    state_dir: PathBuf,
    /// None where there is no key to trust files by, which the start of the proxy tells more of.
    seal: OnceLock<Option<Seal>>,
    /// Images that are not asked for again just now, and until when.
    rests: Mutex<HashMap<Repository, Instant>>,
    /// Images that policies did not permit since they were asked for.
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

    /// Whether its registry is not to be asked again just now.
    pub fn rests(&self, place: &Repository) -> bool {
        self.rests.lock().get(place).is_some_and(|until| Instant::now() < *until)
    }

    pub fn rest(&self, place: Repository, within: Duration) {
        let mut rests = self.rests.lock();
        if rests.len() >= IMAGES {
            rests.clear();
        }
        rests.insert(place, Instant::now() + within);
    }

    pub fn refuse(&self, place: Repository) {
        let mut refused = self.refused.lock();
        if refused.len() >= IMAGES {
            refused.clear();
        }
        refused.insert(place);
    }

    /// Whether what is known of an image is what its registry said lately, and was enough.
    pub fn is_fresh(&self, known: &CachedSignatures, place: &Repository) -> bool {
        let now = seconds(SystemTime::now());
        // A time that is still to come is that of a clock that was put back.
        let age = known.asked.get(&place.0).and_then(|asked| now.checked_sub(*asked));
        age.is_some_and(|age| age < FRESH.as_secs()) && !self.refused.lock().contains(place)
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

    /// Adds what a registry said to what is kept.
    pub fn keep(&self, place: Repository, signed: &[Signed], now: SystemTime) {
        self.refused.lock().remove(&place);
        self.rest(place.clone(), ASKED);
        if signed.is_empty() && !self.path(place.1).exists() {
            return;
        }
        if let Err(why) = self.add(place, signed, now) {
            tracing::warn!(%why, "image signatures could not be stored; the next start fetches them again");
        }
    }

    fn add(&self, place: Repository, signed: &[Signed], now: SystemTime) -> io::Result<()> {
        let Repository(repository, key) = place;
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        let _turn = self.turn()?;
        let mut known = self.find(key).unwrap_or_default();
        // What was found now is what was found last.
        let found = added(Vec::new(), signed);
        known.signed.retain(|one| !found.iter().any(|found| is_same(one, found)));
        known.signed.extend(found);
        known.asked.insert(repository, seconds(now));
        while known.asked.len() > REPOSITORIES {
            let oldest = known.asked.iter().min_by_key(|(_, asked)| **asked);
            let Some(oldest) = oldest.map(|(repository, _)| repository.clone()) else { break };
            known.asked.remove(&oldest);
        }
        let mut bytes = serde_json::to_vec(&known)?;
        // More could not be read again, and nothing added to it: rather what was found long ago goes.
        while bytes.len() > seal::LARGEST && !known.signed.is_empty() {
            let mut over = bytes.len() - seal::LARGEST;
            while over > 0 && !known.signed.is_empty() {
                over = over.saturating_sub(serde_json::to_vec(&known.signed.remove(0))?.len());
            }
            bytes = serde_json::to_vec(&known)?;
        }
        if known.signed.is_empty() {
            return Ok(());
        }
        let seal = self.seal().ok_or_else(|| io::Error::other("there is no key to seal it"))?;
        let sealed = seal.seal(PURPOSE, key.hex().as_bytes(), &bytes, HOLDS);
        atomic_file::write(
            &self.folder().join(key.hex()),
            sealed.map_err(io::Error::other)?.as_bytes(),
        )
    }

    /// The turn to add to a file, until this is dropped. The folder is locked, since the files are
    /// replaced.
    ///
    /// # Errors
    /// Where somebody else has it for too long, or the folder can't be locked.
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

    fn signed(name: &str, what: What) -> Signed {
        Signed { by: By::Key { name: name.into() }, what, at: Digest::of(b"signature") }
    }

    fn at(repository: &str, key: Digest) -> Repository {
        Repository(repository.to_owned(), key)
    }

    #[test]
    fn what_is_kept_was_written_here_for_this_very_image() {
        let folder = tempfile::tempdir().unwrap();
        let (this, that) = (Digest::of(b"this"), Digest::of(b"that"));
        let first = SignatureCache::new(folder.path());
        assert_eq!(first.find(this), None);
        first.keep(at("here", this), &[signed("a", What::Signature)], SystemTime::now());
        // Another start.
        let again = SignatureCache::new(folder.path());
        assert_eq!(again.find(this).unwrap().signed, [signed("a", What::Signature)]);
        assert_eq!(again.find(that), None);
        // Under another name, changed, or of another state folder.
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
    fn a_registry_that_was_asked_just_now_is_let_alone_whatever_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        for said in [&[][..], &[signed("a", What::Signature)]] {
            let kept = SignatureCache::new(folder.path());
            kept.keep(at("here", key), said, SystemTime::now());
            assert!(kept.rests(&at("here", key)));
            // By this run, of one image, in one repository.
            assert!(!kept.rests(&at("there", key)));
            assert!(!kept.rests(&at("here", Digest::of(b"that"))));
            assert!(!SignatureCache::new(folder.path()).rests(&at("here", key)));
            kept.rest(at("here", key), Duration::ZERO);
            assert!(!kept.rests(&at("here", key)));
        }
    }

    #[test]
    fn what_is_kept_is_added_to_and_grows_old_for_each_repository() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let kept = SignatureCache::new(folder.path());
        let now = SystemTime::now();
        let scan =
            || What::Attestation { predicate_type: "scan".into(), predicate: Some(7.into()) };
        // A registry that hides what it had, and one that has something else.
        kept.keep(at("here", key), &[signed("a", What::Signature), signed("a", scan())], now);
        kept.keep(at("there", key), &[signed("b", What::Signature)], now - FRESH);
        kept.keep(at("here", key), &[], now);
        kept.keep(at("here", key), &[signed("a", scan())], now);
        let known = kept.find(key).unwrap();
        let by = SignedBy::from(&*known.signed);
        let attested = Attested { by: "a".into(), of_type: "scan".into() };
        assert_eq!((&*by.signers, &*by.attested), (&["a".into(), "b".into()][..], &[attested][..]));
        assert_eq!(known.signed.len(), 3);

        let fresh = |repository: &str| kept.is_fresh(&known, &at(repository, key));
        assert!(fresh("here"));
        // A day old, and never asked.
        assert!(!fresh("there") && !fresh("elsewhere"));
        // Asked by a clock that was put back.
        kept.keep(at("here", key), &[], now + FRESH);
        assert!(!kept.is_fresh(&kept.find(key).unwrap(), &at("here", key)));

        // Policies refused it, until it is asked for again.
        kept.keep(at("here", key), &[], now);
        let known = kept.find(key).unwrap();
        kept.refuse(at("here", key));
        assert!(!kept.is_fresh(&known, &at("here", key)));
        kept.keep(at("here", key), &[], now);
        assert!(kept.is_fresh(&known, &at("here", key)));
    }

    #[test]
    fn what_is_kept_of_repositories_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let kept = SignatureCache::new(folder.path());
        let signed = [signed("a", What::Signature)];
        for n in 0..=REPOSITORIES {
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - n as u64);
            kept.keep(at(&format!("r{n}"), key), &signed, when);
        }
        let known = kept.find(key).unwrap();
        assert_eq!(known.asked.len(), REPOSITORIES);
        assert!(known.asked.contains_key("r0"));
    }

    #[test]
    fn what_several_find_at_once_is_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        // As two programs have it, each its own.
        let each: Vec<_> = (0..8).map(|n| (n, SignatureCache::new(folder.path()))).collect();
        std::thread::scope(|scope| {
            for (n, kept) in &each {
                scope.spawn(move || {
                    let signed = [signed(&n.to_string(), What::Signature)];
                    kept.keep(at("here", key), &signed, SystemTime::now());
                });
            }
        });
        assert_eq!(SignatureCache::new(folder.path()).find(key).unwrap().signed.len(), each.len());
    }

    #[test]
    fn what_was_found_long_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let kept = SignatureCache::new(folder.path());
        let attests = |n: usize| {
            let predicate_type = format!("{n}{}", "x".repeat(seal::LARGEST / 3));
            signed("a", What::Attestation { predicate_type, predicate: None })
        };
        let found = |kept: &SignatureCache| {
            let known = kept.find(key).unwrap().signed;
            (0..5).filter(|n| known.contains(&attests(*n))).collect::<Vec<_>>()
        };
        for (n, all) in [(0, &[0][..]), (1, &[0, 1]), (2, &[1, 2]), (1, &[1, 2]), (3, &[1, 3])] {
            kept.keep(at("here", key), &[attests(n)], SystemTime::now());
            assert_eq!(found(&kept), all, "{n}");
        }
        // What there is no room for at all is not kept, nor instead of what is.
        let huge = "x".repeat(seal::LARGEST);
        let huge = signed("a", What::Attestation { predicate_type: huge, predicate: None });
        kept.keep(at("here", key), &[huge], SystemTime::now());
        assert_eq!(found(&kept), [1, 3]);
    }
}
