//! Starting point of a verification that skips earlier records.

use std::{fmt, fs, io, path::Path, str::FromStr};

use jiff::{Span, Timestamp, Zoned, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::{Fault, checkpoint_set::CheckpointSet, finding::Findings};
use crate::proof::{
    Verifier,
    checkpoint::{Checkpoint, Signed},
};

/// Checkpoint to begin at. It is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Since {
    /// The newest checkpoint of at most this size.
    Size(u64),
    /// The newest checkpoint that was signed at or before this time.
    Time(Timestamp),
    /// This signed note.
    Note(String),
}

/// Text that is not a starting point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write how many records the checkpoint has, a time such as 2026-11-21T08:00:00Z, a day such as \
     2026-11-21, a while ago such as 24h, or a file with a checkpoint"
)]
pub struct IllegalSince;

impl FromStr for Since {
    type Err = IllegalSince;

    fn from_str(text: &str) -> Result<Self, IllegalSince> {
        if let Ok(size) = text.parse() {
            return Ok(Self::Size(size));
        }
        if let Some(time) = moment(text) {
            return Ok(Self::Time(time));
        }
        note(Path::new(text)).ok().map(Self::Note).ok_or(IllegalSince)
    }
}

fn moment(text: &str) -> Option<Timestamp> {
    let here = |time: civil::DateTime| time.to_zoned(TimeZone::system()).ok();
    let ago = |span: Span| Zoned::now().checked_sub(span.abs()).ok();
    let zoned = || {
        let day = || text.parse::<civil::Date>().ok().map(|day| day.at(0, 0, 0, 0));
        let ago_of = || text.trim_end_matches("ago").trim_end().parse::<Span>().ok();
        let time = || text.parse::<civil::DateTime>().ok();
        time().or_else(day).and_then(here).or_else(|| ago_of().and_then(ago))
    };
    text.parse().ok().or_else(|| zoned().map(|zoned| zoned.timestamp()))
}

/// Last note of a file.
fn note(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)?;
    let notes = super::super::note_file::split(text.as_bytes()).notes;
    let last = notes.last().and_then(|(_, note)| std::str::from_utf8(note).ok());
    last.map(str::to_owned).ok_or_else(|| io::Error::other("no checkpoint"))
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "of at most {size} records"),
            Self::Time(time) => write!(f, "made by {time}"),
            Self::Note(_) => f.write_str("that was given"),
        }
    }
}

impl Since {
    /// The selected checkpoint. A given note is compared with the log like those of witnesses.
    pub(super) fn find(
        &self,
        checkpoints: &mut CheckpointSet,
        keys: &[Verifier],
        findings: &mut Findings,
    ) -> Result<Checkpoint, Fault> {
        if let Self::Note(note) = self {
            let signed = keys.iter().find_map(|key| Signed::open(note, key).ok());
            let signed = signed.ok_or(Fault::Foreign)?;
            checkpoints.witness(Path::new("--since"), note.as_bytes(), keys, findings);
            return Ok(signed.checkpoint);
        }
        let fits = |checkpoint: &Checkpoint| match self {
            Self::Size(most) => checkpoint.size <= *most,
            Self::Time(by) => checkpoint.time <= *by,
            Self::Note(_) => false,
        };
        let all = checkpoints.stored.iter().map(|stored| &stored.signed.checkpoint);
        let newest = all.filter(|checkpoint| fits(checkpoint)).max_by_key(|c| (c.size, c.number));
        newest.cloned().ok_or_else(|| Fault::Since(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_files_are_parsed() {
        assert_eq!("4500".parse(), Ok(Since::Size(4500)));
        let time: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        assert_eq!("2026-11-21T08:00:00Z".parse(), Ok(Since::Time(time)));
        for text in ["2026-11-21", "2026-11-21T08:00", "24h", "7d", "90m ago"] {
            let since = text.parse();
            assert!(
                matches!(since, Ok(Since::Time(at)) if at < Timestamp::MAX),
                "{text}: {since:?}"
            );
        }
        let ago: Since = "1h".parse().unwrap();
        assert!(matches!(ago, Since::Time(at) if at < Timestamp::now()));
        for nonsense in ["", "-1", "tomorrow", "/nonexistent", "1x"] {
            assert_eq!(nonsense.parse::<Since>(), Err(IllegalSince), "{nonsense}");
        }
    }
}
