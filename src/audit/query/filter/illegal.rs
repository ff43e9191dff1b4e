//! Errors of filters.

use std::{fmt, ops::Range};

use miette::{Diagnostic, LabeledSpan, SourceCode};

/// Error of a filter: the problem, its position, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IllegalFilter {
    text: String,
    what: String,
    label: &'static str,
    help: Option<String>,
    span: Range<usize>,
}

/// Maximum bytes of a filter that are shown.
const SHOWN: usize = 400;

impl IllegalFilter {
    pub(super) fn new(
        text: &str,
        span: Range<usize>,
        what: String,
        label: &'static str,
        help: Option<String>,
    ) -> Self {
        // Control characters for a terminal are shown as spaces; positions of bytes stay the same.
        let mut shown = String::with_capacity(text.len());
        for c in text.chars() {
            if c.is_control() {
                shown.extend(std::iter::repeat_n(' ', c.len_utf8()));
            } else {
                shown.push(c);
            }
        }
        let from = text.floor_char_boundary(span.start.saturating_sub(SHOWN));
        let to = text.ceil_char_boundary(span.start.saturating_add(SHOWN));
        let mut shown = shown.get(from..to).unwrap_or_default().to_owned();
        // Room to point at the end, where something may be missing.
        shown.push(' ');
        let begin = (span.start - from).min(shown.len() - 1);
        let span = begin..(span.end - from).clamp(begin + 1, shown.len());
        Self { text: shown, what, label, help, span }
    }

    /// Problem and remedy, in one line.
    pub fn advice(&self) -> String {
        match &self.help {
            Some(help) => format!("{}: {help}", self.what),
            None => self.what.clone(),
        }
    }
}

impl fmt::Display for IllegalFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for IllegalFilter {}

impl Diagnostic for IllegalFilter {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("audit-filter"))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = Some(self.label.to_owned()).filter(|label| !label.is_empty());
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(label, self.span.clone()))))
    }
}
