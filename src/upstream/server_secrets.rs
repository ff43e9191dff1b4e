//! The secrets that servers are handed: read before a server starts, known to whoever looks for
//! them in traffic before they are handed over, and read again when an operator says so.
//!
//! INVARIANT: no secret is handed over that is not looked for. What was once handed out goes on
//! being looked for when its source has another value.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, RwLock};

use super::{event::DeliveryMethod, instance::ServerShared, transport::CallError};
use crate::config::{self, SecretBinding, SecretDeliveryMethod};
use portcullis_protocol::{identity::PrincipalKind, names::ServerName};
use portcullis_runtime::process::LaunchFailure;
use portcullis_vault::{Secret, SecretRef, Source, Unresolved};

/// Has the values of a server known to all who look for them: new ones, and those that it has or is
/// about to have, of which none is to be forgotten.
pub type RegisterForRedaction =
    Arc<dyn Fn(&ServerName, &[Arc<SecretSet>]) -> Result<(), String> + Send + Sync>;

/// Whose secrets an instance has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretScope {
    /// Those of everybody who has none of his own; the instance that tells what the server offers has
    /// them, too.
    Common,
    /// Those of one client, by its name: its own, and the common ones where it has none.
    Client(String),
}

impl SecretScope {
    /// Whose secrets a server gets that runs for that client alone, or for nobody in particular.
    pub fn of(settings: &config::Server, client: Option<&PrincipalKind>) -> Self {
        let named = client.and_then(|client| {
            let name = match client {
                PrincipalKind::Client(_) | PrincipalKind::Local { .. } => client.name(),
                // It would be the name of a client.
                PrincipalKind::Anonymous => return None,
            };
            settings.given().any(|given| given.by_client.contains_key(&name)).then_some(name)
        });
        named.map_or(Self::Common, Self::Client)
    }

    /// Everybody who has some at a server.
    pub fn all(settings: &config::Server) -> Vec<Self> {
        let mut all: Vec<_> = settings
            .given()
            .flat_map(|given| given.by_client.keys().cloned().map(Self::Client))
            .chain([Self::Common])
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// The one client, by its name.
    pub fn client(&self) -> Option<&str> {
        match self {
            Self::Common => None,
            Self::Client(name) => Some(name),
        }
    }

    /// Where a secret comes from for them, and whether that is the client's own.
    fn reference<'a>(&self, given: SecretBinding<'a>) -> Option<(bool, &'a str)> {
        let own = self.client().and_then(|client| given.by_client.get(client));
        own.map(|from| (true, &**from)).or_else(|| Some((false, given.from?)))
    }
}

/// The secrets of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretSet(pub Vec<DeliveredSecret>);

/// One secret of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredSecret {
    /// The name under which the server gets it.
    pub name: String,
    pub value: Secret,
    pub source: Source,
    pub by: DeliveryMethod,
    /// The client whose own it is.
    pub client: Option<String>,
}

/// A secret of a server that does not resolve.
#[derive(Debug)]
pub struct SecretError {
    /// The name under which the server would get it.
    pub secret: String,
    /// The one client for which it was to be.
    pub client: Option<String>,
    /// Where it was to come from, where that is a reference.
    pub source: Option<Source>,
    /// In words.
    pub failure: Box<LaunchFailure>,
}

/// Which secrets are read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadScope {
    /// Those whose sources are files.
    Files,
    All,
}

impl SecretSet {
    /// Reads the secrets of a server; files are relative to the config's folder, `base`.
    ///
    /// # Errors
    /// Where a secret cannot be had; the reference is named, never the value.
    pub async fn read(
        settings: &config::Server,
        base: &Path,
        whose: &SecretScope,
    ) -> Result<Self, SecretError> {
        Self::reread(settings, base, whose, None).await
    }

    /// The same; what is no file is as it was `before`, where that is told.
    async fn reread(
        settings: &config::Server,
        base: &Path,
        whose: &SecretScope,
        before: Option<&Self>,
    ) -> Result<Self, SecretError> {
        let mut all = Vec::new();
        for given in settings.given() {
            let Some((own, from)) = whose.reference(given) else { continue };
            let name = given.name;
            let client = whose.client().filter(|_| own).map(str::to_owned);
            let not = |source: Option<Source>, what: &Unresolved| {
                not_handed(name, client.clone(), source, what)
            };
            let source: Source = from.parse().map_err(|what| not(None, &what))?;
            let by = match given.hand_over {
                Some(SecretDeliveryMethod::Env) => DeliveryMethod::Environment,
                Some(SecretDeliveryMethod::File) => DeliveryMethod::File,
                None => DeliveryMethod::Header,
            };
            let known = before.filter(|_| source.file().is_none()).and_then(|before| {
                before.0.iter().find(|had| had.name == name && had.by == by && had.source == source)
            });
            let value = match known {
                Some(known) => known.value.clone(),
                None => {
                    let value = source.clone().relative_to(base).fetch().await;
                    value.map_err(|what| not(Some(source.clone()), &what))?
                }
            };
            let name = name.to_owned();
            all.push(DeliveredSecret { name, value, source, by, client });
        }
        Ok(Self(all))
    }

    /// Reads the secret headers for a URL that is no server's. It blocks meanwhile.
    ///
    /// # Errors
    /// As [`Handed::read`].
    pub fn headers(
        refs: &BTreeMap<String, SecretRef>,
        base: &Path,
    ) -> Result<Vec<(String, Secret)>, SecretError> {
        let all = refs.iter().map(|(name, reference)| {
            let source: Source =
                reference.from.parse().map_err(|what| not_handed(name, None, None, &what))?;
            let value = source.clone().relative_to(base).resolve();
            let value = value.map_err(|what| not_handed(name, None, Some(source), &what))?;
            Ok((name.clone(), value))
        });
        all.collect()
    }

    /// Those that are handed over that way, with their names.
    pub fn by(&self, by: DeliveryMethod) -> Vec<(String, Secret)> {
        let all = self.0.iter().filter(|secret| secret.by == by);
        all.map(|secret| (secret.name.clone(), secret.value.clone())).collect()
    }

    /// Those that have another value than there, or are not there at all.
    pub fn unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a DeliveredSecret> {
        self.0.iter().filter(move |secret| {
            let same = |had: &DeliveredSecret| {
                had.name == secret.name && had.by == secret.by && had.value == secret.value
            };
            !other.0.iter().any(same)
        })
    }
}

fn not_handed(
    name: &str,
    client: Option<String>,
    source: Option<Source>,
    what: &Unresolved,
) -> SecretError {
    let of = client.as_ref().map(|client| format!(" of `{client}`")).unwrap_or_default();
    SecretError {
        secret: name.to_owned(),
        client,
        source,
        failure: Box::new(LaunchFailure {
            what: format!("secret `{name}`{of}: {what}"),
            remedy: Some("set it, or name another source in the config".into()),
        }),
    }
}

/// A server, and whose secrets of it.
pub type SecretHolder = (ServerName, SecretScope);

/// What was last read of one server's secrets, or why it did not resolve, for everybody who has some
/// there.
pub type LoadedSecrets = BTreeMap<SecretScope, Result<Arc<SecretSet>, String>>;

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
        // What looks for them is made anew, which takes a while.
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

/// The secrets of one server: of this entry of the config, and of none that has or had its name.
impl ServerShared {
    /// What was last read.
    ///
    /// # Errors
    /// Where it did not resolve.
    pub(super) fn handed(&self, whose: &SecretScope) -> Result<Arc<SecretSet>, LaunchFailure> {
        match self.hands.read().get(whose) {
            Some(Ok(handed)) => Ok(handed.clone()),
            Some(Err(why)) => Err(LaunchFailure {
                what: why.clone(),
                remedy: Some("set it, or name another source in the config".into()),
            }),
            None => {
                Err(LaunchFailure { what: "its secrets were not read yet".into(), remedy: None })
            }
        }
    }

    /// The secrets to deliver to an instance. Where they did not resolve, they are looked
    /// for again.
    ///
    /// # Errors
    /// Where they still do not resolve.
    pub(super) async fn hand(&self, whose: &SecretScope) -> Result<Arc<SecretSet>, LaunchFailure> {
        if let Ok(handed) = self.handed(whose) {
            return Ok(handed);
        }
        // Else what was read first could be kept last.
        let _turn = self.rereading.lock().await;
        if let Ok(handed) = self.handed(whose) {
            return Ok(handed);
        }
        self.reread(whose, ReloadScope::All).await.map_err(|not| *not.failure)
    }

    /// Reads them again, for the caller that has the turn. Where they have the same values as
    /// before, what comes
    /// back is the very one of before.
    ///
    /// # Errors
    /// Where one does not resolve, or could not be looked for: then all stays as it was.
    pub(super) async fn reread(
        &self,
        whose: &SecretScope,
        which: ReloadScope,
    ) -> Result<Arc<SecretSet>, SecretError> {
        let before = self.handed(whose).ok();
        let kept = before.as_deref().filter(|_| which == ReloadScope::Files);
        let base = &self.launcher.base;
        let handed = match SecretSet::reread(&self.settings, base, whose, kept).await {
            Ok(handed) => handed,
            Err(not) => {
                let mut now = self.hands.write();
                if !matches!(now.get(whose), Some(Ok(_))) {
                    now.insert(whose.clone(), Err(not.failure.what.clone()));
                }
                return Err(not);
            }
        };
        if let Some(before) = before.filter(|before| **before == handed) {
            return Ok(before);
        }
        let handed = Arc::new(handed);
        let learned = self.launcher.hands.learn(&self.name, &handed).await;
        learned.map_err(|failure| unlearned(whose, &handed, failure))?;
        self.hands.write().insert(whose.clone(), Ok(handed.clone()));
        Ok(handed)
    }
}

/// What can't be looked for is not handed over.
fn unlearned(whose: &SecretScope, handed: &SecretSet, failure: LaunchFailure) -> SecretError {
    SecretError {
        secret: handed.0.first().map(|first| first.name.clone()).unwrap_or_default(),
        client: whose.client().map(str::to_owned),
        source: handed.0.first().map(|first| first.source.clone()),
        failure: Box::new(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
