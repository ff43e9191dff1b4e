//! `GET /v1/approvals` and `POST /v1/approvals/ID`: calls that wait for approval.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Peer, Problem};
use crate::{
    Gateway,
    approval::{PendingApproval, Resolution, ResolutionResult},
};

/// Resolution of a call by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    pub allow: bool,
    /// Reason for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The routes.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/approvals", get(waiting))
        .route("/v1/approvals/{id}", post(answer))
        .with_state(proxy)
}

async fn waiting(State(proxy): State<Arc<Gateway>>) -> Json<Vec<PendingApproval>> {
    Json(proxy.approvals.waiting())
}

async fn answer(
    State(proxy): State<Arc<Gateway>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    Json(ResolveRequest { allow, reason }): Json<ResolveRequest>,
) -> Result<Json<Value>, Problem> {
    let by = peer.user.as_ref().map_or_else(|| format!("user {}", peer.uid), ToString::to_string);
    let word = Resolution { allowed: allow, by, reason };
    let resolved = match id.parse() {
        Ok(id) => proxy.approvals.answer(id, word).await,
        Err(_) => ResolutionResult::Late,
    };
    match resolved {
        ResolutionResult::Accepted => Ok(Json(json!({ "id": id, "allowed": allow }))),
        ResolutionResult::Late => {
            let problem = Problem::not_found(format!("no call waits by the id `{id}`"));
            Err(problem.remedy("`portcullis approve ls` lists those that do"))
        }
        ResolutionResult::Unrecorded(why) => {
            let words = "your decision could not be recorded, so the call is refused";
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("{words}: {why}"));
            Err(problem.code("audit-unavailable"))
        }
    }
}
