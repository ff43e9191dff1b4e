//! Pulls an image by digest, through the engine.

use std::collections::HashMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bollard::{
    auth::DockerCredentials,
    errors::Error,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::{CreateImageOptionsBuilder, RemoveImageOptions},
};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue};

use crate::process::LaunchFailure;
use portcullis_oci::{Login, Platform, Reference};

use super::{
    Engine,
    engine_errors::{missing, words},
    failure,
};

/// Limit in bytes for an engine's error about a pull, which contains text of a registry.
const MAX_ERROR_BYTES: usize = 400;

/// Progress of a pull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub done: u64,
    /// Total bytes by the manifest.
    pub total: u64,
}

/// Failure to pull an image, or a pulled image that is not the expected one.
#[derive(Debug)]
pub struct NotPulled {
    /// Why.
    pub why: LaunchFailure,
    /// Whether the engine may have the image anyway, now or later.
    pub may_be_there: bool,
}

impl Engine {
    /// Platform of this engine in the terms of image manifests.
    pub fn platform(&self) -> Platform {
        let arch = match self.facts.arch.as_str() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "armv7l" | "armv6l" | "armhf" => "arm",
            "i386" | "i686" => "386",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::linux(arch)
    }

    /// Id of an image that the engine has, by any name that the engine accepts.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub async fn has(&self, image: &str) -> Result<Option<String>, LaunchFailure> {
        match self.docker.inspect_image(image).await {
            Ok(found) => Ok(Some(found.id.unwrap_or_default())),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(failure(
                format!("the engine could not look up the image `{image}`: {}", words(&error)),
                "check the engine: `portcullis doctor`",
            )),
        }
    }

    /// Makes the engine pull an image by the digest of the reference, and verifies the result.
    /// Removes the image if it is another one.
    ///
    /// # Errors
    /// If the pull fails, or the image is another one.
    pub async fn pull(
        &self,
        reference: &Reference,
        image: &portcullis_oci::Image,
        login: Option<Login>,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<(), NotPulled> {
        let repository = format!("{}/{}", reference.host(), reference.repository());
        let pinned = format!("{repository}@{}", image.digest);
        let options = CreateImageOptionsBuilder::new()
            .from_image(&repository)
            .tag(&image.digest.to_string())
            .platform(&format!("{}/{}", image.platform.os, image.platform.architecture))
            .build();
        let redactor = login.as_ref().map(LoginRedactor::of).unwrap_or_default();
        let credentials = login.map(|login| credentials(reference, login));
        let failed = |error: &Error, may_be_there| NotPulled {
            why: failure(
                format!("the engine did not pull `{pinned}`: {}", redactor.clean(words(error))),
                "check that the engine can reach the registry; it connects by itself, with its \
                own settings \
                 for proxies, certificates and registries without TLS",
            ),
            may_be_there,
        };
        let mut layers = Layers::of(image);
        on_progress(layers.progress());
        let docker = self.docker.clone().with_request_modifier(|mut request| {
            for_urls(request.headers_mut());
            request
        });
        let mut stream = Box::pin(docker.create_image(Some(options), None, credentials));
        while let Some(info) = stream.next().await {
            let info = match info {
                Ok(info) => info,
                Err(error) => {
                    drop(stream);
                    return Err(failed(&error, self.may_have(&pinned, &error).await));
                }
            };
            if let Err(layer) = layers.update(&info) {
                drop(stream);
                self.remove(&pinned).await;
                return Err(NotPulled {
                    why: failure(
                        format!(
                            "a layer of `{pinned}` is larger than its manifest states: \
                            {layer}"
                        ),
                        "do not use this image; contact the registry's owner",
                    ),
                    may_be_there: true,
                });
            }
            on_progress(layers.progress());
        }
        let found = self.docker.inspect_image(&pinned).await;
        let found = found.map_err(|error| failed(&error, !missing(&error)))?;
        if is(&found, image) {
            return Ok(());
        }
        let removed = self.remove(&pinned).await;
        let id = found.id.unwrap_or_default();
        Err(NotPulled {
            why: failure(
                format!("the engine pulled another image as `{pinned}`: {id}"),
                "do not use it; check mirrors and proxies between the engine and the registry, \
                and the image's author",
            ),
            may_be_there: !removed,
        })
    }

    /// Whether the engine may have the image after this error, now or later.
    async fn may_have(&self, pinned: &str, error: &Error) -> bool {
        match error {
            // A proxy in front of the engine got no answer from it.
            Error::DockerResponseServerError { status_code: 502..=504, .. } => true,
            // The engine has finished, and may have stored the image before it failed.
            Error::DockerStreamError { .. } | Error::DockerResponseServerError { .. } => {
                !matches!(self.has(pinned).await, Ok(None))
            }
            // An interrupted pull may continue in the engine.
            _ => true,
        }
    }

    /// Makes the engine remove an image by that name. Returns whether the name is then gone.
    async fn remove(&self, image: &str) -> bool {
        match self.docker.remove_image(image, None::<RemoveImageOptions>, None).await {
            Ok(_) => true,
            Err(error) if missing(&error) => true,
            Err(error) => {
                tracing::warn!(image, why = words(&error), "a rejected image could not be removed");
                false
            }
        }
    }
}

/// Whether the engine's image is the one that was inspected.
fn is(found: &ImageInspect, image: &portcullis_oci::Image) -> bool {
    let by_digest = format!("@{}", image.digest);
    let named = found.repo_digests.iter().flatten().any(|name| name.ends_with(&by_digest));
    // An engine's image id is the digest of the image's configuration, or the digest it was pulled
    // by, depending on its store.
    let id = found.id.as_deref().unwrap_or_default();
    let itself = [image.config, image.manifest].iter().any(|digest| digest.to_string() == id);
    // The digest of an index does not say which of its images was selected, but the layers do.
    let layers = || found.root_fs.as_ref().and_then(|fs| fs.layers.as_ref());
    let of_list = || id == image.digest.to_string() && layers() == Some(&image.unpacked);
    named && (itself || of_list())
}

/// Encodes a login in base64 for URLs, as engines expect it. They treat other encodings as no
/// login.
fn for_urls(headers: &mut HeaderMap) {
    let Some(login) = headers.get_mut("x-registry-auth") else { return };
    let bytes = login.as_bytes().iter().map(|byte| match byte {
        b'+' => b'-',
        b'/' => b'_',
        other => *other,
    });
    let bytes = zeroize::Zeroizing::new(bytes.collect::<Vec<_>>());
    if let Ok(mut rewritten) = HeaderValue::from_bytes(&bytes) {
        rewritten.set_sensitive(true);
        *login = rewritten;
    }
}

/// Layers of an image, with the progress of each.
struct Layers {
    /// By the engine's name of the layer: size and received bytes.
    all: HashMap<String, (u64, u64)>,
    total: u64,
}

impl Layers {
    fn of(image: &portcullis_oci::Image) -> Self {
        let mut all = HashMap::new();
        for layer in &image.layers {
            let mut name = layer.digest.hex();
            name.truncate(12);
            all.insert(name, (layer.size, 0));
        }
        let total = all.values().fold(0u64, |sum, (size, _)| sum.saturating_add(*size));
        Self { all, total }
    }

    fn progress(&self) -> Progress {
        let done = self.all.values().fold(0u64, |sum, (_, done)| sum.saturating_add(*done));
        Progress { done, total: self.total }
    }

    /// Processes a progress message. Returns the name of a layer that is too large.
    fn update(&mut self, info: &CreateImageInfo) -> Result<(), String> {
        let Some(name) = &info.id else { return Ok(()) };
        let Some((size, done)) = self.all.get_mut(name) else { return Ok(()) };
        match info.status.as_deref().unwrap_or_default() {
            "Downloading" => {
                let current = info.progress_detail.as_ref().and_then(|detail| detail.current);
                *done = current.and_then(|n| u64::try_from(n).ok()).unwrap_or(*done);
                if *done > *size { Err(name.clone()) } else { Ok(()) }
            }
            "Download complete" | "Pull complete" | "Already exists" => {
                *done = *size;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Parts of a login. They are removed from an engine's messages, because a registry could make the
/// engine repeat them.
#[derive(Default)]
struct LoginRedactor(Vec<zeroize::Zeroizing<String>>);

impl LoginRedactor {
    fn of(login: &Login) -> Self {
        let secret = match login {
            Login::Password { user, password } => {
                let pair = zeroize::Zeroizing::new(format!("{user}:{}", **password));
                vec![password.clone(), BASE64_STANDARD.encode(&*pair).into()]
            }
            Login::Identity(token) => vec![token.clone()],
        };
        Self(secret.into_iter().filter(|secret| !secret.is_empty()).collect())
    }

    fn clean(&self, mut words: String) -> String {
        for secret in &self.0 {
            if words.contains(secret.as_str()) {
                words = words.replace(secret.as_str(), "[hidden]");
            }
        }
        words.truncate(words.floor_char_boundary(MAX_ERROR_BYTES));
        words
    }
}

fn credentials(reference: &Reference, login: Login) -> DockerCredentials {
    let serveraddress = Some(reference.login_name().to_owned());
    match login {
        Login::Password { user, password } => DockerCredentials {
            username: Some(user),
            password: Some((*password).clone()),
            serveraddress,
            ..DockerCredentials::default()
        },
        Login::Identity(token) => DockerCredentials {
            identitytoken: Some((*token).clone()),
            serveraddress,
            ..DockerCredentials::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_URL_SAFE;
    use bollard::models::{ImageInspectRootFs, ProgressDetail};

    use super::*;
    use portcullis_oci::{Descriptor, Digest};

    fn layer_info(id: &str, status: &str, current: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: None }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn progress_counts_the_layers_of_the_manifest() {
        let layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar", b"twelve bytes");
        let image = portcullis_oci::Image {
            digest: Digest::of(b"d"),
            manifest: Digest::of(b"m"),
            config: Digest::of(b"c"),
            platform: Platform::linux("amd64"),
            layers: vec![layer.clone()],
            unpacked: Vec::new(),
            size: 12,
            program: portcullis_oci::Program::default(),
        };
        let mut layers = Layers::of(&image);
        let name = &layer.digest.hex()[..12];
        assert_eq!(layers.progress(), Progress { done: 0, total: 12 });
        layers.update(&layer_info(name, "Downloading", 7)).unwrap();
        assert_eq!(layers.progress(), Progress { done: 7, total: 12 });
        layers.update(&layer_info("of nobody", "Downloading", 70)).unwrap();
        layers.update(&layer_info(name, "Extracting", 900)).unwrap();
        layers.update(&layer_info(name, "Downloading", -1)).unwrap();
        assert_eq!(layers.progress().done, 7);
        assert_eq!(layers.update(&layer_info(name, "Downloading", 13)), Err(name.to_owned()));
        layers.update(&layer_info(name, "Pull complete", 0)).unwrap();
        assert_eq!(layers.progress(), Progress { done: 12, total: 12 });
    }

    #[test]
    fn login_is_redacted_in_messages() {
        let password = ["not", "to", "be", "seen"].concat();
        let login = Login::Password { user: "me".into(), password: password.clone().into() };
        let redactor = LoginRedactor::of(&login);
        let encoded = BASE64_STANDARD.encode(format!("me:{password}"));
        let cleaned =
            redactor.clean(format!("denied: Basic {encoded} {password} {}", "x".repeat(999)));
        assert!(!cleaned.contains(&password) && !cleaned.contains(&encoded), "{cleaned}");
        assert!(cleaned.len() <= MAX_ERROR_BYTES);
    }

    #[test]
    fn login_is_encoded_for_urls() {
        // At three positions of a group, so that both differing characters occur.
        for n in 0..3 {
            let text = format!("{}~?~", "x".repeat(n));
            let mut headers = HeaderMap::new();
            headers.insert("x-registry-auth", BASE64_STANDARD.encode(&text).parse().unwrap());
            for_urls(&mut headers);
            let sent = &headers["x-registry-auth"];
            assert_eq!(BASE64_URL_SAFE.decode(sent).unwrap(), text.as_bytes());
            assert!(sent.is_sensitive());
        }
        for_urls(&mut HeaderMap::new());
    }

    #[test]
    fn engine_image_is_compared_with_the_inspected_image() {
        let of = |bytes: &[u8]| Digest::of(bytes).to_string();
        let image = portcullis_oci::Image {
            digest: Digest::of(b"list"),
            manifest: Digest::of(b"manifest"),
            config: Digest::of(b"config"),
            platform: Platform::linux("amd64"),
            layers: Vec::new(),
            unpacked: vec![of(b"layer")],
            size: 0,
            program: portcullis_oci::Program::default(),
        };
        let has = |id: &[u8], by: &[u8], layers: &[&[u8]]| {
            let layers = Some(layers.iter().map(|layer| of(layer)).collect());
            let found = ImageInspect {
                id: Some(of(id)),
                repo_digests: Some(vec![format!("ghcr.io/a/b@{}", of(by))]),
                root_fs: Some(ImageInspectRootFs { typ: "layers".into(), layers }),
                ..ImageInspect::default()
            };
            is(&found, &image)
        };
        assert!(has(b"config", b"list", &[]) && has(b"manifest", b"list", &[]));
        assert!(has(b"list", b"list", &[b"layer"]));
        assert!(!has(b"list", b"list", &[b"of another one of the list"]));
        assert!(!has(b"other", b"list", &[b"layer"]) && !has(b"config", b"other", &[b"layer"]));
    }
}
