//! `/v1/audit`: the audit log of the running proxy, which alone can open its store.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/audit/query` with a [`Filter`] | a [`Page`] |
//! | `GET /v1/audit/show/ID` | a [`Page`] of the decision's records, or 404 |
//! | `POST /v1/audit/tail` with a [`TailRequest`] | lines of JSON, each a [`TailLine`] |

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
use crate::{
    audit::{
        Audit, Filter, PAGE_MAX, Page, Seq, Tail, Tailed,
        record::{Entry, Kind},
    },
    names::DecisionId,
};

/// What `tail` is asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TailRequest {
    /// Which records. Its `order`, `limit` and `after` are not looked at.
    pub filter: Filter,
    /// How many of those on record to begin with, at most [`PAGE_MAX`].
    pub last: usize,
    /// Whether to go on with those to come.
    pub follow: bool,
}

/// One line of `tail`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TailLine {
    /// A record.
    Entry(Box<Entry>),
    /// This many records went by unseen, since the follower was too slow. They are in the store.
    Missed(u64),
    /// A part of the store can't be read.
    Unreadable(String),
}

#[derive(Clone)]
struct Held {
    audit: Audit,
    stopping: CancellationToken,
}

/// The routes of the audit log. Followers are let go when `stopping` is cancelled.
pub fn routes(audit: Audit, stopping: CancellationToken) -> Router {
    Router::new()
        .route("/v1/audit/query", post(query))
        .route("/v1/audit/show/{id}", get(show))
        .route("/v1/audit/tail", post(tail))
        .with_state(Held { audit, stopping })
}

async fn query(
    State(held): State<Held>,
    Json(filter): Json<Filter>,
) -> Result<Json<Page>, Problem> {
    Ok(Json(held.audit.archive().query(filter).await?))
}

async fn show(State(held): State<Held>, Path(id): Path<String>) -> Result<Json<Page>, Problem> {
    let id: DecisionId = id.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("`{}` is no decision id", id.escape_default()),
        )
    })?;
    let page = held.audit.archive().show(id).await?;
    if page.entries.is_empty() && page.unreadable.is_empty() {
        return Err(Problem::not_found(format!("there is no record of the decision {id}")));
    }
    Ok(Json(page))
}

async fn tail(
    State(held): State<Held>,
    Json(request): Json<TailRequest>,
) -> Result<Response, Problem> {
    let TailRequest { filter, last, follow } = request;
    // Listen before looking, so that no record falls between the two.
    let coming = follow.then(|| held.audit.tail());
    let page = if last == 0 {
        Page::default()
    } else {
        held.audit.archive().last(filter.clone(), last.min(PAGE_MAX)).await?
    };
    let seen = page.entries.last().map(|entry| entry.seq);
    let unreadable = page.unreadable.into_iter().map(TailLine::Unreadable);
    let entries = page.entries.into_iter().map(|entry| TailLine::Entry(Box::new(entry)));
    let lines = stream::iter(unreadable.chain(entries).collect::<Vec<_>>())
        .chain(stream::iter(coming).flat_map(move |tail| follow_on(tail, filter.clone(), seen)))
        .map(|line| {
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            Ok::<_, Infallible>(Bytes::from(text))
        })
        .take_until(held.stopping.cancelled_owned());
    let mut response = Response::new(Body::from_stream(lines));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn follow_on(tail: Tail, filter: Filter, seen: Option<Seq>) -> impl Stream<Item = TailLine> + Send {
    stream::unfold(tail, |mut tail| async { tail.next().await.map(|tailed| (tailed, tail)) })
        .filter_map(move |tailed| {
            ready(match tailed {
                Tailed::Missed(count) => Some(TailLine::Missed(count)),
                Tailed::Record(written) => {
                    let entry = &written.entry;
                    let asked_for = filter.intents
                        || filter.kind.is_some()
                        || entry.record.kind() != Kind::Intent;
                    (asked_for && Some(entry.seq) > seen && filter.matches(&entry))
                        .then(|| TailLine::Entry(Box::new(entry.clone())))
                }
            })
        })
}
