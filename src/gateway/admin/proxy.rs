//! State and control of the running proxy's servers.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use http::StatusCode;
use serde_json::{Value, json};

use super::Problem;
use crate::Gateway;
use portcullis_upstream::{ReloadScope, RestartReport, RotationReport, Server};

/// `GET /v1/servers`, `GET /v1/servers/NAME/log`, `GET /v1/servers/NAME/tools`, `GET /v1/status`,
/// `POST /v1/servers/NAME/secrets`, `POST /v1/servers/NAME/restart`, `POST /v1/servers/NAME/stop`,
/// `POST /v1/servers/NAME/start`.
pub fn routes(proxy: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/servers", get(servers))
        .route("/v1/servers/{name}/log", get(log))
        .route("/v1/servers/{name}/tools", get(tools))
        .route("/v1/servers/{name}/secrets", post(secrets))
        .route("/v1/servers/{name}/restart", post(restart))
        .route("/v1/servers/{name}/stop", post(stop))
        .route("/v1/servers/{name}/start", post(start))
        .with_state(proxy)
}

async fn status(State(proxy): State<Arc<Gateway>>) -> Json<Value> {
    let policies = proxy.policies.status().borrow().clone();
    let (missing, missed) = proxy.audit.missed();
    let audit = &proxy.config.audit;
    let (rejected, waiting) = proxy.servers.unfollowed();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "address": proxy.config.listen.http,
        "policies": policies,
        "config": {
            // Present while the present file is not in use.
            "rejected": rejected,
            // The sections that take effect at the next start.
            "waiting": waiting,
        },
        "sessions": proxy.sessions.count(),
        "servers": proxy.servers.states().await,
        "audit": {
            "records": proxy.audit.written(),
            "on-failure": audit.on_failure,
            "missed": missed,
            // Present while calls continue without a record.
            "missing": missing,
            // Present while checkpoints cannot be signed.
            "unsigned": proxy.audit.checkpoints().failing,
            "retention": audit.retention,
            "encrypted": audit.encryption.is_some(),
        },
    }))
}

async fn servers(State(proxy): State<Arc<Gateway>>) -> Json<Vec<Value>> {
    Json(proxy.servers.states().await)
}

async fn log(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<String>>, Problem> {
    Ok(Json(server(&proxy, &name)?.log()))
}

/// All tools in a server's list, regardless of permissions.
async fn tools(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let listed = server(&proxy, &name)?.tools().await.map_err(|failure| {
        let message = format!("`{name}` does not list its tools: {failure}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    Ok(Json(listed))
}

/// Reads a server's secrets again, and delivers those in files.
async fn secrets(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<RotationReport>, Problem> {
    let server = server(&proxy, &name)?.clone();
    // On a task of its own, since the operator may disconnect before its end.
    let rotated =
        tokio::spawn(async move { server.rotate_secrets(&*proxy.servers, ReloadScope::All).await });
    let rotated = rotated.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("server `{name}`: {why}"))
    })?;
    Ok(Json(rotated))
}

/// Restarts a server's running instances; in-flight calls finish on the old ones.
async fn restart(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<RestartReport>, Problem> {
    let server = server(&proxy, &name)?;
    // On a task of its own, since the operator may disconnect before its end.
    let restarted = tokio::spawn(async move { server.restart().await });
    let restarted = restarted.await.map_err(|error| error.to_string());
    let restarted = restarted.and_then(|done| done.map_err(|failure| failure.to_string()));
    Ok(Json(restarted.map_err(|why| {
        let message = format!("server `{name}` was not restarted: {why}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
            .remedy("running instances continue; `portcullis server logs` may have the cause")
    })?))
}

/// Stops a server's instances; in-flight calls finish, further calls are refused.
async fn stop(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<RestartReport>, Problem> {
    let server = server(&proxy, &name)?;
    // On a task of its own, since the operator may disconnect before its end.
    let stopped = tokio::spawn(async move { server.stop().await }).await;
    stopped.map(Json).map_err(|error| {
        let message = format!("server `{name}` was not stopped: {error}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })
}

/// Lets a stopped server take calls again, and starts it.
async fn start(
    State(proxy): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let server = server(&proxy, &name)?;
    let started = tokio::spawn(async move { server.start().await });
    let started = started.await.map_err(|error| error.to_string());
    started.and_then(|done| done.map_err(|failure| failure.to_string())).map_err(|why| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("server `{name}` did not start: {why}"),
        )
        .remedy(format!("`portcullis server logs {name}` may have the cause"))
    })?;
    Ok(Json(json!({ "server": name, "started": true })))
}

fn server(proxy: &Gateway, name: &str) -> Result<Arc<Server>, Problem> {
    name.parse()
        .ok()
        .and_then(|name| proxy.router.server(&name))
        .ok_or_else(|| Problem::not_found(format!("there is no server `{name}`")))
}
