//! Events of a server's instances, for the audit log.

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

/// Event of a server.
#[derive(Debug)]
pub enum ServerEvent {
    /// Request to start the server, or to connect to it. The start proceeds only after policies
    /// permit it and it is recorded.
    Launching(Arc<LaunchRequest>, Approved),
    Started(Box<Started>),
    NotStarted {
        launch: DecisionId,
        placement: Placement,
        /// Owner of the dedicated instance; `None` for a shared one.
        party: Option<PrincipalKind>,
        why: String,
    },
    Ended {
        launch: DecisionId,
        /// [`Started::process`], or the URL of a remote server.
        process: String,
        party: Option<PrincipalKind>,
        why: String,
        /// Exit status of a local process.
        exit: Option<Exit>,
    },
    /// An instance did not answer a health check and is ended.
    Unhealthy,
    /// An image pull ended.
    Pulled(Box<Pulling>),
    /// A secret could not be read again. With `kept`, the earlier value stays in use.
    Unread {
        not: Box<SecretError>,
        kept: bool,
    },
    /// The instance still has old values of these secrets, in its environment or in headers.
    Outdated {
        launch: DecisionId,
        party: Option<PrincipalKind>,
        secrets: Vec<String>,
    },
    /// Number of further messages that were dropped because a queue was full.
    Lost {
        count: u64,
    },
    /// Request for a signal after all earlier events are recorded.
    Flush(oneshot::Sender<()>),
}

/// Receiver of the decision on a start: permitted and recorded, or denied.
pub type Approved = oneshot::Sender<Result<(), LaunchDenied>>;

/// Reason why a start is denied.
#[derive(Debug)]
pub enum LaunchDenied {
    /// The audit log cannot record the start.
    Unrecorded(String),
    /// Policies do not permit the start.
    Forbidden(Box<Refusal>),
}

/// Policy review of running instances.
#[async_trait]
pub trait LaunchReview: Sync {
    /// The refusal, if policies forbid the instance to continue. A refusal is recorded.
    async fn forbids(&self, server: &ServerName, launching: &LaunchRequest)
    -> Option<Box<Refusal>>;

    /// Records that the new values of these file secrets are about to be delivered.
    ///
    /// # Errors
    /// The reason why this cannot be recorded. The caller must not deliver the secrets then.
    async fn review_redelivery(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
        secrets: &[String],
    ) -> Result<(), String>;
}

/// Request to start one instance.
#[derive(Debug)]
pub struct LaunchRequest {
    /// Id that all events of the launch have.
    pub launch: DecisionId,
    pub placement: Placement,
    pub program: Program,
    /// Owner of the dedicated instance; `None` for a shared one.
    pub party: Option<PrincipalKind>,
    /// Connection to a remote server.
    pub connecting: Option<Connecting>,
    /// The secrets that will be delivered.
    pub deliveries: Vec<SecretDelivery>,
    /// The configured image and its digest, if the digest was resolved for this launch.
    pub resolved: Option<(String, String)>,
}

/// An image pull that ended.
#[derive(Debug)]
pub struct Pulling {
    /// The launch that began the pull.
    pub launch: DecisionId,
    /// The image name in the config.
    pub image: String,
    /// `sha256:…`
    pub digest: String,
    pub outcome: Result<Pulled, ImageError>,
}

/// Connection to a remote server.
#[derive(Debug)]
pub struct Connecting {
    /// Origin of the URL, from [`origin`](super::placement::origin).
    pub url: String,
    /// `streamable-http` or `sse`.
    pub protocol: &'static str,
}

/// A started instance.
#[derive(Debug)]
pub struct Started {
    pub launch: DecisionId,
    pub placement: Placement,
    /// Name of the process or container; empty for a remote server.
    pub process: String,
    pub origin: Origin,
    /// Owner of the dedicated instance; `None` for a shared one.
    pub party: Option<PrincipalKind>,
    pub revision: Revision,
    /// Name and version that the server claims.
    pub server_info: Option<String>,
    pub took: Duration,
}

/// Delivery of one secret.
#[derive(Debug)]
pub struct SecretDelivery {
    /// Name under which the server gets the secret.
    pub secret: String,
    pub source: Source,
    pub by: DeliveryMethod,
    /// The client to whom the value belongs; `None` for a common value.
    pub client: Option<String>,
}
