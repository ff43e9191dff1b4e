//! File of the tasks at remote servers, so that their owners are known after a restart of the
//! proxy. Tasks of other servers end with the server's process.

use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{ID_BYTES, KEPT, Key, MOST, Owner, Task, TaskHost};
use portcullis_foundation::atomic_file;
use portcullis_protocol::{names::ServerName, obligations::Obligations};
use portcullis_upstream::InstanceKey;

/// Name of the file in the state folder.
const FILE: &str = "tasks.json";
/// Largest size of the file.
const BYTES: usize = 64 << 20;

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
        if !usize::try_from(size).is_ok_and(|size| size <= BYTES) {
            let what = format!("`{FILE}` has {size} bytes, and the limit is {BYTES}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
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
            let (text, left_out) = text(tasks, BYTES)?;
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            atomic_file::write(&path, &text)?;
            Ok::<_, io::Error>(left_out)
        });
        match done.await.map_err(io::Error::other).flatten() {
            Ok(left_out) => {
                *written = changes;
                if left_out > 0 {
                    tracing::error!(
                        left_out,
                        limit_bytes = BYTES,
                        "owners of tasks do not fit in `{FILE}`: a restart forgets them"
                    );
                }
            }
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

/// Content of a file with at most `most` bytes, and the number of tasks that do not fit. The tasks
/// with the latest use come first.
fn text(mut tasks: Vec<(Key, Task)>, most: usize) -> serde_json::Result<(Vec<u8>, usize)> {
    let now = seconds();
    tasks.sort_unstable_by_key(|(_, task)| Reverse(task.used));
    let (mut text, mut left_out) = (vec![b'['], 0);
    for ((host, id), task) in tasks {
        let stored = serde_json::to_vec(&StoredTask {
            server: host.server,
            instance: host.party,
            entry: host.run,
            id,
            owner: task.owner,
            tool: task.tool,
            modern: task.modern,
            obligations: task.obligations.iter().map(|one| (**one).clone()).collect(),
            used: now.saturating_sub(task.used.elapsed().as_secs()),
        })?;
        // Two bytes for a comma and the end.
        if text.len() + stored.len() + 2 > most {
            left_out += 1;
            continue;
        }
        if text.len() > 1 {
            text.push(b',');
        }
        text.extend(stored);
    }
    text.push(b']');
    Ok((text, left_out))
}

impl StoredTask {
    fn open(self, (now, seconds): (Instant, u64)) -> Option<(Key, Task)> {
        let age = Duration::from_secs(seconds.saturating_sub(self.used));
        let host = TaskHost {
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
        (age < KEPT && self.id.len() <= ID_BYTES).then_some(((host, self.id), task))
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::identity::PrincipalKind;

    #[test]
    fn tasks_that_were_used_last_are_written_first() {
        let began = Instant::now();
        let task = |id: &str, used_s: u64| {
            let server = "s".parse().unwrap();
            let host = TaskHost { server, party: None, run: 1, is_remote: true };
            let task = Task {
                owner: Owner { kind: PrincipalKind::Anonymous, key: None },
                modern: false,
                tool: "t".to_owned(),
                obligations: Vec::new(),
                used: began + Duration::from_secs(used_s),
            };
            ((host, id.to_owned()), task)
        };
        let tasks = || vec![task("first", 0), task("last", 20), task("middle", 10)];
        let written = |most| {
            let (text, left_out) = text(tasks(), most).unwrap();
            assert!(text.len() <= most);
            let stored: Vec<StoredTask> = serde_json::from_slice(&text).unwrap();
            let ids: Vec<_> = stored.into_iter().map(|task| task.id).collect();
            (text.len(), ids, left_out)
        };
        let (bytes, ids, left_out) = written(BYTES);
        assert_eq!((ids.join(" ").as_str(), left_out), ("last middle first", 0));
        let (_, ids, left_out) = written(bytes - 1);
        assert_eq!((ids.join(" ").as_str(), left_out), ("last middle", 1));
        assert_eq!(written(2), (2, Vec::new(), 3));
    }

    #[test]
    fn file_and_ids_are_limited() {
        let folder = tempfile::tempdir().unwrap();
        let file = TaskFile::at(folder.path());
        let stored = |id: &str| {
            serde_json::json!({
                "server": "s", "instance": null, "entry": 1, "id": id,
                "owner": { "kind": PrincipalKind::Anonymous, "key": null },
                "tool": "t", "modern": false, "obligations": [], "used": seconds(),
            })
        };
        let long = "x".repeat(ID_BYTES + 1);
        let all = serde_json::json!([stored(&long), stored(&long[1..])]);
        fs::write(&file.path, all.to_string()).unwrap();
        assert_eq!(file.read().unwrap().len(), 1);
        fs::File::create(&file.path).unwrap().set_len(BYTES as u64 + 1).unwrap();
        let error = file.read().err().unwrap();
        assert!(error.to_string().contains("67108865"), "{error}");
    }
}
