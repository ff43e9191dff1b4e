//! Manifests and descriptors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{Digest, error::json_fault};

/// Media type of a manifest, and Docker's older one.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an index of manifests, and Docker's older one.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an empty config: `{}`.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Reference of a manifest to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// In lists of referrers: type of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Descriptor of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// Manifest of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    /// Type of the artifact. If absent, the config's media type counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Config.
    pub config: Descriptor,
    /// Content, in order.
    pub layers: Vec<Descriptor>,
    /// Manifest that this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Error for bytes that are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoManifest {
    /// It is an index of manifests, one for each platform.
    Index,
    Other(String),
}

/// Fields that distinguish the kinds of documents.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Parses a manifest. A document that could be taken for another kind is refused, whatever
    /// media type its sender states (CVE-2021-41190).
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, NoManifest> {
        let json = |error: serde_json::Error| NoManifest::Other(json_fault(&error));
        let kind: Kind = serde_json::from_slice(bytes).map_err(json)?;
        let other = |why: &str| Err(NoManifest::Other(why.to_owned()));
        match (&kind.manifests, &kind.layers, &kind.fs_layers) {
            (Some(_), None, None) => return Err(NoManifest::Index),
            (None, Some(_), None) => {}
            (None, None, None) => return other("it has no `layers`"),
            _ => return other("its kind is ambiguous"),
        }
        match kind.media_type.as_deref() {
            None | Some(MANIFEST | DOCKER_MANIFEST) => {}
            Some(INDEX | DOCKER_INDEX) => return other("its `mediaType` is that of an index"),
            Some(_) => return other("its `mediaType` is not that of a manifest"),
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        match manifest.schema_version {
            2 => Ok(manifest),
            _ => other("its `schemaVersion` is not 2"),
        }
    }

    /// Type of the artifact.
    pub fn artifact_type(&self) -> &str {
        self.artifact_type.as_deref().unwrap_or(&self.config.media_type)
    }
}

/// Index of manifests.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

impl Index {
    pub fn of(manifests: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: &Value) -> Result<Manifest, NoManifest> {
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let descriptor = json!(Descriptor::of("text/plain", b"x"));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor, "layers": [descriptor],
            "annotations": { "a": "b" }, "unknown": true,
        });
        let read = parse(&manifest).unwrap();
        assert_eq!((read.artifact_type(), read.layers.len()), ("text/plain", 1));
        assert_eq!(read.annotations["a"], "b");

        let with = |change: Value| {
            let mut changed = manifest.clone();
            for (key, value) in change.as_object().unwrap() {
                changed[key] = value.clone();
            }
            parse(&changed)
        };
        assert_eq!(parse(&json!({ "schemaVersion": 2, "manifests": [] })), Err(NoManifest::Index));
        for change in [
            json!({ "manifests": [] }),
            json!({ "fsLayers": [] }),
            json!({ "mediaType": INDEX }),
            json!({ "mediaType": "text/plain" }),
            json!({ "schemaVersion": 1 }),
            json!({ "layers": [{ "digest": "sha256:1" }] }),
            json!({ "config": null }),
        ] {
            assert!(matches!(with(change.clone()), Err(NoManifest::Other(_))), "{change}");
        }
        // Errors name the position and do not repeat the content.
        let words = ["Basic ", "d29yZHM="].concat();
        for change in [json!({ "schemaVersion": words }), json!({ "config": { "digest": words } })]
        {
            let Err(NoManifest::Other(why)) = with(change) else { panic!("it was read") };
            assert!(why.contains("line 1") && !why.contains("d29"), "{why}");
        }
        let twice = manifest.to_string().replacen('{', r#"{"layers":[],"#, 1);
        assert!(Manifest::parse(twice.as_bytes()).is_err());
    }
}
