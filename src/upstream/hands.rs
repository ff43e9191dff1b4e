//! The secrets that servers are handed: read before a server starts, known to whoever looks for
//! them in traffic before they are handed over, and read again when an operator says so.
//!
//! INVARIANT: no secret is handed over that is not looked for. What was once handed out goes on
//! being looked for when its source has another value.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use parking_lot::RwLock;

use super::{event::By, process::LaunchFailure};
use crate::{
    config::{self, HandOver},
    names::ServerName,
    vault::{Secret, Source, Unresolved},
};

/// Has values known to all who look for them.
pub type Learn = Arc<dyn Fn(&ServerName, &Handed) -> Result<(), String> + Send + Sync>;

/// The secrets of one server.
#[derive(Debug, Clone, Default)]
pub struct Handed(pub Vec<HandedSecret>);

/// One secret of a server.
#[derive(Debug, Clone)]
pub struct HandedSecret {
    /// The name under which the server gets it.
    pub name: String,
    pub value: Secret,
    pub source: Source,
    pub by: By,
}

/// A secret of a server that is not to be had.
#[derive(Debug)]
pub struct NotHanded {
    /// The name under which the server would get it.
    pub secret: String,
    /// Where it was to come from, where that is a reference.
    pub source: Option<Source>,
    /// In words.
    pub failure: Box<LaunchFailure>,
}

impl Handed {
    /// Reads the secrets of a server; files are relative to the config's folder, `base`.
    ///
    /// # Errors
    /// Where a secret cannot be had; the reference is named, never the value.
    pub async fn read(settings: &config::Server, base: &Path) -> Result<Self, NotHanded> {
        let secrets = settings.secrets.iter().map(|(name, secret)| {
            let by = match secret.hand_over {
                HandOver::Env => By::Environment,
                HandOver::File => By::File,
            };
            (name, &secret.from, by)
        });
        let headers =
            settings.headers.iter().map(|(name, secret)| (name, &secret.from, By::Header));
        let mut all = Vec::new();
        for (name, from, by) in secrets.chain(headers) {
            let source = source(name, from)?;
            let value = source.clone().relative_to(base).fetch().await;
            let value = value.map_err(|what| not_handed(name, Some(source.clone()), &what))?;
            all.push(HandedSecret { name: name.clone(), value, source, by });
        }
        Ok(Self(all))
    }

    /// Reads the secret headers for a URL that is no server's. It blocks meanwhile.
    ///
    /// # Errors
    /// As [`Handed::read`].
    pub fn headers(
        refs: &BTreeMap<String, config::SecretRef>,
        base: &Path,
    ) -> Result<Vec<(String, Secret)>, NotHanded> {
        let all = refs.iter().map(|(name, reference)| {
            let source = source(name, &reference.from)?;
            let value = source.clone().relative_to(base).resolve();
            let value = value.map_err(|what| not_handed(name, Some(source), &what))?;
            Ok((name.clone(), value))
        });
        all.collect()
    }

    /// Those that are handed over that way, with their names.
    pub fn by(&self, by: By) -> Vec<(String, Secret)> {
        let all = self.0.iter().filter(|secret| secret.by == by);
        all.map(|secret| (secret.name.clone(), secret.value.clone())).collect()
    }
}

fn source(name: &str, from: &str) -> Result<Source, NotHanded> {
    from.parse().map_err(|what| not_handed(name, None, &what))
}

fn not_handed(name: &str, source: Option<Source>, what: &Unresolved) -> NotHanded {
    NotHanded {
        secret: name.to_owned(),
        source,
        failure: Box::new(LaunchFailure {
            what: format!("secret `{name}`: {what}"),
            remedy: Some("set it, or name another source in the config".into()),
        }),
    }
}

/// The secrets of all servers, as they were last read.
#[derive(Default)]
pub struct Hands {
    now: RwLock<BTreeMap<ServerName, Result<Arc<Handed>, String>>>,
    learn: Option<Learn>,
}

impl Hands {
    /// What was read when the proxy started, and is known already. Where a server's secrets are not
    /// to be had, that server alone can't be started, and they are read again when it is tried.
    pub fn new(read: BTreeMap<ServerName, Result<Handed, NotHanded>>, learn: Learn) -> Self {
        let all = read
            .into_iter()
            .map(|(server, read)| (server, read.map(Arc::new).map_err(|not| not.failure.what)));
        Self { now: RwLock::new(all.collect()), learn: Some(learn) }
    }

    /// What was last read for a server.
    ///
    /// # Errors
    /// Where it was not to be had.
    pub fn of(&self, server: &ServerName) -> Result<Arc<Handed>, LaunchFailure> {
        match self.now.read().get(server) {
            Some(Ok(handed)) => Ok(handed.clone()),
            Some(Err(why)) => Err(LaunchFailure {
                what: why.clone(),
                remedy: Some("set it, or name another source in the config".into()),
            }),
            None => Err(LaunchFailure {
                what: "its secrets were not read when the proxy started".into(),
                remedy: Some("start the proxy again".into()),
            }),
        }
    }

    /// Reads a server's secrets anew.
    ///
    /// # Errors
    /// Where one is not to be had, or could not be looked for: then all stays as it was.
    pub async fn read(
        &self,
        server: &ServerName,
        settings: &config::Server,
        base: &Path,
    ) -> Result<Arc<Handed>, LaunchFailure> {
        let handed = match Handed::read(settings, base).await {
            Ok(handed) => Arc::new(handed),
            Err(not) => {
                let mut now = self.now.write();
                if !matches!(now.get(server), Some(Ok(_))) {
                    now.insert(server.clone(), Err(not.failure.what.clone()));
                }
                return Err(*not.failure);
            }
        };
        self.learn(server, &handed).await?;
        self.now.write().insert(server.clone(), Ok(handed.clone()));
        Ok(handed)
    }

    /// Has these looked for in traffic.
    ///
    /// # Errors
    /// Where they can't be: then they must not be handed over.
    pub async fn learn(
        &self,
        server: &ServerName,
        handed: &Arc<Handed>,
    ) -> Result<(), LaunchFailure> {
        let unlearned = |why: String| LaunchFailure {
            what: format!("its secrets can't be looked for in traffic: {why}"),
            remedy: None,
        };
        let Some(learn) = self.learn.clone() else { return Ok(()) };
        let (server, handed) = (server.clone(), handed.clone());
        // What looks for them is made anew, which takes a while.
        tokio::task::spawn_blocking(move || learn(&server, &handed))
            .await
            .map_err(|error| unlearned(error.to_string()))?
            .map_err(unlearned)
    }

    /// Has another entry of the config be handed what was read for it, and is looked for already.
    pub fn set(&self, server: &ServerName, read: Result<Arc<Handed>, String>) {
        self.now.write().insert(server.clone(), read);
    }
}
