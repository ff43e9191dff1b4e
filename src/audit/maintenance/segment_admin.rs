//! Operations on the files of an open log: backups, and removal of old segments.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::{
    backup::{self, Backup, BackupFault},
    retention::{self, Candidate, Limits, RetentionReason},
};
use crate::{
    Audit, Unavailable,
    record::{SegmentDropped, StoreBackedUp},
    store::{Fault, Lock, SegmentInfo},
};

/// Extension of a segment's folder while it is removed.
const DROPPING: &str = "dropping";

/// A segment that was dropped, or that a dry run would drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// `seq` of its first and its last record.
    pub first: u64,
    pub last: u64,
    /// Times of those records.
    pub from: Timestamp,
    pub to: Timestamp,
    /// Disk usage in bytes.
    pub bytes: u64,
    pub why: RetentionReason,
}

/// Result of retention or of its dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Dropped segments, the oldest first.
    pub dropped: Vec<Dropped>,
    /// First segment that exceeds the age but is kept, because a stream has not delivered its
    /// records.
    pub held: Option<u64>,
    /// Disk usage of the remaining segments in bytes.
    pub bytes: u64,
}

/// Reasons why a segment could not be dropped. Earlier segments stay dropped.
#[derive(Debug, thiserror::Error)]
pub enum PruneFault {
    #[error("the segment {first} of the audit log is kept, since its proof can't be: {why}")]
    Proof { first: u64, why: String },
    #[error("the segment {first} of the audit log is kept, since that can't be recorded: {why}")]
    Unrecorded { first: u64, why: Unavailable },
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the work ended early: {0}")]
    Task(String),
}

impl Audit {
    /// Copies the store to a folder that is empty or has an earlier backup of it, while records are
    /// written. Then records the backup.
    ///
    /// # Errors
    /// [`BackupFault`]; an interrupted backup cannot be opened as a store.
    pub async fn back_up(&self, to: PathBuf) -> Result<Backup, BackupFault> {
        let _alone = self.keeping().lock().await;
        let dir = self.dir().to_owned();
        let backup = copied(move || backup::copy(&dir, &to)).await?;
        let what = StoreBackedUp {
            to: backup.to.display().to_string(),
            first: backup.first.unwrap_or(0),
            last: backup.last.unwrap_or(0),
        };
        if let Err(fault) = self.record_event(what).await {
            tracing::error!(%fault, "a backup of the audit log is not on record");
        }
        Ok(backup)
    }
}

impl Audit {
    /// Drops the oldest segments that exceed the limits. Before a segment is removed, the hashes
    /// for proofs are saved and an event is recorded. `undelivered` is the first record that a
    /// stream has not delivered. A dry run only returns what would be dropped.
    ///
    /// # Errors
    /// [`PruneFault`]. A segment that cannot be proven or recorded is not dropped.
    pub async fn prune(
        &self,
        limits: Limits,
        undelivered: Option<u64>,
        dry: bool,
    ) -> Result<Pruned, PruneFault> {
        let _alone = self.keeping().lock().await;
        let segments = self.segment_set().segments();
        let (segments, candidates) = blocking(move || {
            let candidates = segments.iter().map(candidate).collect::<Result<Vec<_>, _>>()?;
            Ok((segments, candidates))
        })
        .await?;
        let plan = retention::plan(&candidates, limits, undelivered, Timestamp::now());
        let mut pruned = Pruned {
            held: plan.held,
            bytes: candidates.iter().map(|segment| segment.bytes).sum(),
            ..Pruned::default()
        };
        for (candidate, why) in plan.drop {
            let Some(segment) = segments.iter().find(|info| info.first == candidate.first) else {
                continue;
            };
            let dropped = Dropped {
                first: segment.first,
                last: segment.end.saturating_sub(1),
                from: segment.began.unwrap_or(segment.ended),
                to: segment.ended,
                bytes: candidate.bytes,
                why,
            };
            if !dry {
                self.drop_segment(segment, &dropped).await?;
            }
            pruned.bytes -= candidate.bytes;
            pruned.dropped.push(dropped);
        }
        Ok(pruned)
    }

    async fn drop_segment(
        &self,
        segment: &SegmentInfo,
        dropped: &Dropped,
    ) -> Result<(), PruneFault> {
        let Dropped { first, last, from, to, bytes, why } = *dropped;
        let (audit, info) = (self.clone(), segment.clone());
        blocking(move || {
            audit.keep_proof(&info).map_err(|fault: Fault| PruneFault::Proof {
                first: info.first,
                why: fault.to_string(),
            })
        })
        .await?;
        let why = why.words().to_owned();
        if dropped.why == RetentionReason::SizeUndelivered {
            tracing::error!(
                first,
                last,
                "dropping audit records that were not exported yet: {why}"
            );
        } else {
            tracing::info!(first, last, bytes, "audit log segment dropped: {why}");
        }
        let what = SegmentDropped { first, last, from, to, bytes, reason: why };
        let recorded = match self.record_event(what.clone()).await {
            // The removal makes room for its own record.
            Err(Unavailable::Full { .. }) => false,
            Err(why) => return Err(PruneFault::Unrecorded { first, why }),
            Ok(()) => true,
        };
        let segment_set = self.segment_set().clone();
        let path = segment.path.clone();
        blocking(move || {
            segment_set.forget(first);
            remove(&path)
        })
        .await?;
        if !recorded && let Err(fault) = self.record_event(what).await {
            tracing::error!(first, last, %fault, "the drop of an audit log segment could not be \
                                                  recorded");
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PruneFault> + Send + 'static,
) -> Result<T, PruneFault> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(PruneFault::Task(error.to_string())))
}

fn candidate(info: &SegmentInfo) -> Result<Candidate, PruneFault> {
    let bytes = size(&info.path).map_err(|source| PruneFault::Io {
        doing: "cannot look at",
        path: info.path.clone(),
        source,
    })?;
    let SegmentInfo { first, end, ended, closed, .. } = *info;
    Ok(Candidate { first, end, ended, closed, bytes })
}

/// Disk usage of a folder in bytes.
fn size(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += size(&entry.path())?,
            Ok(meta) => bytes += meta.blocks() * 512,
            // The file was packed or rebuilt concurrently.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Removes a segment's folder. It is renamed before the first file is removed, so that the segment
/// is complete or absent after a crash.
fn remove(path: &Path) -> Result<(), PruneFault> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| PruneFault::Io { doing, path, source }
    };
    let aside = path.with_extension(DROPPING);
    let folder = path.parent().unwrap_or(path);
    fs::rename(path, &aside)
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(failed("cannot drop", path))?;
    fs::remove_dir_all(&aside).map_err(failed("cannot remove", &aside))
}

/// Completes interrupted removals.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir.join("segments")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == DROPPING) {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Copies the store in `dir`, which no process has open, to a folder.
///
/// # Errors
/// [`BackupFault`], also if another process holds the store for longer than `patience`.
pub async fn back_up(dir: &Path, to: PathBuf, patience: Duration) -> Result<Backup, BackupFault> {
    let dir = dir.to_owned();
    copied(move || {
        if !dir.is_dir() {
            let missing = Unavailable::Missing { dir: dir.clone() };
            return Err(BackupFault::Store(missing.to_string()));
        }
        let _lock = Lock::take(&dir, patience).map_err(|_| {
            let dir = dir.display();
            BackupFault::Store(format!("another process has {dir} open: stop it, or ask it"))
        })?;
        backup::copy(&dir, &to)
    })
    .await
}

async fn copied(
    copy: impl FnOnce() -> Result<Backup, BackupFault> + Send + 'static,
) -> Result<Backup, BackupFault> {
    let done = spawn_blocking(copy).await;
    done.unwrap_or_else(|error| Err(BackupFault::Store(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_removal_is_atomic() {
        let dir = tempfile::tempdir().unwrap();
        let segments = dir.path().join("segments");
        let one = segments.join("0000000000000000");
        let two = segments.join("0000000000000010");
        for segment in [&one, &two] {
            fs::create_dir_all(segment.join("index")).unwrap();
            fs::write(segment.join("records"), vec![1; 9000]).unwrap();
        }
        assert!(size(&one).unwrap() >= 9000);
        remove(&one).unwrap();
        assert!(!one.exists());
        // An interrupted removal is not a segment any more; the next start completes it.
        fs::rename(&two, two.with_extension(DROPPING)).unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(&segments).unwrap().count(), 0);
        sweep(&dir.path().join("none")).unwrap();
    }
}
