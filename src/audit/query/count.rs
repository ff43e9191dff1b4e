//! Counts of the records that a filter finds, by the values of columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    NOTES, Order,
    filter::{Column, Filter, Type},
    page::between,
    plan::BlockQuery,
    values::holds,
    walk::{Walk, beyond},
};
use crate::{
    line::Seq,
    record::Kind,
    store::{Bits, Block, Fault, View},
};

/// Maximum number of groups with their own count.
const GROUPS: usize = 10_000;
/// Maximum number of columns of a group.
pub const GROUP_MAX: usize = 4;

/// Request to count the records that a filter finds for each combination of values in these
/// columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CountRequest {
    /// Filter for records.
    pub filter: Filter,
    /// Columns of a group. Without columns, the result is one number.
    pub by: By,
    /// Count intents even if the filter does not select them: a decision is then counted twice.
    pub intents: bool,
    /// Only records after this one: `next` of the preceding slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
}

/// Columns to count by: at most [`GROUP_MAX`], and at most one with several values per record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Column>", into = "Vec<Column>")]
pub struct By(Vec<Column>);

/// Columns that cannot be counted by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalGroup {
    /// The column has no values, or few records share a value.
    #[error("nothing can be counted by `{0}`: hardly two records have the same")]
    Column(Column),
    #[error("records are counted by at most {GROUP_MAX} fields")]
    Many,
    /// There would be too many combinations of values.
    #[error("records can have several values in each of `{0}` and `{1}`: count by one of them")]
    Several(Column, Column),
}

impl By {
    /// The columns.
    pub fn columns(&self) -> &[Column] {
        &self.0
    }
}

impl TryFrom<Vec<Column>> for By {
    type Error = IllegalGroup;

    fn try_from(columns: Vec<Column>) -> Result<Self, IllegalGroup> {
        if let Some(column) = columns.iter().find(|column| !column.can_group()) {
            return Err(IllegalGroup::Column(*column));
        }
        if columns.len() > GROUP_MAX {
            return Err(IllegalGroup::Many);
        }
        let mut several = columns.iter().filter(|column| column.has_several());
        match (several.next(), several.next()) {
            (Some(one), Some(other)) => Err(IllegalGroup::Several(*one, *other)),
            _ => Ok(Self(columns)),
        }
    }
}

impl From<By> for Vec<Column> {
    fn from(by: By) -> Self {
        by.0
    }
}

/// Some groups. The sum of all slices is the result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Groups, in the order of their values. `null` stands for a missing value.
    pub groups: Vec<Group>,
    /// Records of groups beyond the first [`GROUPS`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub others: u64,
    /// Start of the next slice. Absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Seq>,
    /// Parts of the store that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A combination of values and its number of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub values: Vec<Option<String>>,
    pub count: u64,
}

impl Column {
    fn can_group(self) -> bool {
        match self.ty() {
            Type::Text | Type::Word(_) | Type::Address => self != Self::Id,
            _ => false,
        }
    }
}

/// Sum of slices.
#[derive(Debug, Default)]
pub struct Counting {
    groups: BTreeMap<Vec<Option<String>>, u64>,
    others: u64,
}

impl Counting {
    fn add(&mut self, values: Vec<Option<String>>, count: u64) {
        if count == 0 {
            return;
        }
        let room = self.groups.len() < GROUPS;
        match self.groups.get_mut(&values) {
            Some(sum) => *sum += count,
            None if room => {
                self.groups.insert(values, count);
            }
            None => self.others += count,
        }
    }

    /// Adds a slice.
    pub fn take(&mut self, counted: Counted) {
        counted.groups.into_iter().for_each(|group| self.add(group.values, group.count));
        self.others += counted.others;
    }

    /// Groups in the order of their values, and the number of records in groups beyond the limit.
    pub fn finish(self) -> (Vec<Group>, u64) {
        let groups = self.groups.into_iter().map(|(values, count)| Group { values, count });
        (groups.collect(), self.others)
    }
}

/// Counts one slice.
pub(super) fn count(view: &View, request: &CountRequest) -> Counted {
    let order = Order::OldestFirst;
    let mut walk = Walk::new(view, &request.filter, order, request.after);
    let (first, last) = walk.remaining();
    let pace = walk.pace();
    let mut counting = Counting::default();
    let mut counted = Counted::default();
    let note = |counted: &mut Counted, what: String| {
        tracing::error!("{what}");
        if counted.unreadable.len() < NOTES {
            counted.unreadable.push(what);
        }
    };
    'walk: while let Some(step) = walk.step() {
        step.unreadable.into_iter().for_each(|what| note(&mut counted, what));
        for block in &step.blocks {
            let range = between(block, first, last);
            let mut unreadable = Vec::new();
            match count_block(block, request, &range, &mut counting, &mut unreadable) {
                Ok(()) => unreadable.into_iter().for_each(|what| note(&mut counted, what)),
                Err(fault) => note(&mut counted, fault.to_string()),
            }
            if pace.is_over() {
                counted.next = Some(beyond(block, order));
                break 'walk;
            }
        }
        if pace.is_over() {
            counted.next = Some(step.done);
            break;
        }
    }
    counted.next = counted.next.filter(|next| next.0 < last);
    (counted.groups, counted.others) = counting.finish();
    counted
}

fn count_block(
    block: &Block,
    request: &CountRequest,
    range: &Bits,
    counting: &mut Counting,
    unreadable: &mut Vec<String>,
) -> Result<(), Fault> {
    let CountRequest { filter, by, intents, after: _ } = request;
    let mut block_query = BlockQuery::new(block);
    let bounds = block_query.bounds(filter.expr())?;
    let mut positions = &bounds.may & range;
    if !intents && !filter.asks_for_intents() && !positions.is_empty() {
        positions = block_query.kind(Kind::Intent)?.not_in(&positions);
    }
    if positions.is_empty() {
        return Ok(());
    }
    if bounds.is_exact()
        && let Some(parts) = parts(&mut block_query, by.columns(), &positions)?
    {
        combine(&positions, &parts, &mut Vec::new(), counting);
        return Ok(());
    }
    for line in block.lines(&positions)? {
        let entry = match line.entry() {
            Ok(entry) => entry,
            Err(what) => {
                unreadable.push(what);
                continue;
            }
        };
        let position = usize::try_from(line.seq().0 - block.first()).unwrap_or(usize::MAX);
        if !bounds.sure.contains(position) && !holds(filter.expr(), &entry) {
            continue;
        }
        let values: Vec<Vec<Option<String>>> = by
            .columns()
            .iter()
            .map(|column| {
                let values = column.values(&entry);
                match values.is_empty() {
                    true => vec![None],
                    false => values.into_iter().map(|value| Some(value.into_owned())).collect(),
                }
            })
            .collect();
        cross(&values, &mut Vec::new(), counting);
    }
    Ok(())
}

type Parts = Vec<Vec<(Option<String>, Bits)>>;

/// Positions by value of each column. `None` if the index does not know the values or reading the
/// records is faster.
fn parts(
    block_query: &mut BlockQuery<'_>,
    by: &[Column],
    positions: &Bits,
) -> Result<Option<Parts>, Fault> {
    let mut all = Parts::new();
    let mut values = 0;
    for column in by {
        let Some(parts) = block_query.parts(*column)? else { return Ok(None) };
        values += parts.len();
        let mut rest = positions.clone();
        let mut column: Vec<(Option<String>, Bits)> = Vec::with_capacity(parts.len() + 1);
        for (value, of) in parts {
            rest = of.not_in(&rest);
            column.push((Some(value), of));
        }
        column.push((None, rest));
        all.push(column);
    }
    // A lookup of a value takes about as long as reading a record.
    Ok((positions.count() >= values).then_some(all))
}

fn combine(
    positions: &Bits,
    parts: &[Vec<(Option<String>, Bits)>],
    values: &mut Vec<Option<String>>,
    counting: &mut Counting,
) {
    let Some((column, rest)) = parts.split_first() else {
        counting.add(values.clone(), positions.count() as u64);
        return;
    };
    for (value, of) in column {
        let both = positions & of;
        if !both.is_empty() {
            values.push(value.clone());
            combine(&both, rest, values, counting);
            values.pop();
        }
    }
}

fn cross(
    columns: &[Vec<Option<String>>],
    values: &mut Vec<Option<String>>,
    counting: &mut Counting,
) {
    let Some((column, rest)) = columns.split_first() else {
        counting.add(values.clone(), 1);
        return;
    };
    for value in column {
        values.push(value.clone());
        cross(rest, values, counting);
        values.pop();
    }
}
