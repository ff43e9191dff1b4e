//! Sources of server descriptions.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;

use super::registry_pages::Pages;
use crate::cli::Context;
use portcullis_catalog::{
    Described, Image, MAX_BYTES, Reference, brief, describe,
    lock::{CatalogPin, Lock, digest, origin, same_origin},
};
use portcullis_oci as oci;
use portcullis_upstream::{Engines, images::client_settings};

/// Media type of the only layer of such artifacts.
const LAYER: &str = "application/json";

/// Time limits for fetching a URL.
#[derive(Debug, Clone, Copy)]
struct FetchTimeouts {
    /// Of one response, to its end.
    response: Duration,
    /// Of all pages of a registry.
    pages: Duration,
}

const FETCH_TIMEOUTS: FetchTimeouts =
    FetchTimeouts { response: Duration::from_secs(60), pages: Duration::from_secs(300) };

/// Folder of the config, with its lock file and its copies of catalogs.
pub(in crate::cli) struct Workspace {
    /// Folder of the config.
    pub base: PathBuf,
    state_dir: PathBuf,
    pub lock: Lock,
    registries: oci::Client,
    /// Address of the container engine in the config.
    engine: Option<String>,
}

/// Fetched text.
#[derive(Debug)]
pub(in crate::cli) struct Fetched {
    pub text: String,
    /// Name, for messages.
    pub name: String,
    /// `sha256:` digest of the text.
    pub digest: String,
    /// Digest of the manifest, if the text was an artifact.
    pub manifest: Option<String>,
}

impl Fetched {
    fn of(name: &str, bytes: Vec<u8>) -> anyhow::Result<Self> {
        let text =
            String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{name} is not UTF-8 text"))?;
        Ok(Self { digest: digest(text.as_bytes()), text, name: name.to_owned(), manifest: None })
    }
}

/// Fetches the text of a URL.
async fn page(
    client: &reqwest::Client,
    url: &url::Url,
    timeout: Duration,
) -> anyhow::Result<Fetched> {
    let failed = |error: reqwest::Error| match error.is_timeout() {
        true => anyhow::anyhow!(
            "{url} did not answer in full within {timeout:?}: try again later, or use a copy in a file"
        ),
        false => anyhow::Error::new(error).context(format!("cannot fetch {url}")),
    };
    let request = client.get(url.clone()).timeout(timeout);
    let answer = request.header("accept", "application/json, application/yaml, */*").send();
    let answer = answer.await.map_err(failed)?;
    if !answer.status().is_success() {
        bail!("cannot fetch {url}: it answers {}", answer.status());
    }
    let mut bytes = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.map_err(failed)?);
        if bytes.len() > MAX_BYTES {
            bail!("the response of {url} has more than {} MiB", MAX_BYTES >> 20);
        }
    }
    Fetched::of(url.as_str(), bytes)
}

/// Fetches the text of a URL, and all pages of a registry.
async fn fetch_url(url: &url::Url, timeouts: FetchTimeouts) -> anyhow::Result<Fetched> {
    let client = reqwest::Client::builder()
        // A redirect could lead to a host that the operator did not name.
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let end = tokio::time::Instant::now() + timeouts.pages;
    let mut pages = Pages::default();
    let mut fetched = page(&client, url, timeouts.response).await?;
    let mut next = pages.add(url, &fetched.text)?;
    while let Some(url) = next {
        let answer = page(&client, &url, timeouts.response);
        let Ok(answer) = tokio::time::timeout_at(end, answer).await else {
            bail!("the pages of {url} take more than {:?}", timeouts.pages);
        };
        next = pages.add(&url, &answer?.text)?;
        if pages.bytes() > MAX_BYTES {
            bail!("the pages of {url} have more than {} MiB", MAX_BYTES >> 20);
        }
    }
    if let Some(text) = pages.joined() {
        fetched = Fetched::of(url.as_str(), text.into_bytes())?;
    }
    Ok(fetched)
}

impl Workspace {
    /// Opens the folder. A missing config counts as an empty one.
    pub fn open(ctx: &Context) -> anyhow::Result<Self> {
        let path = std::path::absolute(&ctx.config)?;
        let base = path.parent().unwrap_or(Path::new("/")).to_owned();
        let (state_dir, settings, engine) = match path.exists() {
            true => {
                let config = ctx.load()?.config;
                (config.state_dir, client_settings(&config.registries), config.engine.host)
            }
            false => (base.join(".portcullis"), oci::Settings::default(), None),
        };
        let lock = Lock::read(&base)?;
        let registries = oci::Client::new(settings)?;
        Ok(Self { base, state_dir, lock, registries, engine })
    }

    /// Changes the lock file.
    pub fn change(&mut self, change: impl FnOnce(&mut Lock)) -> anyhow::Result<()> {
        self.lock = Lock::change(&self.base, change)?;
        Ok(())
    }

    /// Path of a file for the lock file: relative to the config, so that it does not depend on the
    /// working folder.
    pub fn place(&self, path: &Path) -> String {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        path.strip_prefix(&self.base).unwrap_or(&path).display().to_string()
    }

    /// Source of the servers at a reference. It does not contain the local name of a catalog.
    pub fn source(&self, reference: &Reference) -> String {
        match reference {
            Reference::File(path) => self.place(path),
            Reference::Catalog { catalog, servers } => match self.lock.catalogs.get(catalog) {
                Some(pin) => match pin.source.strip_prefix("oci://") {
                    Some(artifact) => format!("catalog://{artifact}/{}", servers.join("+")),
                    None => pin.source.clone(),
                },
                None => reference.to_string(),
            },
            Reference::Url(_) | Reference::Image(_) => reference.to_string(),
        }
    }

    /// Fetches the text of a reference; an image has none.
    pub async fn fetch(&self, reference: &Reference) -> anyhow::Result<Fetched> {
        match reference {
            Reference::File(path) => file(path),
            Reference::Url(url) => fetch_url(url, FETCH_TIMEOUTS).await,
            Reference::Catalog { catalog, .. } => match self.lock.catalogs.get(catalog) {
                Some(pin) => self.read_pinned(catalog, pin),
                None => {
                    self.artifact(
                        catalog,
                        &[portcullis_catalog::CATALOG, portcullis_catalog::SERVERS],
                    )
                    .await
                }
            },
            Reference::Image(_) => bail!("an image does not describe servers"),
        }
    }

    fn copy_of(&self, digest: &str) -> PathBuf {
        self.state_dir.join("catalogs").join(digest.trim_start_matches("sha256:"))
    }

    /// Stored copy of an added catalog.
    pub fn read_pinned(&self, name: &str, pin: &CatalogPin) -> anyhow::Result<Fetched> {
        let hex = pin.digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("the lock file has no digest of the catalog `{name}`: add it again");
        }
        let path = self.copy_of(&pin.digest);
        let mut fetched = file(&path).with_context(|| {
            format!("the copy of the catalog `{name}` is gone: add it again from {}", pin.source)
        })?;
        if fetched.digest != pin.digest {
            bail!(
                "the copy of the catalog `{name}` was changed ({}): add it again from {}",
                path.display(),
                pin.source
            );
        }
        fetched.name = format!("catalog://{name}");
        fetched.manifest.clone_from(&pin.manifest);
        Ok(fetched)
    }

    /// Stores a copy of a catalog, in place of a catalog with that name from the same source. A
    /// copy that was replaced earlier is accepted only with `allow_downgrade`.
    pub fn keep(
        &mut self,
        name: &str,
        source: &str,
        fetched: &Fetched,
        allow_downgrade: bool,
    ) -> anyhow::Result<()> {
        let before = self.lock.catalogs.get(name);
        if let Some(before) = before.filter(|before| !same_origin(&before.source, source)) {
            bail!(
                "there is a catalog `{name}` already, which came from {}: choose another name, or say \
                 `portcullis catalog rm {name}` first",
                brief(origin(&before.source))
            );
        }
        if !allow_downgrade && before.is_some_and(|before| before.was_once(&fetched.digest)) {
            bail!(
                "the catalog `{name}` would go back to {}, which was replaced earlier: the source may have been rolled back; to accept it, add `--allow-downgrade`",
                fetched.digest
            );
        }
        let folder = self.state_dir.join("catalogs");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = self.copy_of(&fetched.digest);
        portcullis_foundation::atomic_file::replace(&path, fetched.text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let pin = CatalogPin {
            source: source.to_owned(),
            digest: fetched.digest.clone(),
            manifest: fetched.manifest.clone(),
            was: Vec::new(),
        };
        self.change(|lock| {
            let pin = match lock.catalogs.remove(name) {
                Some(before) => before.follow(pin),
                None => pin,
            };
            lock.catalogs.insert(name.to_owned(), pin);
        })
    }

    /// Removes a catalog. Its copy is deleted unless another catalog has the same.
    pub fn forget(&mut self, name: &str) -> anyhow::Result<Option<CatalogPin>> {
        let Some(pin) = self.lock.catalogs.get(name).cloned() else { return Ok(None) };
        self.change(|lock| drop(lock.catalogs.remove(name)))?;
        if !self.lock.catalogs.values().any(|other| other.digest == pin.digest) {
            // Nothing refers to a copy that remains.
            let _ = std::fs::remove_file(self.copy_of(&pin.digest));
        }
        Ok(Some(pin))
    }

    /// Pulls the only layer of an artifact of one of these kinds.
    pub async fn artifact(&self, text: &str, kinds: &[&str]) -> anyhow::Result<Fetched> {
        let reference = oci::Reference::of_image(text).map_err(|error| {
            anyhow::anyhow!(
                "`{}` is neither a catalog that was added nor an artifact's name: {error}",
                brief(text)
            )
        })?;
        let digest = self
            .registries
            .resolve(&reference)
            .await
            .with_context(|| format!("cannot find {reference}"))?;
        let pinned = reference.pinned(digest);
        let (pulled, blobs) = self
            .registries
            .pull(&pinned, |blob| blob.media_type == LAYER && blob.size <= MAX_BYTES as u64)
            .await
            .with_context(|| format!("cannot pull {pinned}"))?;
        if !kinds.contains(&pulled.manifest.artifact_type()) {
            bail!("{reference} is an artifact of another kind, and not {}", kinds.join(" or "));
        }
        let [(_, bytes)] = blobs.as_slice() else {
            bail!("{reference} has {} layers of JSON, and not one", blobs.len());
        };
        let mut fetched = Fetched::of(&format!("oci://{text}"), bytes.to_vec())?;
        fetched.manifest = Some(digest.to_string());
        Ok(fetched)
    }

    /// Pushes an artifact, and returns its digest.
    pub async fn push(
        &self,
        text: &str,
        kind: &str,
        content: &serde_json::Value,
    ) -> anyhow::Result<String> {
        let reference = oci::Reference::of_image(text)
            .map_err(|error| anyhow::anyhow!("`{}` names no artifact: {error}", brief(text)))?;
        let artifact = oci::Artifact {
            artifact_type: Some(kind.to_owned()),
            config: (oci::EMPTY.to_owned(), "{}".into()),
            layers: vec![(LAYER.to_owned(), serde_json::to_vec(content)?.into())],
            annotations: Default::default(),
            subject: None,
        };
        let digest = self.registries.push(&reference, &artifact).await;
        Ok(digest.with_context(|| format!("cannot push {reference}"))?.to_string())
    }

    /// Current digest of an image's tag.
    pub async fn resolve(&self, image: &Image) -> anyhow::Result<String> {
        let reference = oci::Reference::of_image(&image.to_string())?;
        Ok(self.registries.resolve(&reference).await?.to_string())
    }

    /// Id of the image that the local engine has under that name or id.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn on_engine(&self, image: &str) -> anyhow::Result<Option<String>> {
        let engine = Engines::find(self.engine.as_deref()).await.now();
        let engine = engine.map_err(|why| anyhow::anyhow!("{why}"))?;
        engine.has(image).await.map_err(|failure| anyhow::anyhow!("{}", failure.what))
    }

    /// Description in an image's labels; `None` if there is none or the image is unavailable.
    pub async fn described(&self, image: &Image) -> Option<Described> {
        const CONFIG: u64 = 1 << 20;
        let reference = oci::Reference::of_image(&image.to_string()).ok()?;
        let is_config = |blob: &oci::Descriptor| {
            let kind = blob.media_type.as_str();
            kind.ends_with("image.config.v1+json") || kind.ends_with("container.image.v1+json")
        };
        let (_, blobs) = self
            .registries
            .pull(&reference, |blob| is_config(blob) && blob.size <= CONFIG)
            .await
            .ok()?;
        let config: serde_json::Value = serde_json::from_slice(&blobs.first()?.1).ok()?;
        let label = config.get("config")?.get("Labels")?.get("io.docker.server.metadata")?;
        describe(label.as_str()?).ok()
    }
}

/// Reads a file, or standard input.
pub(in crate::cli) fn file(path: &Path) -> anyhow::Result<Fetched> {
    let shown = path.display().to_string();
    let opened = std::fs::File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    opened
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() > MAX_BYTES {
        bail!("{shown} has more than {} MiB", MAX_BYTES >> 20);
    }
    Fetched::of(&shown, bytes)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const TIMEOUTS: FetchTimeouts =
        FetchTimeouts { response: Duration::from_millis(300), pages: Duration::from_secs(300) };

    /// The error of a fetch from a server that answers each connection so.
    async fn error<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> (String, String)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v0/servers", listener.local_addr().unwrap());
        let _ = rustls::crypto::ring::default_provider().install_default();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                tokio::spawn(answer(stream));
            }
        });
        let error = fetch_url(&url.parse().unwrap(), TIMEOUTS).await.unwrap_err();
        (url, format!("{error:#}"))
    }

    #[tokio::test]
    async fn registry_that_never_ends_its_answer_is_an_error_with_a_remedy() {
        let (url, silent) = error(|stream| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        })
        .await;
        let remedy =
            "did not answer in full within 300ms: try again later, or use a copy in a file";
        assert_eq!(silent, format!("{url} {remedy}"));
        let (url, slow) = error(|mut stream| async move {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
            let mut written = stream.write_all(head).await;
            while written.is_ok() {
                written = stream.write_all(b" ").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(slow, format!("{url} {remedy}"));
    }

    #[tokio::test]
    async fn registry_that_cuts_its_answer_is_an_error() {
        let (url, cut) = error(|mut stream| async move {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"servers\":[";
            let _ = stream.write_all(head).await;
        })
        .await;
        assert!(cut.starts_with(&format!("cannot fetch {url}")), "{cut}");
    }
}
