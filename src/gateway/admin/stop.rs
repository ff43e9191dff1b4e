//! `POST /v1/stop`: ends the proxy.

use axum::{Json, Router, extract::State, routing::post};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The proxy that stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Its process id, as it sees it.
    pub pid: u32,
}

/// The route. A request cancels `requested`.
pub fn routes(requested: CancellationToken) -> Router {
    Router::new().route("/v1/stop", post(stop)).with_state(requested)
}

async fn stop(State(requested): State<CancellationToken>) -> Json<Stopping> {
    requested.cancel();
    Json(Stopping { pid: std::process::id() })
}
