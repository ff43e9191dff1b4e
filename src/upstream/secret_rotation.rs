//! Rotation of the secrets of one running instance. New values of secrets on files are delivered
//! at once, those in the environment and in headers by a restart.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    coalesce::Coalescing,
    event::{LaunchReview, ServerEvent},
    running::Running,
    secret_set::{DeliveredSecret, DeliveryMethod, SecretScope, SecretSet},
    server_shared::ServerShared,
};
use portcullis_foundation::backoff::{Backoff, Cooldown};

/// Pauses after failed restarts of an instance with old secrets.
const RESTART_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

/// Rotation of the secrets of one instance.
pub(super) struct SecretRotation {
    server: Arc<ServerShared>,
    scope: SecretScope,
    /// Pause until the next restart after a failure.
    restart: Mutex<Cooldown>,
    /// Deliveries to the running instance.
    pub delivering: Coalescing<()>,
    /// Deliveries to the instance that is about to replace it, and restarts.
    pub restarting: Coalescing<()>,
}

/// Result of a delivery.
#[derive(Debug, Default)]
pub(super) struct RotationOutcome {
    /// Whether files have new values.
    pub files: bool,
    /// Names of the secrets that a restart delivers.
    pub outdated: Vec<String>,
}

impl SecretRotation {
    pub fn new(server: Arc<ServerShared>, scope: SecretScope) -> Self {
        Self {
            server,
            scope,
            restart: Mutex::new(Cooldown::new(RESTART_BACKOFF)),
            delivering: Coalescing::default(),
            restarting: Coalescing::default(),
        }
    }

    /// Delivers the secrets that were read last, if policies permit it. The caller holds the state
    /// of the instance, so that an older set does not overwrite a newer one.
    ///
    /// # Errors
    /// The reason why the instance keeps its old secrets.
    pub async fn deliver(
        &self,
        running: &Running,
        review: &dyn LaunchReview,
    ) -> Result<RotationOutcome, String> {
        self.server.ensure_active().map_err(|refusal| refusal.to_string())?;
        let current = self.server.secrets.loaded(&self.scope).map_err(|failure| failure.what)?;
        let before = running.secrets.lock().clone();
        let mut outcome = RotationOutcome { files: false, outdated: outdated(&current, running) };
        if Arc::ptr_eq(&before, &current) {
            return Ok(outcome);
        }
        let is_file = |secret: &&DeliveredSecret| secret.by == DeliveryMethod::File;
        let (files, others): (Vec<_>, Vec<_>) = current.unlike(&before).partition(is_file);
        if let (Some(folder), false) = (&running.folder, files.is_empty()) {
            let (name, cleared) = (&self.server.name, &running.cleared);
            if let Some(refusal) = review.forbids(name, cleared).await {
                return Err(refusal.message);
            }
            let names: Vec<_> = files.iter().map(|secret| secret.name.clone()).collect();
            review.review_redelivery(name, cleared, &names).await?;
            running.secret_history.add(&current);
            for secret in files {
                folder.put(&secret.name, &secret.value).map_err(|why| why.to_string())?;
            }
            outcome.files = true;
        }
        *running.secrets.lock() = current.clone();
        if !others.is_empty() && !outcome.outdated.is_empty() {
            let (launch, party) = (running.cleared.launch, running.cleared.party.clone());
            let secrets = outcome.outdated.clone();
            self.server.emit(ServerEvent::Outdated { launch, party, secrets }).await;
        }
        Ok(outcome)
    }

    /// Whether only a restart delivers the secrets that were read last.
    pub fn is_outdated(&self, running: &Running) -> bool {
        let current = self.server.secrets.loaded(&self.scope);
        current.is_ok_and(|current| !outdated(&current, running).is_empty())
    }

    /// Records the result of a restart.
    pub fn restarted(&self, is_ok: bool) {
        let mut restart = self.restart.lock();
        if is_ok { restart.reset() } else { restart.fail() }
    }

    /// Whether a restart failed and is due again. Returns true once for each failure.
    pub fn take_due(&self) -> bool {
        self.restart.lock().take_expired()
    }
}

/// Names of the current secrets that are not on files and that the instance does not have.
fn outdated(current: &SecretSet, running: &Running) -> Vec<String> {
    let unlike = current.unlike(&running.first).filter(|secret| secret.by != DeliveryMethod::File);
    unlike.map(|secret| secret.name.clone()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{
        LaunchRequest, LoadedSecrets, config, running::tests::running,
        server_shared::tests::shared_with,
    };
    use portcullis_protocol::{names::ServerName, refusal::Refusal};

    pub struct PermitAll;

    #[async_trait]
    impl LaunchReview for PermitAll {
        async fn forbids(&self, _: &ServerName, _: &LaunchRequest) -> Option<Box<Refusal>> {
            None
        }

        async fn review_redelivery(
            &self,
            _: &ServerName,
            _: &LaunchRequest,
            _: &[String],
        ) -> Result<(), String> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn changed_environment_secret_needs_a_restart() {
        let read = LoadedSecrets::from([(SecretScope::Common, Ok(SecretSet::of_token("new")))]);
        let (server, mut events) = shared_with(config::Server::default(), read);
        let rotation = SecretRotation::new(server, SecretScope::Common);
        let mut running = running(true);
        (running.first, *running.secrets.get_mut()) =
            (SecretSet::of_token("old"), SecretSet::of_token("old"));
        assert!(rotation.is_outdated(&running));
        // The event is emitted once for each new set.
        for _ in 0..2 {
            let outcome = rotation.deliver(&running, &PermitAll).await.unwrap();
            assert_eq!((outcome.files, &*outcome.outdated), (false, &["TOKEN".to_owned()][..]));
        }
        assert!(matches!(events.try_recv(), Ok(ServerEvent::Outdated { .. })));
        assert!(events.try_recv().is_err());

        running.first = SecretSet::of_token("new");
        assert!(!rotation.is_outdated(&running));
    }

    #[tokio::test]
    async fn unreadable_secrets_leave_the_instance_unchanged() {
        let read = LoadedSecrets::from([(SecretScope::Common, Err("no such file".into()))]);
        let (server, _events) = shared_with(config::Server::default(), read);
        let rotation = SecretRotation::new(server.clone(), SecretScope::Common);
        let running = running(true);
        let outcome = rotation.deliver(&running, &PermitAll).await;
        assert_eq!(outcome.unwrap_err(), "no such file");
        assert!(!rotation.is_outdated(&running));
        server.stop_launches("it was removed");
        let outcome = rotation.deliver(&running, &PermitAll).await;
        assert!(outcome.unwrap_err().contains("it was removed"));
    }
}
