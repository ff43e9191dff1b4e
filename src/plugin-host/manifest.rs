//! What a plugin says of itself, checked.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use portcullis_chain::{Hook, Hooks};
use portcullis_protocol::{exchange::Phase, names::ServerName};

use super::{
    Lifetime, bindings::exports::portcullis::interceptor::guest as wit, grants::Destination,
    output::excerpt,
};

/// Hooks of one plugin, and events of one hook.
const HOOKS: usize = 16;
const EVENTS: usize = 64;
/// Hosts and secrets of one plugin.
const ASKED: usize = 32;
/// Options of one plugin.
const OPTIONS: usize = 16;
/// This version of Portcullis.
const HOST: &str = env!("CARGO_PKG_VERSION");

/// A plugin's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub description: String,
    pub hooks: Hooks,
    /// The JSON Schema that the operator's configuration has to fit.
    pub config_schema: Option<String>,
    /// How long an instance lives.
    pub lifetime: Lifetime,
    /// The hosts that it asks `http` for.
    pub hosts: Vec<Destination>,
    /// The names that it asks `secrets` for.
    pub secrets: Vec<String>,
    /// Whether it is asked about a message once, also where another interceptor replaced it.
    pub once: bool,
}

impl Manifest {
    /// The manifest, if it holds together.
    pub(super) fn check(said: wit::Manifest) -> Result<Self, String> {
        // The alphabet of every other name: it stands in rules, logs and metrics.
        if said.name.parse::<ServerName>().is_err() {
            return Err(format!("`{}` is not a legal name", excerpt(&said.name, 64)));
        }
        if said.version.len() > 64 || semver::Version::parse(&said.version).is_err() {
            return Err(format!("`{}` is not a version such as 1.2.3", excerpt(&said.version, 64)));
        }
        if said.hooks.is_empty() {
            return Err("it has no hooks, so it would never be asked".into());
        }
        if said.hooks.len() > HOOKS {
            return Err(format!("it has more than {HOOKS} hooks"));
        }
        options(&said.options)?;
        let hooks = said.hooks.into_iter().map(hook).collect::<Result<_, _>>()?;
        Ok(Self {
            name: said.name,
            version: said.version,
            description: excerpt(&said.description, 512),
            hooks: Hooks(hooks),
            config_schema: said.config_schema,
            lifetime: said.lifetime,
            hosts: hosts(&said.hosts)?,
            secrets: secrets(said.secrets)?,
            once: said.once,
        })
    }
}

impl Manifest {
    /// Whether its version is a lower one.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (self.number(), other.number()) else { return false };
        own.cmp_precedence(&other).is_lt()
    }

    /// Whether its version is one of these.
    pub fn is_among(&self, versions: &Versions) -> bool {
        self.number().is_some_and(|own| versions.0.matches(&own))
    }

    /// That it was checked to be one is why this is never nothing.
    fn number(&self) -> Option<semver::Version> {
        semver::Version::parse(&self.version).ok()
    }
}

/// Versions that an operator takes, such as `>=1.2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Versions(semver::VersionReq);

/// A text that names no versions.
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

/// Whether this host knows all that the plugin needs.
fn options(said: &[(String, String)]) -> Result<(), String> {
    if said.len() > OPTIONS {
        return Err(format!("it has more than {OPTIONS} options"));
    }
    let Some(host) = semver::Version::parse(HOST).ok() else { return Ok(()) };
    for (name, value) in said {
        match (name.as_str(), semver::Version::parse(value)) {
            ("host", Ok(least)) if least <= host => {}
            ("host", Ok(least)) => {
                return Err(format!("it needs Portcullis {least} or later, and this is {host}"));
            }
            ("host", Err(_)) => {
                return Err(format!("`{}` is not a version such as 1.2.3", excerpt(value, 64)));
            }
            (other, _) if other.starts_with("may-") => {}
            (other, _) => {
                return Err(format!(
                    "it needs `{}`, which this version of Portcullis does not know",
                    excerpt(other, 64)
                ));
            }
        }
    }
    Ok(())
}

fn hosts(said: &[String]) -> Result<Vec<Destination>, String> {
    if said.len() > ASKED {
        return Err(format!("it names more than {ASKED} hosts"));
    }
    let host = |text: &String| match text.parse::<Destination>() {
        Ok(host) if host.address.is_none() => Ok(host),
        // Where a host is, is the operator's to say.
        _ => Err(format!("`{}` is not HOST:PORT or http://HOST:PORT", excerpt(text, 64))),
    };
    said.iter().map(host).collect()
}

fn secrets(said: Vec<String>) -> Result<Vec<String>, String> {
    if said.len() > ASKED {
        return Err(format!("it names more than {ASKED} secrets"));
    }
    // Such a name needs no quotes in the config.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match said.iter().find(|name| !(1..=64).contains(&name.len()) || !name.bytes().all(plain)) {
        Some(name) => Err(format!("`{}` is not a legal name of a secret", excerpt(name, 64))),
        None => Ok(said),
    }
}

fn hook(said: wit::Hook) -> Result<Hook, String> {
    if said.events.is_empty() {
        return Err("a hook names no event".into());
    }
    if said.events.len() > EVENTS {
        return Err(format!("a hook names more than {EVENTS} events"));
    }
    if let Some(event) = said.events.iter().find(|event| !is_method(event)) {
        return Err(format!(
            "`{}` is no MCP method: events are methods such as `tools/call`, or `*`",
            excerpt(event, 64)
        ));
    }
    let phase = match said.phase {
        wit::Phase::Request => Phase::Request,
        wit::Phase::Response => Phase::Response,
    };
    Ok(Hook { events: said.events, phase })
}

/// Methods of later revisions have to be hookable too, so this knows their shape and not a list:
/// words with `/` between, of which only `initialize` and `ping` stand alone.
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

    fn said() -> wit::Manifest {
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
            options: vec![("host".into(), HOST.into()), ("may-be".into(), "new".into())],
        }
    }

    #[test]
    fn a_sound_manifest_passes() {
        let manifest = Manifest::check(said()).unwrap();
        assert_eq!(manifest.hooks, Hooks::on(&["tools/call"], Phase::Request));
    }

    #[test]
    fn versions_have_an_order() {
        let of = |version: &str| {
            Manifest::check(wit::Manifest { version: version.into(), ..said() }).unwrap()
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
    fn each_lie_is_named() {
        type Lie = fn(&mut wit::Manifest);
        let lies: [(Lie, &str); 19] = [
            (|m| m.name = "Probe 1".into(), "not a legal name"),
            (|m| m.name = String::new(), "not a legal name"),
            (|m| m.version = "new".into(), "not a version"),
            (|m| m.version = "1.2".into(), "not a version"),
            (|m| m.version = "1.02.0".into(), "not a version"),
            (|m| m.hooks.clear(), "no hooks"),
            (|m| m.hooks = vec![m.hooks[0].clone(); 17], "more than 16 hooks"),
            (|m| m.hooks[0].events.clear(), "names no event"),
            (|m| m.hooks[0].events = vec!["*".into(); 65], "more than 64 events"),
            (|m| m.hooks[0].events = vec!["everything".into()], "is no MCP method"),
            (|m| m.hosts = vec!["a:1".into(); 33], "more than 32 hosts"),
            (|m| m.hosts = vec!["everywhere".into()], "is not HOST:PORT"),
            (|m| m.hosts = vec!["a:1=10.0.0.1".into()], "is not HOST:PORT"),
            (|m| m.secrets = vec!["A".into(); 33], "more than 32 secrets"),
            (|m| m.secrets = vec!["A B".into()], "not a legal name of a secret"),
            (|m| m.options[0].1 = "99.0.0".into(), "needs Portcullis 99.0.0 or later"),
            (|m| m.options[0].1 = "new".into(), "not a version"),
            (|m| m.options[1].0 = "new".into(), "it needs `new`, which"),
            (|m| m.options = vec![m.options[1].clone(); 17], "more than 16 options"),
        ];
        for (lie, told) in lies {
            let mut manifest = said();
            lie(&mut manifest);
            let error = Manifest::check(manifest).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn methods_by_their_shape() {
        for event in ["*", "ping", "initialize", "tools/call", "notifications/tools/list_changed"] {
            assert!(is_method(event), "{event}");
        }
        for event in ["", "tools", "tools/", "/call", "tools//call", "tools/*", "tools call", "a/é"]
        {
            assert!(!is_method(event), "{event}");
        }
    }
}
