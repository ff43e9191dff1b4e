//! Paths of the proxy that no server may see or change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::path_identity::{Overlap, PathChain};

/// A path of the proxy itself, such as its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectedPath {
    /// Absolute path.
    pub path: PathBuf,
    /// Name in messages: `the config`.
    pub what: &'static str,
    pub protection: Protection,
}

/// What a server may not do with a protected path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// No access.
    Hidden,
    /// No access, nor to targets of links in this folder.
    Folder,
    /// No write access.
    Fixed,
}

impl ProtectedPath {
    /// Reason why a server may not see a source, or not with this access, because of this path.
    pub(super) fn refuses(&self, source: &PathChain, writable: bool) -> Option<String> {
        if self.protection == Protection::Fixed && !writable {
            return None;
        }
        let (what, shown_path) = (self.what, self.path.display());
        let open =
            if self.protection == Protection::Fixed { ", and it would be writable" } else { "" };
        match source.meets(&self.path) {
            Some(Overlap::At) => Some(format!("it is {what}{open}")),
            Some(Overlap::Within) => Some(format!("it is in {what}, {shown_path}{open}")),
            Some(Overlap::Above) => Some(format!("{what}, {shown_path}, is inside it{open}")),
            None if self.protection == Protection::Folder => match links(&self.path) {
                Ok(links) => links.into_iter().find_map(|path| {
                    Self { path, what, protection: Protection::Hidden }.refuses(source, writable)
                }),
                Err(error) => Some(format!(
                    "the targets of links in {what}, {shown_path}, cannot be resolved: \
                        {error}"
                )),
            },
            None => None,
        }
    }
}

/// Present targets of the links in a folder.
fn links(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        // The folder does not exist yet, or is a file.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            links.push(entry.path());
        }
    }
    Ok(links)
}

/// Protected paths of a proxy: those of the config that it started with, and those of the present
/// config.
#[derive(Debug, Default)]
pub struct ProtectedPaths {
    at_start: Vec<ProtectedPath>,
    now: ArcSwap<Vec<ProtectedPath>>,
}

impl ProtectedPaths {
    /// Protected paths at the start.
    pub fn new(at_start: Vec<ProtectedPath>) -> Self {
        Self { now: ArcSwap::from_pointee(at_start.clone()), at_start }
    }

    /// Present protected paths.
    pub fn now(&self) -> Arc<Vec<ProtectedPath>> {
        self.now.load_full()
    }

    /// Protected paths with those of another config. A proxy keeps the ones it started with until
    /// it stops.
    pub fn with(&self, theirs: Vec<ProtectedPath>) -> Arc<Vec<ProtectedPath>> {
        Arc::new([self.at_start.clone(), theirs].concat())
    }

    /// Sets the protected paths.
    pub fn follow(&self, now: Arc<Vec<ProtectedPath>>) {
        self.now.store(now);
    }
}
