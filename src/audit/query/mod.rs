//! Questions to the log: pages of records, counts, summaries.
//!
//! - [`Filter`] is what is asked for, in the language of `filter`. `plan` asks the index what a
//!   block has of it, and reads only those records that the index can't decide on.
//! - `walk` goes through the blocks a few at a time and stops after a moment: every answer is a
//!   slice that names where the next one begins. A slice is of one view, which no record is added
//!   to, and goes on by the place in the log: so pages are stable while records are written.
//! - `page`, `count` and `stats` are the three kinds of answer; `tally` is what a block knows of
//!   its records together.

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

/// Records of a page unless the query says otherwise.
pub const PAGE: usize = 50;
/// The largest page.
pub const PAGE_MAX: usize = 1000;
/// Answers that are worked out at once.
const AT_ONCE: usize = 2;
/// Notes of unreadable parts in one answer.
const NOTES: usize = 16;

/// Which records, in which order, how many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Query {
    /// Which records.
    pub filter: Filter,
    /// Show intents also where their outcome is on record.
    pub intents: bool,
    pub order: Order,
    /// Records of the page, at most [`PAGE_MAX`]. Default: [`PAGE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only records beyond this one, in the query's order: `next` of the page before.
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
    /// The records, as they are on disk.
    pub lines: Vec<Line>,
    /// Where the next page begins. Absent on the last one. A page can be short, or empty, and
    /// still have a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// Parts of the store that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl Page {
    /// The records.
    ///
    /// # Errors
    /// Says which of them this version can't read, and why.
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

/// A store's records, for reading.
#[derive(Clone)]
pub struct Archive {
    shelf: Arc<SegmentSet>,
    gate: Arc<Semaphore>,
}

impl Archive {
    pub(super) fn new(shelf: Arc<SegmentSet>) -> Self {
        Self { shelf, gate: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// One page of what a query finds.
    ///
    /// # Errors
    /// [`Unavailable::Broken`] where the reading itself fails; parts that can't be read are noted
    /// in the page.
    pub async fn query(&self, query: Query) -> Result<Page, Unavailable> {
        self.read(move |view| page::page(view, &query)).await
    }

    /// The newest `count` records that a query finds, oldest first, whatever its order, limit and
    /// `after`. The page has no next one.
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

    /// The records of one decision, oldest first: its intent and outcome, or its refusal.
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
        let dir = || self.shelf.dir().to_owned();
        let permit = self
            .gate
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Unavailable::Closed { dir: dir() })?;
        let shelf = self.shelf.clone();
        tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also where nobody waits for it any more.
            let _permit = permit;
            work(&shelf.view())
        })
        .await
        .map_err(|e| Unavailable::Broken { dir: dir(), why: e.to_string() })
    }
}
