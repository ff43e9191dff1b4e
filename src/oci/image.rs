//! Metadata of images before they are pulled.

use std::{fmt, time::Instant};

use serde::Deserialize;

use super::{
    Client, Descriptor, Digest, Error, Reference,
    client::{check, read_layers},
    error::json_fault,
    manifest::{Manifest, NoManifest},
};

/// Limit of an image's layers: storage drivers accept no more.
const MAX_LAYERS: usize = 127;
/// Limit of the platforms that an error names.
const MAX_NAMED_PLATFORMS: usize = 12;

/// Platform of a program in the terms of images: `linux/amd64`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
    /// Variant of the architecture, if any.
    pub variant: Option<String>,
}

/// Known names. Others are the registry's text and not repeated.
const SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];
const PROCESSORS: [&str; 11] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips64", "mips64le", "ppc64le", "riscv64", "s390x",
    "wasm",
];

impl Platform {
    /// Linux on this architecture.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    fn known(platform_fields: &ManifestPlatform) -> Option<Self> {
        let os = platform_fields.os.as_deref().filter(|os| SYSTEMS.contains(os))?;
        let architecture =
            platform_fields.architecture.as_deref().filter(|arch| PROCESSORS.contains(arch))?;
        let is_variant = |variant: &&str| {
            variant.len() <= 3
                && variant
                    .strip_prefix('v')
                    .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
        };
        let variant = platform_fields.variant.as_deref().filter(is_variant).map(str::to_owned);
        Some(Self { os: os.into(), architecture: architecture.into(), variant })
    }

    /// Whether a program for the other platform runs on this one.
    fn runs(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || other.variant.is_none() || self.variant == other.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Image of a registry for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest it was requested by: of its manifest, or of an index that lists it.
    pub digest: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration.
    pub config: Digest,
    /// Platform of the image.
    pub platform: Platform,
    /// Layers, compressed as they are pulled.
    pub layers: Vec<Descriptor>,
    /// Digests of the uncompressed layers, from the configuration: `sha256:…`.
    pub unpacked: Vec<String>,
    /// Bytes of configuration and layers, from the manifest.
    pub size: u64,
    /// Program, from the configuration.
    pub program: Program,
}

/// Program of an image as built. Both lists are empty if the image sets none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Part that is always executed.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program itself.
    pub arguments: Vec<String>,
}

/// Platform as written in a manifest.
#[derive(Deserialize)]
struct ManifestPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.features")]
    features: Option<Vec<String>>,
}

impl ManifestPlatform {
    /// System and architecture as engines read them: in any case, with several names for one, and
    /// Linux if no system is named.
    fn read(&self) -> (String, String) {
        let lower = |word: &Option<String>| word.as_deref().unwrap_or_default().to_lowercase();
        let os = Some(lower(&self.os)).filter(|os| !os.is_empty());
        let architecture = match lower(&self.architecture).as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "i386" => "386".to_owned(),
            "armhf" | "armel" => "arm".to_owned(),
            other => other.to_owned(),
        };
        (os.unwrap_or_else(|| "linux".to_owned()), architecture)
    }
}

/// Configuration of an image.
#[derive(Deserialize)]
struct Configured {
    #[serde(flatten)]
    platform: ManifestPlatform,
    rootfs: Option<Rootfs>,
    config: Option<Run>,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Option<Vec<String>>,
}

/// Part of a configuration about running the program.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Platforms {
    manifests: Vec<PlatformEntry>,
}

#[derive(Deserialize)]
struct PlatformEntry {
    digest: Digest,
    platform: Option<ManifestPlatform>,
}

impl Client {
    /// Metadata of the image that the reference is pinned to, for that platform.
    ///
    /// # Errors
    /// If it is unavailable, is not an image, or is for other platforms.
    pub async fn image(&self, reference: &Reference, on: &Platform) -> Result<Image, Error> {
        let until = self.until();
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let mut bytes = self.document(reference, until).await?;
        let mut manifest = digest;
        let none = |why: String| Error::NoArtifact { reference: reference.to_string(), why };
        if matches!(Manifest::parse(&bytes), Err(NoManifest::Index)) {
            let all: Platforms =
                serde_json::from_slice(&bytes).map_err(|error| none(json_fault(&error)))?;
            manifest = choose(reference, all, on)?;
            bytes = self.document(&reference.pinned(manifest), until).await?;
        }
        let read = read_layers(reference, manifest, &bytes, MAX_LAYERS)?;
        if !is_config(&read.config.media_type) {
            return Err(none("its configuration is not that of an image".into()));
        }
        if !read.layers.iter().all(|layer| is_layer(&layer.media_type)) {
            return Err(none("it has a layer of an unsupported kind".into()));
        }
        let size = read
            .layers
            .iter()
            .try_fold(read.config.size, |sum, layer| sum.checked_add(layer.size))
            .ok_or_else(|| none("the sum of its layers' sizes is out of range".into()))?;
        let (platform, unpacked, program) = self.configured(reference, &read.config, until).await?;
        if !on.runs(&platform) {
            return Err(elsewhere(reference, on, vec![platform]));
        }
        let config = read.config.digest;
        let layers = read.layers;
        Ok(Image { digest, manifest, config, platform, layers, unpacked, size, program })
    }

    /// Platform, uncompressed layers and program of an image, from its configuration.
    async fn configured(
        &self,
        reference: &Reference,
        config: &Descriptor,
        until: Instant,
    ) -> Result<(Platform, Vec<String>, Program), Error> {
        let most = self.most_of_a_manifest();
        if config.size > most {
            return Err(Error::TooLarge { what: "the configuration", most });
        }
        let bytes = self.blob(reference, config, until).await?;
        check("the configuration", config.digest, &bytes)?;
        let none = |why: String| Error::NoArtifact { reference: reference.to_string(), why };
        let Configured { platform, rootfs, config } =
            serde_json::from_slice(&bytes).map_err(|error| none(json_fault(&error)))?;
        let platform = Platform::known(&platform)
            .ok_or_else(|| none("its configuration does not name a known platform".into()))?;
        let Run { entrypoint, cmd } = config.unwrap_or_default();
        let program = Program {
            entrypoint: entrypoint.unwrap_or_default(),
            arguments: cmd.unwrap_or_default(),
        };
        Ok((platform, rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default(), program))
    }
}

/// Manifest in an index for a platform. It must be the one that engines choose, so an index that
/// engines could read differently is refused.
fn choose(reference: &Reference, all: Platforms, on: &Platform) -> Result<Digest, Error> {
    let mut there = Vec::new();
    let mut found: Vec<(Option<String>, Digest)> = Vec::new();
    let ambiguous =
        || Error::Ambiguous { reference: reference.to_string(), wanted: on.to_string() };
    for PlatformEntry { digest, platform } in all.manifests {
        // Signatures and similar entries have no platform.
        let Some(platform_fields) = platform else { continue };
        let Some(platform) = Platform::known(&platform_fields) else {
            if platform_fields.read() == (on.os.clone(), on.architecture.clone()) {
                return Err(ambiguous());
            }
            continue;
        };
        // Engines treat an entry with additional requirements on the system as another platform.
        if on.runs(&platform) && platform_fields.features.is_none_or(|features| features.is_empty())
        {
            let variant = plain(&platform);
            if found.iter().any(|(known, of)| *known == variant && *of != digest) {
                return Err(ambiguous());
            }
            found.push((variant, digest));
        }
        there.push(platform);
    }
    // The simplest of several variants runs on all of them.
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    match found.first() {
        Some((_, digest)) => Ok(*digest),
        None => Err(elsewhere(reference, on, there)),
    }
}

/// Variant of an architecture, unless it is the default one.
fn plain(platform: &Platform) -> Option<String> {
    let named = match platform.architecture.as_str() {
        "amd64" => "v1",
        "arm64" => "v8",
        _ => "",
    };
    platform.variant.clone().filter(|variant| variant != named)
}

fn elsewhere(reference: &Reference, on: &Platform, mut there: Vec<Platform>) -> Error {
    there.sort();
    there.dedup();
    let more = there.len().saturating_sub(MAX_NAMED_PLATFORMS);
    let mut names: Vec<String> =
        there.iter().take(MAX_NAMED_PLATFORMS).map(ToString::to_string).collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let there = if names.is_empty() { "no known platform".to_owned() } else { names.join(", ") };
    Error::Elsewhere { reference: reference.to_string(), wanted: on.to_string(), there }
}

fn is_config(kind: &str) -> bool {
    matches!(
        kind,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// Whether it is a layer. Layers from other hosts (`foreign`, `nondistributable`) are not accepted.
fn is_layer(kind: &str) -> bool {
    matches!(
        kind,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(os: &str, architecture: &str, variant: Option<&str>, of: &[u8]) -> PlatformEntry {
        let platform_fields = ManifestPlatform {
            os: Some(os.into()),
            architecture: Some(architecture.into()),
            variant: variant.map(str::to_owned),
            features: None,
        };
        PlatformEntry { digest: Digest::of(of), platform: Some(platform_fields) }
    }

    #[test]
    fn platform_is_chosen_or_available_ones_are_listed() {
        let reference: Reference =
            format!("ghcr.io/acme/thing@{}", Digest::of(b"")).parse().unwrap();
        let list = || Platforms {
            manifests: vec![
                one("unknown", "unknown", None, b"signature"),
                one("windows", "amd64", None, b"w"),
                one("linux", "amd64", Some("v3"), b"3"),
                one("linux", "amd64", None, b"1"),
                one("linux", "arm64", Some("v8"), b"8"),
                PlatformEntry { digest: Digest::of(b"x"), platform: None },
                one("a word of the registry", "amd64", None, b"z"),
            ],
        };
        let chosen = |arch: &str| choose(&reference, list(), &Platform::linux(arch));
        assert_eq!(chosen("amd64").unwrap(), Digest::of(b"1"));
        assert_eq!(chosen("arm64").unwrap(), Digest::of(b"8"));
        let message = chosen("s390x").unwrap_err().to_string();
        assert!(
            message.contains("linux/s390x")
                && message.contains("linux/amd64, linux/amd64/v3, linux/arm64/v8, windows/amd64")
                && !message.contains("word"),
            "{message}"
        );
        let none = Platforms { manifests: Vec::new() };
        let message = choose(&reference, none, &Platform::linux("amd64")).unwrap_err().to_string();
        assert!(message.contains("no known platform"), "{message}");
    }

    #[test]
    fn ambiguous_index_is_refused() {
        let reference: Reference =
            format!("ghcr.io/acme/thing@{}", Digest::of(b"")).parse().unwrap();
        let good = || one("linux", "amd64", None, b"good");
        let with = |other: PlatformEntry| {
            let all = Platforms { manifests: vec![other, good()] };
            choose(&reference, all, &Platform::linux("amd64"))
        };
        let without = |os: Option<&str>, architecture: &str| {
            let mut one = one("", architecture, None, b"other");
            if let Some(platform_fields) = &mut one.platform {
                platform_fields.os = os.map(str::to_owned);
            }
            one
        };
        for other in [
            one("linux", "x86_64", None, b"other"),
            one("linux", "x86-64", None, b"other"),
            one("linux", "X86_64", None, b"other"),
            one("linux", "AMD64", None, b"other"),
            one("Linux", "amd64", None, b"other"),
            one("", "amd64", None, b"other"),
            without(None, "amd64"),
            one("linux", "amd64", None, b"other"),
            one("linux", "amd64", Some("v1"), b"other"),
        ] {
            let error = with(other).unwrap_err();
            assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
        }
        let mut special = one("linux", "amd64", None, b"other");
        if let Some(platform_fields) = &mut special.platform {
            platform_fields.features = Some(vec!["erofs".to_owned()]);
        }
        for other in [
            special,
            good(),
            one("linux", "amd64", Some("v2"), b"other"),
            one("linux", "aarch64", None, b"other"),
            one("Windows", "amd64", None, b"other"),
            one("unknown", "unknown", None, b"other"),
        ] {
            assert_eq!(with(other).unwrap(), Digest::of(b"good"));
        }
        let arm = Platforms {
            manifests: vec![
                one("linux", "aarch64", None, b"other"),
                one("linux", "arm64", None, b"good"),
            ],
        };
        choose(&reference, arm, &Platform::linux("arm64")).unwrap_err();
    }
}
