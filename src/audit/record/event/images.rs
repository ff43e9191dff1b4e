//! What became of the images of servers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ByHand;
use portcullis_protocol::names::DecisionId;

/// What the tag of a server's image means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageResolved {
    /// As in the `server-launching` by which it was wanted first.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: in its registry, or of an image that is of none.
    pub digest: String,
}

/// What a server's image is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLocked {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: in its registry, or of an image that is of none.
    pub digest: String,
    /// What was locked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that was not locked after all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLockFailed {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: what it was to be locked as, as in its `image-locked`.
    pub digest: String,
    /// Why it was not.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine is to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulling {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulled {
    /// As in the `server-launching` by which it was wanted first; none of `server pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// What it is for: `linux/amd64`.
    pub platform: String,
    /// Its bytes, as its manifest has them.
    pub size: u64,
    /// Microseconds that the pull took.
    pub took_us: u64,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine did not pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePullFailed {
    /// As in the `server-launching` by which it was wanted first; none of `server pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// Why it was not pulled.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
}
