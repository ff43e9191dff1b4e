//! Secrets of one server, as they were read from their sources.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::config::{self, SecretBinding, SecretDeliveryMethod};
use portcullis_protocol::identity::PrincipalKind;
use portcullis_runtime::process::LaunchFailure;
use portcullis_vault::{Secret, SecretRef, Source, Unresolved};

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
    pub(super) fn reference<'a>(&self, given: SecretBinding<'a>) -> Option<(bool, &'a str)> {
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

    /// The same. Secrets that are not files keep their value of `before`.
    pub(super) async fn reread(
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

/// What was last read of one server's secrets, or why it did not resolve, for everybody who has some
/// there.
pub type LoadedSecrets = BTreeMap<SecretScope, Result<Arc<SecretSet>, String>>;

/// How a secret is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMethod {
    /// In the environment of its process.
    Environment,
    /// In a file, on a tmpfs that nobody else sees.
    File,
    /// In a header of every request to it.
    Header,
}
