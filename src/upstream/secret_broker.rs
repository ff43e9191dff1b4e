//! Registration of secrets for redaction.
//!
//! INVARIANT: no secret is delivered before it is registered. A delivered secret stays registered
//! when its source has another value.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, RwLock};

use super::{
    call_error::CallError,
    secret_set::{LoadedSecrets, SecretScope, SecretSet},
};
use crate::config;
use portcullis_protocol::{identity::PrincipalKind, names::ServerName};
use portcullis_runtime::process::LaunchFailure;

/// Registers the values of a server with all components that redact: new values, and all values
/// that are in use or about to be delivered.
pub type RegisterForRedaction =
    Arc<dyn Fn(&ServerName, &[Arc<SecretSet>]) -> Result<(), String> + Send + Sync>;

/// A server and the scope of its secrets.
pub type SecretHolder = (ServerName, SecretScope);

/// Secrets of a server, while they are in use.
type InUse = (ServerName, Weak<SecretSet>);

/// Registration of the secrets of all servers for redaction.
#[derive(Default)]
pub struct SecretBroker {
    learn: Option<RegisterForRedaction>,
    /// Secrets in use, or in use at the last cleanup. Those of a replaced config entry stay in the
    /// list while an instance of it runs.
    in_use: Arc<Mutex<Vec<InUse>>>,
    /// Positions of secrets by client in the config, by server and name.
    places: RwLock<BTreeMap<(ServerName, String), (PathBuf, u32)>>,
}

impl SecretBroker {
    /// A broker with the secrets that were read and registered at the start of the proxy.
    pub fn new(read: &BTreeMap<ServerName, LoadedSecrets>, learn: RegisterForRedaction) -> Self {
        let all = read.iter().flat_map(|(server, read)| {
            let read = read.values().filter_map(|read| read.as_ref().ok());
            read.map(|secrets| (server.clone(), Arc::downgrade(secrets)))
        });
        let in_use = Arc::new(Mutex::new(all.collect()));
        Self { learn: Some(learn), in_use, places: RwLock::default() }
    }

    /// Sets the positions of secrets that differ by client.
    pub fn locate(&self, places: BTreeMap<(ServerName, String), (PathBuf, u32)>) {
        *self.places.write() = places;
    }

    /// Checks that all secrets of the server have a value for this client.
    ///
    /// # Errors
    /// [`CallError::NoSecret`] if a secret has neither a value for the client nor a common one.
    pub fn has(
        &self,
        server: &ServerName,
        settings: &config::Server,
        client: &PrincipalKind,
    ) -> Result<(), CallError> {
        let scope = SecretScope::of(settings, Some(client));
        let Some(missing) =
            settings.secret_bindings().find(|binding| scope.reference(*binding).is_none())
        else {
            return Ok(());
        };
        let place = self.places.read().get(&(server.clone(), missing.name.to_owned())).cloned();
        Err(CallError::NoSecret {
            key: format!("servers.{server}.{}.{}", missing.table(), missing.name),
            client: client.name(),
            place,
        })
    }

    /// Registers secrets for redaction.
    ///
    /// # Errors
    /// A [`LaunchFailure`] if this fails. The caller must not deliver the secrets then.
    pub async fn learn(
        &self,
        server: &ServerName,
        secrets: &Arc<SecretSet>,
    ) -> Result<(), LaunchFailure> {
        let unlearned = |why: String| LaunchFailure {
            what: format!("its secrets can't be looked for in traffic: {why}"),
            remedy: None,
        };
        let Some(learn) = self.learn.clone() else { return Ok(()) };
        let (server, secrets) = (server.clone(), secrets.clone());
        let in_use = self.in_use.clone();
        // The search automaton is rebuilt, which takes a while.
        let work = move || {
            // One at a time, so that secrets that another call is about to deliver are included.
            let mut listed = in_use.lock();
            listed.retain(|(_, secrets)| secrets.strong_count() > 0);
            let of_it = listed.iter().filter(|(of, _)| *of == server);
            let mut in_use: Vec<_> = of_it.filter_map(|(_, secrets)| secrets.upgrade()).collect();
            in_use.push(secrets.clone());
            learn(&server, &in_use)?;
            listed.push((server, Arc::downgrade(&secrets)));
            Ok(())
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| unlearned(error.to_string()))?
            .map_err(unlearned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn redaction_learns_delivered_and_new_secrets() {
        let (one, other) = ("one".parse::<ServerName>().unwrap(), "other".parse().unwrap());
        let (first, others) = (SecretSet::of_token("first"), SecretSet::of_token("others"));
        let registered = Arc::new(Mutex::new(Vec::new()));
        let learn: RegisterForRedaction = Arc::new({
            let registered = registered.clone();
            move |_, all| {
                let values = all.iter().flat_map(|secrets| &secrets.0);
                *registered.lock() =
                    values.map(|s| s.value.expose().to_owned()).collect::<Vec<_>>();
                Ok(())
            }
        });
        let read = |secrets: &Arc<SecretSet>| {
            LoadedSecrets::from([(SecretScope::Common, Ok(secrets.clone()))])
        };
        let read = BTreeMap::from([(one.clone(), read(&first)), (other, read(&others))]);
        let broker = SecretBroker::new(&read, learn);
        drop(read);
        let second = SecretSet::of_token("second");
        broker.learn(&one, &second).await.unwrap();
        assert_eq!(*registered.lock(), ["first", "second"]);
        drop(second);
        let third = SecretSet::of_token("third");
        broker.learn(&one, &third).await.unwrap();
        assert_eq!(*registered.lock(), ["first", "third"]);
        drop(first);
        broker.learn(&one, &SecretSet::of_token("fourth")).await.unwrap();
        assert_eq!(*registered.lock(), ["third", "fourth"]);
    }
}
