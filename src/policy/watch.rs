//! Policies are loaded again when their files change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::engine::Engine;

/// How long the files must be left alone before they are read: an editor writes, renames and
/// touches several times for one save.
const QUIET: Duration = Duration::from_millis(150);
/// Changes without end put a reload off no longer than this many times [`QUIET`].
const PATIENCE: u32 = 20;

/// Watches as long as it lives.
#[derive(Debug)]
pub struct Watcher {
    /// Its end closes the channel, which ends the thread.
    _watcher: RecommendedWatcher,
}

/// Reloads the engine whenever a policy file comes, changes or goes, and logs the outcome;
/// [`Engine::status`] has it too.
///
/// # Errors
/// Where the folders cannot be watched.
pub fn watch(engine: Arc<Engine>) -> notify::Result<Watcher> {
    let (sender, events) = channel();
    let mut watcher = notify::recommended_watcher(move |event| {
        // A failed send means that nobody reloads any more.
        let _ = sender.send(event);
    })?;
    let sources = engine.sources();
    for folder in folders(&sources) {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    }
    thread::Builder::new()
        .name("policy-watch".into())
        .spawn(move || reload_on(&events, &engine))
        .map_err(notify::Error::io)?;
    Ok(Watcher { _watcher: watcher })
}

/// The folders to watch: each source's parent (a file is often replaced by a rename, and a watch
/// on the file itself would follow the old one), and a source that is a folder itself.
fn folders(sources: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    for source in sources {
        match source.parent() {
            Some(parent) if parent == Path::new("") => folders.insert(PathBuf::from(".")),
            Some(parent) => folders.insert(parent.to_owned()),
            None => false,
        };
        if source.is_dir() {
            folders.insert(source.clone());
        }
    }
    folders
}

fn reload_on(events: &Receiver<notify::Result<Event>>, engine: &Engine) {
    while let Ok(event) = events.recv() {
        if !matters(&event) {
            continue;
        }
        for _ in 0..PATIENCE {
            match events.recv_timeout(QUIET) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        match engine.reload() {
            Ok(revision) => tracing::info!(%revision, "policies loaded again"),
            Err(diagnostics) => tracing::error!(
                kept = %engine.revision(),
                "policies have changed and are not used, the ones before stay:\n{diagnostics}"
            ),
        }
    }
}

/// Whether an event may be about policies. Reading them is none; a fault of the watch may hide one.
fn matters(event: &notify::Result<Event>) -> bool {
    event.as_ref().map_or(true, |event| !event.kind.is_access())
}
