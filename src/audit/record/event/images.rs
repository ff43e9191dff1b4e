//! Events of the images of servers.

use super::{
    CommandUser,
    content::{Content, content, then},
};
use portcullis_protocol::names::DecisionId;

content! {
    /// An image tag was resolved at its registry or in the engine. From now on, the digest
    /// identifies the image.
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
    summary("the image {image} of server {server} is {digest}");

    /// `portcullis server` is about to change the locked digest of a server's image. If this cannot
    /// be recorded, the lock file is not changed.
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
        pub by: CommandUser,
    }
    summary(
        "the image {image} of server {server} is {digest} from now on{}{by}",
        then(", and was ", was)
    );

    /// The change of an `image-locked` event failed. The earlier digest, if any, stays locked.
    pub struct ImageLockFailed {
        pub server: String,
        /// Image as written in the config.
        pub image: String,
        /// `sha256:…` that could not be locked, as in its `image-locked`.
        pub digest: String,
        /// Reason of the failure.
        pub reason: String,
        #[serde(flatten)]
        pub by: CommandUser,
    }
    summary("the image {image} of server {server} is not {digest} after all: {reason}{by}");

    /// `portcullis server pull` is about to pull an image with the engine. If this cannot be
    /// recorded, it is not pulled.
    pub struct ImagePulling {
        pub server: String,
        /// Image as written in the config.
        pub image: String,
        /// `sha256:…` in its registry.
        pub digest: String,
        #[serde(flatten)]
        pub by: CommandUser,
    }
    summary("the image {image} of server {server} is being pulled ({digest}){by}");

    /// The engine pulled an image.
    pub struct ImagePulled {
        /// Same value as in the `server-launching` that first required the image. Absent for
        /// `server pull`.
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
        pub by: CommandUser,
    }
    summary("the image {image} of server {server} was pulled ({digest})");

    /// The engine failed to pull an image.
    pub struct ImagePullFailed {
        /// Same value as in the `server-launching` that first required the image. Absent for
        /// `server pull`.
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
        pub by: CommandUser,
    }
    summary("the image {image} of server {server} was not pulled: {reason}");
}
