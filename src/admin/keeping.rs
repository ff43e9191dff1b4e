//! `POST /v1/audit/backup`: what is done with the files of the log, without showing records.

use std::path::PathBuf;

use axum::{Json, Router, extract::State, routing::post};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::audit::{Audit, Backup, BackupFault};

/// Where to copy the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// An absolute path, as the proxy sees it.
    pub to: PathBuf,
}

/// The routes.
pub fn routes(audit: Audit) -> Router {
    Router::new().route("/v1/audit/backup", post(backup)).with_state(audit)
}

async fn backup(
    State(audit): State<Audit>,
    Json(BackupRequest { to }): Json<BackupRequest>,
) -> Result<Json<Backup>, Problem> {
    if !to.is_absolute() {
        let message = format!("`{}` is no absolute path", to.display());
        return Err(Problem::new(StatusCode::BAD_REQUEST, message)
            .remedy("name the folder from the root of the file system on"));
    }
    Ok(Json(audit.back_up(to).await?))
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
