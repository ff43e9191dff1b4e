//! The way through the blocks of a view, a few at a time: an answer over years of records must not
//! hold all their blocks at once, nor a thread for long.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{
    Order,
    filter::Filter,
    values::{places, window},
};
use crate::{
    line::Seq,
    store::{BLOCK, Block, View},
};

/// Records of one step.
const STEP: u64 = 64 * BLOCK;
/// Segments of one step: each that is read is open for so long.
const SEGMENTS: usize = 4;
/// How long one request may look; then it answers with what it has, and where it stopped.
const SLICE: Duration = Duration::from_millis(300);

/// Steps over those blocks that can have what a filter finds.
pub(super) struct Walk<'a> {
    view: &'a View,
    order: Order,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Places that are left; none where the first is after the last.
    first: u64,
    last: u64,
    pace: Pace,
}

/// Some blocks, in the order of the walk.
pub(super) struct Step {
    pub blocks: Vec<Block>,
    pub unreadable: Vec<String>,
    /// Where to go on after this step.
    pub done: Seq,
}

impl<'a> Walk<'a> {
    /// The walk over what a filter can find beyond `after`.
    pub fn new(view: &'a View, filter: &Filter, order: Order, after: Option<Seq>) -> Self {
        let (since, until) = window(filter.expr());
        let (mut first, mut last) = places(filter.expr());
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

    /// The first and the last place that are left.
    pub fn left(&self) -> (u64, u64) {
        (self.first, self.last)
    }

    /// From when and until when records are looked for.
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
            // In whole blocks: a step ends where a block does.
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

/// How long a request has looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace(Instant);

impl Pace {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// Whether it is time to answer.
    pub fn is_over(&self) -> bool {
        self.0.elapsed() >= SLICE
    }
}

/// Where to go on when all of a block was looked at.
pub(super) fn beyond(block: &Block, order: Order) -> Seq {
    Seq(match order {
        Order::NewestFirst => block.first(),
        Order::OldestFirst => (block.first() + block.count() as u64).saturating_sub(1),
    })
}
