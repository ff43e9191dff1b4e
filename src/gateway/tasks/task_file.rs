//! File of the tasks at remote servers, so that their owners are known after a restart of the
//! proxy. Tasks of other servers end with the server's process.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{KEPT, Key, MOST, Owner, Task};
use portcullis_foundation::atomic_file;
use portcullis_protocol::{names::ServerName, obligations::Obligations};
use portcullis_upstream::InstanceKey;

/// Name of the file in the state folder.
const FILE: &str = "tasks.json";
/// Largest file that is read.
const BYTES: u64 = 256 << 20;

/// The file, and its last written change.
pub(super) struct TaskFile {
    path: PathBuf,
    /// Number of changes of the tasks.
    changes: AtomicU64,
    /// Number of changes that the file has. Held while it is written.
    written: tokio::sync::Mutex<u64>,
}

/// One task.
#[derive(Serialize, Deserialize)]
struct StoredTask {
    server: ServerName,
    instance: Option<InstanceKey>,
    entry: u64,
    id: String,
    owner: Owner,
    tool: String,
    modern: bool,
    obligations: Vec<Obligations>,
    /// Last use, in seconds since 1970.
    used: u64,
}

impl TaskFile {
    pub fn at(state_dir: &Path) -> Self {
        let (changes, written) = Default::default();
        Self { path: state_dir.join(FILE), changes, written }
    }

    /// The tasks of the file that were used lately.
    ///
    /// # Errors
    /// If the file exists and cannot be used.
    pub fn read(&self) -> io::Result<Vec<(Key, Task)>> {
        let size = match fs::metadata(&self.path) {
            Ok(file) => file.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if size > BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let stored: Vec<StoredTask> = serde_json::from_slice(&fs::read(&self.path)?)?;
        let now = (Instant::now(), seconds());
        Ok(stored.into_iter().take(MOST).filter_map(|task| task.open(now)).collect())
    }

    /// Notes a change, which [`save`](Self::save) writes.
    pub fn change(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Writes `tasks`, unless the file has this change already. Concurrent callers share one write.
    pub async fn save(&self, change: u64, tasks: impl FnOnce() -> Vec<(Key, Task)>) {
        let mut written = self.written.lock().await;
        if *written >= change {
            return;
        }
        let changes = self.changes.load(Ordering::SeqCst);
        let (path, tasks) = (self.path.clone(), tasks());
        let done = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            atomic_file::write(&path, &text(&tasks)?)
        });
        match done.await.map_err(io::Error::other).flatten() {
            Ok(()) => *written = changes,
            Err(error) => {
                tracing::error!(%error, "owners of tasks could not be written: a restart forgets them");
            }
        }
    }
}

/// Whether the file has tasks with this key.
pub(super) fn is_stored((host, _): &Key) -> bool {
    host.is_remote && !matches!(host.party, Some(InstanceKey::Session(_)))
}

fn text(tasks: &[(Key, Task)]) -> serde_json::Result<Vec<u8>> {
    let now = seconds();
    let tasks = tasks.iter().map(|((host, id), task)| StoredTask {
        server: host.server.clone(),
        instance: host.party.clone(),
        entry: host.run,
        id: id.clone(),
        owner: task.owner.clone(),
        tool: task.tool.clone(),
        modern: task.modern,
        obligations: task.obligations.iter().map(|one| (**one).clone()).collect(),
        used: now.saturating_sub(task.used.elapsed().as_secs()),
    });
    serde_json::to_vec(&tasks.collect::<Vec<_>>())
}

impl StoredTask {
    fn open(self, (now, seconds): (Instant, u64)) -> Option<(Key, Task)> {
        let age = Duration::from_secs(seconds.saturating_sub(self.used));
        let host = super::TaskHost {
            server: self.server,
            party: self.instance,
            run: self.entry,
            is_remote: true,
        };
        let task = Task {
            owner: self.owner,
            tool: self.tool,
            modern: self.modern,
            obligations: self.obligations.into_iter().map(Into::into).collect(),
            // The machine may have started since.
            used: now.checked_sub(age).unwrap_or(now),
        };
        (age < KEPT).then_some(((host, self.id), task))
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
