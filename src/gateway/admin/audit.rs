//! `/v1/audit`: the audit log of the running proxy, which has its store open exclusively.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/audit/query` with a [`Query`] | a [`Page`] |
//! | `GET /v1/audit/show/ID` | a [`Page`] of the decision's records, or 404 |
//! | `POST /v1/audit/tail` with a [`TailRequest`] | lines of JSON, each a [`TailLine`] |
//! | `POST /v1/audit/count` with a [`CountRequest`] | a slice: [`Counted`] |
//! | `POST /v1/audit/stats` with a [`StatsRequest`] | a slice: [`Summed`] |

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::ready, stream};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Problem;
use portcullis_audit::{
    Audit, CountRequest, Counted, Line, PAGE_MAX, Page, Query, Seq, StatsRequest, Summed, Tail,
    Tailed, record::Kind,
};
use portcullis_protocol::names::DecisionId;

/// Body of a `tail` request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TailRequest {
    /// Filter of the records. Its `order`, `limit` and `after` are ignored.
    pub query: Query,
    /// Number of existing records to begin with, at most [`PAGE_MAX`].
    pub last: usize,
    /// Whether to continue with new records.
    pub follow: bool,
}

/// One line of `tail`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TailLine {
    /// A record.
    Record(Line),
    /// This many records were skipped because the follower was too slow. They are in the store.
    Missed(u64),
    /// A part of the store can't be read.
    Unreadable(String),
}

#[derive(Clone)]
struct AuditState {
    audit: Audit,
    stopping: CancellationToken,
}

/// The routes of the audit log. Followers end when `stopping` is cancelled.
pub fn routes(audit: Audit, stopping: CancellationToken) -> Router {
    Router::new()
        .route("/v1/audit/query", post(query))
        .route("/v1/audit/show/{id}", get(show))
        .route("/v1/audit/tail", post(tail))
        .route("/v1/audit/count", post(count))
        .route("/v1/audit/stats", post(stats))
        .route("/v1/audit/id", get(id))
        .with_state(AuditState { audit, stopping })
}

async fn id(State(state): State<AuditState>) -> Json<String> {
    Json(state.audit.id().to_owned())
}

async fn query(
    State(state): State<AuditState>,
    Json(query): Json<Query>,
) -> Result<Json<Page>, Problem> {
    Ok(Json(state.audit.archive().query(query).await?))
}

async fn count(
    State(state): State<AuditState>,
    Json(request): Json<CountRequest>,
) -> Result<Json<Counted>, Problem> {
    Ok(Json(state.audit.archive().count(request).await?))
}

async fn stats(
    State(state): State<AuditState>,
    Json(request): Json<StatsRequest>,
) -> Result<Json<Summed>, Problem> {
    Ok(Json(state.audit.archive().stats(request).await?))
}

async fn show(
    State(state): State<AuditState>,
    Path(id): Path<String>,
) -> Result<Json<Page>, Problem> {
    let id: DecisionId = id.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("`{}` is not a decision id", id.escape_default()),
        )
    })?;
    let page = state.audit.archive().show(id).await?;
    if page.lines.is_empty() && page.unreadable.is_empty() {
        return Err(Problem::not_found(format!("there is no record of the decision {id}")));
    }
    Ok(Json(page))
}

async fn tail(
    State(state): State<AuditState>,
    Json(request): Json<TailRequest>,
) -> Result<Response, Problem> {
    let TailRequest { query, last, follow } = request;
    // Subscribe before reading, so that no record falls between the two.
    let coming = follow.then(|| state.audit.tail());
    let page = if last == 0 {
        Page::default()
    } else {
        state.audit.archive().last(query.clone(), last.min(PAGE_MAX)).await?
    };
    let seen = page.lines.last().map(Line::seq);
    let unreadable = page.unreadable.into_iter().map(TailLine::Unreadable);
    let records = page.lines.into_iter().map(TailLine::Record);
    let lines = stream::iter(unreadable.chain(records).collect::<Vec<_>>())
        .chain(stream::iter(coming).flat_map(move |tail| follow_on(tail, query.clone(), seen)))
        .map(|line| {
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            Ok::<_, Infallible>(Bytes::from(text))
        })
        .take_until(state.stopping.cancelled_owned());
    let mut response = Response::new(Body::from_stream(lines));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn follow_on(tail: Tail, query: Query, seen: Option<Seq>) -> impl Stream<Item = TailLine> + Send {
    let intents = query.intents || query.filter.asks_for_intents();
    stream::unfold(tail, |mut tail| async { tail.next().await.map(|tailed| (tailed, tail)) })
        .filter_map(move |tailed| {
            ready(match tailed {
                Tailed::Missed(count) => Some(TailLine::Missed(count)),
                Tailed::Record(line) if Some(line.seq()) <= seen => None,
                Tailed::Record(line) => match line.entry() {
                    Ok(entry) => {
                        let asked_for = intents || entry.record.kind() != Kind::Intent;
                        (asked_for && query.filter.matches(&entry)).then(|| TailLine::Record(line))
                    }
                    Err(why) => Some(TailLine::Unreadable(why)),
                },
            })
        })
}
