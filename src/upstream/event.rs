//! What becomes of a server's instances, for whoever records it.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    launcher::Place,
    process::{Exit, Origin},
};
use crate::{exchange::Revision, identity::PrincipalKind, vault::Source};

/// What becomes of a server.
#[derive(Debug)]
pub enum Event {
    /// It is about to be handed secrets.
    Handing(Vec<Handing>),
    /// Connections to it, elsewhere, are about to be opened.
    Connecting {
        url: String,
        /// `streamable-http` or `sse`.
        protocol: &'static str,
    },
    Started(Box<Started>),
    NotStarted {
        place: Place,
        /// The one client for which alone it was to run.
        party: Option<PrincipalKind>,
        why: String,
    },
    Ended {
        /// Which one: [`Started::process`], or its URL.
        process: String,
        party: Option<PrincipalKind>,
        why: String,
        /// How its process ended, where it has one here.
        exit: Option<Exit>,
    },
    /// So many more of its messages did not fit a queue and were dropped.
    Lost {
        count: u64,
    },
    /// Somebody waits until all before this is recorded.
    Flush(oneshot::Sender<()>),
}

/// One instance that was started.
#[derive(Debug)]
pub struct Started {
    pub place: Place,
    /// Which process or container it is; empty for a remote one.
    pub process: String,
    pub origin: Origin,
    /// The one client for which alone it runs.
    pub party: Option<PrincipalKind>,
    pub revision: Revision,
    /// Name and version that it claims.
    pub claims: Option<String>,
    pub took: Duration,
}

/// A secret that is handed over.
#[derive(Debug)]
pub struct Handing {
    /// The name under which the server gets it.
    pub secret: String,
    pub source: Source,
    /// Whether it goes into a header, or into the environment.
    pub header: bool,
}
