//! Who signed the image that a server is to run of: asked of its registry once, and then known by a
//! file that only this proxy can have written.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, DirBuilder, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use portcullis_provenance::{
    Error, Provenance, Signed, Signer, Trust, Untrusted, What, Who, verify,
};

use super::process::LaunchFailure;
use crate::{
    config::{self, Config},
    names::ServerName,
    oci::{Client, Digest, Reference},
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
    /// The types of what is attested.
    pub attested: Vec<String>,
}

impl From<&[Signed]> for SignedBy {
    fn from(all: &[Signed]) -> Self {
        let (mut signers, mut attested) = (BTreeSet::new(), BTreeSet::new());
        for signed in all {
            match &signed.what {
                What::Signature => signers.insert(signed.by.name().to_owned()),
                What::Attestation { predicate_type, .. } => attested.insert(predicate_type.clone()),
            };
        }
        Self { signers: signers.into_iter().collect(), attested: attested.into_iter().collect() }
    }
}

/// An image whose signatures are looked for.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Where it is, with its digest; none for one of this machine.
    ///
    /// Signatures count of that very digest. Of an index that is the index's own: which manifest of it
    /// runs is for the engine to choose, so a signature on one of them would say nothing of what does.
    pub reference: Option<&'a Reference>,
}

/// Finds out who signed images.
#[derive(Clone)]
pub struct Signatures {
    trust: Arc<Trust>,
    kept: Arc<Kept>,
}

/// Whom a config trusts.
///
/// # Errors
/// What is wrong with a signer, and where in the config that is.
pub fn trusted(config: &Config) -> Result<Trust, (String, String)> {
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
        Self::new(Trust::default(), Path::new(""))
    }
}

impl Signatures {
    /// Those that this trust lets count, kept in the state folder.
    pub fn new(trust: Trust, state_dir: &Path) -> Self {
        let kept = Kept {
            state_dir: state_dir.to_owned(),
            seal: OnceLock::new(),
            unsigned: Mutex::default(),
        };
        Self { trust: Arc::new(trust), kept: Arc::new(kept) }
    }

    /// Who signed the image of a server, for whoever decides whether it may run.
    ///
    /// # Errors
    /// Where none of those signed it of whom the config says that one has to have.
    pub async fn of(
        &self,
        server: &ServerName,
        settings: &config::Server,
        client: &Client,
        image: Image<'_>,
    ) -> Result<SignedBy, LaunchFailure> {
        let required = &settings.signed_by;
        // Where it has to be signed, somebody may be about to do it: it is asked again.
        let kept = match self.kept(image).await {
            None if required.is_empty() && self.kept.is_unsigned(self.key(image)) => {
                Some(Vec::new())
            }
            kept => kept,
        };
        let (signed, rejected) = match kept {
            Some(signed) => (signed, Vec::new()),
            // Policies see an image that nobody is known to have signed, where a registry does not tell.
            None if required.is_empty() => {
                let looking = tokio::time::timeout(PATIENCE, self.look(client, image));
                match looking.await.unwrap_or(Err(Error::Late)) {
                    Ok(found) => (found.signed, Vec::new()),
                    Err(error) => {
                        tracing::warn!(%server, %error, "it is not known who signed the image of a server");
                        self.kept.unsigned(self.key(image), UNTOLD);
                        return Ok(SignedBy::default());
                    }
                }
            }
            None => match self.look(client, image).await {
                Ok(Provenance { signed, rejected }) => (signed, rejected),
                Err(error) => {
                    return Err(LaunchFailure {
                        what: format!("it is not known whether its image is signed: {error}"),
                        remedy: Some("see that its registry can be reached".into()),
                    });
                }
            },
        };
        let by = SignedBy::from(&*signed);
        let one_of = |signer: &String| required.iter().any(|name| name.as_str() == signer);
        if required.is_empty() || by.signers.iter().any(one_of) {
            return Ok(by);
        }
        let names: Vec<_> = required.iter().map(ToString::to_string).collect();
        let mut what = format!("its image is signed by none of `signed-by`: {}", names.join(", "));
        if let Some(one) = rejected.first() {
            what.push_str(&format!(
                " (of {} signatures that were found, one: {})",
                rejected.len(),
                one.why
            ));
        }
        let remedy = format!("see `portcullis server verify {server}`");
        Err(LaunchFailure { what, remedy: Some(remedy) })
    }

    /// What is known already of an image: none where it has to be asked for.
    pub async fn kept(&self, image: Image<'_>) -> Option<Vec<Signed>> {
        if self.trust.is_empty() || image.reference.is_none() {
            return Some(Vec::new());
        }
        let (key, kept) = (self.key(image), self.kept.clone());
        tokio::task::spawn_blocking(move || kept.find(key)).await.ok()?
    }

    /// Asks the registry who signed an image, and keeps what it says.
    ///
    /// # Errors
    /// Where the registry does not tell.
    pub async fn look(&self, client: &Client, image: Image<'_>) -> Result<Provenance, Error> {
        let Some(reference) = image.reference else { return Ok(Provenance::default()) };
        let manifests: Vec<Digest> = reference.digest().into_iter().collect();
        let found = verify(client, reference, &manifests, &self.trust).await?;
        let (key, kept, signed) = (self.key(image), self.kept.clone(), found.signed.clone());
        let _ = tokio::task::spawn_blocking(move || kept.keep(key, signed)).await;
        Ok(found)
    }

    /// What is known depends on who is trusted, and on what was asked about.
    fn key(&self, image: Image<'_>) -> Digest {
        let digest = image.reference.and_then(Reference::digest);
        Digest::of(format!("{:?}", (self.trust.digest(), digest)).as_bytes())
    }
}

struct Kept {
    state_dir: PathBuf,
    /// None where there is no key to trust files by, which the start of the proxy tells more of.
    seal: OnceLock<Option<Seal>>,
    /// Images that nobody is known to have signed, and until when that holds.
    unsigned: Mutex<HashMap<Digest, Instant>>,
}

impl Kept {
    fn seal(&self) -> Option<&Seal> {
        self.seal.get_or_init(|| Seal::load(&self.state_dir).ok()).as_ref()
    }

    fn path(&self, key: Digest) -> PathBuf {
        self.state_dir.join("provenance").join(key.hex())
    }

    /// Whether a registry said just now that nobody signed it.
    fn is_unsigned(&self, key: Digest) -> bool {
        self.unsigned.lock().get(&key).is_some_and(|until| Instant::now() < *until)
    }

    fn unsigned(&self, key: Digest, within: Duration) {
        let mut unsigned = self.unsigned.lock();
        if unsigned.len() >= IMAGES {
            unsigned.clear();
        }
        unsigned.insert(key, Instant::now() + within);
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

    fn keep(&self, key: Digest, mut signed: Vec<Signed>) {
        if signed.is_empty() {
            return self.unsigned(key, UNSIGNED);
        }
        self.unsigned.lock().remove(&key);
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
        let path = self.path(key);
        let folder = path.parent().unwrap_or(&self.state_dir);
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        file.write_all(sealed.as_bytes())?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use portcullis_provenance::By;

    use super::*;

    fn signed(name: &str, what: What) -> Signed {
        let (of, at) = (Digest::of(b"image"), Digest::of(b"signature"));
        Signed { by: By::Key { name: name.into() }, what, of, at }
    }

    #[test]
    fn who_attests_does_not_sign() {
        let attested = What::Attestation { predicate_type: "scan".into(), predicate: None };
        let all = [
            signed("b", attested),
            signed("c", What::Signature),
            signed("a", What::Signature),
            signed("c", What::Signature),
        ];
        let by = SignedBy::from(&all[..]);
        assert_eq!((by.signers, by.attested), (vec!["a".into(), "c".into()], vec!["scan".into()]));
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
        let first = kept(folder.path());
        assert_eq!(first.find(this), None);
        first.keep(this, vec![signed("a", What::Signature)]);
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
        // That nobody signed it is known for a while, by this run.
        again.keep(that, vec![]);
        assert!(again.is_unsigned(that) && !again.is_unsigned(this));
        assert!(!kept(folder.path()).is_unsigned(that));
        again.unsigned(this, Duration::ZERO);
        assert!(!again.is_unsigned(this));
        assert_eq!(again.find(that), None);
    }
}
