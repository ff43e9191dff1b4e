//! Authorization of admin requests: every peer is identified and its role checked before a
//! response. Refusals and readers of records are on record.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use serde_json::Value;

use portcullis_protocol::identity::Role;

use super::{Peer, Problem};
use portcullis_audit::{
    Audit,
    record::{AdminAction, Decision},
};

/// Limit in bytes of a query of the log.
const QUESTION: usize = 64 << 10;
/// The code of a refusal.
const ROLE_MISSING: &str = "admin-role-missing";
/// Characters of a path and of a query that are recorded.
const RECORDED: usize = 2_000;
/// Bytes of an error's text that are copied to a [`Problem`].
const ERROR: usize = 4 << 10;

/// The role that a path requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequiredRole {
    /// None: every peer of the socket is allowed.
    Nothing,
    Role(Role),
    /// Root or the proxy's own user. To servers they are `local:USER`.
    Owner,
}

/// The required role. Unlisted paths are only for the owner.
fn required_role(path: &str) -> RequiredRole {
    match path {
        "/healthz" | "/readyz" => RequiredRole::Nothing,
        "/metrics" | "/v1/status" | "/v1/servers" => RequiredRole::Role(Role::Operator),
        // It writes all records to any path that the proxy can write.
        "/v1/audit/backup" => RequiredRole::Owner,
        "/v1/audit/prune" => RequiredRole::Role(Role::Operator),
        "/v1/approvals" => RequiredRole::Role(Role::Approver),
        _ if path.starts_with("/v1/approvals/") => RequiredRole::Role(Role::Approver),
        _ if path.starts_with("/v1/servers/") => RequiredRole::Role(Role::Operator),
        _ if path.starts_with("/v1/audit/") => RequiredRole::Role(Role::Auditor),
        _ => RequiredRole::Owner,
    }
}

/// Records admin actions.
#[derive(Clone)]
pub struct Recorder {
    pub audit: Audit,
    /// Decides which refusals get a record.
    pub refusal: Arc<RecordsRefusal>,
}

/// Whether the next refusal of this user with this code gets its own record. If not, it is counted
/// elsewhere.
type RecordsRefusal = dyn Fn(&str, &'static str) -> bool + Send + Sync;

/// These routes behind the check of roles.
pub(super) fn guarded(routes: Router, recorder: Option<Recorder>) -> Router {
    routes.layer(middleware::from_fn_with_state(recorder, admit))
}

async fn admit(
    State(recorder): State<Option<Recorder>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    // Other paths are those of clients, and have their own records or none.
    let (required_role, own) = (required_role(path), path.starts_with("/v1/"));
    if let Err(problem) = allowed(required_role, &peer) {
        let user = peer.user.as_deref().map_or_else(|| peer.uid.to_string(), str::to_owned);
        if let Some(recorder) = recorder.filter(|r| (r.refusal)(&user, ROLE_MISSING)) {
            tracing::warn!(uid = peer.uid, path, "admin socket: request refused");
            let action = action(&peer, &request, None, Some(&problem));
            recorder.audit.record_best_effort(action).await;
        }
        return problem.into_response();
    }
    let request = match recorder.filter(|_| own) {
        Some(recorder) => match on_record(&recorder, &peer, request).await {
            Ok(request) => request,
            Err(problem) => return problem.into_response(),
        },
        None => request,
    };
    let answer = next.run(request).await;
    if own { in_words(answer).await } else { answer }
}

fn allowed(required_role: RequiredRole, peer: &Peer) -> Result<(), Problem> {
    let (met, whom) = match required_role {
        RequiredRole::Nothing => (true, String::new()),
        RequiredRole::Role(role) => {
            (peer.rights.has(role), format!("those with the role `{role}`"))
        }
        RequiredRole::Owner => {
            (peer.rights.owner, "root and the user who runs the proxy".to_owned())
        }
    };
    if met {
        return Ok(());
    }
    let who =
        peer.user.as_ref().map_or_else(|| format!("user {}", peer.uid), |user| format!("`{user}`"));
    let remedy = match required_role {
        RequiredRole::Role(role) => format!(
            "have the operator name you, or a group of yours, in `admin.roles.{role}` of the \
             config, and restart the proxy"
        ),
        _ => "run the command as that user".to_owned(),
    };
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        format!("this is for {whom}, and {who} is not one of them"),
    )
    .code(ROLE_MISSING)
    .remedy(remedy))
}

/// Records a query before it is answered. A reader who is not the owner gets nothing without a
/// record. The owner must be able to read a store that takes no records.
async fn on_record(recorder: &Recorder, peer: &Peer, request: Request) -> Result<Request, Problem> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, QUESTION).await.map_err(|_| {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a question has at most {} KiB", QUESTION >> 10),
        )
        .remedy("ask for less at once")
    })?;
    let body_query = recorded_query(&body);
    let request = Request::from_parts(parts, Body::from(body));
    let action = action(peer, &request, body_query, None);
    if peer.rights.owner {
        recorder.audit.record_best_effort(action).await;
        return Ok(request);
    }
    // In a mode where calls continue without records, reads still need one.
    match recorder.audit.record_required(action).await {
        Ok(()) => Ok(request),
        Err(fault) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("it could not be recorded that you ask, so you are not answered: {fault}"),
        )
        .code("audit-unavailable")
        .remedy(fault.remedy())),
    }
}

fn action(
    peer: &Peer,
    request: &Request,
    body_query: Option<String>,
    refused: Option<&Problem>,
) -> AdminAction {
    let verb = format!("{} {}", request.method(), request.uri().path());
    let query = request.uri().query().map(|query| cut(query, RECORDED));
    AdminAction {
        uid: peer.uid,
        user: peer.user.as_deref().map(str::to_owned),
        pid: peer.pid,
        verb: cut(&verb, RECORDED),
        target: body_query.or(query),
        code: refused.map(|problem| problem.code.clone()),
        decision: if refused.is_some() { Decision::Refused } else { Decision::Allowed },
    }
}

/// The query in a body: its JSON without unset members.
fn recorded_query(body: &[u8]) -> Option<String> {
    if body.is_empty() {
        return None;
    }
    let mut value: Value = serde_json::from_slice(body).ok()?;
    bare(&mut value);
    Some(cut(&value.to_string(), RECORDED))
}

fn bare(value: &mut Value) {
    if let Value::Object(members) = value {
        members.values_mut().for_each(bare);
        members.retain(|_, value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Object(members) => !members.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        });
    }
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Converts an error of axum, such as an invalid JSON body, to a [`Problem`].
async fn in_words(answer: Response) -> Response {
    let status = answer.status();
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let text = to_bytes(answer.into_body(), ERROR).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let text = if text.is_empty() { status.to_string() } else { text };
    Problem::new(status, text)
        .remedy("is the command of the same version as the proxy?")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_paths_need_the_owner() {
        for (path, needed) in [
            ("/healthz", RequiredRole::Nothing),
            ("/metrics", RequiredRole::Role(Role::Operator)),
            ("/v1/status", RequiredRole::Role(Role::Operator)),
            ("/v1/servers/notes/log", RequiredRole::Role(Role::Operator)),
            ("/v1/audit/prune", RequiredRole::Role(Role::Operator)),
            ("/v1/audit/backup", RequiredRole::Owner),
            ("/v1/audit/query", RequiredRole::Role(Role::Auditor)),
            ("/v1/audit/show/x", RequiredRole::Role(Role::Auditor)),
            ("/mcp", RequiredRole::Owner),
            ("/servers/notes/mcp", RequiredRole::Owner),
            ("/invoke", RequiredRole::Owner),
            ("/v1/audit", RequiredRole::Owner),
            ("/v1//audit/query", RequiredRole::Owner),
            ("/v1/%61udit/query", RequiredRole::Owner),
            ("/V1/audit/query", RequiredRole::Owner),
            ("/v1/auditx", RequiredRole::Owner),
            ("/v1/stop", RequiredRole::Owner),
            ("/v1/whatever", RequiredRole::Owner),
            ("", RequiredRole::Owner),
        ] {
            assert_eq!(required_role(path), needed, "{path}");
        }
    }

    #[test]
    fn recorded_query_omits_unset_fields() {
        let body = br#"{"filter":{"client":"dev","server":null,"intents":false},"last":20,"x":{}}"#;
        assert_eq!(recorded_query(body).unwrap(), r#"{"filter":{"client":"dev"},"last":20}"#);
        assert_eq!(recorded_query(b""), None);
        assert_eq!(recorded_query(b"no JSON"), None);
        let long = format!("\"{}\"", "ä".repeat(5_000));
        assert_eq!(recorded_query(long.as_bytes()).unwrap().chars().count(), RECORDED + 1);
    }
}
