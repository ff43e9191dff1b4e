//! Subscriptions to changes: [`listeners`] sends the notifications, [`watches`] keeps the resources
//! that servers watch for them.

mod listeners;
mod watches;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{router::Router, session::Sessions, stages::Stages};
use portcullis_protocol::names::SessionId;

use listeners::Listeners;
use watches::{Subscriber, Watches};

/// The subscriptions of all clients.
pub(crate) struct Subscriptions {
    stages: Arc<Stages>,
    router: Arc<Router>,
    sessions: Arc<Sessions>,
    listeners: Listeners,
    watches: Watches,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Subscriptions {
    pub fn new(
        stages: Arc<Stages>,
        router: Arc<Router>,
        sessions: Arc<Sessions>,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Arc<Self> {
        let (listeners, watches) = (Listeners::default(), Watches::default());
        Arc::new(Self { stages, router, sessions, listeners, watches, tasks, closing })
    }

    /// Ends the subscriptions of a session.
    pub fn forget_session(&self, session: &SessionId) {
        self.watches.forget(&Subscriber::Session(session.clone()));
    }
}
