//! Requests to registries.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use super::{
    Descriptor, Digest, Error, Limits, Manifest, Reference,
    credentials::Login,
    error::{ContactedHost, json_fault},
    manifest::{DOCKER_INDEX, DOCKER_MANIFEST, INDEX, Index, MANIFEST, NoManifest},
    settings::Settings,
    transport::{Answer, Request, Right, Transport},
};

/// Header by which a registry with the referrers API confirms a subject.
const OCI_SUBJECT: &str = "oci-subject";

/// Manifest as received: the bytes that its digest covers.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Bytes,
    /// Parsed manifest.
    pub manifest: Manifest,
}

/// One artifact to push.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Type of the artifact.
    pub artifact_type: Option<String>,
    /// The config's media type, and the config.
    pub config: (String, Bytes),
    /// The layers with their media types, in order.
    pub layers: Vec<(String, Bytes)>,
    /// Annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Manifest that the artifact refers to.
    pub subject: Option<Descriptor>,
}

/// Client of registries.
pub struct Client(Transport);

impl Client {
    /// Client with these settings.
    ///
    /// # Errors
    /// If the file of authorities is invalid.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Transport::new(settings).map(Self)
    }

    pub(crate) fn until(&self) -> Instant {
        Instant::now() + self.0.limits().total
    }

    /// Present digest of the reference: its own, or that of its tag. It is computed from the
    /// registry's content, not taken from the registry's statements.
    ///
    /// # Errors
    /// As [`Self::manifest`], except that an index is allowed.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, Error> {
        match reference.digest() {
            Some(digest) => Ok(digest),
            None => self.document(reference, self.until()).await.map(|bytes| Digest::of(&bytes)),
        }
    }

    /// Manifest that the reference is pinned to.
    ///
    /// # Errors
    /// If the reference is not pinned, or the manifest is unavailable or does not match its digest.
    pub async fn manifest(&self, reference: &Reference) -> Result<Pulled, Error> {
        self.manifest_until(reference, self.until()).await
    }

    async fn manifest_until(&self, reference: &Reference, until: Instant) -> Result<Pulled, Error> {
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let bytes = self.document(reference, until).await?;
        let manifest = read(reference, digest, &bytes, self.0.limits())?;
        Ok(Pulled { digest, bytes, manifest })
    }

    /// Manifest that the reference is pinned to, and its wanted blobs (config and layers, in that
    /// order).
    ///
    /// # Errors
    /// As [`Self::manifest`]; if blobs are too large or do not match their digests.
    pub async fn pull(
        &self,
        reference: &Reference,
        wanted: impl Fn(&Descriptor) -> bool,
    ) -> Result<(Pulled, Vec<(Descriptor, Bytes)>), Error> {
        let until = self.until();
        let pulled = self.manifest_until(reference, until).await?;
        let all = std::iter::once(&pulled.manifest.config).chain(&pulled.manifest.layers);
        let wanted: Vec<Descriptor> = all.filter(|one| wanted(one)).cloned().collect();
        let most = self.0.limits().blobs;
        let mut sum = 0u64;
        for one in &wanted {
            sum = sum.saturating_add(one.size);
        }
        if sum > most {
            return Err(Error::TooLarge { what: "the artifact", most });
        }
        let mut blobs = Vec::new();
        for one in wanted {
            let bytes = self.blob(reference, &one, until).await?;
            blobs.push((one, bytes));
        }
        Ok((pulled, blobs))
    }

    /// Content of a URL, up to that size: for files without a known digest.
    ///
    /// # Errors
    /// If the URL is not `https` (not required for this machine), or the content is unavailable.
    pub async fn file(&self, url: &Url, most: u64) -> Result<Bytes, Error> {
        let answer = self.0.get(url, self.until()).await?;
        found(answer, || url.path().to_owned()).await?.read_all("the file", most).await
    }

    /// Limit of a manifest in bytes.
    pub(crate) fn most_of_a_manifest(&self) -> u64 {
        self.0.limits().manifest
    }

    /// Login for another program that pulls this reference, if there is one.
    ///
    /// # Errors
    /// If the login cannot be read.
    pub async fn login(&self, reference: &Reference) -> Result<Option<Login>, Error> {
        self.0.login(reference, self.until()).await
    }

    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        until: Instant,
    ) -> Result<Bytes, Error> {
        let Descriptor { digest, size, .. } = *descriptor;
        let answer = self.get(reference, &format!("blobs/{digest}"), None, until).await?;
        let bytes = found(answer, || format!("{reference} (a blob of it)")).await?;
        let bytes = bytes.read_all("the blob", size).await?;
        check("the blob", digest, &bytes)?;
        Ok(bytes)
    }

    /// Manifests that refer to the one that the reference is pinned to.
    ///
    /// # Errors
    /// If the reference is not pinned, or the registry's answer is invalid.
    pub async fn referrers(
        &self,
        reference: &Reference,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let until = self.until();
        let Some((bytes, by_tag)) = self.list(reference, until).await? else {
            return Ok(Vec::new());
        };
        let all = listed(&bytes).map_err(|why| match by_tag {
            // Everybody who may push can put anything there, so it is not the registry's fault.
            true => {
                let why = format!("its list of referrers is invalid: {why}");
                Error::NoArtifact { reference: reference.to_string(), why }
            }
            false => unlisted(reference, &why),
        })?;
        // A registry may leave the filtering to the client.
        let of_it = |one: &Descriptor| {
            artifact_type.is_none_or(|wanted| one.artifact_type.as_deref() == Some(wanted))
        };
        Ok(all.into_iter().filter(of_it).collect())
    }

    /// List of referrers as received, and whether it is the list under a tag that replaces the API.
    /// `None` if there is no list.
    async fn list(
        &self,
        reference: &Reference,
        until: Instant,
    ) -> Result<Option<(Bytes, bool)>, Error> {
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let mut answer =
            self.get(reference, &format!("referrers/{digest}"), Some(INDEX), until).await?;
        // A registry older than version 1.1 of the specification: clients that push maintain a list
        // under this tag.
        let by_tag = answer.status == StatusCode::NOT_FOUND;
        if by_tag {
            let tag = format!("manifests/{}", fallback(digest));
            answer = self.get(reference, &tag, Some(INDEX), until).await?;
        }
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = found(answer, || reference.to_string()).await?;
        let bytes = answer.read_all("the list of referrers", self.0.limits().manifest).await?;
        Ok(Some((bytes, by_tag)))
    }

    /// Pushes an artifact to the tag and returns its digest.
    ///
    /// # Errors
    /// If there is no tag, or the registry refuses the artifact.
    pub async fn push(&self, reference: &Reference, artifact: &Artifact) -> Result<Digest, Error> {
        let tag = reference.tag().ok_or_else(|| Error::Untagged(reference.to_string()))?.to_owned();
        let until = self.until();
        let (kind, config) = &artifact.config;
        self.upload(reference, config, until).await?;
        let mut layers = Vec::new();
        for (kind, bytes) in &artifact.layers {
            self.upload(reference, bytes, until).await?;
            layers.push(Descriptor::of(kind, bytes));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: artifact.artifact_type.clone(),
            config: Descriptor::of(kind, config),
            layers,
            subject: artifact.subject.clone(),
            annotations: artifact.annotations.clone(),
        };
        let bytes: Bytes = serde_json::to_vec(&manifest).unwrap_or_default().into();
        let answer = self.put(reference, &tag, MANIFEST, bytes.clone(), until).await?;
        if let Some(subject) = &artifact.subject
            && !answer.headers.contains_key(OCI_SUBJECT)
        {
            let mut own = Descriptor::of(MANIFEST, &bytes);
            own.artifact_type = Some(manifest.artifact_type().to_owned());
            own.annotations = manifest.annotations.clone();
            self.list_referrer(reference, subject.digest, own, until).await?;
        }
        Ok(Digest::of(&bytes))
    }

    /// Adds an entry to the list that replaces the referrers API if a registry has none.
    async fn list_referrer(
        &self,
        reference: &Reference,
        subject: Digest,
        own: Descriptor,
        until: Instant,
    ) -> Result<(), Error> {
        // Here the whole list must be parsed, because it is written back.
        let mut all = match self.list(&reference.pinned(subject), until).await? {
            Some((bytes, _)) => {
                let read = serde_json::from_slice(&bytes);
                let index: Index = read.map_err(|why| unlisted(reference, &json_fault(&why)))?;
                index.manifests
            }
            None => Vec::new(),
        };
        if !all.iter().any(|one| one.digest == own.digest) {
            all.push(own);
        }
        let bytes = serde_json::to_vec(&Index::of(all)).unwrap_or_default();
        self.put(reference, &fallback(subject), INDEX, bytes.into(), until).await.map(drop)
    }

    async fn put(
        &self,
        reference: &Reference,
        tag: &str,
        kind: &str,
        body: Bytes,
        until: Instant,
    ) -> Result<Answer, Error> {
        let digest = Digest::of(&body);
        let url = self.url(reference, &format!("manifests/{tag}"))?;
        let mut headers = HeaderMap::new();
        headers.extend(HeaderValue::from_str(kind).map(|kind| (header::CONTENT_TYPE, kind)));
        let (right, method) = (Right::Push, Method::PUT);
        let answer = self
            .0
            .send(Request {
                to: reference,
                right,
                method,
                url,
                headers,
                body,
                until,
                from_private: false,
            })
            .await?;
        if answer.status != StatusCode::CREATED {
            return Err(answer.fault().await);
        }
        let header = answer.headers.get("docker-content-digest").and_then(|d| d.to_str().ok());
        match header.map(str::parse::<Digest>) {
            Some(Ok(actual)) if actual != digest => Err(Error::Protocol {
                host: ContactedHost::from(reference.host()),
                why: format!("it reports another digest for {digest}"),
            }),
            _ => Ok(answer),
        }
    }

    async fn upload(
        &self,
        reference: &Reference,
        bytes: &Bytes,
        until: Instant,
    ) -> Result<(), Error> {
        let digest = Digest::of(bytes);
        let request = |method: Method, url: Url, body: Bytes, from_private: bool| {
            let mut headers = HeaderMap::new();
            if method == Method::PUT {
                let kind = HeaderValue::from_static("application/octet-stream");
                headers.insert(header::CONTENT_TYPE, kind);
            }
            let right = Right::Push;
            Request { to: reference, right, method, url, headers, body, until, from_private }
        };
        let there = self.url(reference, &format!("blobs/{digest}"))?;
        if self.0.send(request(Method::HEAD, there, Bytes::new(), false)).await?.status
            == StatusCode::OK
        {
            return Ok(());
        }
        let uploads = self.url(reference, "blobs/uploads/")?;
        let begun = self.0.send(request(Method::POST, uploads, Bytes::new(), false)).await?;
        if begun.status != StatusCode::ACCEPTED {
            return Err(begun.fault().await);
        }
        let mut to = begun.next()?;
        to.query_pairs_mut().append_pair("digest", &digest.to_string());
        let done = self.0.send(request(Method::PUT, to, bytes.clone(), begun.home.private)).await?;
        match done.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(done.fault().await),
        }
    }

    /// Bytes of the manifest or index that the reference names.
    pub(crate) async fn document(
        &self,
        reference: &Reference,
        until: Instant,
    ) -> Result<Bytes, Error> {
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        let accept = [MANIFEST, DOCKER_MANIFEST, INDEX, DOCKER_INDEX].join(", ");
        let answer =
            self.get(reference, &format!("manifests/{name}"), Some(&accept), until).await?;
        let answer = found(answer, || reference.to_string()).await?;
        let bytes = answer.read_all("the manifest", self.0.limits().manifest).await?;
        if let Some(digest) = reference.digest() {
            check("the manifest", digest, &bytes)?;
        }
        Ok(bytes)
    }

    async fn get(
        &self,
        reference: &Reference,
        path: &str,
        accept: Option<&str>,
        until: Instant,
    ) -> Result<Answer, Error> {
        let url = self.url(reference, path)?;
        let mut headers = HeaderMap::new();
        let accept = accept.and_then(|accept| HeaderValue::from_str(accept).ok());
        headers.extend(accept.map(|accept| (header::ACCEPT, accept)));
        let (right, method, body) = (Right::Pull, Method::GET, Bytes::new());
        let from_private = false;
        let to = reference;
        self.0.send(Request { to, right, method, url, headers, body, until, from_private }).await
    }

    fn url(&self, reference: &Reference, path: &str) -> Result<Url, Error> {
        let base = self.0.base(reference)?;
        let join = |why: url::ParseError| Error::Protocol {
            host: ContactedHost::from(reference.host()),
            why: why.to_string(),
        };
        // A digest contains a colon, and `join` would treat the text before it as a scheme.
        base.join(&format!("./{path}")).map_err(join)
    }
}

/// Entries of a list of referrers. Invalid entries are omitted: other people may have put them
/// there.
fn listed(bytes: &[u8]) -> Result<Vec<Descriptor>, String> {
    #[derive(serde::Deserialize)]
    struct List {
        manifests: Vec<serde_json::Value>,
    }
    let list: List = serde_json::from_slice(bytes).map_err(|error| json_fault(&error))?;
    let read = |one| serde_json::from_value(one).ok();
    Ok(list.manifests.into_iter().filter_map(read).collect())
}

fn unlisted(reference: &Reference, why: &str) -> Error {
    let why = format!("its list of referrers is invalid: {why}");
    Error::Protocol { host: ContactedHost::from(reference.host()), why }
}

/// Parses the manifest with that digest.
pub(crate) fn read(
    reference: &Reference,
    digest: Digest,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Manifest, Error> {
    read_layers(reference, digest, bytes, limits.layers)
}

/// Parses it with a limit of layers.
pub(crate) fn read_layers(
    reference: &Reference,
    digest: Digest,
    bytes: &[u8],
    most: usize,
) -> Result<Manifest, Error> {
    check("the manifest", digest, bytes)?;
    let none = |why: String| Error::NoArtifact { reference: reference.to_string(), why };
    let manifest = Manifest::parse(bytes).map_err(|error| match error {
        NoManifest::Index => Error::Index(reference.to_string()),
        NoManifest::Other(why) => none(why),
    })?;
    match manifest.layers.len() {
        count if count > most => Err(none(format!("it has {count} layers; the limit is {most}"))),
        _ => Ok(manifest),
    }
}

pub(crate) fn check(what: &'static str, expected: Digest, bytes: &[u8]) -> Result<(), Error> {
    let actual = Digest::of(bytes);
    if actual == expected { Ok(()) } else { Err(Error::Digest { what, expected, actual }) }
}

async fn found(answer: Answer, what: impl Fn() -> String) -> Result<Answer, Error> {
    match answer.status {
        StatusCode::OK => Ok(answer),
        StatusCode::NOT_FOUND => Err(Error::Missing(what())),
        _ => Err(answer.fault().await),
    }
}

/// Tag of the list of referrers of a manifest in a registry without the API.
fn fallback(digest: Digest) -> String {
    format!("sha256-{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn invalid_list_entries_are_omitted() {
        let good = Descriptor::of(MANIFEST, b"good");
        let with = |key: &str, value: Value| {
            let mut one = json!(good);
            one[key] = value;
            one
        };
        for bad in [
            Value::Null,
            json!({}),
            with("digest", format!("sha512:{}", "0".repeat(128)).into()),
            with("size", Value::Null),
            with("artifactType", 7.into()),
        ] {
            let list = json!({ "schemaVersion": 2, "manifests": [bad, good, bad] }).to_string();
            assert_eq!(listed(list.as_bytes()).unwrap(), std::slice::from_ref(&good));
        }
        for none in ["", "[]", "{}", r#"{"manifests":{}}"#] {
            listed(none.as_bytes()).unwrap_err();
        }
    }
}
