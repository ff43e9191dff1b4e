//! Config reloads for servers: either all changes of servers take effect, or none.
//!
//! INVARIANT: a change is on record before it takes effect. A server with an unchanged entry is not
//! touched. A server with a changed entry starts nothing any more, and receives nothing of the new
//! entry. A config is rejected if a server that continues would see a protected path of the proxy.

use std::{path::Path, sync::Arc, time::Duration};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{
    NewServer, Servers,
    secrets::{by_server, delivered, missing},
};
use portcullis_audit::record::{ConfigRejected, ConfigReloaded};
use portcullis_config::{Config, Diagnostics, Finding, Loaded, exposing_mounts, protected_paths};
use portcullis_policy::Stated;
use portcullis_protocol::exchange::View;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::{MountPolicy, ProtectedPath, ProtectedPaths};
use portcullis_upstream::{Server, config::Server as Settings};

/// Time limit for examining the folders of all servers' mounts.
const FOLDERS: Duration = Duration::from_secs(30);

/// Cause of a refused call to a server that was removed.
const REMOVED: &str = "it was removed from the config";
const CHANGED: &str = "its entry in the config has changed; call again";

/// Difference between a reloaded config and its predecessor.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    added: Vec<ServerName>,
    changed: Vec<ServerName>,
    removed: Vec<ServerName>,
}

impl Difference {
    fn of(
        before: &IndexMap<ServerName, Arc<Server>>,
        now: &IndexMap<ServerName, Settings>,
    ) -> Self {
        let mut difference = Self::default();
        for (name, settings) in now {
            match before.get(name) {
                None => difference.added.push(name.clone()),
                Some(server) if !same(&server.settings, settings) => {
                    difference.changed.push(name.clone());
                }
                Some(_) => {}
            }
        }
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        difference.removed.extend(gone.cloned());
        difference
    }

    fn all(&self) -> impl Iterator<Item = &ServerName> {
        self.added.iter().chain(&self.changed).chain(&self.removed)
    }
}

fn same(one: &Settings, other: &Settings) -> bool {
    let plain = |settings| serde_json::to_value(settings).ok();
    plain(one) == plain(other)
}

/// The changed sections other than those of servers. `[limits.servers]` counts as part of servers.
fn sections(one: &Config, other: &Config) -> Vec<String> {
    let plain = |config| {
        let mut all = match serde_json::to_value(config) {
            Ok(Value::Object(all)) => all,
            _ => Map::new(),
        };
        all.remove("servers");
        if let Some(limits) = all.get_mut("limits").and_then(Value::as_object_mut) {
            limits.remove("servers");
        }
        all
    };
    let (one, other) = (plain(one), plain(other));
    other.into_iter().filter(|(name, value)| one.get(name) != Some(value)).map(|(n, _)| n).collect()
}

/// The parts of the config file that are not in use, with the cause.
#[derive(Debug, Default)]
pub(crate) struct ReloadStatus {
    /// Errors of the present file, if it was rejected.
    pub rejected: Option<String>,
    /// The sections that take effect at the next start.
    pub waiting: Vec<String>,
}

impl Servers {
    /// Notes that the present config file is rejected and everything stays as it is. With `forced`,
    /// an unchanged cause is reported once more.
    pub async fn reject_config(&self, file: &Path, reason: String, forced: bool) {
        {
            let mut reload = self.reload.lock();
            if reload.rejected.as_ref() == Some(&reason) && !forced {
                return;
            }
            reload.rejected = Some(reason.clone());
        }
        tracing::error!("changed config rejected; the previous config stays in force:\n{reason}");
        self.recorder.metrics.config_reload(false);
        let file = file.display().to_string();
        self.recorder.audit.record_best_effort(ConfigRejected { file, reason }).await;
    }

    /// Applies the servers of a reloaded config that passed all checks. With `requested`, an operator
    /// requested the reload, and the log reports it even without changes.
    pub async fn apply_config(self: &Arc<Self>, loaded: &Loaded, requested: bool) {
        let taken = {
            let _one_at_a_time = self.reloading.lock().await;
            self.apply_servers(loaded).await
        };
        match taken {
            Ok(None) if requested => tracing::info!("config reloaded; no changes"),
            Ok(None) => {}
            // Each client's notifications pass the chain. The reload does not wait for that.
            Ok(Some(affected)) => {
                let servers = self.clone();
                self.until_closing(async move {
                    servers.subscriptions.notify_servers(&affected).await;
                });
            }
            Err(why) => self.reject_config(&loaded.path, why, true).await,
        }
    }

    /// Updates the config lines that messages name, and reports that other secret files may have to
    /// be watched.
    fn find(&self, loaded: &Loaded) {
        self.launcher.broker.locate(loaded.secret_lines());
        self.launcher.signatures.locate(loaded.signed_by_lines());
        self.secrets_changed.notify_one();
    }

    /// Checks the mounts of all servers against the protected paths of the new config, since
    /// running servers have their mounts already. Returns the new protected paths.
    ///
    /// # Errors
    /// The refused mounts, and the causes.
    async fn check_mounts(&self, loaded: &Loaded) -> Result<Arc<Vec<ProtectedPath>>, String> {
        let (launcher, loaded) = (self.launcher.clone(), loaded.clone());
        let looking =
            tokio::task::spawn_blocking(move || newly_exposed(&launcher.protected, &loaded));
        match tokio::time::timeout(FOLDERS, looking).await {
            Ok(Ok((refused, own))) if refused.is_empty() => Ok(own),
            Ok(Ok((refused, _))) => Err(Diagnostics(refused).to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "the folders of `mounts`, and what no server may see, could not be looked at within \
                 {} s: see which of them is mounted from elsewhere, such as NFS, and does not answer",
                FOLDERS.as_secs()
            )),
        }
    }

    /// Returns the servers that were added, changed or removed; `None` without changes.
    ///
    /// # Errors
    /// The cause why everything stays as it is.
    async fn apply_servers(
        self: &Arc<Self>,
        loaded: &Loaded,
    ) -> Result<Option<Vec<ServerName>>, String> {
        let config = &loaded.config;
        let own = self.check_mounts(loaded).await?;
        let before = self.router.servers(&View::All).into_iter();
        let before: IndexMap<_, _> = before.map(|server| (server.name.clone(), server)).collect();
        let difference = Difference::of(&before, &config.servers);
        let waiting = sections(&self.config, config);
        let moved = !before.keys().eq(config.servers.keys());
        {
            let mut reload = self.reload.lock();
            if !moved && difference == Difference::default() && reload.waiting == waiting {
                if reload.rejected.take().is_some() {
                    tracing::info!("config file is valid again");
                }
                // Equal entries may be on other lines, and other paths may be protected.
                self.launcher.protected.follow(own);
                self.find(loaded);
                return Ok(None);
            }
        }
        let Difference { added, changed, removed } = &difference;
        let new: IndexMap<_, _> = (config.servers.iter())
            .filter(|(name, _)| added.contains(name) || changed.contains(name))
            .map(|(name, settings)| (name.clone(), settings.clone()))
            .collect();
        if new.values().any(|settings| settings.url.is_none()) {
            // Maybe no server needed an engine before. A failure is reported by the servers.
            let _ = self.launcher.engine.look().await;
        }
        let read = delivered(&new, &self.launcher.base).await;
        for missing in missing(&read) {
            self.recorder.audit.record_best_effort(missing).await;
        }
        let mut delivered_by_server = by_server(read);
        for (name, read) in &delivered_by_server {
            for delivered in read.values().flatten() {
                let learned = self.launcher.broker.learn(name, delivered).await;
                learned.map_err(|failure| format!("server `{name}`: {}", failure.what))?;
            }
        }
        let names = |all: &[ServerName]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let happening = ConfigReloaded {
            file: loaded.path.display().to_string(),
            revision: loaded.revision.clone(),
            servers: u64::try_from(config.servers.len()).unwrap_or(u64::MAX),
            added: names(added),
            changed: names(changed),
            removed: names(removed),
            waiting: waiting.clone(),
        };
        let recorded = self.recorder.audit.record_event(happening).await;
        recorded.map_err(|error| format!("it could not be recorded: {error}"))?;

        // The change takes effect here. First, retired servers start nothing more.
        self.launcher.protected.follow(own);
        let retired: Vec<_> = (changed.iter().map(|name| (name, CHANGED)))
            .chain(removed.iter().map(|name| (name, REMOVED)))
            .filter_map(|(name, why)| Some((before.get(name)?.clone(), why)))
            .collect();
        self.retired.lock().extend(retired.iter().map(|(server, _)| server.clone()));
        for (server, why) in &retired {
            server.stop_new_launches(why);
        }
        let mut existing = Vec::new();
        let servers = config.servers.iter().map(|(name, settings)| {
            if let (Some(server), false) = (before.get(name), changed.contains(name)) {
                return server.clone();
            }
            let read = delivered_by_server.remove(name).unwrap_or_default();
            let new = NewServer::of(name, settings, &self.launcher, read, self.recorder.scrub());
            let server = new.server.clone();
            existing.push(new);
            server
        });
        let servers: Vec<_> = servers.collect();
        self.stages.gate.state(Stated::of(config.tools()));
        self.router.set(servers);
        self.find(loaded);
        existing.into_iter().for_each(|existing| self.register(existing));
        *self.reload.lock() = ReloadStatus { rejected: None, waiting: waiting.clone() };
        self.recorder.metrics.config_reload(true);
        tracing::info!(
            added = names(added).join(", "),
            changed = names(changed).join(", "),
            removed = names(removed).join(", "),
            revision = loaded.revision,
            "config reloaded"
        );
        if !waiting.is_empty() {
            let sections = waiting.join(", ");
            tracing::warn!(sections, "config changes in these sections need a restart");
        }
        for (server, why) in retired {
            let servers = self.clone();
            self.retiring.spawn(async move {
                tokio::join!(
                    servers.subscriptions.move_watches(&server),
                    server.drain_and_stop(why, &servers.ending)
                );
                server.flush().await;
                servers.retired.lock().retain(|other| other.number != server.number);
            });
        }
        Ok(Some(difference.all().cloned().collect()))
    }

    /// The parts of the config file that are not in use: the cause of a rejection, and the sections
    /// that wait for the next start.
    pub fn unfollowed(&self) -> (Option<String>, Vec<String>) {
        let reload = self.reload.lock();
        (reload.rejected.as_ref().map(|why| self.recorder.shown(why)), reload.waiting.clone())
    }
}

/// The mounts by which servers would see a path that the new config makes protected, and all
/// protected paths of that config. Other forbidden mounts are refused at a launch: a server can
/// make a mount forbidden, and must not prevent changes of other servers.
fn newly_exposed(
    protected: &ProtectedPaths,
    loaded: &Loaded,
) -> (Vec<Finding>, Arc<Vec<ProtectedPath>>) {
    let (all, now) = (protected.with(protected_paths(loaded)), protected.now());
    let more: Vec<_> = all.iter().filter(|path| !now.contains(path)).cloned().collect();
    if more.is_empty() {
        return (Vec::new(), all);
    }
    let policy = MountPolicy::default().with_own(Arc::new(more));
    (exposing_mounts(&policy, loaded), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let path = std::path::Path::new("/folder/portcullis.toml");
        portcullis_config::parse(path, text).unwrap().config
    }

    #[test]
    fn sections_that_differ_are_named() {
        let first = "[servers.a]\nurl = \"https://a.example\"\n";
        let one = config(first);
        for (text, named) in [
            (first.to_owned(), &[][..]),
            ("[servers.b]\nurl = \"https://a.example\"\n".to_owned(), &[]),
            (format!("{first}[limits.servers]\nmemory-mib = 9000\n"), &[]),
            (format!("{first}[limits]\npage = 9\n"), &["limits"]),
            (format!("{first}[listen]\nanonymous = true\n[engine]\n"), &["listen"]),
        ] {
            let mut found = sections(&one, &config(&text));
            found.sort();
            assert_eq!(found, named, "{text}");
        }
    }
}
