//! Queries: pages of records, counts, summaries.
//!
//! - [`Filter`] is a query in the language of `filter`. `plan` looks it up in a block's index, and
//!   only records that the index cannot decide are read.
//! - `walk` visits a few blocks at a time and stops after a short time: every result is a slice
//!   that names the start of the next one. A slice reads one immutable view and continues by
//!   position in the log, so pages are stable while records are written.
//! - `page`, `count` and `stats` are the three kinds of result; `aggregates` has the stored sums
//!   of a block.

mod aggregates;
mod count;
mod filter;
mod page;
mod plan;
mod stats;
pub mod summary;
#[cfg(test)]
mod tests;
mod values;
mod walk;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use self::{
    aggregates::{Aggregates, Count, Counts, Timeline, Times},
    count::{By, CountRequest, Counted, Counting, GROUP_MAX, Group, IllegalGroup},
    filter::{Column, Filter, IllegalColumn, IllegalFilter, Type},
    stats::{StatsRequest, Summed},
};
use super::{
    line::{Line, Seq},
    record::Entry,
    store::{SegmentSet, View},
    unavailable::Unavailable,
};
use portcullis_protocol::names::DecisionId;

/// Default number of records of a page.
pub const PAGE: usize = 50;
/// Maximum number of records of a page.
pub const PAGE_MAX: usize = 1000;
/// Maximum number of concurrent queries.
const AT_ONCE: usize = 2;
/// Maximum number of notes about unreadable parts in one result.
const NOTES: usize = 16;

/// Query for records: filter, order and limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Query {
    /// Filter for records.
    pub filter: Filter,
    /// Show intents even if their outcome is recorded.
    pub intents: bool,
    pub order: Order,
    /// Records of the page, at most [`PAGE_MAX`]. Default: [`PAGE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only records beyond this one, in the query's order: `next` of the preceding page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
}

/// Which records come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

/// Some of the records that a query finds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Records as stored.
    pub lines: Vec<Line>,
    /// Start of the next page. Absent on the last page. A page can be short or empty and still have
    /// a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// Parts of the store that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl Page {
    /// Parses the records.
    ///
    /// # Errors
    /// The record that this version cannot parse, and the reason.
    pub fn entries(&self) -> Result<Vec<Entry>, String> {
        self.lines.iter().map(Line::entry).collect()
    }

    fn note(&mut self, what: String) {
        tracing::error!("{what}");
        if self.unreadable.len() < NOTES {
            self.unreadable.push(what);
        }
    }
}

/// Query interface of a store's records.
#[derive(Clone)]
pub struct Archive {
    segment_set: Arc<SegmentSet>,
    gate: Arc<Semaphore>,
}

impl Archive {
    pub(super) fn new(segment_set: Arc<SegmentSet>) -> Self {
        Self { segment_set, gate: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// One page of the records that a query finds.
    ///
    /// # Errors
    /// [`Unavailable::Broken`] if reading fails as a whole. The page notes parts that cannot be
    /// read.
    pub async fn query(&self, query: Query) -> Result<Page, Unavailable> {
        self.read(move |view| page::page(view, &query)).await
    }

    /// The newest `count` records that a query finds, oldest first. Ignores the query's order,
    /// limit and `after`. The page has no next page.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn last(&self, query: Query, count: usize) -> Result<Page, Unavailable> {
        let mut query = Query { order: Order::NewestFirst, after: None, ..query };
        let mut found = Page::default();
        while found.lines.len() < count {
            query.limit = Some(count - found.lines.len());
            let page = self.query(query.clone()).await?;
            found.lines.extend(page.lines);
            found.unreadable.extend(page.unreadable);
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        found.unreadable.truncate(NOTES);
        found.lines.reverse();
        Ok(found)
    }

    /// Records of one decision, oldest first: its intent and outcome, or its refusal.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn show(&self, id: DecisionId) -> Result<Page, Unavailable> {
        self.read(move |view| page::decision(view, id)).await
    }

    /// One slice of a count.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn count(&self, request: CountRequest) -> Result<Counted, Unavailable> {
        self.read(move |view| count::count(view, &request)).await
    }

    /// One slice of a summary.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn stats(&self, request: StatsRequest) -> Result<Summed, Unavailable> {
        self.read(move |view| stats::stats(view, &request)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&View) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let dir = || self.segment_set.dir().to_owned();
        let permit = self
            .gate
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Unavailable::Closed { dir: dir() })?;
        let segment_set = self.segment_set.clone();
        tokio::task::spawn_blocking(move || {
            // Held until the work ends, even if the caller stops waiting.
            let _permit = permit;
            work(&segment_set.view())
        })
        .await
        .map_err(|e| Unavailable::Broken { dir: dir(), why: e.to_string() })
    }
}
