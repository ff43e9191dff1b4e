//! What becomes of a server's instances, for whoever records it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::{
    images::{ImageError, Pulled},
    placement::{Placement, Program},
    secret_set::{DeliveryMethod, SecretError},
};
use portcullis_protocol::{
    exchange::Revision,
    identity::PrincipalKind,
    names::{DecisionId, ServerName},
    refusal::Refusal,
};
use portcullis_runtime::process::{Exit, Origin};
use portcullis_vault::Source;

/// What becomes of a server.
#[derive(Debug)]
pub enum ServerEvent {
    /// It is to be started, or connected to. It is once policy permits it and that is on record,
    /// and not else.
    Launching(Arc<LaunchRequest>, Approved),
    Started(Box<Started>),
    NotStarted {
        launch: DecisionId,
        place: Placement,
        /// The one client for which alone it was to run.
        party: Option<PrincipalKind>,
        why: String,
    },
    Ended {
        launch: DecisionId,
        /// Which one: [`Started::process`], or its URL.
        process: String,
        party: Option<PrincipalKind>,
        why: String,
        /// How its process ended, where it has one here.
        exit: Option<Exit>,
    },
    /// It did not answer whether it is well, and is ended for that.
    Unwell,
    /// A pull of its image is over.
    Pulled(Box<Pulling>),
    /// A secret of it could not be read again. Where there was one before (`kept`), that goes on being
    /// used.
    Unread {
        not: Box<SecretError>,
        kept: bool,
    },
    /// It goes on with old values of these secrets, which it has in its environment or in headers.
    Outdated {
        launch: DecisionId,
        party: Option<PrincipalKind>,
        secrets: Vec<String>,
    },
    /// So many more of its messages did not fit a queue and were dropped.
    Lost {
        count: u64,
    },
    /// Somebody waits until all before this is recorded.
    Flush(oneshot::Sender<()>),
}

/// Takes whether a start may be made and is on record; if not, why not.
pub type Approved = oneshot::Sender<Result<(), LaunchDenied>>;

/// Why a start is not made.
#[derive(Debug)]
pub enum LaunchDenied {
    /// It can't be recorded.
    Unrecorded(String),
    /// Policy does not permit it.
    Forbidden(Box<Refusal>),
}

/// Says whether what runs may go on.
#[async_trait]
pub trait LaunchReview: Sync {
    /// Why it may not, if so; that is on record then.
    async fn forbids(&self, server: &ServerName, launching: &LaunchRequest)
    -> Option<Box<Refusal>>;

    /// Records that it is about to be handed these secrets again, which it has as files.
    ///
    /// # Errors
    /// Why that can't be recorded: then it must not be done.
    async fn hands_again(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
        secrets: &[String],
    ) -> Result<(), String>;
}

/// One instance that is to be started.
#[derive(Debug)]
pub struct LaunchRequest {
    /// What joins all that becomes of it.
    pub launch: DecisionId,
    pub place: Placement,
    pub program: Program,
    /// The one client for which alone it is to run.
    pub party: Option<PrincipalKind>,
    /// The way to it, where it runs elsewhere.
    pub way: Option<Connecting>,
    /// The secrets that it is to be handed.
    pub handing: Vec<SecretDelivery>,
    /// The image as the config has it, and what that means, where it was found out just now.
    pub resolved: Option<(String, String)>,
}

/// A pull of an image that is over.
#[derive(Debug)]
pub struct Pulling {
    /// The launch by which it was wanted first.
    pub launch: DecisionId,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`
    pub digest: String,
    pub outcome: Result<Pulled, ImageError>,
}

/// Connections to a server elsewhere.
#[derive(Debug)]
pub struct Connecting {
    /// Where to, as [`origin`](super::placement::origin) has it.
    pub url: String,
    /// `streamable-http` or `sse`.
    pub protocol: &'static str,
}

/// One instance that was started.
#[derive(Debug)]
pub struct Started {
    pub launch: DecisionId,
    pub place: Placement,
    /// Which process or container it is; empty for a remote one.
    pub process: String,
    pub origin: Origin,
    /// The one client for which alone it runs.
    pub party: Option<PrincipalKind>,
    pub revision: Revision,
    /// Name and version that it claims.
    pub server_info: Option<String>,
    pub took: Duration,
}

/// A secret that is handed over.
#[derive(Debug)]
pub struct SecretDelivery {
    /// The name under which the server gets it.
    pub secret: String,
    pub source: Source,
    pub by: DeliveryMethod,
    /// The client whose own it is.
    pub client: Option<String>,
}
