//! Finding records: filters, pages and the way through the indexes.

mod tally;

use std::{ops::ControlFlow, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub(super) use self::tally::Tally;
use super::{
    record::{Cursor, Decision, Entry, Kind, Record, v1},
    store::{Fault, Field, Loss, Order, Segment, Shelf, Span, decision, kind, stamp, time},
    unavailable::Unavailable,
};
use crate::names::DecisionId;

/// Records of a page unless the filter says otherwise, and at most.
pub const PAGE: usize = 50;
/// The largest page.
pub const PAGE_MAX: usize = 1000;
/// Records looked at for one page, so that no query holds a thread for long.
const BUDGET: usize = 20_000;
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
    pub after: Option<Cursor>,
}

/// Some of the records that a filter finds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Where the next page begins. Absent on the last one. A page can be short, or empty, and
    /// still have a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Cursor>,
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

/// The first stamp that is not before a time.
fn ceiling(time: Timestamp) -> u64 {
    let floor = stamp(time);
    floor + u64::from(time.subsec_nanosecond().rem_euclid(1000) > 0 && time > Timestamp::UNIX_EPOCH)
}

impl Filter {
    /// Whether a record is one of those looked for, by all but `after`, `limit` and `intents`.
    pub fn matches(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        let call = record.call();
        let (first, last) = self.window();
        (first..=last).contains(&entry.cursor.0)
            && is(&self.client, call.and_then(|call| call.principal.as_deref()))
            && is(&self.server, record.server())
            && is(&self.tool, record.tool())
            && is(&self.method, call.and_then(|call| call.method.as_deref()))
            && is(&self.code, record.refusal().map(|refusal| refusal.code.as_str()))
            && self.decision.is_none_or(|wanted| record.decision() == Some(wanted))
            && self.id.is_none_or(|wanted| record.id() == wanted)
            && self.kind.is_none_or(|wanted| record.kind() == wanted)
    }

    /// First and last stamp by `since` and `until`.
    fn window(&self) -> (u64, u64) {
        let last = match self.until {
            // Nothing was recorded before 1970.
            Some(until) => match ceiling(until).checked_sub(1) {
                Some(last) => last,
                None => return (u64::MAX, 0),
            },
            None => u64::MAX,
        };
        (self.since.map_or(0, ceiling), last)
    }

    /// First and last stamp of what is left to look at.
    fn rest(&self) -> (u64, u64) {
        let (first, last) = self.window();
        match (self.after, self.order) {
            (None, _) => (first, last),
            (Some(Cursor(0)), Order::NewestFirst) => (u64::MAX, 0),
            (Some(Cursor(after)), Order::NewestFirst) => (first, last.min(after - 1)),
            (Some(Cursor(after)), Order::OldestFirst) => (first.max(after.saturating_add(1)), last),
        }
    }

    /// The row of the index that holds fewest of the records that don't match.
    fn span(&self) -> Span {
        let id = self.id.map(|id| id.to_string());
        [
            (Field::Id, id.as_deref()),
            (Field::Code, self.code.as_deref()),
            (Field::Kind, self.kind.map(kind)),
            (Field::Decision, self.decision.map(decision)),
            (Field::Tool, self.tool.as_deref()),
            (Field::Principal, self.client.as_deref()),
            (Field::Server, self.server.as_deref()),
            (Field::Method, self.method.as_deref()),
        ]
        .into_iter()
        .find_map(|(field, value)| {
            value.filter(|value| field.indexes(value)).map(|value| Span::of(field, value))
        })
        .unwrap_or_else(Span::records)
    }
}

fn is(wanted: &Option<String>, value: Option<&str>) -> bool {
    wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
}

#[derive(Deserialize)]
struct Version {
    v: u8,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: Record,
}

fn decode(stamp: u64, text: &[u8]) -> Result<Entry, String> {
    let about = |e: serde_json::Error| format!("record {}: {e}", Cursor(stamp));
    let Version { v } = serde_json::from_slice(text).map_err(about)?;
    if v != v1::VERSION {
        return Err(format!(
            "record {} is of version {v}: read it with the Portcullis that wrote it, or a newer one",
            Cursor(stamp)
        ));
    }
    let Stored { record } = serde_json::from_slice(text).map_err(about)?;
    Ok(Entry { v, cursor: Cursor(stamp), recorded: time(stamp), record })
}

/// Whether a decision has an outcome on record. Looked for in the segment of its intent and the
/// one after it: no call lasts longer than a day.
fn has_outcome(shelf: &Shelf, intent: &Entry) -> Result<bool, Fault> {
    let span = Span::of(Field::Id, &intent.record.id().to_string());
    let mut found = false;
    for first in shelf.within(intent.cursor.0, u64::MAX).into_iter().take(2) {
        let segment = shelf.segment(first)?;
        let _ = segment.scan(
            &span,
            intent.cursor.0.saturating_add(1),
            u64::MAX,
            Order::OldestFirst,
            &mut |stamp| {
                let entry = segment.record(stamp)?.and_then(|text| decode(stamp, &text).ok());
                found = entry.is_some_and(|entry| {
                    entry.record.kind() == Kind::Outcome && entry.record.id() == intent.record.id()
                });
                Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            },
        )?;
        if found {
            break;
        }
    }
    Ok(found)
}

fn page(shelf: &Shelf, filter: &Filter) -> Page {
    let limit = filter.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let (first, last) = filter.rest();
    let span = filter.span();
    let mut page = Page::default();
    let mut budget = BUDGET;
    let mut segments = shelf.within(first, last);
    if filter.order == Order::NewestFirst {
        segments.reverse();
    }
    for name in segments {
        let scanned = shelf.segment(name).and_then(|segment| {
            if let Some(Loss { after, until }) = segment.loss() {
                let (after, until) = (time(after.max(name)), time(until));
                let label = shelf.label(name);
                page.note(format!("{label}: damaged, records of {after} to {until} are lost"));
            }
            let mut each = |stamp| {
                budget -= 1;
                look(shelf, segment.as_ref(), stamp, filter, &mut page)?;
                if budget == 0 || page.entries.len() >= limit {
                    page.next = Some(Cursor(stamp));
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            };
            segment.scan(&span, first, last, filter.order, &mut each)
        });
        match scanned {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(fault) => page.note(format!("{}: {fault}", shelf.label(name))),
        }
    }
    page
}

fn look(
    shelf: &Shelf,
    segment: &dyn Segment,
    stamp: u64,
    filter: &Filter,
    page: &mut Page,
) -> Result<(), Fault> {
    let Some(text) = segment.record(stamp)? else {
        page.note(format!("record {} is in an index and not in the store", Cursor(stamp)));
        return Ok(());
    };
    match decode(stamp, &text) {
        Ok(entry) if filter.matches(&entry) => {
            let shown = filter.intents
                || filter.kind.is_some()
                || entry.record.kind() != Kind::Intent
                || !has_outcome(shelf, &entry)?;
            if shown {
                page.entries.push(entry);
            }
        }
        Ok(_) => {}
        Err(what) => page.note(what),
    }
    Ok(())
}

/// All records of one decision, oldest first.
fn decision_records(shelf: &Shelf, id: DecisionId) -> Page {
    let filter = Filter {
        id: Some(id),
        intents: true,
        order: Order::OldestFirst,
        limit: Some(PAGE_MAX),
        ..Filter::default()
    };
    // An id says when it was made: look around that time before looking everywhere.
    let bytes = id.as_bytes();
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&bytes[..6]);
    let made = u64::from_be_bytes(millis).saturating_mul(1000);
    let (hour, day) = (3_600_000_000, 86_400_000_000);
    let near = Filter {
        since: Some(time(made.saturating_sub(hour))),
        until: Some(time(made.saturating_add(2 * day))),
        ..filter.clone()
    };
    let found = page(shelf, &near);
    if found.entries.is_empty() { page(shelf, &filter) } else { found }
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
        work: impl FnOnce(&Shelf) -> Page + Send + 'static,
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
