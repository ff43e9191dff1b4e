//! Iteration over the blocks of a view, a few at a time: a query over years of records must not
//! hold all their blocks in memory, nor occupy a thread for long.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{
    Order,
    filter::Filter,
    values::{seq_range, window},
};
use crate::{
    line::Seq,
    store::{BLOCK, Block, View},
};

/// Records of one step.
const STEP: u64 = 64 * BLOCK;
/// Segments of one step: each segment that is read stays open during the step.
const SEGMENTS: usize = 4;
/// Time budget of one request. Then it returns its results and its position.
const SLICE: Duration = Duration::from_millis(300);

/// Iterates over the blocks that can contain matches of a filter.
pub(super) struct Walk<'a> {
    view: &'a View,
    order: Order,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Remaining range of `seq`; empty if `first` is after `last`.
    first: u64,
    last: u64,
    pace: Pace,
}

/// Some blocks, in the order of the walk.
pub(super) struct Step {
    pub blocks: Vec<Block>,
    pub unreadable: Vec<String>,
    /// Position after this step.
    pub done: Seq,
}

impl<'a> Walk<'a> {
    /// Walk over the records beyond `after` that a filter can find.
    pub fn new(view: &'a View, filter: &Filter, order: Order, after: Option<Seq>) -> Self {
        let (since, until) = window(filter.expr());
        let (mut first, mut last) = seq_range(filter.expr());
        first = first.max(view.first());
        last = last.min(view.end().saturating_sub(1));
        let mut empty = view.end() == view.first();
        match (after, order) {
            (None, _) => {}
            (Some(Seq(0)), Order::NewestFirst) => empty = true,
            (Some(Seq(after)), Order::NewestFirst) => last = last.min(after - 1),
            (Some(Seq(after)), Order::OldestFirst) => first = first.max(after.saturating_add(1)),
        }
        if empty {
            (first, last) = (1, 0);
        }
        Self { view, order, since, until, first, last, pace: Pace::new() }
    }

    /// First and last remaining `seq`.
    pub fn remaining(&self) -> (u64, u64) {
        (self.first, self.last)
    }

    /// Time range of the records.
    pub fn window(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (self.since, self.until)
    }

    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// The next blocks; `None` at the end.
    pub fn step(&mut self) -> Option<Step> {
        if self.first > self.last {
            return None;
        }
        let (from, to) = match self.order {
            // Steps end at a block's end.
            Order::NewestFirst => ((self.last / STEP * STEP).max(self.first), self.last),
            Order::OldestFirst => {
                (self.first, (self.first / STEP * STEP + STEP - 1).min(self.last))
            }
        };
        let begins = self.view.segments(from, to);
        let (from, to) = match self.order {
            Order::NewestFirst => {
                let begin = begins.iter().rev().nth(SEGMENTS - 1);
                (begin.map_or(from, |begin| from.max(*begin)), to)
            }
            Order::OldestFirst => {
                (from, begins.get(SEGMENTS).map_or(to, |next| to.min(next.saturating_sub(1))))
            }
        };
        let (mut blocks, unreadable) = self.view.blocks(from, to, self.since, self.until);
        let done = match self.order {
            Order::NewestFirst => {
                blocks.reverse();
                match from.checked_sub(1) {
                    Some(last) => self.last = last,
                    None => (self.first, self.last) = (1, 0),
                }
                Seq(from)
            }
            Order::OldestFirst => {
                self.first = to.saturating_add(1);
                Seq(to)
            }
        };
        Some(Step { blocks, unreadable, done })
    }
}

/// Start time of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace(Instant);

impl Pace {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// Whether the time budget is used up.
    pub fn is_over(&self) -> bool {
        self.0.elapsed() >= SLICE
    }
}

/// Position after a whole block.
pub(super) fn beyond(block: &Block, order: Order) -> Seq {
    Seq(match order {
        Order::NewestFirst => block.first(),
        Order::OldestFirst => (block.first() + block.count() as u64).saturating_sub(1),
    })
}
