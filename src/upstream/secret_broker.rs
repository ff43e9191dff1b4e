//! Registration of secrets for redaction.
//!
//! INVARIANT: no secret is delivered before it is registered. A delivered secret stays registered when its
//! source has another value.

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

/// Has the values of a server known to all who look for them: new ones, and those that it has or is
/// about to have, of which none is to be forgotten.
pub type RegisterForRedaction =
    Arc<dyn Fn(&ServerName, &[Arc<SecretSet>]) -> Result<(), String> + Send + Sync>;

/// A server, and whose secrets of it.
pub type SecretHolder = (ServerName, SecretScope);

/// What somebody has of a server, for as long as it is in use.
type InUse = (ServerName, Weak<SecretSet>);

/// Who looks for the secrets of all servers.
#[derive(Default)]
pub struct SecretBroker {
    learn: Option<RegisterForRedaction>,
    /// What anybody has of each server's, or did when it was last looked at. Those of an entry that
    /// changed are among it for as long as something of it runs.
    given: Arc<Mutex<Vec<InUse>>>,
    /// Where the secrets stand that differ by client: by server and name.
    places: RwLock<BTreeMap<(ServerName, String), (PathBuf, u32)>>,
}

impl SecretBroker {
    /// With what was read when the proxy started, and is known already.
    pub fn new(read: &BTreeMap<ServerName, LoadedSecrets>, learn: RegisterForRedaction) -> Self {
        let all = read.iter().flat_map(|(server, read)| {
            let read = read.values().filter_map(|read| read.as_ref().ok());
            read.map(|handed| (server.clone(), Arc::downgrade(handed)))
        });
        let given = Arc::new(Mutex::new(all.collect()));
        Self { learn: Some(learn), given, places: RwLock::default() }
    }

    /// Takes the lines of the config's secrets that differ by client.
    pub fn locate(&self, places: BTreeMap<(ServerName, String), (PathBuf, u32)>) {
        *self.places.write() = places;
    }

    /// Whether there is something for this client wherever the server's secrets differ by client.
    ///
    /// # Errors
    /// [`Failure::NoSecret`] where there is nothing for it, nor for all.
    pub fn has(
        &self,
        server: &ServerName,
        settings: &config::Server,
        client: &PrincipalKind,
    ) -> Result<(), CallError> {
        let whose = SecretScope::of(settings, Some(client));
        let Some(missing) = settings.given().find(|given| whose.reference(*given).is_none()) else {
            return Ok(());
        };
        let place = self.places.read().get(&(server.clone(), missing.name.to_owned())).cloned();
        Err(CallError::NoSecret {
            key: format!("servers.{server}.{}.{}", missing.table(), missing.name),
            client: client.name(),
            place,
        })
    }

    /// Has these looked for in traffic.
    ///
    /// # Errors
    /// Where they can't be: then they must not be handed over.
    pub async fn learn(
        &self,
        server: &ServerName,
        handed: &Arc<SecretSet>,
    ) -> Result<(), LaunchFailure> {
        let unlearned = |why: String| LaunchFailure {
            what: format!("its secrets can't be looked for in traffic: {why}"),
            remedy: None,
        };
        let Some(learn) = self.learn.clone() else { return Ok(()) };
        let (server, handed) = (server.clone(), handed.clone());
        let given = self.given.clone();
        // The search is built again, which takes a while.
        let work = move || {
            // One at a time: what another is about to hand out is among what is in use.
            let mut given = given.lock();
            given.retain(|(_, handed)| handed.strong_count() > 0);
            let of_it = given.iter().filter(|(of, _)| *of == server);
            let mut in_use: Vec<_> = of_it.filter_map(|(_, handed)| handed.upgrade()).collect();
            in_use.push(handed.clone());
            learn(&server, &in_use)?;
            given.push((server, Arc::downgrade(&handed)));
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
    use super::{
        super::secret_set::{DeliveredSecret, DeliveryMethod},
        *,
    };
    use portcullis_vault::Secret;

    fn handed(value: &str) -> Arc<SecretSet> {
        Arc::new(SecretSet(vec![DeliveredSecret {
            name: "TOKEN".into(),
            value: Secret::new(value.to_owned()),
            source: "env:TOKEN".parse().unwrap(),
            by: DeliveryMethod::Environment,
            client: None,
        }]))
    }

    #[tokio::test]
    async fn what_somebody_has_is_told_with_what_is_new() {
        let (one, other) = ("one".parse::<ServerName>().unwrap(), "other".parse().unwrap());
        let (first, others) = (handed("first"), handed("others"));
        let told = Arc::new(Mutex::new(Vec::new()));
        let learn: RegisterForRedaction = Arc::new({
            let told = told.clone();
            move |_, all| {
                let values = all.iter().flat_map(|handed| &handed.0);
                *told.lock() = values.map(|s| s.value.expose().to_owned()).collect::<Vec<_>>();
                Ok(())
            }
        });
        let read = |handed: &Arc<SecretSet>| {
            LoadedSecrets::from([(SecretScope::Common, Ok(handed.clone()))])
        };
        let read = BTreeMap::from([(one.clone(), read(&first)), (other, read(&others))]);
        let hands = SecretBroker::new(&read, learn);
        drop(read);
        let second = handed("second");
        hands.learn(&one, &second).await.unwrap();
        assert_eq!(*told.lock(), ["first", "second"]);
        drop(second);
        let third = handed("third");
        hands.learn(&one, &third).await.unwrap();
        assert_eq!(*told.lock(), ["first", "third"]);
        drop(first);
        hands.learn(&one, &handed("fourth")).await.unwrap();
        assert_eq!(*told.lock(), ["third", "fourth"]);
    }
}
