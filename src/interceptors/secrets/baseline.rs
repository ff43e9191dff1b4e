//! Reads baselines of detect-secrets: secrets that somebody has looked at, by their SHA-1.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use serde::Deserialize;
use sha1::{Digest as _, Sha1};

use super::rules::IllegalRules;

/// Length of a SHA-1 digest in bytes.
const DIGEST_BYTES: usize = 20;

/// Texts that are not secrets, by their SHA-1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Baseline {
    accepted: HashSet<[u8; DIGEST_BYTES]>,
    /// Texts that a person confirmed as secrets, in any entry of any file.
    confirmed: HashSet<[u8; DIGEST_BYTES]>,
}

#[derive(Deserialize)]
struct File {
    results: BTreeMap<String, Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    hashed_secret: String,
    /// Result of an audit by a person.
    is_secret: Option<bool>,
}

/// Values that standards and vendors publish as examples.
const PUBLISHED: &str = include_str!("published.txt");

impl Baseline {
    /// Published examples.
    pub(super) fn published() -> Self {
        let lines = PUBLISHED.lines().filter(|line| !line.starts_with('#'));
        let digest = |line: &str| {
            let mut digest = [0; DIGEST_BYTES];
            hex::decode_to_slice(line, &mut digest).ok().map(|()| digest)
        };
        Self { accepted: lines.filter_map(digest).collect(), confirmed: HashSet::new() }
    }

    /// Whether a text is in the baseline.
    pub(super) fn has(&self, text: &[u8]) -> bool {
        if self.accepted.is_empty() {
            return false;
        }
        let digest = <[u8; DIGEST_BYTES]>::from(Sha1::digest(text));
        self.accepted.contains(&digest) && !self.confirmed.contains(&digest)
    }

    /// Adds the entries of a file. An entry that a person confirmed as a secret precedes others of the
    /// same text. `path` is the name in errors.
    ///
    /// # Errors
    /// The first part that is not valid.
    pub(super) fn add(&mut self, path: &Path, text: &str) -> Result<(), IllegalRules> {
        let error = |line: usize, problem: String, remedy: &str| IllegalRules::File {
            path: path.to_owned(),
            line,
            problem,
            remedy: remedy.to_owned(),
        };
        let file: File = serde_json::from_str(text).map_err(|fault| {
            let remedy = "create the file with `detect-secrets scan`";
            error(fault.line(), fault.to_string(), remedy)
        })?;
        let entries = file.results.iter();
        for (name, entry) in entries.flat_map(|(name, all)| all.iter().map(move |one| (name, one)))
        {
            let mut digest = [0; DIGEST_BYTES];
            if hex::decode_to_slice(&entry.hashed_secret, &mut digest).is_err() {
                let at = text.find(&entry.hashed_secret).unwrap_or_default();
                let line = 1 + text.get(..at).map_or(0, |before| before.matches('\n').count());
                let what = format!("`hashed_secret` of `{}` is not a SHA-1", name.escape_debug());
                return Err(error(line, what, "create the file with `detect-secrets scan`"));
            }
            match entry.is_secret {
                Some(true) => self.confirmed.insert(digest),
                _ => self.accepted.insert(digest),
            };
        }
        Ok(())
    }
}
