//! Events of the images of servers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ByHand;
use portcullis_protocol::names::DecisionId;

/// Event of a resolved image tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageResolved {
    /// Same value as in the `server-launching` that first required the image.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` in its registry, or the local image id if it has no registry.
    pub digest: String,
}

/// Event of a changed lock of a server's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLocked {
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` in its registry, or the local image id if it has no registry.
    pub digest: String,
    /// Digest that was locked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    #[serde(flatten)]
    pub by: ByHand,
}

/// Event of a failed lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLockFailed {
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` that could not be locked, as in its `image-locked`.
    pub digest: String,
    /// Reason of the failure.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// Event of a pull that is about to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulling {
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// Event of a pulled image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulled {
    /// Same value as in the `server-launching` that first required the image. Absent for `server
    /// pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// Platform of the image, such as `linux/amd64`.
    pub platform: String,
    /// Size in bytes, as in its manifest.
    pub size: u64,
    /// Duration of the pull in microseconds.
    pub took_us: u64,
    #[serde(flatten)]
    pub by: ByHand,
}

/// Event of a failed pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePullFailed {
    /// Same value as in the `server-launching` that first required the image. Absent for `server
    /// pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// Reason of the failure.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
}
