//! Components from a file or a registry.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;

use super::{
    Compiled, LoadError,
    limits::{GUEST, MAX_FILE_BYTES, MAX_NOTE_BYTES},
    signature,
};
use portcullis_oci::{Client, Descriptor, Limits, Reference, Settings, Store, Url};

/// Media types from the CNCF's guidance for WebAssembly in OCI registries.
const CONFIG_KIND: &str = "application/vnd.wasm.config.v0+json";
const LAYER_KIND: &str = "application/wasm";
/// Creation time in artifacts. Tools require one; the real time would make two pushes of the same
/// plugin differ.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// Annotation of a manifest with the signature: a signed note.
const SIGNATURE: &str = "portcullis.plugin.signature";

/// A component with its signature, and its name in errors.
pub struct Artifact {
    pub(super) place: PathBuf,
    pub(super) bytes: Bytes,
    pub(super) note: Result<String, String>,
    /// Where its signature must be.
    pub(super) note_path: String,
    /// Lines of a config that name it.
    pub(super) named: Option<String>,
}

impl Artifact {
    /// Component in a file, with the signature beside it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Unreadable { path: path.into(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(LoadError::TooLarge { path: path.into() });
        }
        let note_path = signature::path(path);
        let note = read_note(&note_path).map_err(|error| error.to_string());
        let note_path = format!("`{}`", note_path.display());
        Ok(Self { place: path.into(), bytes: bytes.into(), note, note_path, named: None })
    }

    fn from_layer(reference: &Reference, pulled: &portcullis_oci::Pulled, layer: Bytes) -> Self {
        let note = pulled.manifest.annotations.get(SIGNATURE).cloned();
        Self {
            place: format!("oci://{reference}").into(),
            bytes: layer,
            note: note.ok_or_else(|| "the artifact has no signature".into()),
            note_path: format!("the annotation `{SIGNATURE}` of its manifest"),
            named: Some(format!("oci = \"{reference}\"\n")),
        }
    }

    /// Bytes of the component.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Signature note, or the reason why there is none.
    pub fn note(&self) -> Result<&str, &str> {
        self.note.as_deref().map_err(String::as_str)
    }

    /// Name in errors, and the place of the signature.
    pub fn places(&self) -> (&Path, &str) {
        (&self.place, &self.note_path)
    }

    /// Lines of a config that name it, if it is not a file.
    pub fn named(&self) -> Option<&str> {
        self.named.as_deref()
    }
}

fn read_note(path: &Path) -> io::Result<String> {
    let mut note = String::new();
    File::open(path)?.take(MAX_NOTE_BYTES).read_to_string(&mut note)?;
    Ok(note)
}

/// Layer with the plugin in an artifact, or the reason why it is not a plugin.
fn layer_of(
    reference: &Reference,
    manifest: &portcullis_oci::Manifest,
) -> Result<Descriptor, portcullis_oci::Error> {
    let none =
        |why: String| portcullis_oci::Error::NoArtifact { reference: reference.to_string(), why };
    if manifest.config.media_type != CONFIG_KIND {
        return Err(none(format!(
            "its config is not `{CONFIG_KIND}`, the media type of \
            WebAssembly"
        )));
    }
    match &manifest.layers[..] {
        [layer] if layer.media_type == LAYER_KIND => Ok(layer.clone()),
        _ => Err(none(format!("it does not have exactly one layer, of `{LAYER_KIND}`"))),
    }
}

/// Downloads plugins from registries.
#[derive(Debug, Clone)]
pub struct Artifacts {
    settings: Settings,
    /// Store, and whether to add to it.
    store: Option<(Store, bool)>,
}

impl Artifacts {
    /// From registries with these settings, with a time limit for each artifact.
    pub fn from_registries(mut settings: Settings, deadline: Duration) -> Self {
        settings.limits = Limits {
            manifest: 1 << 20,
            blobs: MAX_FILE_BYTES,
            layers: 1,
            idle: deadline.min(Limits::default().idle),
            total: deadline,
        };
        Self { settings, store: None }
    }

    /// Adds the store in this state folder.
    #[must_use]
    pub fn kept_in(mut self, state_dir: &Path, keep: bool) -> Self {
        self.store = Some((Store::at(state_dir.join("plugins/oci")), keep));
        self
    }

    /// Component that a reference is pinned to: from the store, else from its registry.
    ///
    /// # Errors
    /// If the reference is invalid or not pinned, or the artifact is unavailable or not a plugin.
    pub async fn component(&self, text: &str) -> Result<Artifact, LoadError> {
        let reference = reference(text)?;
        if reference.digest().is_none() {
            return Err(self.unpinned(&reference).await);
        }
        let failed = |source| LoadError::Artifact { reference: text.to_owned(), source };
        self.pull(&reference).await.map_err(failed)
    }

    /// Same, blocking.
    ///
    /// # Errors
    /// As [`Self::component`].
    pub fn component_now(&self, text: &str) -> Result<Artifact, LoadError> {
        let failed = |why: io::Error| LoadError::Artifact {
            reference: text.to_owned(),
            source: portcullis_oci::Error::Unreachable {
                host: "the registry".into(),
                why: why.to_string(),
            },
        };
        let wait = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let found = runtime.block_on(self.component(text));
            // The system's resolver may still block, beyond the time limit.
            runtime.shutdown_background();
            Ok(found)
        };
        // Plugins are loaded from many threads, including some that must not block on a runtime.
        let waited = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, wait)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the request ended early")))
        });
        waited.map_err(failed)?
    }

    /// Reference with its present digest.
    ///
    /// # Errors
    /// If the registry does not answer.
    pub async fn pinned(&self, text: &str) -> Result<String, LoadError> {
        let reference = reference(text)?;
        let failed = |source| LoadError::Artifact { reference: text.to_owned(), source };
        let client = Client::new(self.settings.clone()).map_err(failed)?;
        let digest = client.resolve(&reference).await.map_err(failed)?;
        Ok(reference.pinned(digest).to_string())
    }

    /// Component at a URL, with the signature beside it, if there is one.
    ///
    /// # Errors
    /// If it is unavailable.
    pub async fn download(&self, url: &Url) -> Result<Artifact, LoadError> {
        let failed = |source| LoadError::Artifact { reference: shown(url), source };
        let client = Client::new(self.settings.clone()).map_err(failed)?;
        let bytes = client.file(url, MAX_FILE_BYTES).await.map_err(failed)?;
        let mut beside = url.clone();
        beside.set_path(&format!("{}.sig", url.path()));
        let note = match client.file(&beside, MAX_NOTE_BYTES).await {
            Ok(note) => String::from_utf8(note.to_vec()).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let name = url.path().rsplit('/').next().unwrap_or_default();
        let named = toml::Value::from(name.to_owned());
        let sha256 = portcullis_oci::Digest::of(&bytes).hex();
        Ok(Artifact {
            place: shown(url).into(),
            bytes,
            note,
            note_path: format!("`{}`", shown(&beside)),
            named: Some(format!("path = {named}\nsha256 = \"{sha256}\"\n")),
        })
    }

    async fn pull(&self, reference: &Reference) -> Result<Artifact, portcullis_oci::Error> {
        let limits = &self.settings.limits;
        let wanted = |one: &Descriptor| one.media_type == LAYER_KIND;
        let cached = match &self.store {
            None => None,
            Some((store, keep)) => match store.find(reference, limits, wanted) {
                // A command that only inspects may lack access to the proxy's store.
                Err(portcullis_oci::Error::Store { .. }) if !keep => None,
                found => found?,
            },
        };
        if let Some((pulled, mut blobs)) = cached {
            layer_of(reference, &pulled.manifest)?;
            let layer = blobs.pop().map(|(_, bytes)| bytes).unwrap_or_default();
            return Ok(Artifact::from_layer(reference, &pulled, layer));
        }
        let client = Client::new(self.settings.clone())?;
        let (pulled, mut blobs) = match &self.store {
            Some((store, true)) => {
                let (pulled, blobs, _) = store.pull(&client, reference, limits, wanted).await?;
                (pulled, blobs)
            }
            _ => client.pull(reference, wanted).await?,
        };
        layer_of(reference, &pulled.manifest)?;
        let layer = blobs.pop().map(|(_, bytes)| bytes).unwrap_or_default();
        Ok(Artifact::from_layer(reference, &pulled, layer))
    }

    async fn unpinned(&self, reference: &Reference) -> LoadError {
        let line = match self.pinned(&reference.to_string()).await {
            Ok(pinned) => {
                format!("write `oci = \"{pinned}\"` to pin its present content")
            }
            Err(LoadError::Artifact { source, .. }) => format!(
                "append its digest, `oci = \"{reference}@sha256:…\"`; the present one could \
                 not be determined: {source}"
            ),
            Err(other) => other.to_string(),
        };
        LoadError::UnpinnedArtifact { reference: reference.to_string(), line }
    }

    /// Pushes a component with its signature, if it has one, and returns the pinned reference.
    ///
    /// # Errors
    /// If the reference is invalid, or the registry refuses it.
    pub async fn push(
        &self,
        text: &str,
        found: &Artifact,
        compiled: &Compiled,
    ) -> Result<String, LoadError> {
        let reference = reference(text)?;
        let failed = |source| LoadError::Artifact { reference: text.to_owned(), source };
        let manifest = compiled.manifest();
        let functions = compiled.functions().iter();
        let imports: Vec<_> =
            functions.map(|one| format!("portcullis:interceptor/{}@0.1", one.as_str())).collect();
        let layer = Descriptor::of(LAYER_KIND, &found.bytes);
        let config = json!({
            "created": CREATED,
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [layer.digest],
            "component": { "exports": [GUEST], "imports": imports },
        });
        let mut annotations = BTreeMap::from([
            ("org.opencontainers.image.title".to_owned(), manifest.name.clone()),
            ("org.opencontainers.image.version".to_owned(), manifest.version.clone()),
            ("org.opencontainers.image.description".to_owned(), manifest.description.clone()),
        ]);
        if let Ok(note) = &found.note {
            annotations.insert(SIGNATURE.to_owned(), note.clone());
        }
        let artifact = portcullis_oci::Artifact {
            artifact_type: None,
            config: (CONFIG_KIND.to_owned(), config.to_string().into()),
            layers: vec![(LAYER_KIND.to_owned(), found.bytes.clone())],
            annotations,
            subject: None,
        };
        let client = Client::new(self.settings.clone()).map_err(failed)?;
        let digest = client.push(&reference, &artifact).await.map_err(failed)?;
        Ok(reference.pinned(digest).to_string())
    }
}

/// URL without credentials.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.to_string()
}

fn reference(text: &str) -> Result<Reference, LoadError> {
    text.parse().map_err(|why| LoadError::Artifact {
        reference: text.to_owned(),
        source: portcullis_oci::Error::Reference { text: text.to_owned(), why },
    })
}
