//! Watches files that may be replaced while the proxy runs: the config, plugins, and secrets.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use portcullis_runtime::ResolvedPath;

/// Time without further changes before files are read.
const QUIET: Duration = Duration::from_millis(150);
/// Limit of continued waiting during a series of changes, in multiples of [`QUIET`].
const PATIENCE: u32 = 20;

/// Watched files.
pub struct Files {
    watcher: RecommendedWatcher,
    paths: Vec<PathBuf>,
    /// The watched folders.
    folders: BTreeSet<PathBuf>,
    /// Names of interest in the folders: the files, and links on their paths.
    names: Arc<Mutex<BTreeSet<OsString>>>,
    changes: mpsc::Receiver<()>,
}

/// Every path whose change can replace this file: links on its path (Kubernetes replaces files by
/// changing a link to their folder), the results of `..`, and the file itself.
fn paths_to(path: &Path) -> Vec<PathBuf> {
    let ResolvedPath { mut turns, end } = ResolvedPath::of(path);
    turns.push(end);
    turns
}

impl Files {
    /// Watches these files, which need not exist yet.
    ///
    /// # Errors
    /// If their folders cannot be watched.
    pub fn watch(paths: Vec<PathBuf>) -> notify::Result<Self> {
        let mut files = Self::none()?;
        files.follow(paths)?;
        Ok(files)
    }

    /// Watches no files yet.
    ///
    /// # Errors
    /// If the system provides no watcher.
    pub fn none() -> notify::Result<Self> {
        // A full channel already reports a change.
        let (sender, changes) = mpsc::channel(1);
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let watched = names.clone();
        let matters = move |event: &notify::Event| {
            let watched = watched.lock();
            let named =
                |path: &PathBuf| path.file_name().is_some_and(|name| watched.contains(name));
            !event.kind.is_access() && (event.need_rescan() || event.paths.iter().any(named))
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error of the watcher may hide a change.
            if event.as_ref().map_or(true, &matters) {
                let _ = sender.try_send(());
            }
        })?;
        Ok(Self { watcher, paths: Vec::new(), folders: BTreeSet::new(), names, changes })
    }

    /// Watches these files from now on, instead of the earlier ones.
    ///
    /// # Errors
    /// If one of their folders cannot be watched. The others are watched.
    pub fn follow(&mut self, paths: Vec<PathBuf>) -> notify::Result<()> {
        if self.paths == paths {
            return Ok(());
        }
        self.paths = paths;
        self.renew()
    }

    /// Watches the folders of the files: a file is often replaced by a rename, and a watch on the
    /// file would follow the old one. Repeated after each change, since folders can be replaced.
    fn renew(&mut self) -> notify::Result<()> {
        let chains: Vec<_> = self.paths.iter().flat_map(|path| paths_to(path)).collect();
        let folders = chains.iter().filter_map(|path| path.parent().map(ToOwned::to_owned));
        let names = chains.iter().filter_map(|path| path.file_name().map(ToOwned::to_owned));
        *self.names.lock() = names.collect();
        for folder in std::mem::replace(&mut self.folders, folders.collect()) {
            let _ = self.watcher.unwatch(&folder);
        }
        let mut failure = None;
        for folder in &self.folders {
            failure = self.watcher.watch(folder, RecursiveMode::NonRecursive).err().or(failure);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Waits until files changed and then were quiet. False if there will be no more changes. Not
    /// safe to cancel: a change may be missed.
    pub async fn changed(&mut self) -> bool {
        if self.changes.recv().await.is_none() {
            return false;
        }
        for _ in 0..PATIENCE {
            match tokio::time::timeout(QUIET, self.changes.recv()).await {
                Ok(Some(())) => {}
                Ok(None) => return false,
                Err(_) => break,
            }
        }
        // Watch before reading the files, so that changes in between are reported.
        if let Err(error) = self.renew() {
            tracing::warn!(%error, "file watcher failed; changes may be missed");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_in_a_path_is_watched() {
        use std::os::unix::fs::symlink;

        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("..1")).unwrap();
        std::fs::write(folder.join("..1/a.wasm"), "").unwrap();
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/a.wasm", folder.join("a.wasm")).unwrap();
        let expected = ["a.wasm", "..data", "..1/a.wasm"].map(|step| folder.join(step));
        assert_eq!(paths_to(&folder.join("a.wasm")), expected);
        assert_eq!(paths_to(&folder.join("none")), [folder.join("none")]);
        // Beside the folder that a link points to, not beside the link.
        std::fs::create_dir_all(folder.join("far/real")).unwrap();
        symlink("far/real", folder.join("near")).unwrap();
        let expected = ["near", "far/real", "far/b"].map(|step| folder.join(step));
        assert_eq!(paths_to(&folder.join("near/../b")), expected);
    }
}
