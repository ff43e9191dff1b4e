//! All streams of a config: start, supervision, and end after the last record.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};

use super::{
    Format, Illegal, Item, Origin, Target,
    cursor::CursorFile,
    exporter::{Meters, Parts, RecordFilter, Source, Stream, Timing},
};
use crate::{
    Filter,
    config::{self, Destination, StreamStart},
};
use portcullis_protocol::names::ExportName;
use portcullis_vault::{Secret, SecretRef, Source as SecretSource};

/// Delay before a stream that ended by an internal fault restarts.
const AFTER_FAULT: Duration = Duration::from_secs(10);

/// One stream of the config, with its secrets resolved.
#[derive(Clone)]
pub struct Settings {
    name: ExportName,
    target: Target,
    format: Option<Format>,
    headers: Vec<(String, Secret)>,
    ca_file: Option<PathBuf>,
    batch: usize,
    from_now: bool,
    /// Filter for records. Without it, all records are delivered.
    wanted: Option<RecordFilter>,
}

/// Streams of a running proxy.
pub struct Streams {
    all: Vec<Running>,
    stop: watch::Sender<bool>,
}

struct Running {
    name: ExportName,
    meters: Meters,
    next: Arc<AtomicU64>,
    ends: watch::Receiver<u64>,
    task: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all.iter().map(|running| running.name.as_str())).finish()
    }
}

impl Streams {
    /// Starts the streams. `store` is the log's folder, which has the cursors.
    ///
    /// # Errors
    /// If headers or certificates cannot be used, with the stream's name.
    pub(super) fn start(
        settings: Vec<Settings>,
        store: &Path,
        origin: &Origin,
        source: &Arc<dyn Source>,
        meters: impl Fn(&ExportName) -> Meters,
    ) -> Result<Self, Illegal> {
        let (stop, stopped) = watch::channel(false);
        let mut all = Vec::new();
        for settings in settings {
            let name = settings.name.clone();
            let named = |illegal: Illegal| Illegal(format!("the export `{name}`: {}", illegal.0));
            // Fails at the start for unusable settings, before the proxy accepts messages.
            settings.sink(origin).map_err(named)?;
            let (meters, next) = (meters(&settings.name), Arc::new(AtomicU64::new(0)));
            let each = Each {
                settings,
                cursor_file: CursorFile::new(store, name.as_str()),
                origin: origin.clone(),
                source: source.clone(),
                meters: meters.clone(),
                next: next.clone(),
                stop: stopped.clone(),
            };
            let task = parking_lot::Mutex::new(Some(tokio::spawn(each.watch_over())));
            all.push(Running { name, meters, next, ends: source.ends(), task });
        }
        Ok(Self { all, stop })
    }

    /// Updates the gauges of undelivered records.
    pub fn measure(&self) {
        for Running { meters, next, ends, .. } in &self.all {
            let lag = ends.borrow().saturating_sub(next.load(Ordering::Relaxed));
            meters.lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }

    /// The stream that is furthest behind, and its first undelivered record. A stream that has not
    /// begun counts from the beginning of the log.
    pub fn undelivered(&self) -> Option<(ExportName, u64)> {
        let position = |running: &Running| running.next.load(Ordering::Relaxed);
        let last = self.all.iter().min_by_key(|running| position(running))?;
        Some((last.name.clone(), position(last)))
    }

    /// Makes the streams deliver the remaining records, write their cursors and end, within
    /// `patience`. Records that are still undelivered follow after the next start.
    pub async fn finish(&self, patience: Duration) {
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + patience;
        for running in &self.all {
            let Some(mut task) = running.task.lock().take() else { continue };
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                tracing::warn!(
                    export = %running.name,
                    "the export was not complete in time; it continues after the next start"
                );
            }
        }
    }
}

impl Settings {
    /// Reads an entry of the config and the secrets that it names. Checks only what depends on a
    /// secret; loading the config checked the rest.
    ///
    /// # Errors
    /// [`Illegal`], which names secrets by their references and never contains a secret.
    pub fn read(entry: &config::Export, base: &Path) -> Result<Self, Illegal> {
        let resolve = |secret: &SecretRef| {
            let source = SecretSource::try_from(secret);
            source.and_then(|source| source.resolve()).map_err(|error| Illegal(error.to_string()))
        };
        let target = match &entry.to {
            Destination::Plain(text) => Target::parse(text, base)?,
            Destination::Secret(secret) => {
                let target = Target::parse(resolve(secret)?.expose(), base)?;
                if target.is_open() {
                    tracing::warn!(
                        export = %entry.name,
                        to = %target,
                        "records go over the network in the open"
                    );
                }
                target
            }
        };
        if let Some(format) = entry.format
            && !target.formats().contains(&format)
        {
            return Err(Illegal(format!("`{format}` can't be streamed to {target}")));
        }
        if !entry.headers.is_empty() && !target.takes_headers() {
            return Err(Illegal(format!("`headers` has no meaning for {target}")));
        }
        let wanted = entry.filter.as_deref().map(|text| {
            let filter: Filter = text.parse().map_err(|e| Illegal(format!("its filter: {e}")))?;
            Ok::<RecordFilter, Illegal>(Arc::new(move |item: &Item| filter.matches(&item.entry)))
        });
        let wanted = wanted.transpose()?;
        let headers = entry
            .headers
            .iter()
            .map(|(name, secret)| Ok((name.clone(), resolve(secret)?)))
            .collect::<Result<_, Illegal>>()?;
        Ok(Self {
            name: entry.name.clone(),
            target,
            format: entry.format,
            headers,
            ca_file: entry.ca_file.clone(),
            batch: entry.batch,
            from_now: entry.begin == StreamStart::Now,
            wanted,
        })
    }

    /// Whether the target is the proxy's own standard output.
    pub fn writes_to_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    fn sink(&self, origin: &Origin) -> Result<Box<dyn super::target::Sink>, Illegal> {
        self.target.sink(self.format, origin.clone(), &self.headers, self.ca_file.as_deref())
    }
}

/// Settings from which one stream starts and restarts.
struct Each {
    settings: Settings,
    cursor_file: CursorFile,
    origin: Origin,
    source: Arc<dyn Source>,
    meters: Meters,
    next: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
}

impl Each {
    async fn watch_over(self) {
        let mut stop = self.stop.clone();
        loop {
            let sink = match self.settings.sink(&self.origin) {
                Ok(sink) => sink,
                Err(illegal) => {
                    tracing::error!(export = %self.settings.name, %illegal, "the export can't run");
                    return;
                }
            };
            let parts = Parts {
                name: self.settings.name.to_string(),
                target: self.settings.target.to_string(),
                log: self.origin.log.clone(),
                source: self.source.clone(),
                sink,
                wanted: self.settings.wanted.clone(),
                batch: self.settings.batch.max(1),
                from_now: self.settings.from_now,
                cursor_file: self.cursor_file.clone(),
                pace: Timing::default(),
                meters: self.meters.clone(),
                next: self.next.clone(),
                stop: self.stop.clone(),
            };
            let ended = tokio::spawn(async move { Stream::open(parts).await.run().await });
            let mut ended = Aborting(ended);
            match (&mut ended.0).await {
                Ok(()) => return,
                Err(fault) => {
                    self.meters.failures.inc();
                    tracing::error!(
                        export = %self.settings.name,
                        %fault,
                        "an export failed in the proxy; restarting it"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_FAULT) => {}
                _ = stop.changed() => return,
            }
        }
    }
}

/// A task that is aborted when this is dropped.
struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
