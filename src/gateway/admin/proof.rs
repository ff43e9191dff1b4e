//! `/v1/audit`: checkpoints and proofs of the running proxy's log.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/audit/checkpoint` | a checkpoint of all records is signed; its [`Status`] |
//! | `GET /v1/audit/checkpoint` | the [`Status`] of the newest one, and of witnesses |
//! | `POST /v1/audit/prove` with a [`ProveRequest`] | a [`Proof`] |
//! | `POST /v1/audit/consistency` with a [`ConsistencyRequest`] | a [`Proof`] |
//! | `POST /v1/audit/verify` with a [`VerifyRequest`] | a [`Report`] |

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Problem;
use portcullis_audit::{
    Audit,
    proof::{
        CheckpointFault, IllegalVerifier, Proof, ProveFault, Status, Verification,
        verify::{Fault as VerifyFault, Report, Since},
    },
};
use portcullis_protocol::names::DecisionId;

/// The records to prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProveRequest {
    /// The decision of the records.
    pub id: DecisionId,
}

/// The two checkpoints whose consistency is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyRequest {
    /// The size of the earlier checkpoint.
    pub from: u64,
    /// The size of the later one.
    pub to: u64,
}

/// The parts to verify.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// The checkpoint to begin at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Since>,
    /// Verifier keys that replace those of the state folder.
    pub keys: Vec<String>,
    /// Whether to check the indexes against the records, too.
    pub indexes: bool,
}

/// The routes.
pub fn routes(audit: Audit) -> Router {
    Router::new()
        .route("/v1/audit/checkpoint", get(status).post(checkpoint))
        .route("/v1/audit/prove", post(prove))
        .route("/v1/audit/consistency", post(consistency))
        .route("/v1/audit/verify", post(verify))
        .with_state(audit)
}

async fn status(State(audit): State<Audit>) -> Json<Status> {
    Json(audit.checkpoints())
}

async fn checkpoint(State(audit): State<Audit>) -> Result<Json<Status>, Problem> {
    Ok(Json(audit.checkpoint().await?))
}

async fn prove(
    State(audit): State<Audit>,
    Json(request): Json<ProveRequest>,
) -> Result<Json<Proof>, Problem> {
    Ok(Json(audit.prove(request.id).await?))
}

async fn consistency(
    State(audit): State<Audit>,
    Json(ConsistencyRequest { from, to }): Json<ConsistencyRequest>,
) -> Result<Json<Proof>, Problem> {
    Ok(Json(audit.consistency(from, to).await?))
}

async fn verify(
    State(audit): State<Audit>,
    Json(VerifyRequest { since, keys, indexes }): Json<VerifyRequest>,
) -> Result<Json<Report>, Problem> {
    let keys = keys.iter().map(|key| key.parse()).collect::<Result<_, IllegalVerifier>>();
    let keys = keys.map_err(|fault| Problem::new(StatusCode::BAD_REQUEST, fault.to_string()))?;
    Ok(Json(audit.verify(Verification { since, keys, indexes }).await?))
}

impl From<VerifyFault> for Problem {
    fn from(fault: VerifyFault) -> Self {
        let status = match fault {
            VerifyFault::Since(_) | VerifyFault::Foreign => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, fault.to_string())
    }
}

impl From<CheckpointFault> for Problem {
    fn from(fault: CheckpointFault) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, fault.to_string())
            .remedy("the log of the proxy has the cause")
    }
}

impl From<ProveFault> for Problem {
    fn from(fault: ProveFault) -> Self {
        let status = match fault {
            ProveFault::Unknown(_) | ProveFault::NoCheckpoint(_) => StatusCode::NOT_FOUND,
            ProveFault::Unsigned | ProveFault::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, fault.to_string())
    }
}
