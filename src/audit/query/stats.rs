//! Summaries: the merged aggregates of whole blocks, and the records at the edges.

use serde::{Deserialize, Serialize};

use super::{
    Aggregates, NOTES, Order,
    aggregates::Count,
    filter::{Column, Filter},
    page::between,
    plan::BlockQuery,
    values::holds,
    walk::{Walk, beyond},
};
use crate::{
    line::Seq,
    record::{Decision, Entry, Kind},
    store::{Bits, Block, Facts, Fault, Field, View, decision},
};

/// Up to this many records of a block are read instead of counted by the index.
const FEW: usize = 512;
/// A block that spans more time is read, so that the times of its records are exact.
const LONG_SECONDS: i64 = 3600;
/// One of this many blocks that are counted by the index gives a sample of times.
const SAMPLED: usize = 32;
/// Maximum number of outcomes in such a sample.
const SAMPLE: usize = 256;
/// Sections of a block. The records of a section get one estimated time.
const SECTIONS: usize = 16;

/// Request for a summary.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StatsRequest {
    /// Filter for records.
    pub filter: Filter,
    /// Only records after this one: `next` of the preceding slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
}

/// Part of a summary. All slices, merged, are the result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summed {
    pub tally: Aggregates,
    /// Start of the next slice. Absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// Parts of the store that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// Summarizes one slice.
pub(super) fn stats(view: &View, request: &StatsRequest) -> Summed {
    let order = Order::OldestFirst;
    let mut walk = Walk::new(view, &request.filter, order, request.after);
    let (first, last) = walk.remaining();
    let (since, until) = walk.window();
    let pace = walk.pace();
    let mut summed = Summed::default();
    let note = |summed: &mut Summed, what: String| {
        tracing::error!("{what}");
        if summed.unreadable.len() < NOTES {
            summed.unreadable.push(what);
        }
    };
    'walk: while let Some(step) = walk.step() {
        step.unreadable.into_iter().for_each(|what| note(&mut summed, what));
        for (at, block) in step.blocks.iter().enumerate() {
            let part = Part {
                block,
                filter: &request.filter,
                range: between(block, first, last),
                edge: since.is_some_and(|since| block.begin() < since)
                    || until.is_some_and(|until| block.end() >= until),
                sample: at % SAMPLED == 0,
            };
            let mut unreadable = Vec::new();
            match part.sum(&mut summed.tally, &mut unreadable) {
                Ok(()) => unreadable.into_iter().for_each(|what| note(&mut summed, what)),
                Err(fault) => note(&mut summed, fault.to_string()),
            }
            if pace.is_over() {
                summed.next = Some(beyond(block, order));
                break 'walk;
            }
        }
        if pace.is_over() {
            summed.next = Some(step.done);
            break;
        }
    }
    summed.next = summed.next.filter(|next| next.0 < last);
    summed
}

struct Part<'a> {
    block: &'a Block,
    filter: &'a Filter,
    range: Bits,
    /// Whether some of its records are outside of the requested time.
    edge: bool,
    /// Whether to read the times of some records if the index counts this block.
    sample: bool,
}

impl Part<'_> {
    fn sum(&self, tally: &mut Aggregates, unreadable: &mut Vec<String>) -> Result<(), Fault> {
        let mut block_query = BlockQuery::new(self.block);
        let bounds = block_query.bounds(self.filter.expr())?;
        let positions = &bounds.may & &self.range;
        if positions.is_empty() {
            return Ok(());
        }
        let exact = bounds.is_exact();
        if exact && positions.count() == self.block.count() {
            tally.merge(block_query.tally()?.as_ref());
            return Ok(());
        }
        let seconds = self.block.end().duration_since(self.block.begin()).as_secs();
        let indexed = exact && !self.edge && positions.count() > FEW && seconds < LONG_SECONDS;
        if indexed && let Some(part) = by_index(&mut block_query, &positions)? {
            tally.merge(&part);
            if self.sample {
                self.read(&some(&block_query, &positions)?, unreadable, |_, facts| {
                    tally.add_times(facts)
                })?;
            }
            return Ok(());
        }
        self.read(&positions, unreadable, |entry, facts| {
            let position = usize::try_from(entry.seq.0 - self.block.first()).unwrap_or(usize::MAX);
            if bounds.sure.contains(position) || holds(self.filter.expr(), entry) {
                tally.add(entry.recorded, facts);
            }
        })
    }

    fn read(
        &self,
        positions: &Bits,
        unreadable: &mut Vec<String>,
        mut each: impl FnMut(&Entry, &Facts),
    ) -> Result<(), Fault> {
        for line in self.block.lines(positions)? {
            match line.entry() {
                Ok(entry) => each(&entry, &Facts::of(&entry.record)),
                Err(what) => unreadable.push(what),
            }
        }
        Ok(())
    }
}

/// Evenly spread outcomes among these positions.
fn some(block_query: &BlockQuery<'_>, positions: &Bits) -> Result<Bits, Fault> {
    let outcomes = &block_query.kind(Kind::Outcome)? & positions;
    let every = outcomes.count().div_ceil(SAMPLE).max(1);
    Ok(outcomes.iter().step_by(every).collect())
}

/// Aggregates of these positions by the index, without times and sizes. `None` if there are too
/// many values for the index.
fn by_index(
    block_query: &mut BlockQuery<'_>,
    positions: &Bits,
) -> Result<Option<Aggregates>, Fault> {
    let block = block_query.block;
    let decides = &block_query.kind(Kind::Outcome)? | &block_query.kind(Kind::Refused)?;
    let counted = &decides & positions;
    let refused = block.term(Field::Decision, decision(Decision::Refused))?;
    let count = |positions: &Bits| Count {
        all: positions.count() as u64,
        refused: (positions & &refused).count() as u64,
    };
    let mut tally = Aggregates { records: positions.count() as u64, ..Aggregates::default() };
    for (column, counts) in [
        (Column::Kind, &mut tally.kinds),
        (Column::Client, &mut tally.principals),
        (Column::Server, &mut tally.servers),
        (Column::Method, &mut tally.methods),
        (Column::Decision, &mut tally.decisions),
        (Column::Code, &mut tally.codes),
        (Column::Rule, &mut tally.rules),
        (Column::Label, &mut tally.labels),
        (Column::Event, &mut tally.events),
    ] {
        let every = matches!(column, Column::Kind | Column::Event);
        let among = if every { positions } else { &counted };
        let Some(parts) = block_query.parts(column)? else { return Ok(None) };
        for (value, of) in parts {
            counts.add(value, count(&(&of & among)));
        }
    }
    let indexed = block_query.tally()?;
    let Some(tools) = indexed.tools.values() else { return Ok(None) };
    for (server, tool) in tools {
        let mut of = &block.term(Field::Tool, tool)? & &counted;
        if !server.is_empty() {
            of = &of & &block.term(Field::Server, server)?;
        }
        tally.tools.add((server.clone(), tool.clone()), count(&of));
    }
    // The index does not contain their counts; there are few of these records.
    let summaries = &block.term(Field::Event, "refusals-summarized")? & positions;
    for line in block.lines(&summaries)? {
        if let Ok(entry) = line.entry()
            && let Some((code, count)) = entry.record.code().zip(entry.record.summarized())
        {
            tally.summarized.add(code.to_owned(), Count { all: count, refused: count });
        }
    }
    // Estimated times of writing, without reading the records.
    let (begin, end) = (block.begin(), block.end());
    let size = block.count().div_ceil(SECTIONS).max(1);
    for section in 0..SECTIONS {
        let in_section = (section * size..(section + 1) * size).collect::<Bits>();
        let here = count(&(&counted & &in_section));
        if here.all > 0 {
            let sections = i32::try_from(SECTIONS).unwrap_or(1);
            let share = end.duration_since(begin) * i32::try_from(section).unwrap_or(0) / sections;
            tally.timeline.add(begin.checked_add(share).unwrap_or(end), here);
        }
    }
    Ok(Some(tally))
}
