//! `POST /v1/images`: records actions of the command line on servers' images. Changes of the lock
//! file are recorded before they are made.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    routing::post,
};

use super::{Peer, Problem};
use crate::Gateway;
use portcullis_audit::record::{CommandUser, ImageEvent};

/// The route.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new().route("/v1/images", post(done)).with_state(proxy)
}

async fn done(
    State(proxy): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(all): Json<Vec<ImageEvent>>,
) -> Result<Json<()>, Problem> {
    let user = peer.user.as_deref().map(str::to_owned);
    let by = CommandUser { uid: Some(peer.uid), user };
    for done in all {
        proxy.audit.record_event(done.by(by.clone())).await?;
    }
    Ok(Json(()))
}
