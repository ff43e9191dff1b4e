//! The section `[audit]` of the config.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{export::format::Format, proof};
use portcullis_foundation::units::{Age, Size};
use portcullis_protocol::names::ExportName;
use portcullis_vault::SecretRef;

/// Audit log.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Audit {
    /// Folder of the audit store. Default: `audit` in the state folder.
    pub dir: Option<PathBuf>,
    /// Milliseconds that a call waits for its record to be on disk. After that, `on-failure`
    /// applies.
    #[schemars(range(min = 1))]
    pub deadline_ms: u64,
    pub on_failure: OnFailure,
    pub retention: Retention,
    /// Encryption of records at rest. Without it, only file permissions protect the records.
    pub encryption: Option<Encryption>,
    pub checkpoint: Checkpoint,
    /// Witnesses that store checkpoints where this machine cannot change them.
    pub witness: Vec<Witness>,
    /// Exports of records, in addition to the store. Each is a stream of its own.
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

/// Times at which a checkpoint of the audit log is signed, in addition to the start and the end of
/// the proxy.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Checkpoint {
    /// Number of records after which a checkpoint is signed.
    #[schemars(range(min = 1))]
    pub records: u64,
    /// Seconds after the first record that no checkpoint covers.
    #[schemars(range(min = 1, max = 86400))]
    pub seconds: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { records: 10_000, seconds: 60 }
    }
}

/// Witness of checkpoints: one of `file`, `syslog` and `url`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Witness {
    /// File to append to, such as a file on another machine's disk.
    pub file: Option<PathBuf>,
    /// Syslog server (RFC 5424): `udp://HOST:PORT`, `tcp://HOST:PORT` or `unix:///dev/log`.
    pub syslog: Option<String>,
    /// URL that receives each checkpoint in the body of a POST request.
    pub url: Option<String>,
}

impl Witness {
    /// The witness; `None` unless exactly one valid target is set.
    pub fn target(&self) -> Option<proof::Witness> {
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

/// Handling of a call that cannot be recorded, because the store is full, slow or broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Refuse the call.
    #[default]
    Refuse,
    /// Continue without a record. Logs and metrics report it. When the store works again, an event
    /// has the number of missing records and their time.
    Pass,
}

/// Retention of records. Without a limit, records are kept forever. Whole segments are dropped,
/// oldest first; their proofs are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Retention {
    /// Maximum age of records: `90d`, `12h`, `26w`. Older records are dropped.
    pub max_age: Option<Age>,
    /// Maximum size of all segments: `20GiB`. Beyond it, the oldest records are dropped, even if
    /// they are not exported yet.
    pub max_size: Option<Size>,
}

/// Encryption of records at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Encryption {
    /// Key for new records: 32 random bytes as 64 hex digits or in base64, for example from
    /// `openssl rand -hex 32`.
    pub key: SecretRef,
    /// Earlier keys. Keep each for as long as its records are kept.
    #[serde(default)]
    pub old_keys: Vec<SecretRef>,
}

/// Stream of audit records to one target.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Export {
    /// Name in logs and metrics, and name of the stream's cursor in the store.
    pub name: ExportName,
    /// Target: `file:PATH`, `stdout`, `https://…`, `otlp+https://…`, `syslog+tls://HOST:PORT`,
    /// `syslog+tcp://HOST:PORT`, `syslog+udp://HOST:PORT`, `unix:PATH` or `postgres://…`. Write a
    /// URL with a password or a token as a reference: `{ from = "env:NAME" }`.
    pub to: Destination,
    /// Format of records. Default: `jsonl`; for OTLP and syslog, their own format. `postgres` has
    /// columns and takes no format.
    #[serde(default)]
    pub format: Option<Format>,
    /// Filter of the records to export, such as `decision = refused`. Default: all records.
    #[serde(default)]
    pub filter: Option<String>,
    /// First record of the stream, if none was delivered yet.
    #[serde(default)]
    pub begin: StreamStart,
    /// Secret headers sent to an HTTP endpoint.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
    /// Certificate authorities (PEM) for a target over TLS. Default: those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Maximum number of records in one delivery.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: usize,
}

fn default_batch() -> usize {
    500
}

/// Target: in plain text, or a reference to a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Destination {
    Plain(String),
    Secret(SecretRef),
}

/// Beginning of a stream of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StreamStart {
    /// The oldest record in the store.
    #[default]
    Oldest,
    /// The first record after the stream's first start.
    Now,
}
