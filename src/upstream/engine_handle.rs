//! The container engine, found at the start of the proxy or later.
//!
//! INVARIANT: an engine that was found is kept. While it is unavailable, what needs it fails:
//! no server moves to the sandbox for that reason.

use std::{path::PathBuf, time::Duration};

use tokio::sync::{Mutex, watch};

use portcullis_runtime::container;

/// Interval of the search for a missing engine.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// The container engine of the servers, or the reason why none is available.
pub struct Engines {
    host: Option<String>,
    now: watch::Sender<Result<container::Engine, String>>,
    /// Held during a search.
    looking: Mutex<()>,
}

impl Engines {
    /// No engine yet, for the reason `why`. Searches look at `host`, or at the default sockets.
    pub fn none(host: Option<&str>, why: &str) -> Self {
        let (host, now) = (host.map(str::to_owned), watch::Sender::new(Err(why.to_owned())));
        Self { host, now, looking: Mutex::default() }
    }

    /// Looks for the engine at `host`, or at the default sockets.
    pub async fn find(host: Option<&str>) -> Self {
        let engines = Self::none(host, "");
        let _ = engines.look().await;
        engines
    }

    /// The engine that was found, or the reason why there is none. Does not search.
    pub fn now(&self) -> Result<container::Engine, String> {
        self.now.borrow().clone()
    }

    /// Sockets of engines, and the data folders of the engine that was found.
    pub(super) fn host_paths(&self) -> Vec<PathBuf> {
        let mut all = container::sockets(self.host.as_deref());
        all.extend(self.now.borrow().iter().flat_map(container::Engine::host_paths));
        all
    }

    /// The engine. Searches for it if none was found yet.
    ///
    /// # Errors
    /// The reason why no engine is available.
    pub async fn look(&self) -> Result<container::Engine, String> {
        let _one_at_a_time = self.looking.lock().await;
        if let Ok(engine) = self.now() {
            return Ok(engine);
        }
        let found = container::Engine::connect(self.host.as_deref()).await;
        let found = found.map_err(|none| none.to_string());
        drop(self.now.send_replace(found.clone()));
        found
    }

    /// Waits for an engine. Searches periodically while `needed` returns true.
    pub async fn wait(&self, needed: impl Fn() -> bool) -> container::Engine {
        let mut now = self.now.subscribe();
        loop {
            if let Ok(engine) = &*now.borrow_and_update() {
                return engine.clone();
            }
            tokio::select! {
                // `self` holds the sender, so the channel is open.
                _ = now.changed() => continue,
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
            if needed() {
                let _ = self.look().await;
            }
        }
    }
}
