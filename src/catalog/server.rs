//! A server in the common form of all formats.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{lock, packages, report::Note, variables::changes_what_runs};

/// A server that was read and checked.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Server {
    /// The name in the config.
    pub name: String,
    /// The name in the description.
    pub original: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(flatten)]
    pub run: Run,
    /// Environment variables with plain values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets, by the variable that the server reads. References, never values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Hosts that the description says it needs, `HOST:PORT`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// `UID:GID`, instead of the unprivileged default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether it fetches its program when it starts, writes it to /tmp and runs it there.
    #[serde(skip_serializing_if = "is_false")]
    pub fetches: bool,
    /// Whether it has state that an idle stop would lose.
    #[serde(skip_serializing_if = "is_false")]
    pub stays: bool,
    /// The tools in the description.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// The tools that the person enabled; others are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
    /// Notes for the person.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

impl Server {
    /// The references to secrets: headers of a remote server, variables of any other.
    pub fn references(&self) -> impl Iterator<Item = (&String, &Secret)> {
        let headers = match &self.run {
            Run::Remote { headers, .. } => Some(headers),
            Run::Image { .. } | Run::Command { .. } => None,
        };
        self.secrets.iter().chain(headers.into_iter().flatten())
    }

    /// The same references, mutable.
    pub fn references_mut(&mut self) -> impl Iterator<Item = (&String, &mut Secret)> {
        let headers = match &mut self.run {
            Run::Remote { headers, .. } => Some(headers),
            Run::Image { .. } | Run::Command { .. } => None,
        };
        self.secrets.iter_mut().chain(headers.into_iter().flatten())
    }

    /// All of its deliveries.
    pub fn deliveries(&self) -> impl Iterator<Item = Delivery<'_>> {
        let kind = match self.run {
            Run::Remote { .. } => DeliveryKind::Header,
            Run::Image { .. } | Run::Command { .. } => DeliveryKind::Secret,
        };
        let references = self.references().map(move |(name, secret)| Delivery {
            kind,
            name,
            from: &secret.from,
            permitted: secret.permitted,
            changes_what_runs: kind == DeliveryKind::Secret && changes_what_runs(name),
        });
        let plain = self.env.iter().map(|(name, value)| Delivery {
            kind: DeliveryKind::Variable,
            name,
            from: value,
            permitted: true,
            changes_what_runs: changes_what_runs(name),
        });
        references.chain(plain)
    }

    /// Destination of its deliveries: its URL, or its image without tag and digest, or its program,
    /// with arguments but without package versions; then each host that it reaches.
    #[must_use]
    pub fn destination(&self) -> Vec<String> {
        let runs = match &self.run {
            Run::Remote { url, .. } => {
                url::Url::parse(url).map_or_else(|_| url.clone(), |url| url.to_string())
            }
            Run::Image { image, arguments } => {
                let named = format!("docker://{}", image.name);
                let origin = if image.is_id() { &named } else { lock::origin(&named) };
                let name = origin.strip_prefix("docker://").unwrap_or(origin);
                let arguments = match arguments.split_first() {
                    Some((program, rest)) => format!(" {}", packages::identity(program, rest)),
                    None => String::new(),
                };
                format!("image {name}{arguments}")
            }
            Run::Command { program, arguments } => {
                format!("program {}", packages::identity(program, arguments))
            }
        };
        std::iter::once(runs).chain(self.egress.iter().cloned()).collect()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// How a server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// A container. The arguments are for the image's entry point.
    Image { image: Image, arguments: Vec<String> },
    /// A program on this machine.
    Command { program: String, arguments: Vec<String> },
    /// A remote server.
    Remote { url: String, transport: Transport, headers: BTreeMap<String, Secret> },
}

/// Transport of a remote server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    #[default]
    Auto,
    StreamableHttp,
    Sse,
}

/// An image, by digest or by an unresolved tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// With registry and tag, if it has them; without digest.
    pub name: String,
    /// `sha256:…`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `sha256:…`: its id on the engine, if it is not from a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Image {
    /// Whether its name is its id on the engine.
    #[must_use]
    pub fn is_id(&self) -> bool {
        self.id.as_deref() == Some(&*self.name)
    }

    /// Its content: its digest in the registry, or its id on the engine.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.digest.as_deref().or(self.id.as_deref())
    }
}

/// A secret and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Secret {
    /// A reference: `env:NAME`.
    pub from: String,
    /// Its description, by the author of the server's description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Whether the operator named or confirmed this reference for the server. The written policies
    /// permit no other.
    pub permitted: bool,
}

impl Secret {
    /// A secret that nobody has confirmed.
    #[must_use]
    pub fn of(from: String) -> Self {
        Self { from, about: None, permitted: false }
    }
}

/// Kind of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryKind {
    /// A header of each request, read from a reference.
    Header,
    /// A variable, read from a reference.
    Secret,
    /// A variable with a value from the description.
    Variable,
}

impl DeliveryKind {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Secret => "secret",
            Self::Variable => "variable",
        }
    }
}

/// A delivery to a server: a header, a secret or a plain variable.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Delivery<'a> {
    pub kind: DeliveryKind,
    /// The name of the header or the variable.
    pub name: &'a str,
    /// The reference, or the value of a plain variable.
    pub from: &'a str,
    /// Whether the operator named or confirmed the reference. A plain variable needs none.
    pub permitted: bool,
    /// Whether the variable changes what the server runs: its package registry or its modules.
    pub changes_what_runs: bool,
}

/// A folder or file of this machine that a server sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mount {
    pub source: String,
    pub target: String,
    pub writable: bool,
}

/// A tool in the description of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tool {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}
