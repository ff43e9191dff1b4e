//! Regexes of rules.

use std::sync::{Arc, OnceLock};

use regex::bytes::{Regex, RegexBuilder};

/// Limit of a compiled regex in bytes.
pub(super) const MAX_PATTERN_BYTES: usize = 4 << 20;

/// A regex that is compiled for the first text with a keyword of its rule. Most rules never need
/// theirs, and those of all built-in rules take 20 MB.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Arc<Lazy>);

#[derive(Debug)]
struct Lazy {
    text: String,
    compiled: OnceLock<Result<Regex, regex::Error>>,
}

impl Pattern {
    /// A regex of bytes, not characters: Unicode classes make scanning ten times slower.
    pub fn new(text: String) -> Self {
        Self(Arc::new(Lazy { text, compiled: OnceLock::new() }))
    }

    /// The compiled regex.
    ///
    /// # Errors
    /// If it has a syntax error or is too large. A check that needs it must then refuse.
    pub fn get(&self) -> Result<&Regex, &regex::Error> {
        let Lazy { text, compiled } = &*self.0;
        compiled
            .get_or_init(|| {
                RegexBuilder::new(text).unicode(false).size_limit(MAX_PATTERN_BYTES).build()
            })
            .as_ref()
    }

    /// Text of the regex.
    #[cfg(test)]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

impl From<Regex> for Pattern {
    fn from(regex: Regex) -> Self {
        let text = regex.as_str().to_owned();
        Self(Arc::new(Lazy { text, compiled: OnceLock::from(Ok(regex)) }))
    }
}
