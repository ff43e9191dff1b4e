//! A filter as a tree, and its text form.

use std::fmt;

use jiff::Timestamp;

use super::{
    column::{Column, Type},
    literal::{self, Network, Pattern},
};

/// Condition on a record.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::query) enum Expr {
    /// All of these. An empty list is true.
    And(Vec<Expr>),
    /// One of these. An empty list is false.
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Test(Test),
}

/// Condition on one column.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::query) enum Test {
    /// One of the column's values is in the list.
    In(Column, Vec<String>),
    /// One of the column's values matches the pattern.
    Like(Column, Pattern),
    /// One of the column's texts contains the pattern.
    Contains(Column, Pattern),
    /// The column has a number (microseconds, bytes) for which the comparison is true.
    Number(Column, Compare, u64),
    /// The comparison is true for the time of writing.
    Time(Compare, Timestamp),
    /// The client's address is in one of these networks.
    Address(Vec<Network>),
    /// The column has a value.
    Has(Column),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::query) enum Compare {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

impl Compare {
    pub fn holds<T: Ord>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::More => left > right,
            Self::AtLeast => left >= right,
            Self::Equal => left == right,
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
            Self::Equal => "=",
        }
    }
}

impl Default for Expr {
    fn default() -> Self {
        Self::And(Vec::new())
    }
}

impl Expr {
    /// Conjunction of these.
    pub fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Vec::new();
        for part in parts {
            match part {
                Self::And(more) => all.extend(more),
                one => all.push(one),
            }
        }
        match <[Self; 1]>::try_from(all) {
            Ok([one]) => one,
            Err(all) => Self::And(all),
        }
    }

    /// Disjunction of these.
    pub fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut any = Vec::new();
        for part in parts {
            match part {
                Self::Or(more) => any.extend(more),
                one => any.push(one),
            }
        }
        match <[Self; 1]>::try_from(any) {
            Ok([one]) => one,
            Err(any) => Self::Or(any),
        }
    }

    /// Calls `each` for every test in the expression.
    pub fn tests(&self, each: &mut impl FnMut(&Test)) {
        match self {
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.tests(each)),
            Self::Not(part) => part.tests(each),
            Self::Test(test) => each(test),
        }
    }

    fn strength(&self) -> u8 {
        match self {
            Self::Or(_) => 0,
            Self::And(_) => 1,
            Self::Not(_) | Self::Test(_) => 2,
        }
    }

    fn part(&self, around: u8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.strength() <= around { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

impl Test {
    pub fn column(&self) -> Column {
        match self {
            Self::In(column, _)
            | Self::Like(column, _)
            | Self::Contains(column, _)
            | Self::Number(column, ..)
            | Self::Has(column) => *column,
            Self::Time(..) => Column::Time,
            Self::Address(_) => Column::Addr,
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, word) = match self {
            Self::And(parts) => (parts, "and"),
            Self::Or(parts) => (parts, "or"),
            Self::Not(part) => {
                f.write_str("not ")?;
                return part.part(1, f);
            }
            Self::Test(test) => return test.fmt(f),
        };
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                write!(f, " {word} ")?;
            }
            part.part(self.strength(), f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(column, values) => list(*column, values.iter().map(|v| literal::quoted(v)), f),
            Self::Like(column, pattern) => {
                write!(f, "{column} ~ {}", literal::quoted(pattern.text()))
            }
            Self::Contains(column, pattern) => {
                write!(f, "{column} contains {}", literal::quoted(pattern.text()))
            }
            Self::Number(column, compare, number) => {
                write!(f, "{column} {} ", compare.sign())?;
                match column.ty() {
                    Type::Duration => f.write_str(&literal::micros(*number)),
                    _ => number.fmt(f),
                }
            }
            Self::Time(compare, time) => write!(f, "time {} {time}", compare.sign()),
            Self::Address(networks) => {
                list(Column::Addr, networks.iter().map(|network| network.to_string().into()), f)
            }
            Self::Has(column) => write!(f, "has {column}"),
        }
    }
}

fn list<'a>(
    column: Column,
    mut values: impl ExactSizeIterator<Item = std::borrow::Cow<'a, str>>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    if values.len() == 1 {
        return write!(f, "{column} = {}", values.next().unwrap_or_default());
    }
    write!(f, "{column} in ({})", values.collect::<Vec<_>>().join(", "))
}
