//! Verification of the signatures of a server's image, at its registry.
//!
//! Invariant: the cache replaces the registry only if the registry answered recently or does not
//! answer. If the cached signatures are not sufficient, the registry is queried again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use portcullis_provenance::{
    Error, Provenance, Rejected, Signed, SignedContent, Signer, SignerIdentity, Trust, Untrusted,
    verify,
};

use super::{
    images::Images,
    signature_cache::{ASKED, CachedSignatures, Repository, SignatureCache, UNTOLD, added},
};
use crate::config;
use portcullis_oci::{Client, Digest, Reference};
use portcullis_protocol::claims::Attested;
use portcullis_protocol::names::{ServerName, SignerName};
use portcullis_runtime::process::LaunchFailure;

/// Longest wait of a start for a registry, if the start can continue without it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Configured signers of an image, by name, and their attestations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignedBy {
    /// Names of the signers.
    pub signers: Vec<String>,
    /// Attestations with their signers.
    pub attested: Vec<Attested>,
}

impl From<&[Signed]> for SignedBy {
    fn from(all: &[Signed]) -> Self {
        let (mut signers, mut attested) = (BTreeSet::new(), BTreeSet::new());
        for signed in all {
            let by = signed.by.name().to_owned();
            match &signed.what {
                SignedContent::Signature => drop(signers.insert(by)),
                SignedContent::Attestation { predicate_type, .. } => {
                    attested.insert(Attested { by, of_type: predicate_type.clone() });
                }
            }
        }
        Self { signers: signers.into_iter().collect(), attested: attested.into_iter().collect() }
    }
}

/// Verifies the signatures of images.
///
/// Only signatures of the digest by which the image runs are valid. For an index, that is the
/// digest of the index: the engine chooses the manifest to run, so a signature of one manifest
/// would not cover what runs.
#[derive(Clone)]
pub struct SignatureVerifier {
    trust: Arc<Trust>,
    cache: Arc<SignatureCache>,
    /// Position of each server's `signed-by` in the config: `FILE:LINE`.
    positions: Arc<RwLock<HashMap<ServerName, String>>>,
    /// Longest wait of a start for a registry, if no signature is required.
    patience: Duration,
}

/// The trusted signers of a config. An error has the JSON pointer and the problem.
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
            (Some(key), _, _, trusted_root) => {
                SignerIdentity::Key { pem: read("key", key)?, trusted_root }
            }
            (None, Some(issuer), Some(subject), Some(trusted_root)) => SignerIdentity::Identity {
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
    /// A verifier without trusted signers.
    fn default() -> Self {
        Self::by(Trust::default(), Path::new(""), HashMap::new())
    }
}

impl SignatureVerifier {
    /// The verifier of a config, with a cache in its state folder.
    ///
    /// # Errors
    /// The position in the config, as a JSON pointer, and the problem of the signer.
    pub fn of_config(
        signers: &BTreeMap<SignerName, config::Signer>,
        state_dir: &Path,
        positions: HashMap<ServerName, String>,
    ) -> Result<Self, (String, String)> {
        Ok(Self::by(trusted(signers)?, state_dir, positions))
    }

    /// Sets the positions of `signed-by` after a config reload, as `FILE:LINE`.
    pub fn locate(&self, positions: HashMap<ServerName, String>) {
        *self.positions.write() = positions;
    }

    fn by(trust: Trust, state_dir: &Path, positions: HashMap<ServerName, String>) -> Self {
        let cache = SignatureCache::new(state_dir);
        let (trust, cache, positions) =
            (Arc::new(trust), Arc::new(cache), Arc::new(RwLock::new(positions)));
        Self { trust, cache, positions, patience: PATIENCE }
    }

    /// The signers of a server's image, for the start decision. `image` is its reference with
    /// the digest; `None` for a local image.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if `signed-by` is set and none of its signers signed the image.
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
        let repository = self.repository(image);
        let cached = self.cached(image).await;
        let by = SignedBy::from(&*cached.signed);
        // If a required signature is missing, it may be new: the registry is queried again.
        if holds(&by) {
            if self.cache.rests(&repository) || self.cache.is_fresh(&cached, &repository) {
                return Ok(by);
            }
            // The start can be cancelled during the query; the next start then uses the cache.
            let nothing = cached.signed.is_empty();
            if !nothing {
                self.cache.rest(repository.clone(), ASKED);
            }
            let asking = async {
                let client = images.client().map_err(|failed| failed.to_string())?;
                let looked = tokio::time::timeout(self.patience, self.look(client, image)).await;
                looked.unwrap_or(Err(Error::Late)).map_err(|error| error.to_string())
            };
            return Ok(match asking.await {
                Ok(found) => SignedBy::from(&*added(cached.signed, &found.signed)),
                Err(why) if nothing => {
                    // Policies see an image without known signatures.
                    tracing::warn!(%server, why, "image signatures of a server could not be verified");
                    self.cache.rest(repository, UNTOLD);
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
        let by = SignedBy::from(&*added(cached.signed, &signed));
        if holds(&by) { Ok(by) } else { Err(self.unsigned(server, settings, &rejected)) }
    }

    /// Records that policies refused an image, so that the next start queries the registry again:
    /// the image may have been signed since.
    pub fn refused(&self, image: &Reference) {
        if !self.trust.is_empty() {
            self.cache.refuse(self.repository(image));
        }
    }

    /// Failure of a start whose image lacks a required signature.
    fn unsigned(
        &self,
        server: &ServerName,
        settings: &config::Server,
        rejected: &[Rejected],
    ) -> LaunchFailure {
        let names: Vec<_> = settings.signed_by.iter().map(ToString::to_string).collect();
        let position = self.positions.read().get(server).map(|at| format!(" ({at})"));
        let position = position.unwrap_or_default();
        let names = names.join(", ");
        let mut what = format!("its image is signed by none of `signed-by`{position}: {names}");
        if let Some(one) = rejected.first() {
            what.push_str(&format!(
                " (of {} signatures that were found, one: {})",
                rejected.len(),
                one.why
            ));
        }
        LaunchFailure { what, remedy: Some(format!("see `portcullis server verify {server}`")) }
    }

    /// The cached signatures of an image.
    async fn cached(&self, image: &Reference) -> CachedSignatures {
        let (key, cache) = (self.key(image), self.cache.clone());
        let found = tokio::task::spawn_blocking(move || cache.find(key)).await;
        found.ok().flatten().unwrap_or_default()
    }

    /// Verifies the signatures at the registry, and adds them to the cache.
    ///
    /// # Errors
    /// An [`Error`] if the registry does not return the signatures.
    pub async fn look(&self, client: &Client, image: &Reference) -> Result<Provenance, Error> {
        let Some(digest) = image.digest() else { return Ok(Provenance::default()) };
        let found = verify(client, image, digest, &self.trust).await?;
        let (repository, now) = (self.repository(image), SystemTime::now());
        let (cache, signed) = (self.cache.clone(), found.signed.clone());
        let _ = tokio::task::spawn_blocking(move || cache.keep(repository, &signed, now)).await;
        Ok(found)
    }

    /// Cache key: the trusted signers and the image digest, independent of the registry.
    fn key(&self, image: &Reference) -> Digest {
        Digest::of(format!("{:?}", (self.trust.digest(), image.digest())).as_bytes())
    }

    /// Key of a registry query. It names the repository: signatures may be in another one.
    fn repository(&self, image: &Reference) -> Repository {
        Repository(format!("{}/{}", image.host(), image.repository()), self.key(image))
    }
}

#[cfg(test)]
mod tests {
    use portcullis_provenance::By;
    use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::watch};

    use super::*;
    use crate::signature_cache::FRESH;

    fn signed(name: &str, what: SignedContent) -> Signed {
        Signed { by: By::Key { name: name.into() }, what, at: Digest::of(b"signature") }
    }

    #[test]
    fn attestation_is_not_a_signature() {
        let scan = || SignedContent::Attestation {
            predicate_type: "scan".into(),
            predicate: Some(7.into()),
        };
        let all = [
            signed("b", scan()),
            signed("b", scan()),
            signed("a", scan()),
            signed("c", SignedContent::Signature),
            signed("a", SignedContent::Signature),
            signed("c", SignedContent::Signature),
        ];
        let by = SignedBy::from(&all[..]);
        let attested = |by: &str| Attested { by: by.into(), of_type: "scan".into() };
        assert_eq!(by.signers, ["a", "c"]);
        assert_eq!(by.attested, [attested("a"), attested("b")]);
    }

    /// A registry that never answers. Returns its address and the number of its requests.
    async fn silent() -> (String, watch::Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (arrivals, count) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let arrivals = arrivals.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(1..) = connection.read(&mut bytes).await {
                        arrivals.send_modify(|count| *count += 1);
                    }
                });
            }
        });
        (host, count)
    }

    // Both ends of a connection must make progress while the test waits for one of them.
    #[tokio::test(flavor = "multi_thread")]
    async fn silent_registry_does_not_block_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let pem = rcgen::KeyPair::generate().unwrap().public_key_pem();
        let who = SignerIdentity::Key { pem, trusted_root: None };
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

        // No signature is known, and the registry is not queried again for a while.
        assert_eq!(of().await, SignedBy::default());
        wait_for_requests(&mut count, 1).await;
        assert_eq!(of().await, SignedBy::default());
        assert_eq!(*count.borrow(), 1);

        // Signatures from yesterday are used, and cause one query of the registry.
        let repository = signatures.repository(&image);
        let yesterday = SystemTime::now() - FRESH;
        signatures.cache.keep(
            repository.clone(),
            &[signed("a", SignedContent::Signature)],
            yesterday,
        );
        signatures.cache.rest(repository.clone(), Duration::ZERO);
        assert_eq!(of().await.signers, ["a"]);
        wait_for_requests(&mut count, 2).await;
        assert_eq!(of().await.signers, ["a"]);
        assert_eq!(*count.borrow(), 2);

        // Fresh signatures cause a query only after a refusal by policies.
        signatures.cache.keep(repository.clone(), &[], SystemTime::now());
        signatures.cache.rest(repository.clone(), Duration::ZERO);
        assert_eq!(of().await.signers, ["a"]);
        assert_eq!(*count.borrow(), 2);
        signatures.refused(&image);
        assert_eq!(of().await.signers, ["a"]);
        wait_for_requests(&mut count, 3).await;
    }

    /// Waits until `times` requests have arrived.
    async fn wait_for_requests(count: &mut watch::Receiver<usize>, times: usize) {
        let arrivals = count.wait_for(|count| *count >= times);
        let arrivals =
            tokio::time::timeout(Duration::from_secs(30), arrivals).await.unwrap().unwrap();
        assert_eq!(*arrivals, times);
    }
}
