//! What is asked of a registry.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Url;

use super::{
    Descriptor, Digest, Error, Logins, Manifest, Reference,
    credentials::Login,
    error::{Asked, json_fault},
    manifest::{DOCKER_INDEX, DOCKER_MANIFEST, INDEX, Index, MANIFEST, NoManifest},
    transport::{Answer, Request, Right, Transport},
};

/// How a registry that knows referrers says that it has heard of one.
const OCI_SUBJECT: &str = "oci-subject";

/// How registries are asked.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where logins are.
    pub logins: Logins,
    /// The certificates of authorities that registries may have besides those of this machine: a
    /// file in PEM.
    pub authorities: Option<PathBuf>,
    /// Hosts, as references write them, that are asked without TLS. Those of this machine are,
    /// unless `authorities` are given.
    pub plain_http: Vec<String>,
    /// What is too much, and too late.
    pub limits: Limits,
}

/// What is too much, and too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest, and of a list of referrers.
    pub manifest: u64,
    /// Bytes of all blobs of an artifact together.
    pub blobs: u64,
    /// Layers of an artifact.
    pub layers: usize,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// For all that one method asks.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // As much as registries have to take.
            manifest: 4 << 20,
            blobs: 256 << 20,
            layers: 64,
            idle: Duration::from_secs(15),
            total: Duration::from_secs(120),
        }
    }
}

/// A manifest as it came, which is what its digest is of.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Bytes,
    /// What they say.
    pub manifest: Manifest,
}

/// What is to be pushed: one artifact.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// What it is.
    pub artifact_type: Option<String>,
    /// The config's media type, and the config.
    pub config: (String, Bytes),
    /// The layers with their media types, in order.
    pub layers: Vec<(String, Bytes)>,
    /// Free words.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The manifest that it is about.
    pub subject: Option<Descriptor>,
}

/// Asks registries.
pub struct Client(Transport);

impl Client {
    /// One that asks like that.
    ///
    /// # Errors
    /// Where the file of the authorities is wrong.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        Transport::new(settings).map(Self)
    }

    pub(crate) fn until(&self) -> Instant {
        Instant::now() + self.0.limits().total
    }

    /// The digest that the reference names now: its own, or what its tag stands for. That is taken
    /// from what the registry gives, not from what it says of it.
    ///
    /// # Errors
    /// As [`Self::manifest`], but that a list of artifacts has a digest, too.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, Error> {
        match reference.digest() {
            Some(digest) => Ok(digest),
            None => self.document(reference, self.until()).await.map(|bytes| Digest::of(&bytes)),
        }
    }

    /// The manifest that the reference is pinned to.
    ///
    /// # Errors
    /// Where it is not pinned; where it is not had, or is not what its digest says.
    pub async fn manifest(&self, reference: &Reference) -> Result<Pulled, Error> {
        self.manifest_until(reference, self.until()).await
    }

    async fn manifest_until(&self, reference: &Reference, until: Instant) -> Result<Pulled, Error> {
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let bytes = self.document(reference, until).await?;
        let manifest = read(reference, digest, &bytes, self.0.limits())?;
        Ok(Pulled { digest, bytes, manifest })
    }

    /// The manifest that the reference is pinned to, and those of its blobs that are wanted (its
    /// config and layers, in that order).
    ///
    /// # Errors
    /// As [`Self::manifest`]; where blobs are too large, or are not what their digests say.
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

    /// What is at a URL, if it is no larger than that: for files that no digest names yet.
    ///
    /// # Errors
    /// Where it is not asked for over TLS (this machine may do without), or not had.
    pub async fn file(&self, url: &Url, most: u64) -> Result<Bytes, Error> {
        let answer = self.0.get(url, self.until()).await?;
        found(answer, || url.path().to_owned()).await?.whole("the file", most).await
    }

    /// Bytes that a manifest may have.
    pub(crate) fn most_of_a_manifest(&self) -> u64 {
        self.0.limits().manifest
    }

    /// The login for whoever pulls from there in our place, if there is one.
    ///
    /// # Errors
    /// Where it can't be read.
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
        let bytes = bytes.whole("the blob", size).await?;
        check("the blob", digest, &bytes)?;
        Ok(bytes)
    }

    /// The manifests that say they are about the one that the reference is pinned to.
    ///
    /// # Errors
    /// Where it is not pinned, or the registry does not answer well.
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
            // Whoever may push can put anything there: that is no fault of the registry.
            true => {
                let why = format!("its list of referrers is none: {why}");
                Error::NoArtifact { reference: reference.to_string(), why }
            }
            false => unlisted(reference, &why),
        })?;
        // A registry may leave the choice to us.
        let of_it = |one: &Descriptor| {
            artifact_type.is_none_or(|wanted| one.artifact_type.as_deref() == Some(wanted))
        };
        Ok(all.into_iter().filter(of_it).collect())
    }

    /// The list of referrers as it came, and whether it stands by a tag, where a registry has no API
    /// for it; nothing where there is none.
    async fn list(
        &self,
        reference: &Reference,
        until: Instant,
    ) -> Result<Option<(Bytes, bool)>, Error> {
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let mut answer =
            self.get(reference, &format!("referrers/{digest}"), Some(INDEX), until).await?;
        // A registry of before 1.1 of the specification: whoever pushes keeps a list by this tag.
        let by_tag = answer.status == StatusCode::NOT_FOUND;
        if by_tag {
            let tag = format!("manifests/{}", fallback(digest));
            answer = self.get(reference, &tag, Some(INDEX), until).await?;
        }
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = found(answer, || reference.to_string()).await?;
        let bytes = answer.whole("the list of referrers", self.0.limits().manifest).await?;
        Ok(Some((bytes, by_tag)))
    }

    /// Pushes an artifact to the tag, and tells its digest.
    ///
    /// # Errors
    /// Where there is no tag, or the registry does not take it.
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

    /// Adds to the list that stands for the referrers' API where a registry has none.
    async fn list_referrer(
        &self,
        reference: &Reference,
        subject: Digest,
        own: Descriptor,
        until: Instant,
    ) -> Result<(), Error> {
        // Here all of it has to be read: it is written back.
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
        let said = answer.headers.get("docker-content-digest").and_then(|d| d.to_str().ok());
        match said.map(str::parse::<Digest>) {
            Some(Ok(actual)) if actual != digest => Err(Error::Protocol {
                host: Asked::from(reference.host()),
                why: format!("it says of {digest} that it has another digest"),
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

    /// The bytes of the manifest, or the list, that the reference names.
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
        let bytes = answer.whole("the manifest", self.0.limits().manifest).await?;
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
            host: Asked::from(reference.host()),
            why: why.to_string(),
        };
        // A digest has a colon, which `join` alone would take for a scheme's.
        base.join(&format!("./{path}")).map_err(join)
    }
}

/// What a list of referrers has. An entry that is none is left out: somebody else may have put it
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
    let why = format!("its list of referrers is none: {why}");
    Error::Protocol { host: Asked::from(reference.host()), why }
}

/// Reads the manifest with that digest.
pub(crate) fn read(
    reference: &Reference,
    digest: Digest,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Manifest, Error> {
    read_layers(reference, digest, bytes, limits.layers)
}

/// The same, with as many layers as that.
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
        count if count > most => {
            Err(none(format!("it has {count} layers, and {most} are the most")))
        }
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

/// The tag by which the referrers of a manifest are listed where a registry has no API for them.
fn fallback(digest: Digest) -> String {
    format!("sha256-{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_no_entry_of_a_list_harms_no_other() {
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
