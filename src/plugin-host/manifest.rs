//! Manifest of a plugin, checked.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use portcullis_chain::{Hook, Hooks};
use portcullis_protocol::{exchange::Phase, names::ServerName};

use super::{
    Lifetime, bindings::exports::portcullis::interceptor::guest as wit, grants::Destination,
    output::excerpt,
};

/// Limits of the hooks of one plugin, and of the events of one hook.
const MAX_HOOKS: usize = 16;
const MAX_EVENTS: usize = 64;
/// Limit of the hosts and of the secrets of one plugin.
const MAX_REQUESTED: usize = 32;
/// Limit of the options of one plugin.
const MAX_OPTIONS: usize = 16;
/// Version of this Portcullis.
const HOST_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Manifest of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub description: String,
    pub hooks: Hooks,
    /// JSON Schema for the operator's configuration.
    pub config_schema: Option<String>,
    /// Lifetime of an instance.
    pub lifetime: Lifetime,
    /// Hosts that it requests for `http`.
    pub hosts: Vec<Destination>,
    /// Names that it requests for `secrets`.
    pub secrets: Vec<String>,
    /// Whether it inspects a message only once, even if another interceptor replaced it.
    pub once: bool,
}

impl Manifest {
    /// Manifest, if it is consistent.
    pub(super) fn check(described: wit::Manifest) -> Result<Self, String> {
        // The characters of all other names, because it appears in rules, logs and metrics.
        if described.name.parse::<ServerName>().is_err() {
            return Err(format!("`{}` is not a legal name", excerpt(&described.name, 64)));
        }
        if described.version.len() > 64 || semver::Version::parse(&described.version).is_err() {
            return Err(format!(
                "`{}` is not a version such as 1.2.3",
                excerpt(&described.version, 64)
            ));
        }
        if described.hooks.is_empty() {
            return Err("it has no hooks, so it would never run".into());
        }
        if described.hooks.len() > MAX_HOOKS {
            return Err(format!("it has more than {MAX_HOOKS} hooks"));
        }
        options(&described.options)?;
        let hooks = described.hooks.into_iter().map(hook).collect::<Result<_, _>>()?;
        Ok(Self {
            name: described.name,
            version: described.version,
            description: excerpt(&described.description, 512),
            hooks: Hooks(hooks),
            config_schema: described.config_schema,
            lifetime: described.lifetime,
            hosts: hosts(&described.hosts)?,
            secrets: secrets(described.secrets)?,
            once: described.once,
        })
    }
}

impl Manifest {
    /// Whether its version is older.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (self.number(), other.number()) else { return false };
        own.cmp_precedence(&other).is_lt()
    }

    /// Whether its version is one of these.
    pub fn is_among(&self, versions: &Versions) -> bool {
        self.number().is_some_and(|own| versions.0.matches(&own))
    }

    /// Never `None`, because it was checked.
    fn number(&self) -> Option<semver::Version> {
        semver::Version::parse(&self.version).ok()
    }
}

/// Required versions, such as `>=1.2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Versions(semver::VersionReq);

/// Error for text that is not a version requirement.
#[derive(Debug, thiserror::Error)]
#[error("{0}: write versions such as `>=1.2` or `>=1.2, <2`")]
pub struct IllegalVersions(semver::Error);

impl FromStr for Versions {
    type Err = IllegalVersions;

    fn from_str(text: &str) -> Result<Self, IllegalVersions> {
        semver::VersionReq::parse(text).map(Self).map_err(IllegalVersions)
    }
}

impl TryFrom<String> for Versions {
    type Error = IllegalVersions;

    fn try_from(text: String) -> Result<Self, IllegalVersions> {
        text.parse()
    }
}

impl From<Versions> for String {
    fn from(versions: Versions) -> Self {
        versions.to_string()
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Versions {
    fn schema_name() -> Cow<'static, str> {
        "Versions".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "versions",
            "description": "Versions such as `>=1.2` or `>=1.2, <2`.",
        })
    }
}

/// Checks that this host supports everything that the plugin needs.
fn options(described: &[(String, String)]) -> Result<(), String> {
    if described.len() > MAX_OPTIONS {
        return Err(format!("it has more than {MAX_OPTIONS} options"));
    }
    let Some(host) = semver::Version::parse(HOST_VERSION).ok() else { return Ok(()) };
    for (name, value) in described {
        match (name.as_str(), semver::Version::parse(value)) {
            ("host", Ok(least)) if least <= host => {}
            ("host", Ok(least)) => {
                return Err(format!("it requires Portcullis {least} or later; this is {host}"));
            }
            ("host", Err(_)) => {
                return Err(format!("`{}` is not a version such as 1.2.3", excerpt(value, 64)));
            }
            (other, _) if other.starts_with("may-") => {}
            (other, _) => {
                return Err(format!(
                    "it requires `{}`, which this version of Portcullis does not support",
                    excerpt(other, 64)
                ));
            }
        }
    }
    Ok(())
}

fn hosts(described: &[String]) -> Result<Vec<Destination>, String> {
    if described.len() > MAX_REQUESTED {
        return Err(format!("it names more than {MAX_REQUESTED} hosts"));
    }
    let host = |text: &String| match text.parse::<Destination>() {
        Ok(host) if host.address.is_none() => Ok(host),
        // Only the operator sets the address of a host.
        _ => Err(format!(
            "`{}` is not HOST_VERSION:PORT or \
            http://HOST_VERSION:PORT",
            excerpt(text, 64)
        )),
    };
    described.iter().map(host).collect()
}

fn secrets(described: Vec<String>) -> Result<Vec<String>, String> {
    if described.len() > MAX_REQUESTED {
        return Err(format!("it names more than {MAX_REQUESTED} secrets"));
    }
    // Such a name needs no quotes in the config.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match described.iter().find(|name| !(1..=64).contains(&name.len()) || !name.bytes().all(plain))
    {
        Some(name) => Err(format!("`{}` is not a legal name of a secret", excerpt(name, 64))),
        None => Ok(described),
    }
}

fn hook(described: wit::Hook) -> Result<Hook, String> {
    if described.events.is_empty() {
        return Err("a hook has no events".into());
    }
    if described.events.len() > MAX_EVENTS {
        return Err(format!("a hook has more than {MAX_EVENTS} events"));
    }
    if let Some(event) = described.events.iter().find(|event| !is_method(event)) {
        return Err(format!(
            "`{}` is not an MCP method: events are methods such as `tools/call`, or `*`",
            excerpt(event, 64)
        ));
    }
    let phase = match described.phase {
        wit::Phase::Request => Phase::Request,
        wit::Phase::Response => Phase::Response,
    };
    Ok(Hook { events: described.events, phase })
}

/// Methods of later revisions must be hookable too, so this checks their form instead of a list:
/// words separated by `/`, except `initialize` and `ping`.
fn is_method(event: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'-')
    };
    matches!(event, "*" | "initialize" | "ping")
        || (event.len() <= 64 && event.contains('/') && event.split('/').all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> wit::Manifest {
        wit::Manifest {
            name: "probe".into(),
            version: "1.0.0".into(),
            description: "Looks".into(),
            hooks: vec![wit::Hook {
                events: vec!["tools/call".into()],
                phase: wit::Phase::Request,
            }],
            config_schema: None,
            lifetime: Lifetime::Message,
            hosts: Vec::new(),
            secrets: Vec::new(),
            once: false,
            options: vec![("host".into(), HOST_VERSION.into()), ("may-be".into(), "new".into())],
        }
    }

    #[test]
    fn valid_manifest_passes() {
        let manifest = Manifest::check(described()).unwrap();
        assert_eq!(manifest.hooks, Hooks::on(&["tools/call"], Phase::Request));
    }

    #[test]
    fn versions_are_ordered() {
        let of = |version: &str| {
            Manifest::check(wit::Manifest { version: version.into(), ..described() }).unwrap()
        };
        for (older, newer) in
            [("1.0.0", "1.2.0"), ("1.9.0", "1.10.0"), ("0.0.99", "1.0.0"), ("1.0.0-rc.1", "1.0.0")]
        {
            assert!(of(older).is_older_than(&of(newer)), "{older} {newer}");
            assert!(!of(newer).is_older_than(&of(older)), "{newer} {older}");
        }
        assert!(!of("1.0.0").is_older_than(&of("1.0.0+build")));
        let versions: Versions = ">=1.2, <2".parse().unwrap();
        for (version, among) in
            [("1.1.9", false), ("1.2.0", true), ("1.10.0", true), ("2.0.0", false)]
        {
            assert_eq!(of(version).is_among(&versions), among, "{version}");
        }
        assert_eq!(versions.to_string().parse::<Versions>().unwrap(), versions);
        assert!("new".parse::<Versions>().is_err());
    }

    #[test]
    fn invalid_manifests_are_refused() {
        type Mutation = fn(&mut wit::Manifest);
        let mutations: [(Mutation, &str); 19] = [
            (|m| m.name = "Probe 1".into(), "not a legal name"),
            (|m| m.name = String::new(), "not a legal name"),
            (|m| m.version = "new".into(), "not a version"),
            (|m| m.version = "1.2".into(), "not a version"),
            (|m| m.version = "1.02.0".into(), "not a version"),
            (|m| m.hooks.clear(), "no hooks"),
            (|m| m.hooks = vec![m.hooks[0].clone(); 17], "more than 16 hooks"),
            (|m| m.hooks[0].events.clear(), "has no events"),
            (|m| m.hooks[0].events = vec!["*".into(); 65], "more than 64 events"),
            (|m| m.hooks[0].events = vec!["everything".into()], "is not an MCP method"),
            (|m| m.hosts = vec!["a:1".into(); 33], "more than 32 hosts"),
            (|m| m.hosts = vec!["everywhere".into()], "is not HOST_VERSION:PORT"),
            (|m| m.hosts = vec!["a:1=10.0.0.1".into()], "is not HOST_VERSION:PORT"),
            (|m| m.secrets = vec!["A".into(); 33], "more than 32 secrets"),
            (|m| m.secrets = vec!["A B".into()], "not a legal name of a secret"),
            (|m| m.options[0].1 = "99.0.0".into(), "requires Portcullis 99.0.0 or later"),
            (|m| m.options[0].1 = "new".into(), "not a version"),
            (|m| m.options[1].0 = "new".into(), "it requires `new`, which"),
            (|m| m.options = vec![m.options[1].clone(); 17], "more than 16 options"),
        ];
        for (mutate, expected) in mutations {
            let mut manifest = described();
            mutate(&mut manifest);
            let error = Manifest::check(manifest).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn methods_are_recognized_by_their_form() {
        for event in ["*", "ping", "initialize", "tools/call", "notifications/tools/list_changed"] {
            assert!(is_method(event), "{event}");
        }
        for event in ["", "tools", "tools/", "/call", "tools//call", "tools/*", "tools call", "a/é"]
        {
            assert!(!is_method(event), "{event}");
        }
    }
}
