//! Problems and notes of reading a description, with their positions.

use std::fmt;

use serde::Serialize;

/// Position in a file: line and column from 1, the column in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A problem: the item with it is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{text}")]
pub struct Problem {
    /// Position in the file. `None` for values outside of it, such as those of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Location>,
    /// The problem and its remedy.
    pub text: String,
}

impl Problem {
    /// A problem with a position.
    pub fn at(place: Location, text: impl Into<String>) -> Self {
        Self { place: Some(place), text: text.into() }
    }

    /// A problem without a position.
    pub fn of(text: impl Into<String>) -> Self {
        Self { place: None, text: text.into() }
    }
}

/// Kind of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The person must act before the server works.
    Must,
    /// The server works without it, but better with it.
    Advice,
    /// A fact that the person should know.
    Note,
    /// The server deviates from the hardened profile.
    Deviates,
    /// A part of the file is left out.
    LeftOut,
}

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Must => "must",
            Self::Advice => "advice",
            Self::Note => "note",
            Self::Deviates => "deviates",
            Self::LeftOut => "left out",
        }
    }
}

/// A note about an accepted server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Location>,
    pub text: String,
}

/// Problems and notes of one server.
#[derive(Debug, Default)]
pub struct Report {
    pub problems: Vec<Problem>,
    pub notes: Vec<Note>,
}

/// Maximum number of problems and of notes, since a stranger's file decides how many there are.
const MOST: usize = 200;

impl Report {
    /// Adds a problem.
    pub fn problem(&mut self, place: Location, text: impl Into<String>) {
        if self.problems.len() < MOST {
            self.problems.push(Problem::at(place, text));
        }
    }

    /// Adds a note.
    pub fn note(&mut self, kind: Kind, place: Location, text: impl Into<String>) {
        if self.notes.len() < MOST {
            self.notes.push(Note { kind, place: Some(place), text: text.into() });
        }
    }

    /// Notes that a part is left out.
    pub fn left_out(&mut self, place: Location, text: impl Into<String>) {
        self.note(Kind::LeftOut, place, text);
    }

    /// Notes that the person must act before the server works.
    pub fn must(&mut self, place: Location, text: impl Into<String>) {
        self.note(Kind::Must, place, text);
    }

    /// Notes an improvement.
    pub fn advice(&mut self, place: Location, text: impl Into<String>) {
        self.note(Kind::Advice, place, text);
    }

    /// Notes a fact.
    pub fn fact(&mut self, place: Location, text: impl Into<String>) {
        self.note(Kind::Note, place, text);
    }

    /// Notes a deviation from the hardened profile. All are reported: a server with more deviations
    /// than fit is refused.
    pub fn deviates(&mut self, place: Location, text: impl Into<String>) {
        let deviations = self.notes.iter().filter(|note| note.kind == Kind::Deviates).count();
        if deviations < MOST {
            self.notes.push(Note { kind: Kind::Deviates, place: Some(place), text: text.into() });
        } else {
            let text = format!("it deviates from the hardened profile in more than {MOST} ways");
            self.problem(place, text);
        }
    }
}

/// A stranger's text for confirmation: complete, on one line, without invisible characters.
pub(crate) fn escaped(text: &str) -> String {
    escape_blanks(text.chars().flat_map(char::escape_debug))
}

/// A stranger's text in double quotes, complete and without invisible characters.
pub fn quoted(text: &str) -> String {
    escape_blanks(format!("{text:?}").chars())
}

/// Escapes letters and symbols that look like a space, and which Rust counts as printable.
fn escape_blanks(escaped: impl Iterator<Item = char>) -> String {
    let mut shown = String::new();
    for c in escaped {
        match c {
            '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{1d159}' => {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

/// A stranger's text for a message: short, on one line, without invisible characters.
pub fn brief(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown = escape_blanks(text.chars().take(LONGEST).flat_map(char::escape_debug));
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}
