//! Waits for changes of a project's sources.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time::timeout};

/// Time without changes before a build: an editor writes several times for one save.
const QUIET: Duration = Duration::from_millis(150);
/// Maximum number of files that are compared.
const MAX_FILES: usize = 10_000;

/// Contents of all sources at one time. A build that writes a file without changing it causes no
/// further build.
#[derive(Debug, PartialEq, Eq)]
pub struct Sources([u8; 32]);

/// Watches the sources of a project until it is dropped.
#[derive(Debug)]
pub struct SourceWatcher {
    folder: PathBuf,
    changed: Arc<Notify>,
    watcher: RecommendedWatcher,
}

impl SourceWatcher {
    /// Watches the sources in a folder.
    ///
    /// # Errors
    /// The folder cannot be watched.
    pub fn new(folder: &Path) -> notify::Result<Self> {
        let folder = fs::canonicalize(folder)?;
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading files is no change. After a lost event, the sources are compared, too.
            let is_read = event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_)));
            if !is_read {
                notify.notify_one();
            }
        })?;
        let mut watcher = Self { folder, changed, watcher };
        watcher.renew()?;
        Ok(watcher)
    }

    /// Watches the folder and its folders of sources, including new ones.
    fn renew(&mut self) -> notify::Result<()> {
        self.watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        let folders = fs::read_dir(&self.folder)?.flatten().map(|entry| entry.path());
        for folder in folders.filter(|path| path.is_dir() && is_source(path)) {
            self.watcher.watch(&folder, RecursiveMode::Recursive)?;
        }
        Ok(())
    }

    /// The sources as they are now.
    pub fn sources(&self) -> Sources {
        let mut files = Vec::new();
        collect(&self.folder, &mut files);
        files.sort();
        let mut hash = Sha256::new();
        for path in files {
            let content = fs::read(&path).unwrap_or_default();
            for part in [path.as_os_str().as_encoded_bytes(), &content] {
                // The length first, so that a name cannot run into the content.
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Sources(hash.finalize().into())
    }

    /// Waits until the sources differ from `before`.
    ///
    /// # Errors
    /// The folder cannot be watched any longer.
    pub async fn wait_for_change(&mut self, before: &Sources) -> notify::Result<()> {
        while self.sources() == *before {
            self.changed.notified().await;
            while timeout(QUIET, self.changed.notified()).await.is_ok() {}
            self.renew()?;
        }
        Ok(())
    }
}

/// Whether a name is that of a source: neither hidden nor written by tools.
fn is_source(path: &Path) -> bool {
    const WRITTEN: [&str; 3] = ["target", "node_modules", "__pycache__"];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !name.starts_with('.') && !WRITTEN.contains(&&*name)
}

/// Adds all sources below a folder. Symbolic links to folders are not followed.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_source(&path) || files.len() >= MAX_FILES {
            continue;
        }
        if is_folder {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changed_source_is_reported_and_written_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("src")).unwrap();
        fs::create_dir(path("target")).unwrap();
        fs::write(path("src/lib.rs"), "one").unwrap();
        let mut watcher = SourceWatcher::new(folder.path()).unwrap();
        let before = watcher.sources();
        fs::write(path("target/x.wasm"), "built").unwrap();
        fs::write(path("src/lib.rs"), "one").unwrap();
        assert_eq!(watcher.sources(), before);
        fs::write(path("src/lib.rs"), "two").unwrap();
        watcher.wait_for_change(&before).await.unwrap();
        // A folder that was created while it waited is watched, too.
        let before = watcher.sources();
        fs::create_dir(path("wit")).unwrap();
        watcher.renew().unwrap();
        fs::write(path("wit/plugin.wit"), "world").unwrap();
        watcher.wait_for_change(&before).await.unwrap();
    }
}
