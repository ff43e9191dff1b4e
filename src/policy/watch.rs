//! Reloads policies when their files change.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{bundle::Origin, engine::Engine};

/// Time without changes before the files are read: an editor writes, renames and touches several
/// times for one save.
const QUIET: Duration = Duration::from_millis(150);
/// Continuous changes delay a reload by at most this many times [`QUIET`].
const PATIENCE: u32 = 20;

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    messages: Sender<Message>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Fails only if the thread has ended already.
        let _ = self.messages.send(Message::Stop);
    }
}

enum Message {
    Event(notify::Result<Event>),
    Stop,
}

/// Reloads the engine when a policy file is created, changed or removed, and logs the result;
/// [`Engine::status`] has it too.
///
/// # Errors
/// If the folders cannot be watched.
pub fn watch(engine: Arc<Engine>) -> notify::Result<Watcher> {
    let (messages, inbox) = channel();
    let sender = messages.clone();
    let watcher = notify::recommended_watcher(move |event| {
        // A failed send means that the reload thread has ended.
        let _ = sender.send(Message::Event(event));
    })?;
    let sources = engine.sources();
    let mut watched = Watched { watcher, folders: BTreeSet::new() };
    watched.renew(&sources)?;
    thread::Builder::new()
        .name("policy-watch".into())
        .spawn(move || reload_on(&inbox, &engine, &sources, watched))
        .map_err(notify::Error::io)?;
    Ok(Watcher { messages })
}

/// The watched folders.
struct Watched {
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
}

impl Watched {
    /// Watches the folder of each source, or its nearest existing ancestor, and each source that is
    /// a folder. The folder, because a file is often replaced by a rename and a watch on the file
    /// would follow the old one. Repeated each time, because a watch follows a folder that was
    /// moved away, not its replacement.
    fn renew(&mut self, sources: &[PathBuf]) -> notify::Result<()> {
        for folder in std::mem::take(&mut self.folders) {
            // Fails if the folder is gone, which needs no action.
            let _ = self.watcher.unwatch(&folder);
        }
        for source in sources {
            let mut above = source.ancestors().skip(1).map(|folder| match folder {
                folder if folder == Path::new("") => Path::new("."),
                folder => folder,
            });
            let above = above.find(|folder| folder.is_dir());
            let itself = source.is_dir().then_some(source.as_path());
            self.folders.extend(above.into_iter().chain(itself).map(Path::to_owned));
        }
        let failed =
            |folder: &PathBuf| self.watcher.watch(folder, RecursiveMode::NonRecursive).err();
        // All folders are tried before a failure is returned.
        let failures: Vec<_> = self.folders.iter().filter_map(failed).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }
}

fn reload_on(
    inbox: &Receiver<Message>,
    engine: &Engine,
    sources: &[PathBuf],
    mut watched: Watched,
) {
    while let Ok(Message::Event(event)) = inbox.recv() {
        if !matters(&event, sources) {
            continue;
        }
        for _ in 0..PATIENCE {
            match inbox.recv_timeout(QUIET) {
                Ok(Message::Event(_)) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // The watch first, then the files: a change in between is a new event.
        if let Err(error) = watched.renew(sources) {
            tracing::warn!("changes of policies may go unseen: {error}");
        }
        let before = engine.revision();
        let was = engine.status().borrow().bundle.clone();
        match engine.reload() {
            Ok(revision) => {
                let bundle = engine.status().borrow().bundle.clone();
                if revision != before || bundle != was {
                    let bundle =
                        bundle.map(|Origin { name, version, .. }| format!("{name} {version}"));
                    tracing::info!(%revision, bundle, "policies reloaded");
                }
            }
            Err(diagnostics) => tracing::error!(
                kept = %before,
                "policies have changed and are not used, the ones before stay:\n{diagnostics}"
            ),
        }
    }
}

/// Whether an event may be about policies. Other files in a watched folder and reads do not matter.
/// A fault of the watch may hide a change, so it matters.
fn matters(event: &notify::Result<Event>, sources: &[PathBuf]) -> bool {
    let Ok(event) = event else { return true };
    let concerns = |path: &PathBuf| {
        sources.iter().any(|source| path.starts_with(source) || source.starts_with(path))
    };
    !event.kind.is_access() && (event.need_rescan() || event.paths.iter().any(concerns))
}
