//! Actions on images, and orphans of killed proxies.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ByHand, Event, ImageLockFailed, ImageLocked, ImagePullFailed, ImagePulled, ImagePulling,
    LeftBehind,
};
use portcullis_protocol::names::{DecisionId, ServerName};

/// Action on the image of a server, done or about to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDone {
    /// Server of the image.
    pub server: ServerName,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` of the image.
    pub digest: String,
    /// Action on the image.
    pub what: ImageDid,
}

/// Action on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ImageDid {
    /// The image is locked.
    Locked {
        /// Digest that was locked before.
        was: Option<String>,
    },
    /// A recorded lock failed.
    NotLocked {
        /// Reason of the failure.
        reason: String,
    },
    /// The engine is about to pull the image.
    Pulling,
    /// The engine pulled the image.
    Pulled {
        /// Platform of the image.
        platform: String,
        /// Size in bytes.
        size: u64,
        /// Duration in microseconds.
        took_us: u64,
    },
    /// The engine failed to pull the image.
    NotPulled {
        /// Reason of the failure.
        reason: String,
    },
}

impl ImageDone {
    /// Event of the action by a user of the command line.
    pub fn by(self, by: ByHand) -> Event {
        self.on_record(None, by)
    }

    /// Event of the action, with the launch that required it.
    pub fn on_record(self, launch: Option<DecisionId>, by: ByHand) -> Event {
        let Self { server, image, digest, what } = self;
        let server = server.to_string();
        match what {
            ImageDid::Locked { was } => {
                Event::ImageLocked(ImageLocked { server, image, digest, was, by })
            }
            ImageDid::NotLocked { reason } => {
                Event::ImageLockFailed(ImageLockFailed { server, image, digest, reason, by })
            }
            ImageDid::Pulling => Event::ImagePulling(ImagePulling { server, image, digest, by }),
            ImageDid::Pulled { platform, size, took_us } => Event::ImagePulled(ImagePulled {
                launch,
                server,
                image,
                digest,
                platform,
                size,
                took_us,
                by,
            }),
            ImageDid::NotPulled { reason } => Event::ImagePullFailed(ImagePullFailed {
                launch,
                server,
                image,
                digest,
                reason,
                by,
            }),
        }
    }
}

/// Removal of orphans at the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reaping {
    /// At most [`MEMBERS`](super::MEMBERS).
    pub left: Vec<Orphan>,
    /// Whether the removal was done; else it is about to be done.
    pub done: bool,
}

impl Reaping {
    /// Event of the removal by this user.
    pub fn by(self, by: ByHand) -> Event {
        let Self { left, done } = self;
        let behind = LeftBehind { left, by };
        match done {
            true => Event::OrphansRemoved(behind),
            false => Event::OrphansRemoving(behind),
        }
    }
}

/// Kind of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanKind {
    /// Container of a server.
    Container,
    /// Container that keeps the network namespace of a server's container.
    NetworkHolder,
    /// Folder of secrets, in memory.
    Secrets,
    /// Control group of a sandbox.
    ControlGroup,
}

impl OrphanKind {
    /// Name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::NetworkHolder => "network-holder",
            Self::Secrets => "secrets",
            Self::ControlGroup => "control-group",
        }
    }
}

/// Orphan of a killed proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Orphan {
    pub kind: OrphanKind,
    /// Name of the container, or path of the folder.
    pub name: String,
    /// Server of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Reason why the orphan could not be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
