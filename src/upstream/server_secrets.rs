//! Secrets of one server: read before it starts, and read again on request.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::RwLock;

use super::{
    launcher::Launcher,
    secret_set::{LoadedSecrets, ReloadScope, SecretError, SecretScope, SecretSet},
};
use crate::config;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::process::LaunchFailure;

/// Secrets of one entry of the config. An entry that replaces it under the same name has its own.
pub(super) struct ServerSecrets {
    name: ServerName,
    settings: Arc<config::Server>,
    launcher: Arc<Launcher>,
    loaded: RwLock<LoadedSecrets>,
    /// Held while secrets are read.
    reading: tokio::sync::Mutex<()>,
}

/// Result of reading secrets again.
#[derive(Default)]
pub(super) struct Reload {
    /// Scopes whose secrets were read.
    pub read: BTreeSet<SecretScope>,
    /// Failures, each with whether an earlier value stays in use.
    pub failed: Vec<(SecretError, bool)>,
}

impl ServerSecrets {
    pub fn new(
        name: ServerName,
        settings: Arc<config::Server>,
        launcher: Arc<Launcher>,
        loaded: LoadedSecrets,
    ) -> Self {
        let (loaded, reading) = (RwLock::new(loaded), tokio::sync::Mutex::default());
        Self { name, settings, launcher, loaded, reading }
    }

    /// The secrets that were read last.
    ///
    /// # Errors
    /// Why they could not be read.
    pub fn loaded(&self, scope: &SecretScope) -> Result<Arc<SecretSet>, LaunchFailure> {
        match self.loaded.read().get(scope) {
            Some(Ok(secrets)) => Ok(secrets.clone()),
            Some(Err(why)) => Err(LaunchFailure {
                what: why.clone(),
                remedy: Some("set it, or name another source in the config".into()),
            }),
            None => {
                Err(LaunchFailure { what: "its secrets were not read yet".into(), remedy: None })
            }
        }
    }

    /// The secrets for a start. Those that could not be read before are read again.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn load(&self, scope: &SecretScope) -> Result<Arc<SecretSet>, LaunchFailure> {
        if let Ok(secrets) = self.loaded(scope) {
            return Ok(secrets);
        }
        // Without the lock, an older value could overwrite a newer one.
        let _one_at_a_time = self.reading.lock().await;
        if let Ok(secrets) = self.loaded(scope) {
            return Ok(secrets);
        }
        self.read(scope, ReloadScope::All).await.map_err(|error| *error.failure)
    }

    /// Reads the secrets of all scopes again.
    pub async fn reload(&self, which: ReloadScope) -> Reload {
        let mut reload = Reload::default();
        let _one_at_a_time = self.reading.lock().await;
        for scope in SecretScope::all(&self.settings) {
            let before = self.loaded(&scope);
            match self.read(&scope, which).await {
                Ok(_) => drop(reload.read.insert(scope)),
                Err(error) => {
                    let is_kept = before.is_ok();
                    // A secret that was missing before is on record already.
                    let is_known = before.is_err_and(|before| before.what == error.failure.what);
                    if which == ReloadScope::All || !is_known {
                        reload.failed.push((error, is_kept));
                    }
                }
            }
        }
        reload
    }

    /// Reads the secrets of a scope. The caller holds `reading`. Equal values keep the identity of
    /// the earlier set.
    ///
    /// # Errors
    /// A [`SecretError`] if one cannot be read or registered. Then all values stay as they are.
    async fn read(
        &self,
        scope: &SecretScope,
        which: ReloadScope,
    ) -> Result<Arc<SecretSet>, SecretError> {
        let before = self.loaded(scope).ok();
        let previous = before.as_deref().filter(|_| which == ReloadScope::Files);
        let base = &self.launcher.base;
        let secrets = match SecretSet::reread(&self.settings, base, scope, previous).await {
            Ok(secrets) => secrets,
            Err(error) => {
                let mut loaded = self.loaded.write();
                if !matches!(loaded.get(scope), Some(Ok(_))) {
                    loaded.insert(scope.clone(), Err(error.failure.what.clone()));
                }
                return Err(error);
            }
        };
        if let Some(before) = before.filter(|before| **before == secrets) {
            return Ok(before);
        }
        let secrets = Arc::new(secrets);
        let registered = self.launcher.broker.learn(&self.name, &secrets).await;
        registered.map_err(|failure| unregistered(scope, &secrets, failure))?;
        self.loaded.write().insert(scope.clone(), Ok(secrets.clone()));
        Ok(secrets)
    }
}

fn unregistered(scope: &SecretScope, secrets: &SecretSet, failure: LaunchFailure) -> SecretError {
    let first = secrets.0.first();
    SecretError {
        secret: first.map(|first| first.name.clone()).unwrap_or_default(),
        client: scope.client().map(str::to_owned),
        source: first.map(|first| first.source.clone()),
        failure: Box::new(failure),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;
    use crate::server_shared::tests::launcher;

    /// Secrets of a server with the secret `TOKEN` in the file `token`.
    fn secrets(base: &Path) -> ServerSecrets {
        let secret = serde_json::from_value(json!({ "from": "file:token" })).unwrap();
        let settings =
            config::Server { secrets: [("TOKEN".into(), secret)].into(), ..Default::default() };
        let (name, launcher) = ("s".parse().unwrap(), launcher(base.to_owned(), None));
        ServerSecrets::new(name, Arc::new(settings), launcher, LoadedSecrets::default())
    }

    #[tokio::test]
    async fn secrets_keep_their_value_until_reloaded() {
        let folder = tempfile::tempdir().unwrap();
        let (secrets, scope) = (secrets(folder.path()), SecretScope::Common);
        let write = |value: &str| fs::write(folder.path().join("token"), value).unwrap();
        let value = |set: &SecretSet| set.0[0].value.expose().to_owned();
        assert!(secrets.loaded(&scope).is_err());
        assert!(secrets.load(&scope).await.is_err(), "there is no such file");

        write("first");
        let first = secrets.load(&scope).await.unwrap();
        assert_eq!(value(&first), "first");
        let reload = secrets.reload(ReloadScope::Files).await;
        assert!(reload.read.contains(&scope) && reload.failed.is_empty());
        assert!(Arc::ptr_eq(&first, &secrets.loaded(&scope).unwrap()));

        write("second");
        assert_eq!(value(&secrets.load(&scope).await.unwrap()), "first");
        secrets.reload(ReloadScope::Files).await;
        assert_eq!(value(&secrets.loaded(&scope).unwrap()), "second");

        fs::remove_file(folder.path().join("token")).unwrap();
        let reload = secrets.reload(ReloadScope::All).await;
        let [(error, is_kept)] = &reload.failed[..] else { panic!() };
        assert_eq!((&*error.secret, *is_kept), ("TOKEN", true));
        assert_eq!(value(&secrets.loaded(&scope).unwrap()), "second");
    }

    #[tokio::test]
    async fn known_failure_is_not_repeated_for_a_changed_file() {
        let secrets = secrets(Path::new("/nonexistent"));
        for (which, failed) in
            [(ReloadScope::Files, 1), (ReloadScope::Files, 0), (ReloadScope::All, 1)]
        {
            assert_eq!(secrets.reload(which).await.failed.len(), failed, "{which:?}");
        }
    }
}
