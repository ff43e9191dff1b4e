//! Evaluates a filter with the index of a block, before any record is read.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::{
    Aggregates,
    aggregates::Counts,
    filter::{Column, Compare, Expr, Pattern, Test},
    values::{self, LOCAL},
};
use crate::{
    record::Kind,
    store::{Bits, Block, Fault, Field, kind},
};

/// Records of a block that match for certain or perhaps.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Records that match for certain.
    pub sure: Bits,
    /// Records that may match; no others do.
    pub may: Bits,
}

impl Bounds {
    fn exactly(positions: Bits) -> Self {
        Self { sure: positions.clone(), may: positions }
    }

    fn perhaps(positions: Bits) -> Self {
        Self { sure: Bits::default(), may: positions }
    }

    /// Whether the result is known without reading a record.
    pub fn is_exact(&self) -> bool {
        self.sure == self.may
    }
}

/// Index field with the same values as a column, if any.
fn field(column: Column) -> Option<Field> {
    Some(match column {
        Column::Id => Field::Id,
        Column::Kind => Field::Kind,
        Column::Event => Field::Event,
        Column::Decision => Field::Decision,
        Column::Code => Field::Code,
        Column::Client => Field::Principal,
        Column::Session => Field::Session,
        Column::Trace => Field::Trace,
        Column::Server => Field::Server,
        Column::Tool => Field::Tool,
        Column::Method => Field::Method,
        Column::Rule => Field::Rule,
        Column::Label => Field::Label,
        _ => return None,
    })
}

/// Whether equality is decided without reading records.
#[cfg(test)]
pub(super) fn is_indexed(column: Column) -> bool {
    let known = matches!(
        column,
        Column::Time | Column::Day | Column::Hour | Column::Seq | Column::Target | Column::User
    );
    known || field(column).is_some()
}

/// A block under evaluation, with cached parts of its index.
pub(super) struct BlockQuery<'a> {
    pub block: &'a Block,
    tally: Option<Arc<Aggregates>>,
}

impl<'a> BlockQuery<'a> {
    pub fn new(block: &'a Block) -> Self {
        Self { block, tally: None }
    }

    pub fn all(&self) -> Bits {
        Bits::first(self.block.count())
    }

    pub fn tally(&mut self) -> Result<Arc<Aggregates>, Fault> {
        if let Some(tally) = &self.tally {
            return Ok(tally.clone());
        }
        let tally = self.block.tally()?;
        self.tally = Some(tally.clone());
        Ok(tally)
    }

    pub fn kind(&self, wanted: Kind) -> Result<Bits, Fault> {
        self.block.term(Field::Kind, kind(wanted))
    }

    /// Values in a column and the positions of each; `None` if the index does not know all of them.
    pub fn parts(&mut self, column: Column) -> Result<Option<Vec<(String, Bits)>>, Fault> {
        let text = match column {
            Column::Day => values::day,
            Column::Hour => values::hour,
            _ => {
                let Some((field, terms)) = field(column).zip(self.terms(column)?) else {
                    return Ok(None);
                };
                let parts = terms.into_iter().map(|value| {
                    let positions = self.block.term(field, &value)?;
                    Ok((value, positions))
                });
                return parts.collect::<Result<_, Fault>>().map(Some);
            }
        };
        let (begin, end) = (text(self.block.begin()), text(self.block.end()));
        Ok((begin == end).then(|| vec![(begin, self.all())]))
    }

    fn terms(&mut self, column: Column) -> Result<Option<BTreeSet<String>>, Fault> {
        fn all(counts: &Counts) -> Option<BTreeSet<String>> {
            Some(counts.values()?.cloned().collect())
        }
        let tally = self.tally()?;
        Ok(match column {
            Column::Kind => all(&tally.kinds),
            Column::Event => all(&tally.events),
            Column::Decision => all(&tally.decisions),
            Column::Code => all(&tally.codes),
            Column::Client => all(&tally.principals),
            Column::Server => all(&tally.servers),
            Column::Method => all(&tally.methods),
            Column::Rule => all(&tally.rules),
            Column::Label => all(&tally.labels),
            Column::Tool => {
                tally.tools.values().map(|tools| tools.map(|(_, tool)| tool.clone()).collect())
            }
            _ => None,
        })
    }

    /// Bounds of a filter by the index.
    pub fn bounds(&mut self, expr: &Expr) -> Result<Bounds, Fault> {
        match expr {
            Expr::And(parts) => {
                let mut bounds = Bounds::exactly(self.all());
                let mut parts: Vec<&Expr> = parts.iter().collect();
                parts.sort_by_key(|part| cost(part));
                for part in parts {
                    if bounds.may.is_empty() {
                        break;
                    }
                    let part = self.bounds(part)?;
                    bounds.sure = &bounds.sure & &part.sure;
                    bounds.may = &bounds.may & &part.may;
                }
                Ok(bounds)
            }
            Expr::Or(parts) => {
                let mut bounds = Bounds::exactly(Bits::default());
                for part in parts {
                    let part = self.bounds(part)?;
                    bounds.sure = &bounds.sure | &part.sure;
                    bounds.may = &bounds.may | &part.may;
                }
                Ok(bounds)
            }
            Expr::Not(part) => {
                let (bounds, all) = (self.bounds(part)?, self.all());
                Ok(Bounds { sure: bounds.may.not_in(&all), may: bounds.sure.not_in(&all) })
            }
            Expr::Test(test) => self.test(test),
        }
    }

    fn test(&mut self, test: &Test) -> Result<Bounds, Fault> {
        match test {
            Test::In(column, wanted) => self.any_of(*column, wanted),
            Test::Like(column, pattern) | Test::Contains(column, pattern) => {
                self.fitting(*column, pattern)
            }
            Test::Has(Column::Time | Column::Day | Column::Hour | Column::Seq | Column::Id)
            | Test::Has(Column::Kind | Column::Text) => Ok(Bounds::exactly(self.all())),
            Test::Has(column) => match self.parts(*column)? {
                Some(parts) => {
                    Ok(Bounds::exactly(joined(parts.iter().map(|(_, positions)| positions))))
                }
                None => Ok(Bounds::perhaps(self.having(*column)?)),
            },
            Test::Number(Column::Seq, compare, wanted) => {
                let (first, count) = (self.block.first(), self.block.count());
                let positions =
                    (0..count).filter(|at| compare.holds(&(first + *at as u64), wanted));
                Ok(Bounds::exactly(positions.collect()))
            }
            Test::Number(column, compare, wanted) => {
                let mut may = self.having(*column)?;
                if !self.can_be(*column, *compare, *wanted)? {
                    // The aggregates do not contain times of refusals.
                    may = &may & &self.kind(Kind::Refused)?;
                }
                Ok(Bounds::perhaps(may))
            }
            Test::Time(compare, wanted) => self.time(*compare, *wanted),
            Test::Address(_) => Ok(Bounds::perhaps(self.having(Column::Addr)?)),
        }
    }

    fn any_of(&mut self, column: Column, wanted: &[String]) -> Result<Bounds, Fault> {
        let mut positions = Bits::default();
        let mut perhaps = Bits::default();
        for value in wanted {
            match (column, field(column)) {
                (_, Some(field)) => positions = &positions | &self.block.term(field, value)?,
                (Column::Target, None) => {
                    positions = &positions | &self.block.term(Field::Tool, value)?;
                    positions = &positions | &self.block.term(Field::Target, value)?;
                }
                (Column::User, None) => {
                    let local = format!("{LOCAL}{value}");
                    positions = &positions | &self.block.term(Field::Principal, &local)?;
                    // An admin's event has its user in another field.
                    perhaps = self.kind(Kind::Event)?;
                }
                (Column::Day | Column::Hour, None) => {
                    let parts = self.parts(column)?;
                    match parts.as_deref() {
                        Some([(only, all)]) if only == value => positions = &positions | all,
                        Some(_) => {}
                        None => perhaps = self.all(),
                    }
                }
                _ => perhaps = self.having(column)?,
            }
        }
        if column == Column::User {
            // An event's principal is not its user, so its match is not certain.
            positions = &positions & &perhaps.not_in(&self.all());
        }
        let may = &positions | &perhaps;
        Ok(Bounds { sure: positions, may })
    }

    fn fitting(&mut self, column: Column, pattern: &Pattern) -> Result<Bounds, Fault> {
        let Some((field, terms)) = field(column).zip(self.terms(column)?) else {
            return Ok(Bounds::perhaps(self.having(column)?));
        };
        let mut positions = Bits::default();
        for value in terms.iter().filter(|value| pattern.fits(value)) {
            positions = &positions | &self.block.term(field, value)?;
        }
        Ok(Bounds::exactly(positions))
    }

    /// Positions whose kind of record can have this column.
    fn having(&mut self, column: Column) -> Result<Bits, Fault> {
        let kinds: &[Kind] = match column {
            Column::Total | Column::Upstream | Column::Refusal => &[Kind::Outcome, Kind::Refused],
            Column::Code => &[Kind::Outcome, Kind::Refused, Kind::Event],
            Column::Request | Column::Arguments => &[Kind::Intent, Kind::Refused],
            Column::Response | Column::Result => &[Kind::Outcome],
            Column::Event => &[Kind::Event],
            Column::Group
            | Column::Key
            | Column::Transport
            | Column::Trace
            | Column::Image
            | Column::Pin
            | Column::Tool
            | Column::Target
            | Column::Method
            | Column::Direction
            | Column::Revision
            | Column::Rule
            | Column::Finding
            | Column::Policy
            | Column::Label => &[Kind::Intent, Kind::Outcome, Kind::Refused],
            _ => return Ok(self.all()),
        };
        let positions = kinds.iter().map(|kind| self.kind(*kind)).collect::<Result<Vec<_>, _>>()?;
        Ok(joined(&positions))
    }

    /// Whether an outcome of the block can have such a time.
    fn can_be(&mut self, column: Column, compare: Compare, wanted: u64) -> Result<bool, Fault> {
        let tally = self.tally()?;
        let times = match column {
            Column::Total => &tally.total,
            Column::Upstream => &tally.server,
            _ => return Ok(true),
        };
        let Some((least, most)) = times.range() else { return Ok(false) };
        Ok(match compare {
            Compare::Less => least < wanted,
            Compare::AtMost => least <= wanted,
            Compare::More => most > wanted,
            Compare::AtLeast => most >= wanted,
            Compare::Equal => least <= wanted && wanted <= most,
        })
    }

    fn time(&self, compare: Compare, wanted: Timestamp) -> Result<Bounds, Fault> {
        let (begin, end) = (self.block.begin(), self.block.end());
        let count = self.block.count();
        // Number of records written before a time: records are in the order of their times.
        let before = |included: bool| -> Result<usize, Fault> {
            let is_before = |time: Timestamp| time < wanted || (included && time == wanted);
            if is_before(end) {
                return Ok(count);
            }
            if !is_before(begin) {
                return Ok(0);
            }
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = low.midpoint(high);
                let line = self.block.lines(&Bits::from_iter([middle]))?;
                let head = line.first().and_then(|line| line.head());
                let head = head.ok_or_else(|| Fault::Damaged("a record has no time".into()))?;
                if is_before(head.recorded) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            Ok(low)
        };
        let range = match compare {
            Compare::Less => 0..before(false)?,
            Compare::AtMost => 0..before(true)?,
            Compare::More => before(true)?..count,
            Compare::AtLeast => before(false)?..count,
            Compare::Equal => before(false)?..before(true)?,
        };
        Ok(Bounds::exactly(range.collect()))
    }
}

fn joined<'a>(all: impl IntoIterator<Item = &'a Bits>) -> Bits {
    all.into_iter().fold(Bits::default(), |joined, positions| &joined | positions)
}

/// Cost of evaluating an expression by the index. Cheap parts run first and can avoid others.
fn cost(expr: &Expr) -> u8 {
    match expr {
        Expr::And(parts) => parts.iter().map(cost).min().unwrap_or(0),
        Expr::Or(parts) => parts.iter().map(cost).max().unwrap_or(0),
        Expr::Not(part) => cost(part),
        Expr::Test(Test::Time(..) | Test::Number(Column::Seq, ..)) => 0,
        Expr::Test(Test::In(Column::Id | Column::Trace | Column::Session, _)) => 2,
        Expr::Test(Test::In(column, _)) if field(*column).is_some() => 1,
        Expr::Test(_) => 3,
    }
}
