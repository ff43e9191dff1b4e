//! Verification: compares all files of a store with each other and with its checkpoints.
//!
//! It needs no index, no lock and no running proxy, and works on a store that is being written. It
//! reads in an order in which earlier data can only lag behind later data: the newest checkpoint of
//! the state folder, `head`, checkpoints, commits, sealed records.

mod checkpoint_set;
mod files;
mod finding;
mod frame_summary;
mod frames;
mod scan;
mod since;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    maintenance::{Keys, Manifest},
    proof::{Hash, Verifier, key},
    store::View,
};

use checkpoint_set::CheckpointSet;
use finding::Findings;
use scan::Scan;

pub use finding::{Finding, FindingKind, KeySource, Report, SignedSize};
pub use since::{IllegalSince, Since};

pub(super) use checkpoint_set::FILE as CHECKPOINTS;
pub(super) use files::{closed, dropped, segments};

/// Copy of the newest checkpoint in the state folder, outside of the store.
pub(super) const NEWEST: &str = "audit-checkpoint";
/// File that names the last acknowledged record.
const HEAD: &str = "head";
/// Attempts if retention removes a segment concurrently.
const TRIES: usize = 5;

/// Request for a verification.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Folder of the store.
    pub dir: PathBuf,
    /// State folder, with the verifier key and the newest checkpoint.
    pub state: Option<PathBuf>,
    /// Verifier keys, instead of those of the state folder.
    pub keys: Vec<Verifier>,
    /// Files of checkpoints from witnesses.
    pub witnesses: Vec<PathBuf>,
    /// Checkpoint to begin at. It is trusted.
    pub since: Option<Since>,
    /// Keys that encrypt records.
    pub encryption: Option<Keys>,
}

impl Request {
    /// Request to verify the whole store, with the keys of the state folder or else of the store.
    pub fn of(dir: PathBuf, state: Option<PathBuf>) -> Self {
        Self { dir, state, ..Self::default() }
    }
}

/// Reasons why a store cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("there is no audit store in `{}`", .0.display())]
    Missing(PathBuf),
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Store(String),
    #[error("records are encrypted: {0}")]
    Sealed(String),
    #[error("the store has no checkpoint {0} to begin with")]
    Since(Since),
    #[error("the checkpoint that was given to begin with is not signed by the verifier key")]
    Foreign,
    #[error("segments were removed faster than they could be read: try again")]
    Moving,
}

/// Reasons why a scan ended early.
#[derive(Debug)]
enum ScanAborted {
    Fault(Fault),
    /// A segment was removed during the scan.
    Moved,
}

impl From<Fault> for ScanAborted {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Fault {
    let path = path.to_owned();
    move |source| Fault::Io { path: path.clone(), source }
}

/// Verifies a store.
///
/// # Errors
/// If the store cannot be verified. Faults of the store are in the report.
pub fn verify(request: &Request) -> Result<Report, Fault> {
    for _ in 0..TRIES {
        match once(request) {
            Ok(report) => return Ok(report),
            Err(ScanAborted::Fault(fault)) => return Err(fault),
            Err(ScanAborted::Moved) => {}
        }
    }
    Err(Fault::Moving)
}

/// Compares the indexes of an open store with its records.
pub(crate) fn indexes(view: &View) -> Vec<Finding> {
    let found = view.check_indexes().into_iter().map(|mismatch| {
        let finding = Finding::new(FindingKind::IndexMismatch, mismatch.what);
        Finding { seq: mismatch.block, ..finding }
            .file(format!("segments/{:016}/index", mismatch.segment))
    });
    found.take(finding::MOST).collect()
}

fn once(request: &Request) -> Result<Report, ScanAborted> {
    let Request { dir, state, witnesses, since, encryption, .. } = request;
    let manifest = Manifest::read(dir)
        .map_err(|fault| Fault::Store(fault.to_string()))?
        .ok_or_else(|| Fault::Missing(dir.clone()))?;
    let cipher = encryption.as_ref().map(|keys| keys.cipher(&manifest)).transpose();
    let cipher = cipher.map_err(|fault| Fault::Store(fault.to_string()))?;
    let mut findings = Findings::default();
    let mut notes = Vec::new();
    let (keys, key_source) = keys(request, &mut notes)?;
    let origin = key::origin(&manifest.id);
    if !keys.is_empty() && !keys.iter().any(|key| key.name() == origin) {
        let names: Vec<_> = keys.iter().map(Verifier::name).collect();
        let message = format!(
            "this is the store `{origin}`, and the verifier key is of `{}`: the whole store was \
             replaced, or the key is another one's",
            names.join("`, `")
        );
        findings.add(Finding::new(FindingKind::StoreSwapped, message).file("store.json"));
    }
    let mut others = Vec::new();
    for path in kept_newest(state.as_deref().unwrap_or(dir)).map_err(failed(dir))? {
        others.push((path.clone(), fs::read(&path).map_err(failed(&path))?));
    }
    for path in witnesses {
        others.push((path.clone(), fs::read(path).map_err(failed(path))?));
    }
    let head = head(dir, &mut findings).map_err(failed(dir))?;
    let mut checkpoints = CheckpointSet::read(dir, &keys, &mut findings).map_err(failed(dir))?;
    notes.append(&mut checkpoints.changes);
    if let Some(newest) = &checkpoints.newest {
        let (wrong, unchecked) = newest.checkpoint.companions.check(dir, cipher.as_ref());
        wrong.into_iter().for_each(|finding| findings.add(finding));
        notes.extend(unchecked);
    }
    for (path, bytes) in &others {
        checkpoints.witness(path, bytes, &keys, &mut findings);
    }
    let since = since.as_ref().map(|since| since.find(&mut checkpoints, &keys, &mut findings));
    let since = since.transpose()?;
    checkpoints.sort_and_dedup();
    let walk = Scan::new(dir, &keys, &checkpoints, head, cipher.as_ref(), findings);
    let walked = walk.run(since.as_ref())?;
    notes.extend(walked.notes);
    Ok(Report {
        store: manifest.id,
        keys: keys.iter().map(ToString::to_string).collect(),
        key_source,
        first: walked.first,
        end: walked.end,
        records: walked.records,
        checkpoints: walked.checkpoints,
        signed: walked.signed,
        findings: walked.findings.list,
        omitted: walked.findings.omitted,
        notes,
    })
}

/// The newest checkpoint in the state folder, and earlier ones that the state folder kept because
/// the store lacked them.
fn kept_newest(state: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(state) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(NEWEST)) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Keys for verification, and their origin.
fn keys(request: &Request, notes: &mut Vec<String>) -> Result<(Vec<Verifier>, KeySource), Fault> {
    if !request.keys.is_empty() {
        return Ok((request.keys.clone(), KeySource::Given));
    }
    if let Some(state) = &request.state {
        let found = key::read_verifiers(state).map_err(failed(&state.join(key::VERIFIER)))?;
        if !found.is_empty() {
            return Ok((found, KeySource::State));
        }
    }
    let own =
        key::read_verifiers(&request.dir).map_err(failed(&request.dir.join(key::VERIFIER)))?;
    if own.is_empty() {
        notes.push("there is no verifier key: no checkpoint can be checked".into());
        return Ok((own, KeySource::None));
    }
    notes.push(
        "the verifier key is the store's own: give the one that you keep with `--key`, else a \
         store that was replaced as a whole looks right"
            .into(),
    );
    Ok((own, KeySource::Store))
}

/// Content of `head`.
#[derive(Debug, Clone, Copy)]
enum Head {
    /// The last acknowledged record and its hash.
    At(u64, Hash),
    /// No record was acknowledged yet.
    Start,
    /// Unreadable; a finding reports it.
    Damaged,
    /// Missing or empty.
    Missing,
}

fn head(dir: &Path, findings: &mut Findings) -> io::Result<Head> {
    let text = match fs::read(dir.join(HEAD)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Head::Missing),
        Err(error) => return Err(error),
    };
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| {
        let (seq, hash) = text.strip_suffix('\n')?.split_once(' ')?;
        let digits = seq.len() == 20 && seq.bytes().all(|b| b.is_ascii_digit());
        Some((seq.parse().ok().filter(|_| digits)?, Hash::from_hex(hash.as_bytes())?))
    });
    Ok(match parsed {
        Some((0, Hash::ZERO)) => Head::Start,
        Some((seq, hash)) => Head::At(seq, hash),
        None if text.iter().all(|byte| *byte == 0) => Head::Missing,
        None => {
            findings.add(Finding::new(FindingKind::HeadDamaged, "it can't be read").file(HEAD));
            Head::Damaged
        }
    })
}
