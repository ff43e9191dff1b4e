//! What changes, and who is told: sessions and `subscriptions/listen` streams.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use rmcp::{Peer, RoleServer, model::ResourceUpdatedNotificationParam, service::SubscriptionSink};
use tokio::sync::broadcast;

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    Tools,
    Prompts,
    Resources,
    /// The contents of the resource with this URI.
    Contents(String),
}

/// The resources that one session subscribed to.
pub type Watched = Arc<Mutex<BTreeSet<String>>>;

/// Tells a session of changes until it ends.
pub async fn tell_session(
    peer: Peer<RoleServer>,
    watched: Watched,
    mut changes: broadcast::Receiver<Change>,
) {
    while let Ok(change) = changes.recv().await {
        let told = match change {
            Change::Tools => peer.notify_tool_list_changed().await,
            Change::Prompts => peer.notify_prompt_list_changed().await,
            Change::Resources => peer.notify_resource_list_changed().await,
            Change::Contents(uri) if watched.lock().contains(&uri) => {
                peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await
            }
            Change::Contents(_) => Ok(()),
        };
        if told.is_err() {
            return;
        }
    }
}

/// Tells a stream of one change. The sink itself drops what the client did not ask for.
pub async fn tell_stream(sink: &SubscriptionSink, change: Change) {
    let _unwanted = match change {
        Change::Tools => sink.notify_tool_list_changed().await,
        Change::Prompts => sink.notify_prompt_list_changed().await,
        Change::Resources => sink.notify_resource_list_changed().await,
        Change::Contents(uri) => sink.notify_resource_updated(uri).await,
    };
}
