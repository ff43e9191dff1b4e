//! A compiled schema, and its check of a value.

use std::fmt::Write as _;

use jsonschema::{PatternOptions, ValidationError, Validator, error::ValidationErrorKind as Kind};
use serde_json::Value;

use super::{
    complexity::{Bound, LINEAR_PATTERN, Unbounded},
    short,
};

/// Limit of a schema's text in bytes.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Limit in bytes of one compiled pattern, and of its automaton.
pub(super) const MAX_PATTERN_BYTES: usize = 256 << 10;
/// Limit of the backtracking steps to match one pattern that has look-around or back-references. A
/// step takes about a unit of work for each 32 bytes of text.
const MAX_BACKTRACKS: u16 = 2_000;
/// Limit in units of work for one instance. A unit takes tens of nanoseconds.
const MAX_WORK: u64 = 20_000_000;
/// Units of work up to which errors are described with their position.
const MAX_EXPLAINED_WORK: u64 = 200_000;
/// Limit of nested evaluations, which a thread's stack must hold.
const MAX_NESTING: u64 = 256;
/// Limit of the reported errors of one value.
const MAX_ERRORS: usize = 3;

/// Reason why a schema is unusable. The text is for the operator: it contains the server's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("is missing")]
    Missing,
    #[error("is longer than {MAX_SCHEMA_BYTES} bytes")]
    Long,
    #[error("{0}")]
    Unbounded(#[from] Unbounded),
    #[error("is not legal: {0}")]
    Illegal(String),
}

/// Failure of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CheckFailure {
    /// The value does not fit: position and expectation, without any part of the value.
    Invalid(String),
    /// The check would take too long.
    Costly,
}

/// A usable schema.
pub(super) struct Check {
    validator: Validator,
    bound: Bound,
}

impl Check {
    /// Compiles a schema. Takes long for long ones, and needs a large stack.
    pub(super) fn of(schema: &Value) -> Result<Self, Unusable> {
        if schema.to_string().len() > MAX_SCHEMA_BYTES {
            return Err(Unusable::Long);
        }
        let bound = Bound::of(schema, LINEAR_PATTERN)?;
        // Patterns are the server's text, so they are matched in linear time where they can be.
        let linear =
            PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let options = jsonschema::options().offline();
        if let Ok(validator) = options.clone().with_pattern_options(linear).build(schema) {
            return Ok(Self { validator, bound });
        }
        // Look-around and back-references need an engine that backtracks.
        let bound = Bound::of(schema, LINEAR_PATTERN + u64::from(MAX_BACKTRACKS))?;
        let backtracking = PatternOptions::fancy_regex()
            .backtrack_limit(MAX_BACKTRACKS.into())
            .size_limit(MAX_PATTERN_BYTES)
            .dfa_size_limit(MAX_PATTERN_BYTES);
        let validator = options
            .with_pattern_options(backtracking)
            .build(schema)
            .map_err(|error| Unusable::Illegal(short(&error.to_string())))?;
        Ok(Self { validator, bound })
    }

    /// Estimated size in bytes, rather too large.
    pub(super) fn bytes(&self) -> usize {
        (self.bound.patterns + 1) * MAX_PATTERN_BYTES
    }

    /// Upper bound of the work to check this value; `None` if it is too much.
    pub(super) fn work(&self, value: &Value) -> Option<u64> {
        let size = Size::of(value);
        let (work, nesting) = self.bound.at(size.depth)?;
        let work = work.saturating_mul(size.weight);
        (work <= MAX_WORK && nesting <= MAX_NESTING).then_some(work)
    }

    /// Checks whether the value fits.
    pub(super) fn check(&self, value: &Value) -> Result<(), CheckFailure> {
        let work = self.work(value).ok_or(CheckFailure::Costly)?;
        if self.validator.is_valid(value) {
            return Ok(());
        }
        if work > MAX_EXPLAINED_WORK {
            return Err(CheckFailure::Invalid("they do not fit the schema".into()));
        }
        let mut words = String::new();
        let mut errors = self.validator.iter_errors(value);
        for error in errors.by_ref().take(MAX_ERRORS) {
            let _ = write!(words, "{}; ", self.describe(&error));
        }
        let more = errors.count();
        if more > 0 {
            let _ = write!(words, "and {more} more; ");
        }
        words.truncate(words.trim_end_matches("; ").len());
        Err(CheckFailure::Invalid(words))
    }

    /// Position and expectation of an error. Contains only text of the schema and numbers: a
    /// property that the schema does not name is shown as `*`.
    fn describe(&self, error: &ValidationError<'_>) -> String {
        let mut path = String::new();
        for part in error.instance_path().as_str().split('/').skip(1) {
            path.push('/');
            let name = part.replace("~1", "/").replace("~0", "~");
            let is_declared = self.bound.names.contains(&name);
            let index = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            path.push_str(if is_declared || (index && part.len() < 8) { part } else { "*" });
        }
        let expectation = expectation(error.kind());
        match path.as_str() {
            "" => format!("the top level {}", short(&expectation)),
            path => format!("`{}` {}", short(path), short(&expectation)),
        }
    }
}

/// Expectation of the schema, from the schema only.
fn expectation(kind: &Kind) -> String {
    match kind {
        Kind::Required { property } => {
            format!("lacks `{}`", property.as_str().unwrap_or_default())
        }
        Kind::Type { kind: jsonschema::error::TypeKind::Single(expected) } => {
            format!("is not of type {expected}")
        }
        Kind::Type { .. } => "is of a type that is not allowed".into(),
        Kind::Enum { options } => format!("is not one of {options}"),
        Kind::Constant { expected_value } => format!("is not {expected_value}"),
        Kind::Pattern { pattern } => format!("does not match the pattern `{pattern}`"),
        Kind::Format { format } => format!("is not a valid {format}"),
        Kind::Minimum { limit } => format!("is less than {limit}"),
        Kind::Maximum { limit } => format!("is greater than {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("is not greater than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("is not less than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("is not a multiple of {multiple_of}"),
        Kind::MinLength { limit } => format!("is shorter than {limit} characters"),
        Kind::MaxLength { limit } => format!("is longer than {limit} characters"),
        Kind::MinItems { limit } => format!("has fewer than {limit} items"),
        Kind::MaxItems { limit } => format!("has more than {limit} items"),
        Kind::AdditionalItems { limit } => format!("has more than {limit} items"),
        Kind::MinProperties { limit } => format!("has fewer than {limit} properties"),
        Kind::MaxProperties { limit } => format!("has more than {limit} properties"),
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let (number, what) = (unexpected.len(), "that the schema does not name");
            format!("has {number} {} {what}", if number == 1 { "property" } else { "properties" })
        }
        Kind::UniqueItems => "has a duplicate item".into(),
        Kind::FalseSchema => "must be absent".into(),
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => "fits none of the alternatives".into(),
        Kind::OneOfMultipleValid { .. } => "fits more than one of the alternatives".into(),
        other => format!("does not fit `{}`", other.keyword()),
    }
}

/// Depth and size of a value: values, and units of 32 bytes of text.
struct Size {
    depth: usize,
    weight: u64,
}

impl Size {
    fn of(value: &Value) -> Self {
        let (mut depth, mut weight) = (0, 0u64);
        let mut open = vec![(value, 0)];
        while let Some((value, at)) = open.pop() {
            depth = depth.max(at);
            weight += 1;
            match value {
                Value::String(text) => weight += text.len() as u64 / 32,
                Value::Array(items) => open.extend(items.iter().map(|item| (item, at + 1))),
                Value::Object(members) => {
                    weight += members.keys().map(|key| key.len() as u64 / 32).sum::<u64>();
                    open.extend(members.values().map(|member| (member, at + 1)));
                }
                _ => {}
            }
        }
        Self { depth, weight }
    }
}
