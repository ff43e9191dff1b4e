//! Actions of the command line on images and on orphans of killed proxies.

use serde::{Deserialize, Serialize};

use super::{
    CommandUser, Event, ImageLockFailed, ImageLocked, ImagePullFailed, ImagePulled, ImagePulling,
    Orphan, OrphansRemoved, OrphansRemoving,
};
use portcullis_protocol::names::{DecisionId, ServerName};

/// Action on the image of a server, done or about to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEvent {
    /// Server of the image.
    pub server: ServerName,
    /// Image as written in the config.
    pub image: String,
    /// `sha256:…` of the image.
    pub digest: String,
    /// Action on the image.
    pub what: ImageAction,
}

/// Action on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ImageAction {
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

impl ImageEvent {
    /// Event of the action by a user of the command line.
    pub fn by(self, by: CommandUser) -> Event {
        self.on_record(None, by)
    }

    /// Event of the action, with the launch that required it.
    pub fn on_record(self, launch: Option<DecisionId>, by: CommandUser) -> Event {
        let Self { server, image, digest, what } = self;
        let server = server.to_string();
        match what {
            ImageAction::Locked { was } => ImageLocked { server, image, digest, was, by }.into(),
            ImageAction::NotLocked { reason } => {
                ImageLockFailed { server, image, digest, reason, by }.into()
            }
            ImageAction::Pulling => ImagePulling { server, image, digest, by }.into(),
            ImageAction::Pulled { platform, size, took_us } => {
                ImagePulled { launch, server, image, digest, platform, size, took_us, by }.into()
            }
            ImageAction::NotPulled { reason } => {
                ImagePullFailed { launch, server, image, digest, reason, by }.into()
            }
        }
    }
}

/// Removal of orphans at the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphanRemoval {
    /// At most [`MEMBERS`](super::MEMBERS).
    pub left: Vec<Orphan>,
    /// Whether the removal was done; else it is about to be done.
    pub done: bool,
}

impl OrphanRemoval {
    /// Event of the removal by this user.
    pub fn by(self, by: CommandUser) -> Event {
        let Self { left, done } = self;
        if done { OrphansRemoved { left, by }.into() } else { OrphansRemoving { left, by }.into() }
    }
}
