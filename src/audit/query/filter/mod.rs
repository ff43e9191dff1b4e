//! The language of filters: `client = "ci-bot" and not server = notes and time > 24h ago`.
//!
//! - [`Filter`] is a parsed filter. Its text form has absolute times, so that its meaning does not
//!   depend on the current time or the time zone.
//! - [`Column`] is a field of a record for filters, tables and counts.
//! - [`IllegalFilter`] reports the problem, its position, and the remedy.
//!
//! This module does not depend on stores: `matches` tests a record, `plan` a block.

mod column;
mod expr;
mod illegal;
mod literal;
mod parse;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub use self::{
    column::{Column, IllegalColumn, Type},
    illegal::IllegalFilter,
};
pub(super) use self::{
    expr::{Compare, Expr, Test},
    literal::Pattern,
};

/// Filter for records. The default finds every record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter(Expr);

impl Filter {
    /// Parses a filter. Times without a zone are in the zone of `now`; `24h ago` is relative to it.
    ///
    /// # Errors
    /// [`IllegalFilter`], a diagnostic with the position.
    pub fn parse(text: &str, now: &Zoned) -> Result<Self, IllegalFilter> {
        parse::parse(text, now).map(Self)
    }

    /// Filter for the records that both filters find.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(Expr::all([self.0, other.0]))
    }

    /// Records with this value in this column. `None` if the column cannot have such a value.
    pub fn equals(column: Column, value: &str) -> Option<Self> {
        let text = match column.ty() {
            Type::Text => true,
            Type::Word(words) => words.contains(&value),
            _ => false,
        };
        let test = Test::In(column, vec![value.to_owned()]);
        text.then_some(Self(Expr::Test(test)))
    }

    /// Records written at this time or later.
    pub fn since(time: Timestamp) -> Self {
        Self(Expr::Test(Test::Time(Compare::AtLeast, time)))
    }

    /// Records written before this time.
    pub fn until(time: Timestamp) -> Self {
        Self(Expr::Test(Test::Time(Compare::Less, time)))
    }

    /// Whether the filter tests the time of writing.
    pub fn uses_time(&self) -> bool {
        let mut found = false;
        self.0.tests(&mut |test| {
            found |= matches!(test.column(), Column::Time | Column::Day | Column::Hour);
        });
        found
    }

    /// Whether the filter tests arguments or results, which records have only where a policy keeps
    /// them.
    pub fn uses_bodies(&self) -> bool {
        let mut found = false;
        self.0.tests(&mut |test| {
            found |= matches!(test.column(), Column::Arguments | Column::Result);
        });
        found
    }

    /// Whether the filter finds every record.
    pub fn is_all(&self) -> bool {
        self.0 == Expr::default()
    }

    pub(super) fn expr(&self) -> &Expr {
        &self.0
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Filter {
    type Err = IllegalFilter;

    fn from_str(text: &str) -> Result<Self, IllegalFilter> {
        Self::parse(text, &Zoned::now())
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|illegal: IllegalFilter| D::Error::custom(illegal.advice()))
    }
}
