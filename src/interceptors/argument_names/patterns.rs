//! Patterns of the names of arguments.

use regex::bytes::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use portcullis_protocol::codec::fold;

/// Bytes of a compiled pattern.
const PATTERN_BYTES: usize = 256 << 10;

/// A pattern of names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern<'s> {
    pub text: &'s str,
    /// Whether it defines the members that it matches, as `patternProperties` does. `propertyNames`
    /// only restricts their names.
    pub defines: bool,
}

/// A pattern of names, as it is written and in any case.
pub(super) struct Compiled {
    written: Regex,
    any_case: Regex,
}

impl Compiled {
    /// The pattern as JSON Schema reads it (ECMA-262), where it needs neither look-around nor
    /// back-references.
    pub fn of(text: &str) -> Option<Self> {
        let text = jsonschema_regex::to_rust_regex(text).ok()?;
        let build = |unicode, any_case| {
            let mut builder = RegexBuilder::new(&text);
            builder.unicode(unicode).case_insensitive(any_case);
            builder.size_limit(PATTERN_BYTES).build().ok()
        };
        // By bytes, which takes a hundredth of the memory: names of other letters are matched in their
        // lower and upper case, too. Classes of such letters need Unicode.
        let of = |unicode| {
            Some(Self { written: build(unicode, false)?, any_case: build(unicode, true)? })
        };
        of(false).or_else(|| of(true))
    }

    /// Whether it means a name in another case.
    pub fn means_other_case_of(&self, name: &str) -> bool {
        let others = [fold(name.into()), name.to_lowercase().into(), name.to_uppercase().into()];
        !self.written.is_match(name.as_bytes())
            && (self.any_case.is_match(name.as_bytes())
                || others.iter().any(|other| self.any_case.is_match(other.as_bytes())))
    }

    /// Whether it means a name as it is spelled, and not just any case of it.
    pub fn means_case_of(&self, name: &str) -> bool {
        self.written.is_match(name.as_bytes())
            && !(self.written.is_match(name.to_lowercase().as_bytes())
                && self.written.is_match(name.to_uppercase().as_bytes()))
    }
}

/// The pattern that a schema of a member's name has.
pub(super) fn pattern(schema: &Map<String, Value>) -> Option<Pattern<'_>> {
    let text = schema.get("pattern")?.as_str()?;
    Some(Pattern { text, defines: false })
}

/// The patterns by which a schema defines members.
pub(super) fn patterns_in(schema: &Map<String, Value>) -> impl Iterator<Item = Pattern<'_>> {
    keys(schema.get("patternProperties")).map(|text| Pattern { text, defines: true })
}

/// The keys of an object.
pub(super) fn keys(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::keys).map(String::as_str)
}

/// The name that a pattern is, where it is one, and maybe bound to the whole of one.
pub(super) fn name_in(pattern: &str) -> Option<&str> {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    let name = name.strip_suffix('$').unwrap_or(name);
    let is_name = |c: char| c.is_alphanumeric() || "_-".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

/// Whether a pattern matches one name only. Without an anchor it matches parts of other names, too.
pub(super) fn is_one_name(Pattern { text, .. }: &Pattern) -> bool {
    text.starts_with('^') && text.ends_with('$') && name_in(text).is_some()
}
