//! `POST /v1/clients`: a change among the clients that somebody is about to make is put on record
//! first. The change itself is made in their file, which the proxy watches.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::{Peer, Problem};
use crate::Gateway;
use portcullis_audit::record::By;
use portcullis_protocol::identity::Change;

/// A change that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientChange {
    pub change: Change,
    /// Why, where it undoes one that could not be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The route.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new().route("/v1/clients", post(change)).with_state(proxy)
}

async fn change(
    State(proxy): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(ClientChange { change, reason }): Json<ClientChange>,
) -> Result<Json<()>, Problem> {
    let user = peer.user.as_deref().map(str::to_owned);
    proxy.clients.record_change(change, By { uid: Some(peer.uid), user, reason }).await?;
    Ok(Json(()))
}
