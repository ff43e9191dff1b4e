//! Findings about policies, for the person who can fix them.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};
use serde::{Serialize, Serializer};

/// A policy file: its name as the operator wrote it, and its text.
#[derive(Debug, Clone)]
pub struct File {
    pub name: PathBuf,
    pub text: Arc<str>,
}

impl File {
    /// Line and column (both from 1; the column in characters) of a byte.
    pub fn position(&self, offset: usize) -> (u32, u32) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let column = 1 + String::from_utf8_lossy(&before[start..]).chars().count();
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}

/// One error or warning, with its position and a remedy. Kept small, since functions return it as
/// their error.
#[derive(Debug, Clone)]
pub struct Finding {
    pub(super) code: &'static str,
    severity: Severity,
    message: String,
    help: Option<Box<str>>,
    labels: Vec<LabeledSpan>,
    file: Option<Box<Path>>,
    position: Option<(u32, u32)>,
    source: Option<Box<NamedSource<Arc<str>>>>,
}

impl Finding {
    /// An error without a position in a file.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            help: None,
            labels: Vec::new(),
            file: None,
            position: None,
            source: None,
        }
    }

    /// A finding of Cedar, with its own labels and advice.
    pub fn of(code: &'static str, file: &File, found: &dyn Diagnostic) -> Self {
        let labels: Vec<_> = found.labels().into_iter().flatten().collect();
        let finding = Self::error(code, found.to_string());
        Self {
            help: found.help().map(|help| help.to_string().into()),
            severity: found.severity().unwrap_or(Severity::Error),
            ..finding
        }
        .labelled(file, labels)
    }

    /// Adds the file that the finding is about.
    pub fn file(mut self, name: impl Into<PathBuf>) -> Self {
        let name: PathBuf = name.into();
        self.file = Some(name.into_boxed_path());
        self
    }

    /// Adds the remedy.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        let help: String = help.into();
        self.help = Some(help.into_boxed_str());
        self
    }

    /// Adds the exact position in a file.
    pub fn at(self, file: &File, offset: usize, length: usize, label: &str) -> Self {
        let label = (!label.is_empty()).then(|| label.to_owned());
        self.labelled(file, vec![LabeledSpan::new(label, offset, length)])
    }

    /// Makes it a warning: the policies can be used.
    pub(super) fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Makes it advice, the lowest severity.
    pub(super) fn advice(mut self) -> Self {
        self.severity = Severity::Advice;
        self
    }

    /// Adds a line to the help.
    pub(super) fn also(self, text: &str) -> Self {
        let help = match &self.help {
            Some(help) => format!("{help}\n{text}"),
            None => text.to_owned(),
        };
        self.help(help)
    }

    /// File and line.
    pub(super) fn place(&self) -> Option<String> {
        let (file, position) = self.order();
        Some(format!("{}:{}", file?.display(), position?.0))
    }

    /// Sort key: file, line, column.
    pub fn order(&self) -> (Option<Box<Path>>, Option<(u32, u32)>) {
        (self.file.clone(), self.position)
    }

    /// Adds labels in a file; the first one is the position of the finding.
    pub fn labelled(mut self, file: &File, labels: Vec<LabeledSpan>) -> Self {
        self.position = labels.first().map(|label| file.position(label.offset()));
        self.file = Some(file.name.as_path().into());
        let source = NamedSource::new(file.name.to_string_lossy(), Arc::clone(&file.text));
        self.source = Some(Box::new(source));
        self.labels = labels;
        self
    }

    /// The first byte that the finding is about.
    pub(super) fn offset(&self) -> Option<usize> {
        self.labels.first().map(LabeledSpan::offset)
    }

    /// Whether another finding says the same about the same place: Cedar repeats an error for each
    /// action that a policy can concern.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        let place = |finding: &Self| {
            let label = finding.labels.first();
            label.map(|label| (finding.file.clone(), label.offset(), label.len()))
        };
        self.code == other.code
            && self.help == other.help
            && place(self).is_some()
            && place(self) == place(other)
    }

    /// The exact text that the finding is about.
    pub(super) fn snippet(&self) -> Option<&str> {
        let (label, source) = (self.labels.first()?, self.source.as_ref()?);
        source.inner().get(label.offset()..label.offset().checked_add(label.len())?)
    }

    /// Stable name of the kind of finding.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether the policies can be used despite it.
    pub fn is_warning(&self) -> bool {
        self.severity != Severity::Error
    }
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

    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}

/// `{code, severity, message, file?, line?, column?, help?}`.
impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            code: &'a str,
            severity: &'a str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            file: Option<&'a Path>,
            #[serde(skip_serializing_if = "Option::is_none")]
            line: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            column: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            help: Option<&'a str>,
        }
        Shape {
            code: self.code,
            severity: if self.is_warning() { "warning" } else { "error" },
            message: &self.message,
            file: self.file.as_deref(),
            line: self.position.map(|(line, _)| line),
            column: self.position.map(|(_, column)| column),
            help: self.help.as_deref(),
        }
        .serialize(serializer)
    }
}

/// Why a policy set was rejected: all findings, not only the first.
#[derive(Debug, Clone, thiserror::Error, Serialize)]
#[serde(transparent)]
pub struct Diagnostics {
    findings: Vec<Finding>,
}

impl Diagnostics {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        Self { findings }
    }

    /// The findings, in the order of files and lines.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

/// One line a finding: `FILE:LINE:COLUMN: MESSAGE`.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = &finding.file {
                write!(f, "{}:", file.display())?;
            }
            if let Some((line, column)) = finding.position {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, "{}{finding}", if finding.file.is_some() { " " } else { "" })?;
        }
        Ok(())
    }
}

impl Diagnostic for Diagnostics {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.findings.iter().map(|finding| finding as &dyn Diagnostic)))
    }
}
