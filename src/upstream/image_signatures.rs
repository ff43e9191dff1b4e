//! Who signed the image that a server is to run of: asked of its registry, and then kept in a file that
//! nobody can have written but who has the seal of the state folder.
//!
//! Invariant: what is kept adds, and says of nobody that they did not sign. It takes the registry's place
//! where that told lately or does not answer; where it is not enough, the registry is asked again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use portcullis_provenance::{
    Error, Provenance, Rejected, Signed, Signer, Trust, Untrusted, What, Who, verify,
};
use serde::{Deserialize, Serialize};

use super::images::Images;
use crate::config;
use portcullis_foundation::atomic_file;
use portcullis_oci::{Client, Digest, Reference};
use portcullis_protocol::claims::Attested;
use portcullis_protocol::{
    names::{ServerName, SignerName},
    seal::{self, Seal},
};
use portcullis_runtime::process::LaunchFailure;

/// What the seal of a file is for.
const PURPOSE: &str = "provenance of an image";
/// How long a file holds. What was signed stays so; whoever is no longer trusted changes the trust,
/// for which another file counts.
const HOLDS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long what a registry said of an image is not asked for again, where nothing speaks for asking.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a registry is not asked again whatever speaks for it: once it told, and once it did not
/// and nothing is known; of so many images.
const ASKED: Duration = Duration::from_secs(300);
const UNTOLD: Duration = Duration::from_secs(30);
const IMAGES: usize = 256;
/// So many repositories of one image have it on file when they were asked.
const REPOSITORIES: usize = 64;
/// How long a start waits for a registry at most, where it goes on without.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a file: a third more than what is sealed in it, and some.
const LARGEST: u64 = 2 * seal::LARGEST as u64;
/// How long who adds to a file waits for another to have done so, a command beside the proxy perhaps.
const TURN: Duration = Duration::from_secs(10);

/// Who of the config's signers signed an image, by their names, and what they attest of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignedBy {
    /// Who signed it.
    pub signers: Vec<String>,
    /// What is attested, and by whom.
    pub attested: Vec<Attested>,
}

impl From<&[Signed]> for SignedBy {
    fn from(all: &[Signed]) -> Self {
        let (mut signers, mut attested) = (BTreeSet::new(), BTreeSet::new());
        for signed in all {
            let by = signed.by.name().to_owned();
            match &signed.what {
                What::Signature => drop(signers.insert(by)),
                What::Attestation { predicate_type, .. } => {
                    attested.insert(Attested { by, of_type: predicate_type.clone() });
                }
            }
        }
        Self { signers: signers.into_iter().collect(), attested: attested.into_iter().collect() }
    }
}

/// Finds out who signed images.
///
/// Signatures count of the very digest by which an image is run. Of an index that is the index's own:
/// which manifest of it runs is for the engine to choose, so a signature on one of them would say nothing
/// of what does.
#[derive(Clone)]
pub struct SignatureVerifier {
    trust: Arc<Trust>,
    kept: Arc<SignatureCache>,
    /// Where the config says by whom a server's image has to be signed: `FILE:LINE`.
    places: Arc<RwLock<HashMap<ServerName, String>>>,
    /// How long a start waits for a registry, where nobody has to have signed the image.
    patience: Duration,
}

/// Whom a config trusts.
fn trusted(configured: &BTreeMap<SignerName, config::Signer>) -> Result<Trust, (String, String)> {
    let mut signers = Vec::new();
    for (name, signer) in configured {
        let at = format!("/signers/{name}");
        let read = |key: &str, file: &Path| {
            fs::read_to_string(file).map_err(|error| {
                (format!("{at}/{key}"), format!("{} cannot be read: {error}", file.display()))
            })
        };
        let config::Signer { key, issuer, subject, trusted_root } = signer;
        let root = trusted_root.as_ref().map(|file| read("trusted-root", file)).transpose()?;
        let who = match (key, issuer, subject, root) {
            (Some(key), _, _, trusted_root) => Who::Key { pem: read("key", key)?, trusted_root },
            (None, Some(issuer), Some(subject), Some(trusted_root)) => Who::Identity {
                issuer: issuer.clone(),
                subject: subject.parse().map_err(|why: Untrusted| (at, why.to_string()))?,
                trusted_root,
            },
            _ => return Err((at, "this signer is neither a key nor an identity".to_owned())),
        };
        signers.push(Signer { name: name.to_string(), who });
    }
    Trust::new(&signers).map_err(|(name, why)| {
        let key = match why {
            Untrusted::Key => "/key",
            Untrusted::Root(_) => "/trusted-root",
            Untrusted::Subject => "/subject",
        };
        (format!("/signers/{name}{key}"), why.to_string())
    })
}

impl Default for SignatureVerifier {
    /// Of nobody.
    fn default() -> Self {
        Self::by(Trust::default(), Path::new(""), HashMap::new())
    }
}

impl SignatureVerifier {
    /// Those that a config lets count, kept in its state folder.
    ///
    /// # Errors
    /// What is wrong with a signer, and where in the config that is, as a JSON pointer.
    pub fn of_config(
        signers: &BTreeMap<SignerName, config::Signer>,
        state_dir: &Path,
        places: HashMap<ServerName, String>,
    ) -> Result<Self, (String, String)> {
        Ok(Self::by(trusted(signers)?, state_dir, places))
    }

    /// Takes the lines of `signed-by` of a config that was read again, as `FILE:LINE`.
    pub fn locate(&self, places: HashMap<ServerName, String>) {
        *self.places.write() = places;
    }

    fn by(trust: Trust, state_dir: &Path, places: HashMap<ServerName, String>) -> Self {
        let kept = SignatureCache {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            rests: Mutex::default(),
            refused: Mutex::default(),
        };
        let (trust, kept, places) =
            (Arc::new(trust), Arc::new(kept), Arc::new(RwLock::new(places)));
        Self { trust, kept, places, patience: PATIENCE }
    }

    /// Who signed the image of a server, for whoever decides whether it may run. `image` is where it
    /// is, with its digest; none for one of this machine.
    ///
    /// # Errors
    /// Where none of those signed it of whom the config says that one has to have.
    pub async fn of(
        &self,
        server: &ServerName,
        settings: &config::Server,
        images: &Images,
        image: Option<&Reference>,
    ) -> Result<SignedBy, LaunchFailure> {
        let required = &settings.signed_by;
        let holds = |by: &SignedBy| {
            let one_of = |signer: &String| required.iter().any(|name| name.as_str() == signer);
            required.is_empty() || by.signers.iter().any(one_of)
        };
        let image = image.filter(|_| !self.trust.is_empty());
        let Some(image) = image else {
            let by = SignedBy::default();
            return if holds(&by) { Ok(by) } else { Err(self.unsigned(server, settings, &[])) };
        };
        let place = self.place(image);
        let known = self.known(image).await;
        let by = SignedBy::from(&*known.signed);
        // Where another one has to have signed it, they may have done so since: it is asked again.
        if holds(&by) {
            if self.kept.rests(&place) || self.kept.is_fresh(&known, &place) {
                return Ok(by);
            }
            // Whoever asks may be given up before there is an answer: the next start goes by what is kept.
            let nothing = known.signed.is_empty();
            if !nothing {
                self.kept.rest(place.clone(), ASKED);
            }
            let asking = async {
                let client = images.client().map_err(|failed| failed.to_string())?;
                let looked = tokio::time::timeout(self.patience, self.look(client, image)).await;
                looked.unwrap_or(Err(Error::Late)).map_err(|error| error.to_string())
            };
            return Ok(match asking.await {
                Ok(found) => SignedBy::from(&*added(known.signed, &found.signed)),
                Err(why) if nothing => {
                    // Policies see an image that nobody is known to have signed.
                    tracing::warn!(%server, why, "image signatures of a server could not be verified");
                    self.kept.rest(place, UNTOLD);
                    by
                }
                Err(why) => {
                    tracing::info!(%server, why, "using stored image signatures of a server");
                    by
                }
            });
        }
        let looking = self.look(images.client()?, image);
        let Provenance { signed, rejected } = looking.await.map_err(|error| LaunchFailure {
            what: format!("it is not known whether its image is signed: {error}"),
            remedy: Some("see that its registry can be reached".into()),
        })?;
        let by = SignedBy::from(&*added(known.signed, &signed));
        if holds(&by) { Ok(by) } else { Err(self.unsigned(server, settings, &rejected)) }
    }

    /// Has a registry asked again at the next start of an image that policies did not permit by what is
    /// known of it: who signs it may have done so since.
    pub fn refused(&self, image: &Reference) {
        if !self.trust.is_empty() {
            self.kept.refuse(self.place(image));
        }
    }

    /// Why an image is not started that none of those signed who have to.
    fn unsigned(
        &self,
        server: &ServerName,
        settings: &config::Server,
        rejected: &[Rejected],
    ) -> LaunchFailure {
        let names: Vec<_> = settings.signed_by.iter().map(ToString::to_string).collect();
        let place = self.places.read().get(server).map(|at| format!(" ({at})"));
        let place = place.unwrap_or_default();
        let names = names.join(", ");
        let mut what = format!("its image is signed by none of `signed-by`{place}: {names}");
        if let Some(one) = rejected.first() {
            what.push_str(&format!(
                " (of {} signatures that were found, one: {})",
                rejected.len(),
                one.why
            ));
        }
        LaunchFailure { what, remedy: Some(format!("see `portcullis server verify {server}`")) }
    }

    /// What was proved of an image before.
    async fn known(&self, image: &Reference) -> CachedSignatures {
        let (key, kept) = (self.key(image), self.kept.clone());
        let found = tokio::task::spawn_blocking(move || kept.find(key)).await;
        found.ok().flatten().unwrap_or_default()
    }

    /// Asks the registry who signed an image, and adds what it says to what is kept.
    ///
    /// # Errors
    /// Where the registry does not tell.
    pub async fn look(&self, client: &Client, image: &Reference) -> Result<Provenance, Error> {
        let Some(digest) = image.digest() else { return Ok(Provenance::default()) };
        let found = verify(client, image, digest, &self.trust).await?;
        let (place, now) = (self.place(image), SystemTime::now());
        let (kept, signed) = (self.kept.clone(), found.signed.clone());
        let _ = tokio::task::spawn_blocking(move || kept.keep(place, &signed, now)).await;
        Ok(found)
    }

    /// What is proved depends on who is trusted, and on the image, wherever copies of it are.
    fn key(&self, image: &Reference) -> Digest {
        Digest::of(format!("{:?}", (self.trust.digest(), image.digest())).as_bytes())
    }

    /// That nothing was found holds for one repository: signatures may be in another.
    fn place(&self, image: &Reference) -> Repository {
        Repository(format!("{}/{}", image.host(), image.repository()), self.key(image))
    }
}

/// A repository, and what was looked for there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Repository(String, Digest);

/// What is known of an image, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CachedSignatures {
    /// What was proved, wherever it was found.
    signed: Vec<Signed>,
    /// When which repository was asked: seconds since 1970.
    asked: BTreeMap<String, u64>,
}

/// What was proved and what is by now, each once. What is attested is not asked for at a start, only
/// that it is.
fn added(mut known: Vec<Signed>, found: &[Signed]) -> Vec<Signed> {
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

struct SignatureCache {
    state_dir: PathBuf,
    /// None where there is no key to trust files by, which the start of the proxy tells more of.
    seal: OnceLock<Option<Seal>>,
    /// Images that are not asked for again just now, and until when.
    rests: Mutex<HashMap<Repository, Instant>>,
    /// Images that policies did not permit since they were asked for.
    refused: Mutex<HashSet<Repository>>,
}

impl SignatureCache {
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
    fn rests(&self, place: &Repository) -> bool {
        self.rests.lock().get(place).is_some_and(|until| Instant::now() < *until)
    }

    fn rest(&self, place: Repository, within: Duration) {
        let mut rests = self.rests.lock();
        if rests.len() >= IMAGES {
            rests.clear();
        }
        rests.insert(place, Instant::now() + within);
    }

    fn refuse(&self, place: Repository) {
        let mut refused = self.refused.lock();
        if refused.len() >= IMAGES {
            refused.clear();
        }
        refused.insert(place);
    }

    /// Whether what is known of an image is what its registry said lately, and was enough.
    fn is_fresh(&self, known: &CachedSignatures, place: &Repository) -> bool {
        let now = seconds(SystemTime::now());
        // A time that is still to come is that of a clock that was put back.
        let age = known.asked.get(&place.0).and_then(|asked| now.checked_sub(*asked));
        age.is_some_and(|age| age < FRESH.as_secs()) && !self.refused.lock().contains(place)
    }

    fn find(&self, key: Digest) -> Option<CachedSignatures> {
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
    fn keep(&self, place: Repository, signed: &[Signed], now: SystemTime) {
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
    use portcullis_provenance::By;
    use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::watch};

    use super::*;

    fn signed(name: &str, what: What) -> Signed {
        Signed { by: By::Key { name: name.into() }, what, at: Digest::of(b"signature") }
    }

    #[test]
    fn who_attests_does_not_sign() {
        let scan =
            || What::Attestation { predicate_type: "scan".into(), predicate: Some(7.into()) };
        let all = [
            signed("b", scan()),
            signed("b", scan()),
            signed("a", scan()),
            signed("c", What::Signature),
            signed("a", What::Signature),
            signed("c", What::Signature),
        ];
        let by = SignedBy::from(&all[..]);
        let attested = |by: &str| Attested { by: by.into(), of_type: "scan".into() };
        assert_eq!(by.signers, ["a", "c"]);
        assert_eq!(by.attested, [attested("a"), attested("b")]);
    }

    fn kept(state_dir: &Path) -> SignatureCache {
        SignatureCache {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            rests: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    fn at(repository: &str, key: Digest) -> Repository {
        Repository(repository.to_owned(), key)
    }

    /// A registry that reads requests, and says how many have come.
    async fn silent() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (came, count) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let came = came.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(1..) = connection.read(&mut bytes).await {
                        came.send_modify(|count| *count += 1);
                    }
                });
            }
        });
        (host, count)
    }

    // Both ends of a connection have to go on while the other is waited for.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_goes_on_without_a_registry_that_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let pem = rcgen::KeyPair::generate().unwrap().public_key_pem();
        let who = Who::Key { pem, trusted_root: None };
        let trust = Trust::new(&[Signer { name: "a".into(), who }]).unwrap();
        let signatures = SignatureVerifier {
            patience: Duration::from_millis(500),
            ..SignatureVerifier::by(trust, folder.path(), HashMap::new())
        };
        let (images, settings) = (Images::of_nothing(), config::Server::default());
        let (host, mut count) = silent().await;
        let image: Reference = format!("{host}/acme/app@{}", Digest::of(b"this")).parse().unwrap();
        let server = "s".parse().unwrap();
        let of = async || signatures.of(&server, &settings, &images, Some(&image)).await.unwrap();

        // Nobody is known to have signed it, and it is not asked again for a while.
        assert_eq!(of().await, SignedBy::default());
        asked(&mut count, 1).await;
        assert_eq!(of().await, SignedBy::default());
        assert_eq!(*count.borrow(), 1);

        // What was known yesterday counts, and has the registry asked once.
        let place = signatures.place(&image);
        let yesterday = SystemTime::now() - FRESH;
        signatures.kept.keep(place.clone(), &[signed("a", What::Signature)], yesterday);
        signatures.kept.rest(place.clone(), Duration::ZERO);
        assert_eq!(of().await.signers, ["a"]);
        asked(&mut count, 2).await;
        assert_eq!(of().await.signers, ["a"]);
        assert_eq!(*count.borrow(), 2);

        // What was known just now has it asked where policies refused it, and else not.
        signatures.kept.keep(place.clone(), &[], SystemTime::now());
        signatures.kept.rest(place.clone(), Duration::ZERO);
        assert_eq!(of().await.signers, ["a"]);
        assert_eq!(*count.borrow(), 2);
        signatures.refused(&image);
        assert_eq!(of().await.signers, ["a"]);
        asked(&mut count, 3).await;
    }

    /// Waits until so many requests have come.
    async fn asked(count: &mut watch::Receiver<usize>, times: usize) {
        let came = count.wait_for(|count| *count >= times);
        let came = tokio::time::timeout(Duration::from_secs(30), came).await.unwrap().unwrap();
        assert_eq!(*came, times);
    }

    #[test]
    fn what_is_kept_was_written_here_for_this_very_image() {
        let folder = tempfile::tempdir().unwrap();
        let (this, that) = (Digest::of(b"this"), Digest::of(b"that"));
        let first = kept(folder.path());
        assert_eq!(first.find(this), None);
        first.keep(at("here", this), &[signed("a", What::Signature)], SystemTime::now());
        // Another start.
        let again = kept(folder.path());
        assert_eq!(again.find(this).unwrap().signed, [signed("a", What::Signature)]);
        assert_eq!(again.find(that), None);
        // Under another name, changed, or of another state folder.
        fs::copy(again.path(this), again.path(that)).unwrap();
        assert_eq!(again.find(that), None);
        let mut text = fs::read_to_string(again.path(this)).unwrap();
        let other = tempfile::tempdir().unwrap();
        let elsewhere = kept(other.path());
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
            let kept = kept(folder.path());
            kept.keep(at("here", key), said, SystemTime::now());
            assert!(kept.rests(&at("here", key)));
            // By this run, of one image, in one repository.
            assert!(!kept.rests(&at("there", key)));
            assert!(!kept.rests(&at("here", Digest::of(b"that"))));
            assert!(!super::tests::kept(folder.path()).rests(&at("here", key)));
            kept.rest(at("here", key), Duration::ZERO);
            assert!(!kept.rests(&at("here", key)));
        }
    }

    #[test]
    fn what_is_kept_is_added_to_and_grows_old_for_each_repository() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let kept = kept(folder.path());
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
        let kept = kept(folder.path());
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
        let each: Vec<_> = (0..8).map(|n| (n, kept(folder.path()))).collect();
        std::thread::scope(|scope| {
            for (n, kept) in &each {
                scope.spawn(move || {
                    let signed = [signed(&n.to_string(), What::Signature)];
                    kept.keep(at("here", key), &signed, SystemTime::now());
                });
            }
        });
        assert_eq!(kept(folder.path()).find(key).unwrap().signed.len(), each.len());
    }

    #[test]
    fn what_was_found_long_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let key = Digest::of(b"this");
        let kept = kept(folder.path());
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
