//! Findings about a config: problem, position and remedy.

use std::{
    fmt,
    ops::Range,
    path::Path,
    sync::{Arc, LazyLock},
};

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use regex::Regex;

use portcullis_catalog::segment_holds_secret;

macro_rules! codes {
    ($(#[doc = $doc:literal] $variant:ident = $text:literal;)*) => {
        /// Kinds of findings. The text of a published code never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $doc] $variant,)*
        }

        impl Code {
            /// Every code, for the docs and the tests.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// Stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// Meaning, in one sentence.
            pub fn about(self) -> &'static str {
                match self { $(Code::$variant => $doc.trim_ascii(),)* }
            }
        }
    };
}

codes! {
    /// The file does not exist or cannot be read.
    Unreadable = "config-unreadable";
    /// The file is not valid TOML.
    Syntax = "config-syntax";
    /// Unknown key.
    UnknownKey = "config-unknown-key";
    /// A required key is missing.
    MissingKey = "config-missing-key";
    /// A value has the wrong type or format.
    BadValue = "config-bad-value";
    /// Two settings contradict each other.
    Conflict = "config-conflict";
    /// A setting weakens security without the key that confirms it.
    Unsafe = "config-unsafe";
    /// A secret is in plain text.
    LiteralSecret = "config-literal-secret";
    /// A value is above a ceiling of `[limits.servers]`.
    AboveCeiling = "config-above-ceiling";
    /// Policies do not permit a setting.
    NotPermitted = "config-not-permitted";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Limit of the findings reported for one file.
pub(super) const MAX_FINDINGS: usize = 100;

/// Text of a file for messages: without secrets and control characters, with every byte at its
/// position.
#[derive(Debug, Clone)]
pub(super) struct Source {
    name: Arc<str>,
    shown: Arc<str>,
}

/// String values of keys whose names suggest a secret, and text anywhere that looks like one. Only
/// for displayed errors, so it may hide too much.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let patterns = [
        r#"(?i)(?:token|secret|passw|credential|api[_-]?key|private[_-]?key|_key|_pass|_pat\b|auth|bearer|cookie|session|dsn|webhook|signing|connection[_-]string)[a-z0-9_-]*["']?[ \t]*=[ \t]*(?:"""(?P<a>(?s:.*?))(?:"""|\z)|'''(?P<b>(?s:.*?))(?:'''|\z)|"(?P<c>[^"\n]*)|'(?P<d>[^'\n]*))"#,
        r"(?P<e>-----BEGIN[ A-Z]*PRIVATE KEY(?s:.*?)(?:-----END[ A-Z-]*|\z))",
        r#"://(?P<g>[^/\s"'@]+)@"#,
        r"(?P<f>\b(?:gh[oprsu]_|github_pat_|glpat-|xox[abeprs]-|sk-|AKIA|pck_)[A-Za-z0-9_-]{8,})",
    ];
    #[expect(clippy::unwrap_used, reason = "a constant, compiled by every test of this file")]
    Regex::new(&patterns.join("|")).unwrap()
});

/// URL, whose parts may be secrets.
static URLS: LazyLock<Regex> = LazyLock::new(|| {
    #[expect(clippy::unwrap_used, reason = "a constant, compiled by every test of this file")]
    Regex::new(r#"https?://[^\s"']+"#).unwrap()
});

impl Source {
    pub fn new(path: &Path, text: &str) -> Self {
        let name = path.display().to_string();
        let name: String =
            name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let mut bytes = text.as_bytes().to_vec();
        for found in SECRETS.captures_iter(text) {
            for group in found.iter().skip(1).flatten() {
                mask(&mut bytes, text, group.range());
            }
        }
        for url in URLS.find_iter(text) {
            let mut start = url.start();
            for part in url.as_str().split(['/', '?', '&', '=', '#']) {
                if segment_holds_secret(part) {
                    mask(&mut bytes, text, start..start + part.len());
                }
                start += part.len() + 1;
            }
        }
        for (at, c) in text.char_indices() {
            let hidden = (c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
            if hidden {
                bytes[at..at + c.len_utf8()].fill(b'?');
            }
        }
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        Self { name: name.into(), shown: shown.into() }
    }

    /// Hides these ranges from all messages.
    pub fn hide(&mut self, ranges: Vec<Range<usize>>) {
        let mut bytes = self.shown.as_bytes().to_vec();
        for range in ranges {
            mask(&mut bytes, &self.shown, range);
        }
        self.shown = String::from_utf8_lossy(&bytes).into_owned().into();
    }

    fn position(&self, offset: usize) -> (u32, u32) {
        let before = self.shown.get(..offset).unwrap_or(&self.shown);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}

/// Replaces each byte except line breaks by a star, so that lines and offsets stay.
fn mask(bytes: &mut [u8], text: &str, range: Range<usize>) {
    if !(text.is_char_boundary(range.start) && text.is_char_boundary(range.end)) {
        return;
    }
    for byte in bytes.get_mut(range).into_iter().flatten() {
        if !matches!(byte, b'\n' | b'\r') {
            *byte = b'*';
        }
    }
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The proxy starts anyway.
    Warning,
    /// The proxy does not start.
    Error,
}

/// One problem.
#[derive(Debug, Clone)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    /// Problem, in one sentence.
    pub message: String,
    /// Label below the position.
    pub label: Option<String>,
    /// Remedy.
    pub help: Option<String>,
    place: Option<Range<usize>>,
    source: Option<Arc<NamedSource<Arc<str>>>>,
    position: Option<(u32, u32)>,
}

impl Finding {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: printable(&message.into()),
            label: None,
            help: None,
            place: None,
            source: None,
            position: None,
        }
    }

    pub(super) fn within(mut self, source: &Source, place: Option<Range<usize>>) -> Self {
        self.source = Some(Arc::new(NamedSource::new(&source.name, source.shown.clone())));
        if let Some(place) = place {
            // The span of a table may have many lines; the first one suffices.
            let text = source.shown.get(place.clone()).unwrap_or("");
            let first_line = text.lines().next().unwrap_or("").len();
            let place = place.start..place.start + first_line;
            self.position = Some(source.position(place.start));
            self.place = Some(place);
        }
        self
    }

    /// This finding as a warning.
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Adds a label below the position.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(printable(&label.into()));
        self
    }

    /// Adds a remedy.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()));
        self
    }

    /// Line and column, from 1.
    pub fn position(&self) -> Option<(u32, u32)> {
        self.position
    }

    /// File, as the user named it.
    pub fn file(&self) -> Option<&str> {
        self.source.as_deref().map(NamedSource::name)
    }

    pub(super) fn offset(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.start)
    }
}

/// Text with control characters escaped: a key may contain any.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if c.is_control() && c != '\n' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Finding {}

impl Diagnostic for Finding {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.clone()?;
        let label = LabeledSpan::new(self.label.clone(), place.start, place.len());
        Some(Box::new(std::iter::once(label)))
    }
}

/// Error of another crate about something that the config names, shown at its position in the file.
#[derive(Debug)]
pub struct Located {
    diagnostic: Box<dyn Diagnostic + Send + Sync>,
    place: Finding,
}

impl Located {
    pub(super) fn new(diagnostic: Box<dyn Diagnostic + Send + Sync>, place: Finding) -> Self {
        Self { diagnostic, place }
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic.fmt(f)
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.code()
    }

    fn severity(&self) -> Option<miette::Severity> {
        self.diagnostic.severity()
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.place.labels()
    }
}

/// All problems of a config: at least one finding is an error.
#[derive(Debug, Clone)]
pub struct Diagnostics(pub Vec<Finding>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, finding) in self.0.iter().enumerate() {
            let gap = if at == 0 { "" } else { "\n" };
            write!(f, "{gap}{}", finding.file().unwrap_or("config"))?;
            if let Some((line, column)) = finding.position() {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": {} [{}]", finding.message, finding.code)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
