//! Who signed the image that a server is to run of: asked of its registry once, and then known by a
//! file that only this proxy can have written.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use portcullis_provenance::{
    Error, Provenance, Rejected, Signed, Signer, Trust, Untrusted, What, Who, verify,
};

use super::{images::Images, process::LaunchFailure};
use crate::{
    config::{self, Config, Loaded},
    durable,
    names::ServerName,
    oci::{Client, Digest, Reference},
    policy::Attested,
    seal::Seal,
};

/// What the seal of a file is for.
const PURPOSE: &str = "provenance of an image";
/// How long a file holds. What was signed stays so; whoever is no longer trusted changes the trust,
/// for which another file counts.
const HOLDS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How long it is not asked again of an image that nobody signed, and of one whose registry did not
/// tell; of so many images.
const UNSIGNED: Duration = Duration::from_secs(300);
const UNTOLD: Duration = Duration::from_secs(30);
const IMAGES: usize = 256;
/// How long a start waits for a registry, where nobody has to have signed the image.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a file.
const LARGEST: u64 = 512 << 10;

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
pub struct Signatures {
    trust: Arc<Trust>,
    kept: Arc<Kept>,
    /// Where the config says by whom a server's image has to be signed: `FILE:LINE`.
    places: Arc<HashMap<ServerName, String>>,
}

/// Whom a config trusts.
fn trusted(config: &Config) -> Result<Trust, (String, String)> {
    let mut signers = Vec::new();
    for (name, signer) in &config.signers {
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

impl Default for Signatures {
    /// Of nobody.
    fn default() -> Self {
        Self::by(Trust::default(), Path::new(""), HashMap::new())
    }
}

impl Signatures {
    /// Those that a config lets count, kept in its state folder.
    ///
    /// # Errors
    /// What is wrong with a signer, and where in the config that is, as a JSON pointer.
    pub fn of_config(loaded: &Loaded) -> Result<Self, (String, String)> {
        let trust = trusted(&loaded.config)?;
        let place = |(name, server): (&ServerName, &config::Server)| {
            let line = loaded.line(&format!("/servers/{name}/signed-by"));
            let line = line.filter(|_| !server.signed_by.is_empty())?;
            Some((name.clone(), format!("{}:{line}", loaded.path.display())))
        };
        let places = loaded.config.servers.iter().filter_map(place).collect();
        Ok(Self::by(trust, &loaded.config.state_dir, places))
    }

    fn by(trust: Trust, state_dir: &Path, places: HashMap<ServerName, String>) -> Self {
        let kept = Kept {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            unsigned: Mutex::default(),
        };
        Self { trust: Arc::new(trust), kept: Arc::new(kept), places: Arc::new(places) }
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
        if let Some(known) = self.known(image).await {
            let by = SignedBy::from(&*known);
            // Where another one has to have signed it, they may have done so since: it is asked again.
            if holds(&by) {
                return Ok(by);
            }
        }
        if required.is_empty() && self.kept.is_unsigned(&self.place(image)) {
            return Ok(SignedBy::default());
        }
        let looking = self.look(images.client()?, image);
        if required.is_empty() {
            // Policies see an image that nobody is known to have signed, where a registry does not tell.
            let looked = tokio::time::timeout(PATIENCE, looking).await;
            return Ok(match looked.unwrap_or(Err(Error::Late)) {
                Ok(found) => SignedBy::from(&*found.signed),
                Err(error) => {
                    tracing::warn!(%server, %error, "it is not known who signed the image of a server");
                    self.kept.unsigned(self.place(image), UNTOLD);
                    SignedBy::default()
                }
            });
        }
        let Provenance { signed, rejected } = looking.await.map_err(|error| LaunchFailure {
            what: format!("it is not known whether its image is signed: {error}"),
            remedy: Some("see that its registry can be reached".into()),
        })?;
        let by = SignedBy::from(&*signed);
        if holds(&by) { Ok(by) } else { Err(self.unsigned(server, settings, &rejected)) }
    }

    /// Why an image is not started that none of those signed who have to.
    fn unsigned(
        &self,
        server: &ServerName,
        settings: &config::Server,
        rejected: &[Rejected],
    ) -> LaunchFailure {
        let names: Vec<_> = settings.signed_by.iter().map(ToString::to_string).collect();
        let place = self.places.get(server).map_or_else(String::new, |at| format!(" ({at})"));
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

    /// What was proved of an image before: none where nothing was.
    async fn known(&self, image: &Reference) -> Option<Vec<Signed>> {
        let (key, kept) = (self.key(image), self.kept.clone());
        tokio::task::spawn_blocking(move || kept.find(key)).await.ok()?
    }

    /// Asks the registry who signed an image, and keeps what it says.
    ///
    /// # Errors
    /// Where the registry does not tell.
    pub async fn look(&self, client: &Client, image: &Reference) -> Result<Provenance, Error> {
        let Some(digest) = image.digest() else { return Ok(Provenance::default()) };
        let found = verify(client, image, digest, &self.trust).await?;
        let (key, place) = (self.key(image), self.place(image));
        let (kept, signed) = (self.kept.clone(), found.signed.clone());
        let _ = tokio::task::spawn_blocking(move || kept.keep(key, place, signed)).await;
        Ok(found)
    }

    /// What is proved depends on who is trusted, and on the image, wherever copies of it are.
    fn key(&self, image: &Reference) -> Digest {
        Digest::of(format!("{:?}", (self.trust.digest(), image.digest())).as_bytes())
    }

    /// That nothing was found holds for one repository: signatures may be in another.
    fn place(&self, image: &Reference) -> Place {
        Place(format!("{}/{}", image.host(), image.repository()), self.key(image))
    }
}

/// A repository, and what was looked for there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place(String, Digest);

struct Kept {
    state_dir: PathBuf,
    /// None where there is no key to trust files by, which the start of the proxy tells more of.
    seal: OnceLock<Option<Seal>>,
    /// Images that nobody is known to have signed, and until when that holds.
    unsigned: Mutex<HashMap<Place, Instant>>,
}

impl Kept {
    fn seal(&self) -> Option<&Seal> {
        self.seal.get_or_init(|| Seal::load(&self.state_dir).ok()).as_ref()
    }

    fn folder(&self) -> PathBuf {
        self.state_dir.join("provenance")
    }

    fn path(&self, key: Digest) -> PathBuf {
        self.folder().join(key.hex())
    }

    /// Whether a registry said just now that nobody signed it.
    fn is_unsigned(&self, place: &Place) -> bool {
        self.unsigned.lock().get(place).is_some_and(|until| Instant::now() < *until)
    }

    fn unsigned(&self, place: Place, within: Duration) {
        let mut unsigned = self.unsigned.lock();
        if unsigned.len() >= IMAGES {
            unsigned.clear();
        }
        unsigned.insert(place, Instant::now() + within);
    }

    fn find(&self, key: Digest) -> Option<Vec<Signed>> {
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
            tracing::warn!(file = %path.display(), why, "what was kept of an image's signatures is not used: they are looked for again");
        })
        .ok()
    }

    fn keep(&self, key: Digest, place: Place, mut signed: Vec<Signed>) {
        if signed.is_empty() {
            return self.unsigned(place, UNSIGNED);
        }
        self.unsigned.lock().remove(&place);
        // What is attested is not asked for at a start, only that it is.
        for one in &mut signed {
            if let What::Attestation { predicate, .. } = &mut one.what {
                *predicate = None;
            }
        }
        if let Err(why) = self.write(key, &signed) {
            tracing::warn!(%why, "what is known of an image's signatures is not kept: the next start asks again");
        }
    }

    fn write(&self, key: Digest, signed: &[Signed]) -> io::Result<()> {
        let seal = self.seal().ok_or_else(|| io::Error::other("there is no key to seal it"))?;
        let bytes = serde_json::to_vec(signed)?;
        let sealed = seal.seal(PURPOSE, key.hex().as_bytes(), &bytes, HOLDS);
        let sealed = sealed.map_err(io::Error::other)?;
        let folder = self.folder();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        durable::write(&folder, &key.hex(), sealed.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use portcullis_provenance::By;

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

    #[test]
    fn what_is_kept_was_written_here_for_this_very_image() {
        let folder = tempfile::tempdir().unwrap();
        let kept = |state_dir: &Path| Kept {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            unsigned: Mutex::default(),
        };
        let (this, that) = (Digest::of(b"this"), Digest::of(b"that"));
        let at = |repository: &str, key| Place(repository.to_owned(), key);
        let first = kept(folder.path());
        assert_eq!(first.find(this), None);
        first.keep(this, at("here", this), vec![signed("a", What::Signature)]);
        // Another start.
        let again = kept(folder.path());
        assert_eq!(again.find(this), Some(vec![signed("a", What::Signature)]));
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
        // That nobody signed it is known for a while, by this run, of one repository.
        again.keep(that, at("here", that), vec![]);
        assert!(again.is_unsigned(&at("here", that)) && !again.is_unsigned(&at("here", this)));
        assert!(!again.is_unsigned(&at("there", that)));
        assert!(!kept(folder.path()).is_unsigned(&at("here", that)));
        again.unsigned(at("here", this), Duration::ZERO);
        assert!(!again.is_unsigned(&at("here", this)));
        assert_eq!(again.find(that), None);
        again.keep(that, at("here", that), vec![signed("a", What::Signature)]);
        assert!(!again.is_unsigned(&at("here", that)));
    }
}
