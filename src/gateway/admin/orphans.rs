//! `POST /v1/leftovers`: records the removal of orphans at the command line, before it is done and
//! afterwards.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    routing::post,
};
use http::StatusCode;

use super::{Peer, Problem};
use crate::Gateway;
use portcullis_audit::record::{CommandUser, MEMBERS, OrphanRemoval};

/// The route.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new().route("/v1/leftovers", post(reaping)).with_state(proxy)
}

async fn reaping(
    State(proxy): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(reaping): Json<OrphanRemoval>,
) -> Result<Json<()>, Problem> {
    // The record would be truncated, and not list all removed orphans.
    if reaping.left.len() > MEMBERS {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a record has at most {MEMBERS} orphans"),
        )
        .remedy("name fewer at once"));
    }
    let user = peer.user.as_deref().map(str::to_owned);
    proxy.audit.record_required(reaping.by(CommandUser { uid: Some(peer.uid), user })).await?;
    Ok(Json(()))
}
