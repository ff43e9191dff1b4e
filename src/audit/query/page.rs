//! Pages of records.

use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan as _};

use super::{
    Order, PAGE, PAGE_MAX, Page, Query,
    filter::{Column, Filter},
    plan::{BlockQuery, Bounds},
    values::holds,
    walk::{Walk, beyond},
};
use crate::{
    line::Line,
    record::{Entry, Kind},
    store::{BLOCK, Bits, Block, Fault, Field, View, kind},
};
use portcullis_protocol::names::DecisionId;

/// Records read in one step: fewer than a frame, so that a short page reads little.
const CHUNK: usize = 64;
/// Blocks after an intent's block that are searched for its outcome: some 65,000 records.
const LATER: u64 = 16;
/// Timeout of the search for a decision.
const PATIENCE: Duration = Duration::from_secs(5);

/// One page of the records that a query finds.
pub(super) fn page(view: &View, query: &Query) -> Page {
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let mut walk = Walk::new(view, &query.filter, query.order, query.after);
    let (first, last) = walk.remaining();
    let pace = walk.pace();
    let search = Search {
        view,
        query,
        first,
        last,
        limit,
        hide: !query.intents && !query.filter.asks_for_intents(),
    };
    let mut page = Page::default();
    while let Some(step) = walk.step() {
        step.unreadable.into_iter().for_each(|what| page.note(what));
        for block in &step.blocks {
            match search.block(block, &mut page) {
                Ok(false) => {}
                // There is one more record, on the next page.
                Ok(true) => {
                    page.next = page.lines.last().map(Line::seq);
                    return page;
                }
                Err(fault) => page.note(fault.to_string()),
            }
            if pace.is_over() {
                page.next = Some(beyond(block, query.order));
                return page;
            }
        }
        if pace.is_over() {
            page.next = Some(step.done);
            return page;
        }
    }
    page
}

struct Search<'a> {
    view: &'a View,
    query: &'a Query,
    first: u64,
    last: u64,
    limit: usize,
    /// Whether to hide intents with a recorded outcome.
    hide: bool,
}

impl Search<'_> {
    /// Adds the records of a block. Returns whether there are more than the page can contain.
    fn block(&self, block: &Block, page: &mut Page) -> Result<bool, Fault> {
        let mut block_query = BlockQuery::new(block);
        let bounds = block_query.bounds(self.query.filter.expr())?;
        let mut positions = &bounds.may & &between(block, self.first, self.last);
        let mut open = Bits::default();
        if self.hide && !positions.is_empty() {
            let intents = &block_query.kind(Kind::Intent)? & &positions;
            if !intents.is_empty() {
                let answered = block.answered()?;
                positions = answered.not_in(&positions);
                open = answered.not_in(&intents);
            }
        }
        let mut all: Vec<usize> = positions.iter().collect();
        if self.query.order == Order::NewestFirst {
            all.reverse();
        }
        for chunk in all.chunks(CHUNK) {
            let mut lines = block.lines(&chunk.iter().copied().collect())?;
            if self.query.order == Order::NewestFirst {
                lines.reverse();
            }
            for line in lines {
                let position = usize::try_from(line.seq().0 - block.first()).unwrap_or(usize::MAX);
                if !self.finds(&line, position, &bounds, &open, block, page)? {
                    continue;
                }
                if page.lines.len() >= self.limit {
                    return Ok(true);
                }
                page.lines.push(line);
            }
        }
        Ok(false)
    }

    fn finds(
        &self,
        line: &Line,
        position: usize,
        bounds: &Bounds,
        open: &Bits,
        block: &Block,
        page: &mut Page,
    ) -> Result<bool, Fault> {
        let (sure, open) = (bounds.sure.contains(position), open.contains(position));
        if sure && !open {
            return Ok(true);
        }
        let entry = match line.entry() {
            Ok(entry) => entry,
            Err(what) => {
                page.note(what);
                return Ok(false);
            }
        };
        Ok((sure || holds(self.query.filter.expr(), &entry))
            && !(open && answered_later(self.view, block, &entry)?))
    }
}

/// Positions in a block from one `seq` to another.
pub(super) fn between(block: &Block, first: u64, last: u64) -> Bits {
    let begin = block.first();
    let positions = 0..block.count();
    positions.filter(|position| (first..=last).contains(&(begin + *position as u64))).collect()
}

/// Whether the outcome of an intent is in one of the following blocks.
fn answered_later(view: &View, block: &Block, intent: &Entry) -> Result<bool, Fault> {
    let id = intent.record.id().to_string();
    let begin = block.first() + block.count() as u64;
    let end = begin.saturating_add(LATER * BLOCK);
    // In a log with few records per day, these blocks would be many segments.
    let end = view.segments(begin, end).get(2).map_or(end, |next| end.min(next.saturating_sub(1)));
    let (blocks, _) = view.blocks(begin, end, None, None);
    for block in blocks {
        let outcomes = block.term(Field::Kind, kind(Kind::Outcome))?;
        if !outcomes.is_empty() && !(&outcomes & &block.term(Field::Id, &id)?).is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Records of one decision, oldest first.
pub(super) fn decision(view: &View, id: DecisionId) -> Page {
    let filter = Filter::equals(Column::Id, &id.to_string()).unwrap_or_default();
    // An id contains its creation time. Its records are not older, unless the clock was set, and
    // not much newer.
    if let Some(created) = created_at(id) {
        let near = |hours: i64| created.checked_add(hours.hours()).ok();
        let (since, until) = (near(-1), near(48));
        let near = since.into_iter().map(Filter::since).chain(until.map(Filter::until));
        let found = all_pages(view, near.fold(filter.clone(), Filter::and));
        if !found.lines.is_empty() {
            return found;
        }
    }
    all_pages(view, filter)
}

fn created_at(id: DecisionId) -> Option<Timestamp> {
    let bytes = id.as_bytes();
    let mut millis = [0; 8];
    millis.get_mut(2..)?.copy_from_slice(bytes.get(..6)?);
    Timestamp::from_millisecond(i64::from_be_bytes(millis)).ok()
}

/// All pages of a search with few results.
fn all_pages(view: &View, filter: Filter) -> Page {
    let began = Instant::now();
    let mut query = Query {
        filter,
        intents: true,
        order: Order::OldestFirst,
        limit: Some(PAGE_MAX),
        after: None,
    };
    let mut all = Page::default();
    loop {
        let found = page(view, &query);
        all.lines.extend(found.lines);
        found.unreadable.into_iter().for_each(|what| all.note(what));
        query.after = found.next;
        if found.next.is_none() || all.lines.len() >= PAGE_MAX {
            return all;
        }
        if began.elapsed() > PATIENCE {
            all.note("not all records were looked through: it took too long".into());
            return all;
        }
    }
}
