//! Secrets of one server, as they were read from their sources.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::config::{self, SecretBinding, SecretDeliveryMethod};
use portcullis_protocol::identity::PrincipalKind;
use portcullis_runtime::process::LaunchFailure;
use portcullis_vault::{Secret, SecretRef, Source, Unresolved};

/// Scope of secrets: common, or of one client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretScope {
    /// Secrets of all clients without their own. The instance that serves lists has them,
    /// too.
    Common,
    /// Secrets of one client, by name: its own, and common ones for the rest.
    Client(String),
}

impl SecretScope {
    /// Scope of an instance that is dedicated to `client`, or shared.
    pub fn of(settings: &config::Server, client: Option<&PrincipalKind>) -> Self {
        let named = client.and_then(|client| {
            let name = match client {
                PrincipalKind::Client(_) | PrincipalKind::Local { .. } => client.name(),
                // `anonymous` could be the name of a client.
                PrincipalKind::Anonymous => return None,
            };
            settings
                .secret_bindings()
                .any(|binding| binding.by_client.contains_key(&name))
                .then_some(name)
        });
        named.map_or(Self::Common, Self::Client)
    }

    /// All scopes of a server.
    pub fn all(settings: &config::Server) -> Vec<Self> {
        let mut all: Vec<_> = settings
            .secret_bindings()
            .flat_map(|binding| binding.by_client.keys().cloned().map(Self::Client))
            .chain([Self::Common])
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Name of the client; `None` for the common scope.
    pub fn client(&self) -> Option<&str> {
        match self {
            Self::Common => None,
            Self::Client(name) => Some(name),
        }
    }

    /// Reference of a secret in this scope, and whether it is the client's own.
    pub(super) fn reference<'a>(&self, binding: SecretBinding<'a>) -> Option<(bool, &'a str)> {
        let own = self.client().and_then(|client| binding.by_client.get(client));
        own.map(|from| (true, &**from)).or_else(|| Some((false, binding.from?)))
    }
}

/// The secrets of one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretSet(pub Vec<DeliveredSecret>);

/// One secret of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredSecret {
    /// Name under which the server gets the secret.
    pub name: String,
    pub value: Secret,
    pub source: Source,
    pub by: DeliveryMethod,
    /// The client to whom the value belongs; `None` for a common value.
    pub client: Option<String>,
}

/// A secret of a server that does not resolve.
#[derive(Debug)]
pub struct SecretError {
    /// Name under which the server would get the secret.
    pub secret: String,
    /// The client to whom the value belongs; `None` for a common value.
    pub client: Option<String>,
    /// Source of the secret, if its reference is valid.
    pub source: Option<Source>,
    /// Failure for the operator.
    pub failure: Box<LaunchFailure>,
}

/// Selection of secrets to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadScope {
    /// Only secrets from files.
    Files,
    All,
}

impl SecretSet {
    /// Reads the secrets of a server. Files are relative to the config's folder `base`.
    ///
    /// # Errors
    /// A [`SecretError`] if a secret does not resolve. It contains the reference, never the value.
    pub async fn read(
        settings: &config::Server,
        base: &Path,
        scope: &SecretScope,
    ) -> Result<Self, SecretError> {
        Self::reread(settings, base, scope, None).await
    }

    /// As [`Self::read`], but secrets that are not files keep their value of `before`.
    pub(super) async fn reread(
        settings: &config::Server,
        base: &Path,
        scope: &SecretScope,
        before: Option<&Self>,
    ) -> Result<Self, SecretError> {
        let mut all = Vec::new();
        for binding in settings.secret_bindings() {
            let Some((own, from)) = scope.reference(binding) else { continue };
            let name = binding.name;
            let client = scope.client().filter(|_| own).map(str::to_owned);
            let not = |source: Option<Source>, what: &Unresolved| {
                unresolved(name, client.clone(), source, what)
            };
            let source: Source = from.parse().map_err(|what| not(None, &what))?;
            let by = match binding.delivery {
                Some(SecretDeliveryMethod::Env) => DeliveryMethod::Environment,
                Some(SecretDeliveryMethod::File) => DeliveryMethod::File,
                None => DeliveryMethod::Header,
            };
            let previous = before.filter(|_| source.file().is_none()).and_then(|before| {
                before.0.iter().find(|had| had.name == name && had.by == by && had.source == source)
            });
            let value = match previous {
                Some(previous) => previous.value.clone(),
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

    /// Reads secret headers for a URL other than a server's. Blocks.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn headers(
        refs: &BTreeMap<String, SecretRef>,
        base: &Path,
    ) -> Result<Vec<(String, Secret)>, SecretError> {
        let all = refs.iter().map(|(name, reference)| {
            let source: Source =
                reference.from.parse().map_err(|what| unresolved(name, None, None, &what))?;
            let value = source.clone().relative_to(base).resolve();
            let value = value.map_err(|what| unresolved(name, None, Some(source), &what))?;
            Ok((name.clone(), value))
        });
        all.collect()
    }

    /// Names and values of the secrets with this delivery.
    pub fn by(&self, by: DeliveryMethod) -> Vec<(String, Secret)> {
        let all = self.0.iter().filter(|secret| secret.by == by);
        all.map(|secret| (secret.name.clone(), secret.value.clone())).collect()
    }

    /// The secrets that differ from `other`, or are missing there.
    pub fn unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a DeliveredSecret> {
        self.0.iter().filter(move |secret| {
            let same = |had: &DeliveredSecret| {
                had.name == secret.name && had.by == secret.by && had.value == secret.value
            };
            !other.0.iter().any(same)
        })
    }
}

fn unresolved(
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

/// Secrets of one server that were read last, or the reason why they did not resolve, by
/// scope.
pub type LoadedSecrets = BTreeMap<SecretScope, Result<Arc<SecretSet>, String>>;

/// Delivery of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMethod {
    /// In the environment of the server's process.
    Environment,
    /// In a file on a tmpfs that only the server sees.
    File,
    /// In a header of every request to the server.
    Header,
}

#[cfg(test)]
impl SecretSet {
    /// Set with only a `TOKEN` from the environment.
    pub(super) fn of_token(value: &str) -> Arc<Self> {
        Arc::new(Self(vec![DeliveredSecret {
            name: "TOKEN".into(),
            value: Secret::new(value.to_owned()),
            source: "env:TOKEN".parse().unwrap(),
            by: DeliveryMethod::Environment,
            client: None,
        }]))
    }
}
