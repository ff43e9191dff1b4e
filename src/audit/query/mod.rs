//! Finding records: filters, pages and the way through the indexes.

mod tally;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub(super) use self::tally::Tally;
use super::{
    line::Seq,
    record::{Decision, Entry, Kind},
    store::{Bits, Block, Fault, Field, Shelf, View, decision, kind},
    unavailable::Unavailable,
};
use crate::names::DecisionId;

/// Records of a page unless the filter says otherwise, and at most.
pub const PAGE: usize = 50;
/// The largest page.
pub const PAGE_MAX: usize = 1000;
/// Queries that run at once.
const AT_ONCE: usize = 2;
/// Notes of unreadable parts in one page.
const NOTES: usize = 16;

/// Which records, in which order, how many. Everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Filter {
    /// Recorded at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Recorded before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The principal's name: a client's, `local:USER` or `anonymous`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool's name on its server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The code of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<DecisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Show intents also where their outcome is on record.
    pub intents: bool,
    pub order: Order,
    /// Records of the page, at most [`PAGE_MAX`]. Default: [`PAGE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only records beyond this one, in the filter's order: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
}

/// Some of the records that a filter finds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Where the next page begins. Absent on the last one. A page can be short, or empty, and
    /// still have a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// Parts of the store that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl Page {
    fn note(&mut self, what: String) {
        tracing::error!("{what}");
        if self.unreadable.len() < NOTES {
            self.unreadable.push(what);
        }
    }
}

/// Which records come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

impl Filter {
    /// Whether a record is one of those looked for, by all but `after`, `limit` and `intents`.
    pub fn matches(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        let call = record.call();
        self.since.is_none_or(|since| entry.recorded >= since)
            && self.until.is_none_or(|until| entry.recorded < until)
            && is(&self.client, call.and_then(|call| call.principal.as_deref()))
            && is(&self.server, record.server())
            && is(&self.tool, record.tool())
            && is(&self.method, call.and_then(|call| call.method.as_deref()))
            && is(&self.code, record.refusal().map(|refusal| refusal.code.as_str()))
            && self.decision.is_none_or(|wanted| record.decision() == Some(wanted))
            && self.id.is_none_or(|wanted| record.id() == wanted)
            && self.kind.is_none_or(|wanted| record.kind() == wanted)
    }

    /// The places of a block that can match.
    fn places(&self, block: &Block) -> Result<Bits, Fault> {
        let id = self.id.map(|id| id.to_string());
        let mut places = Bits::first(block.count());
        for (field, value) in [
            (Field::Id, id.as_deref()),
            (Field::Code, self.code.as_deref()),
            (Field::Kind, self.kind.map(kind)),
            (Field::Decision, self.decision.map(decision)),
            (Field::Tool, self.tool.as_deref()),
            (Field::Principal, self.client.as_deref()),
            (Field::Server, self.server.as_deref()),
            (Field::Method, self.method.as_deref()),
        ] {
            if let Some(value) = value
                && !places.is_empty()
            {
                places = &places & &block.term(field, value)?;
            }
        }
        Ok(places)
    }
}

fn is(wanted: &Option<String>, value: Option<&str>) -> bool {
    wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
}

/// Whether a decision has an outcome on record, in the block of its intent or a later one.
fn has_outcome(view: &View, intent: &Entry) -> Result<bool, Fault> {
    let id = intent.record.id().to_string();
    let (blocks, _) = view.blocks(intent.seq.0, u64::MAX, None, None);
    for block in blocks {
        let outcomes = block.term(Field::Kind, kind(Kind::Outcome))?;
        if !(&outcomes & &block.term(Field::Id, &id)?).is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn page(shelf: &Arc<Shelf>, filter: &Filter) -> Page {
    let view = shelf.view();
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let mut page = Page::default();
    let newest = filter.order == Order::NewestFirst;
    let (first, last) = match (filter.after, newest) {
        (None, _) => (0, u64::MAX),
        (Some(Seq(0)), true) => return page,
        (Some(Seq(after)), true) => (0, after - 1),
        (Some(Seq(after)), false) => (after.saturating_add(1), u64::MAX),
    };
    let (mut blocks, unreadable) = view.blocks(first, last, filter.since, filter.until);
    unreadable.into_iter().for_each(|what| page.note(what));
    if newest {
        blocks.reverse();
    }
    for block in blocks {
        let mut lines = match filter.places(&block).and_then(|places| block.lines(&places)) {
            Ok(lines) => lines,
            Err(fault) => {
                page.note(fault.to_string());
                continue;
            }
        };
        if newest {
            lines.reverse();
        }
        for line in lines.iter().filter(|line| (first..=last).contains(&line.seq().0)) {
            let entry = match line.entry() {
                Ok(entry) => entry,
                Err(what) => {
                    page.note(what);
                    continue;
                }
            };
            if !filter.matches(&entry) {
                continue;
            }
            let answered = filter.intents
                || filter.kind.is_some()
                || entry.record.kind() != Kind::Intent
                || has_outcome(&view, &entry).is_ok_and(|has| !has);
            if answered {
                page.entries.push(entry);
            }
            if page.entries.len() >= limit {
                page.next = Some(line.seq());
                return page;
            }
        }
    }
    page
}

/// All records of one decision, oldest first.
fn decision_records(shelf: &Arc<Shelf>, id: DecisionId) -> Page {
    let filter = Filter {
        id: Some(id),
        intents: true,
        order: Order::OldestFirst,
        limit: Some(PAGE_MAX),
        ..Filter::default()
    };
    page(shelf, &filter)
}

/// A store's records, for reading.
#[derive(Clone)]
pub struct Archive {
    shelf: Arc<Shelf>,
    gate: Arc<Semaphore>,
}

impl Archive {
    pub(super) fn new(shelf: Arc<Shelf>) -> Self {
        Self { shelf, gate: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// One page of what a filter finds.
    ///
    /// # Errors
    /// [`Unavailable::Broken`] where the reading itself fails; parts that can't be read are noted
    /// in the page.
    pub async fn query(&self, filter: Filter) -> Result<Page, Unavailable> {
        self.read(move |shelf| page(shelf, &filter)).await
    }

    /// The newest `count` records that a filter finds, oldest first, whatever its order, limit and
    /// `after`. The page has no next one.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn last(&self, filter: Filter, count: usize) -> Result<Page, Unavailable> {
        let mut filter = Filter { order: Order::NewestFirst, after: None, ..filter };
        let mut found = Page::default();
        while found.entries.len() < count {
            filter.limit = Some(count - found.entries.len());
            let page = self.query(filter.clone()).await?;
            found.entries.extend(page.entries);
            found.unreadable.extend(page.unreadable);
            filter.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        found.entries.reverse();
        Ok(found)
    }

    /// The records of one decision, oldest first: its intent and outcome, or its refusal.
    ///
    /// # Errors
    /// As [`Archive::query`].
    pub async fn show(&self, id: DecisionId) -> Result<Page, Unavailable> {
        self.read(move |shelf| decision_records(shelf, id)).await
    }

    async fn read(
        &self,
        work: impl FnOnce(&Arc<Shelf>) -> Page + Send + 'static,
    ) -> Result<Page, Unavailable> {
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
            work(&shelf)
        })
        .await
        .map_err(|e| Unavailable::Broken { dir: dir(), why: e.to_string() })
    }
}
