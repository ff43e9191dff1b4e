//! What is done with the files of a log that is open: backups.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::task::spawn_blocking;

use super::backup::{self, Backup, BackupFault};
use crate::audit::{Audit, Unavailable, record::Happening, store::Lock};

impl Audit {
    /// Copies the store to a folder, which is empty or has an earlier backup of it, while records
    /// are written. Then the log tells of it.
    ///
    /// # Errors
    /// [`BackupFault`]; what an interrupted backup leaves is not opened as a store.
    pub async fn back_up(&self, to: PathBuf) -> Result<Backup, BackupFault> {
        let _alone = self.keeping().lock().await;
        let dir = self.dir().to_owned();
        let backup = copied(move || backup::copy(&dir, &to)).await?;
        let what = Happening::StoreBackedUp {
            to: backup.to.display().to_string(),
            first: backup.first.unwrap_or(0),
            last: backup.last.unwrap_or(0),
        };
        if let Err(fault) = self.event(what).await {
            tracing::error!(%fault, "a backup of the audit log is not on record");
        }
        Ok(backup)
    }
}

/// Copies the store in `dir`, which no process has open, to a folder.
///
/// # Errors
/// [`BackupFault`], also where another process has the store for longer than `patience`.
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
