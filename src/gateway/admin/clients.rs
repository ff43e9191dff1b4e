//! `POST /v1/clients`: records a change of clients before it is made. The change itself is made in
//! the clients file, which the proxy watches.

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
    /// Reason, if it reverts a change that could not be made.
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
