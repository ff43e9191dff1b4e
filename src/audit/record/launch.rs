//! What is done with images, and what proxies that are gone left behind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ByHand, Event, ImageLockFailed, ImageLocked, ImagePullFailed, ImagePulled, ImagePulling,
    LeftBehind,
};
use portcullis_protocol::names::{DecisionId, ServerName};

/// What was done, or is about to be, with the image of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDone {
    /// Whose image it is.
    pub server: ServerName,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`
    pub digest: String,
    /// What was done with it.
    pub what: ImageDid,
}

/// What is done with an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ImageDid {
    /// It is locked.
    Locked {
        /// What was locked before.
        was: Option<String>,
    },
    /// It is on record as locked, and was not.
    NotLocked {
        /// Why.
        reason: String,
    },
    /// The engine is to pull it.
    Pulling,
    /// The engine pulled it.
    Pulled {
        /// What it is for.
        platform: String,
        /// Its bytes.
        size: u64,
        /// Microseconds that this took.
        took_us: u64,
    },
    /// The engine did not.
    NotPulled {
        /// Why.
        reason: String,
    },
}

impl ImageDone {
    /// It as somebody did it at the command line.
    pub fn by(self, by: ByHand) -> Event {
        self.on_record(None, by)
    }

    /// The event, with the launch for which it was done.
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

/// What somebody removes at the command line of what proxies have left that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reaping {
    /// At most [`MEMBERS`](super::MEMBERS).
    pub left: Vec<Orphan>,
    /// Whether it was done; else it is about to be.
    pub done: bool,
}

impl Reaping {
    /// It as that person's.
    pub fn by(self, by: ByHand) -> Event {
        let Self { left, done } = self;
        let behind = LeftBehind { left, by };
        match done {
            true => Event::OrphansRemoved(behind),
            false => Event::OrphansRemoving(behind),
        }
    }
}

/// What kind of thing was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanKind {
    /// The container of a server.
    Container,
    /// A container that holds the network of another.
    NetworkHolder,
    /// A folder of secrets, in memory.
    Secrets,
    /// A control group of a sandbox.
    ControlGroup,
}

impl OrphanKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::NetworkHolder => "network-holder",
            Self::Secrets => "secrets",
            Self::ControlGroup => "control-group",
        }
    }
}

/// One thing that was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Orphan {
    pub kind: OrphanKind,
    /// The container's name, or the path of the folder.
    pub name: String,
    /// The server whose container it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Why it could not be removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
