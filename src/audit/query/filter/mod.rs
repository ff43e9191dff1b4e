//! The language of filters: `client = "ci-bot" and not server = notes and time > 24h ago`.
//!
//! - [`Filter`] is a filter that was read. Its text is the language again, with every time written
//!   out, so that it means the same tomorrow and in another time zone.
//! - [`Column`] has the fields of a record that can be asked for, shown and counted by.
//! - [`IllegalFilter`] tells what is wrong, where, and what to write instead.
//!
//! Nothing here knows records or stores: `matches` decides on a record, `plan` on a block.

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

/// Which records. Everything, unless something is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter(Expr);

impl Filter {
    /// Reads a filter. Times without a zone are of `now`'s; `24h ago` is before it.
    ///
    /// # Errors
    /// [`IllegalFilter`], a diagnostic with the place.
    pub fn parse(text: &str, now: &Zoned) -> Result<Self, IllegalFilter> {
        parse::parse(text, now).map(Self)
    }

    /// What both find.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(Expr::all([self.0, other.0]))
    }

    /// Records with this value in this column. `None` where the column has no such values.
    pub fn equals(column: Column, value: &str) -> Option<Self> {
        let text = match column.ty() {
            Type::Text => true,
            Type::Word(words) => words.contains(&value),
            _ => false,
        };
        let test = Test::In(column, vec![value.to_owned()]);
        text.then_some(Self(Expr::Test(test)))
    }

    /// Records that were written at this time or later.
    pub fn since(time: Timestamp) -> Self {
        Self(Expr::Test(Test::Time(Compare::AtLeast, time)))
    }

    /// Records that were written before this time.
    pub fn until(time: Timestamp) -> Self {
        Self(Expr::Test(Test::Time(Compare::Less, time)))
    }

    /// Whether it says anything of the time of writing.
    pub fn says_when(&self) -> bool {
        let mut says = false;
        self.0.tests(&mut |test| {
            says |= matches!(test.column(), Column::Time | Column::Day | Column::Hour);
        });
        says
    }

    /// Whether it finds every record.
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
