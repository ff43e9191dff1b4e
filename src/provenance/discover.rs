//! Searches for signatures of an image.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use portcullis_oci::{Client, Descriptor, Digest, Error as Registry, Reference};

use crate::{
    By, Provenance, Rejected, Rejection, Signed, Trust,
    candidate::{Candidate, is_artifact, is_layer},
    evaluate::evaluate,
    rejection::words,
};

/// Time limit for the whole search.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Limits of the manifests, and of the layers of all of them.
const MAX_MANIFESTS: usize = 32;
const MAX_LAYERS: usize = 64;
/// Limits in bytes of one layer, and of all.
const MAX_LAYER_BYTES: u64 = 4 << 20;
const MAX_TOTAL_BYTES: u64 = 32 << 20;
/// Limit of the reported rejections.
const MAX_REJECTED: usize = 64;

/// Failure to determine the signers of an image. This differs from an unsigned image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry does not answer.
    #[error("its signatures cannot be read: {0}")]
    Registry(#[from] Registry),
    /// The search took too long.
    #[error("timed out while reading its signatures")]
    Late,
}

/// Trusted signers and attestations of the image with that digest. `repository` is the place to
/// search; its tag and digest are ignored.
///
/// # Errors
/// If the registry does not answer correctly.
pub async fn verify(
    client: &Client,
    repository: &Reference,
    image: Digest,
    trust: &Trust,
) -> Result<Provenance, Error> {
    if trust.is_empty() {
        return Ok(Provenance::default());
    }
    let search = Search { client, repository, image, trust, found: Provenance::default() };
    search.run_within(SEARCH_TIMEOUT).await
}

/// Remaining budget, and whether something was skipped.
struct SearchBudget {
    layers: usize,
    bytes: u64,
    over: bool,
}

impl SearchBudget {
    fn take(&mut self, size: u64) -> bool {
        let fits = self.layers > 0 && size <= MAX_LAYER_BYTES.min(self.bytes);
        if fits {
            self.layers -= 1;
            self.bytes -= size;
        } else {
            self.over = true;
        }
        fits
    }
}

struct Search<'a> {
    client: &'a Client,
    repository: &'a Reference,
    image: Digest,
    trust: &'a Trust,
    found: Provenance,
}

impl Search<'_> {
    /// Searches for at most this time.
    async fn run_within(self, limit: Duration) -> Result<Provenance, Error> {
        tokio::time::timeout(limit, self.run()).await.map_err(|_| Error::Late)?
    }

    async fn run(mut self) -> Result<Provenance, Error> {
        let manifests = self.manifests().await?;
        let remaining =
            Mutex::new(SearchBudget { layers: MAX_LAYERS, bytes: MAX_TOTAL_BYTES, over: false });
        let remaining = || remaining.lock().unwrap_or_else(PoisonError::into_inner);
        for at in manifests {
            remaining().over = false;
            let wanted =
                |layer: &Descriptor| is_layer(&layer.media_type) && remaining().take(layer.size);
            let pulled = self.client.pull(&self.repository.pinned(at), wanted).await;
            let Some((pulled, blobs)) = self.had(Some(at), pulled)? else { continue };
            if remaining().over {
                self.reject(Some(at), Rejection::TooMuch("its layers"));
            } else if blobs.is_empty() {
                let kind = words(pulled.manifest.artifact_type());
                self.reject(Some(at), Rejection::Layer(format!("it is `{kind}`")));
            }
            for (layer, bytes) in blobs {
                let weighed = Candidate::read(&layer, &bytes)
                    .and_then(|candidate| evaluate(&candidate, self.image, self.trust));
                match weighed {
                    Ok((what, by)) => {
                        let signed = |by: By| Signed { by, what: what.clone(), at };
                        self.found.signed.extend(by.into_iter().map(signed));
                    }
                    Err(why) => self.reject(Some(at), why),
                }
            }
        }
        Ok(self.found)
    }

    /// Manifests that may contain signatures: by cosign's tags, and by references to the image.
    async fn manifests(&mut self) -> Result<Vec<Digest>, Error> {
        let mut all: Vec<Digest> = Vec::new();
        for kind in ["sig", "att"] {
            let (host, repository) = (self.repository.host(), self.repository.repository());
            let tag = format!("{host}/{repository}:sha256-{}.{kind}", self.image.hex());
            let Ok(tag) = tag.parse::<Reference>() else { continue };
            let named = match self.client.resolve(&tag).await {
                Err(Registry::Missing(_)) => continue,
                named => self.had(None, named)?,
            };
            all.extend(named);
        }
        let listed = self.client.referrers(&self.repository.pinned(self.image), None).await;
        let listed = self.had(None, listed)?.unwrap_or_default();
        // A list that clients maintain in a registry without the API need not contain the kind.
        let may_be = |kind: &Option<String>| kind.as_deref().is_none_or(is_artifact);
        let listed = listed.into_iter().filter(|one| may_be(&one.artifact_type));
        all.extend(listed.map(|one| one.digest));
        let mut seen = std::collections::HashSet::new();
        all.retain(|one| seen.insert(*one));
        if all.len() > MAX_MANIFESTS {
            all.truncate(MAX_MANIFESTS);
            self.reject(None, Rejection::TooMuch("the artifacts that refer to it"));
        }
        Ok(all)
    }

    /// The registry's content; `None` if it is not a signature. Everybody who may push to a
    /// repository can put such content there, so it is not the registry's fault.
    fn had<T>(&mut self, at: Option<Digest>, had: Result<T, Registry>) -> Result<Option<T>, Error> {
        match had {
            Ok(had) => Ok(Some(had)),
            Err(
                why @ (Registry::Missing(_)
                | Registry::NoArtifact { .. }
                | Registry::Index(_)
                | Registry::TooLarge { .. }),
            ) => {
                self.reject(at, Rejection::Unread(words(&why.to_string())));
                Ok(None)
            }
            Err(why) => Err(why.into()),
        }
    }

    fn reject(&mut self, at: Option<Digest>, why: Rejection) {
        if self.found.rejected.len() < MAX_REJECTED {
            self.found.rejected.push(Rejected { at, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_oci::{Logins, Settings};

    use super::*;

    #[tokio::test]
    async fn silent_registry_times_out() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let image = Digest::of(b"image");
        let repository = format!("{}/acme/app@{image}", silent.local_addr().unwrap());
        let repository = repository.parse().unwrap();
        let client = Client::new(Settings { logins: Logins::Nobody, ..Settings::default() });
        let (client, trust) = (client.unwrap(), Trust::default());
        let search = Search {
            client: &client,
            repository: &repository,
            image,
            trust: &trust,
            found: Provenance::default(),
        };
        // Before the client's own timeout, which would count as the registry's failure.
        let late = search.run_within(Duration::from_millis(50)).await;
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
    }
}
