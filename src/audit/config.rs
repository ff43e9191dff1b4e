//! The section `[audit]` of the config.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{export::Format, proof};
use portcullis_foundation::units::{Age, Size};
use portcullis_protocol::names::ExportName;
use portcullis_vault::SecretRef;

/// The audit log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Audit {
    /// The store's folder. Default: `audit` in the state folder.
    pub dir: Option<PathBuf>,
    /// Milliseconds that a call may wait for its record to be on disk before it is refused.
    #[schemars(range(min = 1))]
    pub deadline_ms: u64,
    pub on_failure: OnFailure,
    pub retention: Retention,
    /// Encrypts records at rest. Without it the files are only their owner's to read.
    pub encryption: Option<Encryption>,
    pub checkpoint: Checkpoint,
    /// Who else is told of checkpoints, so that they are kept where this machine can't change them.
    pub witness: Vec<Witness>,
    /// Where records go beside the store, each a stream of its own.
    pub export: Vec<Export>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            dir: None,
            deadline_ms: 5_000,
            on_failure: OnFailure::default(),
            retention: Retention::default(),
            encryption: None,
            checkpoint: Checkpoint::default(),
            witness: Vec::new(),
            export: Vec::new(),
        }
    }
}

/// When a checkpoint of the audit log is signed, beside the proxy's start and end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Checkpoint {
    /// After so many records.
    #[schemars(range(min = 1))]
    pub records: u64,
    /// So many seconds after a record that no checkpoint has.
    #[schemars(range(min = 1, max = 86400))]
    pub seconds: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { records: 10_000, seconds: 60 }
    }
}

/// A witness of checkpoints: one of `file`, `syslog` and `url`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Witness {
    /// A file to append to, such as one on another machine's disk.
    pub file: Option<PathBuf>,
    /// A syslog (RFC 5424): `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///dev/log`.
    pub syslog: Option<String>,
    /// A URL that takes each checkpoint in the body of a POST.
    pub url: Option<String>,
}

impl Witness {
    /// Where it is; `None` unless exactly one legal place is named.
    pub fn place(&self) -> Option<proof::Witness> {
        match (&self.file, &self.syslog, &self.url) {
            (Some(file), None, None) if !file.as_os_str().is_empty() => {
                Some(proof::Witness::File(file.clone()))
            }
            (None, Some(address), None) => proof::Witness::syslog(address),
            (None, None, Some(url)) => {
                let scheme = reqwest::Url::parse(url).ok()?.scheme().to_owned();
                let web = matches!(scheme.as_str(), "http" | "https");
                web.then(|| proof::Witness::Url(url.clone()))
            }
            _ => None,
        }
    }
}

/// What becomes of a call that can't be recorded: the store is full, slow or broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Refuse,
    /// It goes on without a record. Logs and metrics tell so, and the log itself once it works
    /// again: how many records it misses, and since when.
    Pass,
}

/// How long records are kept. Without a limit: for ever. Whole segments are dropped, the oldest
/// first; their proofs stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retention {
    /// Records older than this are dropped: `90d`, `12h`, `26w`.
    pub max_age: Option<Age>,
    /// The oldest records are dropped while the segments take more than this: `20GiB`. Also those
    /// that were not exported yet.
    pub max_size: Option<Size>,
}

/// Encryption of records at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Encryption {
    /// The key for new records: 32 random bytes as 64 hex digits or in base64, such as
    /// `openssl rand -hex 32` makes.
    pub key: SecretRef,
    /// Keys that were used before, for as long as records of their time are kept.
    #[serde(default)]
    pub old_keys: Vec<SecretRef>,
}

/// One stream of audit records to a target.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Export {
    /// Its name in logs and metrics, and of its cursor in the store.
    pub name: ExportName,
    /// `file:PATH`, `stdout`, `https://…`, `otlp+https://…`, `syslog+tls://HOST:PORT`,
    /// `syslog+tcp://HOST:PORT`, `syslog+udp://HOST:PORT`, `unix:PATH` or `postgres://…`. A URL
    /// with a password or a token in it is a reference: `{ from = "env:NAME" }`.
    pub to: Destination,
    /// How records are written. Default: `jsonl`, but what OTLP and syslog have of their own.
    /// `postgres` has columns and takes none.
    #[serde(default)]
    pub format: Option<Format>,
    /// Only records that this filter is for, such as `decision = refused`. Default: all.
    #[serde(default)]
    pub filter: Option<String>,
    /// Which record is the first, where none was delivered yet.
    #[serde(default)]
    pub begin: Begin,
    /// Secret headers sent to an HTTP endpoint.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
    /// Certificates (PEM) of the authorities that are taken for a target over TLS. Default: those
    /// of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Records that are delivered at once, at most.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: usize,
}

fn default_batch() -> usize {
    500
}

/// A target: as it is, or where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Destination {
    Plain(String),
    Secret(SecretRef),
}

/// Where a stream of records begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Begin {
    /// With the oldest record in the store.
    #[default]
    Oldest,
    /// With the first record after the stream's first start.
    Now,
}
