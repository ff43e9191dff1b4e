//! Units of settings: durations and sizes as people write them.

use std::{borrow::Cow, fmt, str::FromStr};

use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A duration: `90d`, `12h`, `26w`. Days have 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub SignedDuration);

/// Error for text that is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write an age in weeks, days or hours, such as `90d`: months and years differ in length")]
pub struct IllegalAge;

impl FromStr for Age {
    type Err = IllegalAge;

    fn from_str(text: &str) -> Result<Self, IllegalAge> {
        let span: Span = text.parse().map_err(|_| IllegalAge)?;
        let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| IllegalAge)?;
        if age.is_positive() { Ok(Self(age)) } else { Err(IllegalAge) }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.0.as_hours();
        if hours > 0 && hours % 24 == 0 && self.0 == SignedDuration::from_hours(hours) {
            return write!(f, "{}d", hours / 24);
        }
        write!(f, "{:#}", self.0)
    }
}

impl TryFrom<String> for Age {
    type Error = IllegalAge;

    fn try_from(text: String) -> Result<Self, IllegalAge> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> String {
        age.to_string()
    }
}

impl JsonSchema for Age {
    fn schema_name() -> Cow<'static, str> {
        "Age".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "age",
            "description": "A number of weeks, days or hours: `26w`, `90d`, `12h`.",
        })
    }
}

/// Bytes: `20GiB`, `500MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// Error for text that is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a size with its unit, such as `20GiB` or `500MB`")]
pub struct IllegalSize;

impl FromStr for Size {
    type Err = IllegalSize;

    fn from_str(text: &str) -> Result<Self, IllegalSize> {
        let bytes = text.parse::<ByteSize>().map_err(|_| IllegalSize)?.as_u64();
        let unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
        if unit && bytes > 0 { Ok(Self(bytes)) } else { Err(IllegalSize) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that is exact, so that the text round-trips.
        let units = ["TiB", "GiB", "MiB", "KiB"];
        let sizes = units.iter().zip([40u32, 30, 20, 10]);
        for (unit, shift) in sizes {
            if self.0 >> shift > 0 && (self.0 >> shift) << shift == self.0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl TryFrom<String> for Size {
    type Error = IllegalSize;

    fn try_from(text: String) -> Result<Self, IllegalSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "size",
            "description": "A number of bytes with its unit: `20GiB`, `500MB`.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_parsed_or_refused() {
        for (text, hours, shown) in [
            ("90d", 90 * 24, "90d"),
            ("26w", 26 * 7 * 24, "182d"),
            ("12h", 12, "12h"),
            ("1d 6h", 30, "30h"),
            ("7 days", 7 * 24, "7d"),
        ] {
            let age: Age = text.parse().unwrap();
            assert_eq!(age.0, SignedDuration::from_hours(hours), "{text}");
            assert_eq!(age.to_string(), shown);
            assert_eq!(shown.parse::<Age>().unwrap(), age);
        }
        for text in ["", "90", "0d", "-1d", "3 months", "1y", "soon", "99999999999999w"] {
            assert_eq!(text.parse::<Age>(), Err(IllegalAge), "{text}");
        }
        for (text, bytes, shown) in [
            ("20GiB", 20 << 30, "20GiB"),
            ("500MB", 500_000_000, "500000000B"),
            ("1.5 GiB", 3 << 29, "1536MiB"),
            ("1B", 1, "1B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
            assert_eq!(shown.parse::<Size>().unwrap(), size);
        }
        for text in ["", "20", "0GiB", "-1GiB", "GiB", "20 parsecs"] {
            assert_eq!(text.parse::<Size>(), Err(IllegalSize), "{text}");
        }
    }
}
