//! `POST /v1/audit/backup` and `POST /v1/audit/prune`: maintenance of the log's files, without
//! access to records.

use std::{path::PathBuf, sync::Arc};

use axum::{Json, Router, extract::State, routing::post};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::Gateway;
use portcullis_audit::{Backup, BackupFault, PruneFault, Pruned};

/// Target of a copy of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// An absolute path, as the proxy sees it.
    pub to: PathBuf,
}

/// Whether to drop segments, or only to list them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneRequest {
    /// Whether to list segments without dropping them.
    pub dry_run: bool,
}

/// The routes.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/audit/backup", post(backup))
        .route("/v1/audit/prune", post(prune))
        .with_state(proxy)
}

async fn prune(
    State(proxy): State<Arc<Gateway>>,
    Json(PruneRequest { dry_run }): Json<PruneRequest>,
) -> Result<Json<Pruned>, Problem> {
    Ok(Json(proxy.prune(dry_run).await?))
}

impl From<PruneFault> for Problem {
    fn from(fault: PruneFault) -> Self {
        let problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string());
        problem
            .code("prune-failed")
            .remedy("run `portcullis audit verify`, and read the proxy's log")
    }
}

async fn backup(
    State(proxy): State<Arc<Gateway>>,
    Json(BackupRequest { to }): Json<BackupRequest>,
) -> Result<Json<Backup>, Problem> {
    if !to.is_absolute() {
        let message = format!("`{}` is not an absolute path", to.display());
        return Err(Problem::new(StatusCode::BAD_REQUEST, message)
            .remedy("name the folder from the root of the file system on"));
    }
    Ok(Json(proxy.audit.back_up(to).await?))
}

impl From<BackupFault> for Problem {
    fn from(fault: BackupFault) -> Self {
        let message = fault.to_string();
        match fault {
            BackupFault::Occupied(_) | BackupFault::Within(_) => {
                Self::new(StatusCode::CONFLICT, message)
            }
            BackupFault::Io { .. } | BackupFault::Store(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                message,
            )
            .remedy(
                "the user who runs the proxy must be able to write there, and there must be room",
            ),
        }
        .code("backup-failed")
    }
}
