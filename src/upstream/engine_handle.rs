//! The container engine: there when the proxy starts, or found later.
//!
//! INVARIANT: what was found stays. Where an engine goes away, what needs it fails; nothing runs in the
//! sandbox for that.

use std::{path::PathBuf, time::Duration};

use tokio::sync::{Mutex, watch};

use portcullis_runtime::container;

/// How often an engine is looked for that is not there.
const AGAIN: Duration = Duration::from_secs(3);

/// The engine that servers run in, or why there is none.
pub struct Engines {
    host: Option<String>,
    now: watch::Sender<Result<container::Engine, String>>,
    /// Held by whoever looks for one.
    looking: Mutex<()>,
}

impl Engines {
    /// None yet, and why; it is looked for at `host`, or at the usual places.
    pub fn none(host: Option<&str>, why: &str) -> Self {
        let (host, now) = (host.map(str::to_owned), watch::Sender::new(Err(why.to_owned())));
        Self { host, now, looking: Mutex::default() }
    }

    /// The one at `host`, or at the usual places, if one answers.
    pub async fn find(host: Option<&str>) -> Self {
        let engines = Self::none(host, "");
        let _ = engines.look().await;
        engines
    }

    /// The engine as far as is known, or why there is none.
    pub fn now(&self) -> Result<container::Engine, String> {
        self.now.borrow().clone()
    }

    /// Sockets of engines, and where the one that was found keeps its data.
    pub(super) fn host_paths(&self) -> Vec<PathBuf> {
        let mut all = container::sockets(self.host.as_deref());
        all.extend(self.now.borrow().iter().flat_map(container::Engine::host_paths));
        all
    }

    /// The engine; looked for where there was none.
    ///
    /// # Errors
    /// Why there is none.
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

    /// Waits until there is one, and looks for it meanwhile for as long as it is `needed`.
    pub async fn wait(&self, needed: impl Fn() -> bool) -> container::Engine {
        let mut now = self.now.subscribe();
        loop {
            if let Ok(engine) = &*now.borrow_and_update() {
                return engine.clone();
            }
            tokio::select! {
                // The sender is ours, so it is there.
                _ = now.changed() => continue,
                () = tokio::time::sleep(AGAIN) => {}
            }
            if needed() {
                let _ = self.look().await;
            }
        }
    }
}
