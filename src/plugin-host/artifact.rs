//! Components, wherever they are: in a file, or in a registry.

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
    load::{FILE_BYTES, NOTE_BYTES},
    signature,
};
use portcullis_oci::{Client, Descriptor, Limits, Reference, Settings, Store, Url};

/// The media types of the CNCF's guidance for WebAssembly in OCI registries.
const CONFIG_KIND: &str = "application/vnd.wasm.config.v0+json";
const LAYER_KIND: &str = "application/wasm";
/// When artifacts say that they were made. Tools want a time; the true one would have the same plugin
/// pushed twice be two.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// The annotation of a manifest that has the signature: a signed note.
const SIGNATURE: &str = "portcullis.plugin.signature";

/// A component as it was read, with the note of its signature, and what errors call it.
pub struct Artifact {
    pub(super) place: PathBuf,
    pub(super) bytes: Bytes,
    pub(super) note: Result<String, String>,
    /// Where its signature has to be.
    pub(super) note_place: String,
    /// The lines of a config that name it.
    pub(super) named: Option<String>,
}

impl Artifact {
    /// The one in a file, with the signature beside it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn file(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Unreadable { path: path.into(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > FILE_BYTES {
            return Err(LoadError::TooLarge { path: path.into() });
        }
        let note_place = signature::path(path);
        let note = read_note(&note_place).map_err(|error| error.to_string());
        let note_place = format!("`{}`", note_place.display());
        Ok(Self { place: path.into(), bytes: bytes.into(), note, note_place, named: None })
    }

    fn from_layer(reference: &Reference, pulled: &portcullis_oci::Pulled, layer: Bytes) -> Self {
        let note = pulled.manifest.annotations.get(SIGNATURE).cloned();
        Self {
            place: format!("oci://{reference}").into(),
            bytes: layer,
            note: note.ok_or_else(|| "the artifact has no signature".into()),
            note_place: format!("the annotation `{SIGNATURE}` of its manifest"),
            named: Some(format!("oci = \"{reference}\"\n")),
        }
    }

    /// Its file's bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The note of its signature, or why there is none.
    pub fn note(&self) -> Result<&str, &str> {
        self.note.as_deref().map_err(String::as_str)
    }

    /// What it is called, and where its signature has to be.
    pub fn places(&self) -> (&Path, &str) {
        (&self.place, &self.note_place)
    }

    /// The lines of a config that name it, where it is not a file.
    pub fn named(&self) -> Option<&str> {
        self.named.as_deref()
    }
}

fn read_note(path: &Path) -> io::Result<String> {
    let mut note = String::new();
    File::open(path)?.take(NOTE_BYTES).read_to_string(&mut note)?;
    Ok(note)
}

/// What a plugin is in a registry, or else why it is none.
fn layer_of(
    reference: &Reference,
    manifest: &portcullis_oci::Manifest,
) -> Result<Descriptor, portcullis_oci::Error> {
    let none =
        |why: String| portcullis_oci::Error::NoArtifact { reference: reference.to_string(), why };
    if manifest.config.media_type != CONFIG_KIND {
        return Err(none(format!("its config is not `{CONFIG_KIND}`, which WebAssembly has")));
    }
    match &manifest.layers[..] {
        [layer] if layer.media_type == LAYER_KIND => Ok(layer.clone()),
        _ => Err(none(format!("its layers are not one alone, of `{LAYER_KIND}`"))),
    }
}

/// Gets plugins from registries.
#[derive(Debug, Clone)]
pub struct Artifacts {
    settings: Settings,
    /// Where they are kept, and whether more is put there.
    store: Option<(Store, bool)>,
}

impl Artifacts {
    /// From registries that are asked like that, in no more than this time for each artifact.
    pub fn asked(mut settings: Settings, deadline: Duration) -> Self {
        settings.limits = Limits {
            manifest: 1 << 20,
            blobs: FILE_BYTES,
            layers: 1,
            idle: deadline.min(Limits::default().idle),
            total: deadline,
        };
        Self { settings, store: None }
    }

    /// The same, with what is kept in this state folder.
    #[must_use]
    pub fn kept_in(mut self, state_dir: &Path, keep: bool) -> Self {
        self.store = Some((Store::at(state_dir.join("plugins/oci")), keep));
        self
    }

    /// The component that a reference is pinned to: what is kept, else from its registry.
    ///
    /// # Errors
    /// Where the reference is none or not pinned; where the artifact is not had, or is no plugin's.
    pub async fn component(&self, text: &str) -> Result<Artifact, LoadError> {
        let reference = reference(text)?;
        if reference.digest().is_none() {
            return Err(self.unpinned(&reference).await);
        }
        let failed = |source| LoadError::Artifact { reference: text.to_owned(), source };
        self.pull(&reference).await.map_err(failed)
    }

    /// The same for what waits for it.
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
            // The system's resolver may still be waited for, and longer than there is time.
            runtime.shutdown_background();
            Ok(found)
        };
        // Plugins are loaded from many threads, also such as must not wait for a runtime.
        let waited = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, wait)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("asking it ended early")))
        });
        waited.map_err(failed)?
    }

    /// The reference with the digest that it names now.
    ///
    /// # Errors
    /// Where the registry does not say.
    pub async fn pinned(&self, text: &str) -> Result<String, LoadError> {
        let reference = reference(text)?;
        let failed = |source| LoadError::Artifact { reference: text.to_owned(), source };
        let client = Client::new(self.settings.clone()).map_err(failed)?;
        let digest = client.resolve(&reference).await.map_err(failed)?;
        Ok(reference.pinned(digest).to_string())
    }

    /// The component at a URL, with the signature beside it, if there is one.
    ///
    /// # Errors
    /// Where it is not had.
    pub async fn download(&self, url: &Url) -> Result<Artifact, LoadError> {
        let failed = |source| LoadError::Artifact { reference: shown(url), source };
        let client = Client::new(self.settings.clone()).map_err(failed)?;
        let bytes = client.file(url, FILE_BYTES).await.map_err(failed)?;
        let mut beside = url.clone();
        beside.set_path(&format!("{}.sig", url.path()));
        let note = match client.file(&beside, NOTE_BYTES).await {
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
            note_place: format!("`{}`", shown(&beside)),
            named: Some(format!("path = {named}\nsha256 = \"{sha256}\"\n")),
        })
    }

    async fn pull(&self, reference: &Reference) -> Result<Artifact, portcullis_oci::Error> {
        let limits = &self.settings.limits;
        let wanted = |one: &Descriptor| one.media_type == LAYER_KIND;
        let kept = match &self.store {
            None => None,
            Some((store, keep)) => match store.find(reference, limits, wanted) {
                // Who only looks need not be who may read what the proxy keeps.
                Err(portcullis_oci::Error::Store { .. }) if !keep => None,
                found => found?,
            },
        };
        if let Some((pulled, mut blobs)) = kept {
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
                format!("write `oci = \"{pinned}\"` if what it names now is what you mean")
            }
            Err(LoadError::Artifact { source, .. }) => format!(
                "write its digest behind it, `oci = \"{reference}@sha256:…\"`; which it is now could \
                 not be asked: {source}"
            ),
            Err(other) => other.to_string(),
        };
        LoadError::UnpinnedArtifact { reference: reference.to_string(), line }
    }

    /// Pushes a component with its signature, if it has one, and tells the pinned reference.
    ///
    /// # Errors
    /// Where the reference is none, or the registry does not take it.
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
            "component": { "exports": [super::load::GUEST], "imports": imports },
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

/// A URL without what could let somebody in.
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
