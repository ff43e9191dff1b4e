//! What a server is, whatever format described it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::Note;

/// A server, read and held to our rules.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Server {
    /// The name in our config.
    pub name: String,
    /// The name in what was read.
    pub original: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(flatten)]
    pub run: Run,
    /// Plain environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets, by the variable that the server reads. References, never values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Hosts that it is said to need, `HOST:PORT`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// `UID:GID` in the place of nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// It fetches its program when it starts, puts it into /tmp and runs it there.
    #[serde(skip_serializing_if = "is_false")]
    pub fetches: bool,
    /// It keeps state that must not be lost to idleness.
    #[serde(skip_serializing_if = "is_false")]
    pub stays: bool,
    /// What it is said to offer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// The tools that the person left on: no others may be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
    /// What the person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
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
    /// A program of this machine.
    Command { program: String, arguments: Vec<String> },
    /// A server elsewhere.
    Remote { url: String, transport: Transport, headers: BTreeMap<String, Secret> },
}

/// What is spoken to a server elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    #[default]
    Auto,
    StreamableHttp,
    Sse,
}

/// An image, by digest or by a tag that is still to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// With registry and tag, if it has them; without digest.
    pub name: String,
    /// `sha256:…`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Secret {
    /// A reference: `env:NAME`.
    pub from: String,
    /// What it is, in the words of whoever described the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
}

/// A folder or file of this machine that a server sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mount {
    pub source: String,
    pub target: String,
    pub writable: bool,
}

/// A tool that a server is said to offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tool {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}
