//! The config: `portcullis.toml`, read and checked once with positions for findings, then a
//! [`Config`] of plain values.
//!
//! - `document` parses the text into a plain value with the position of every part.
//! - `schema_check` compares it with the JSON Schema.
//! - `deserialize` creates typed values.
//! - `checks` finds what a schema cannot express.
//!
//! Every step reports all of its findings, not only the first. A part that is invalid in one step
//! is not passed to the next.
//!
//! # Invariants
//!
//! - No message repeats a possible secret.
//! - No text causes a panic.

mod chain;
mod checks;
mod deserialize;
mod document;
mod finding;
mod plaintext_secrets;
mod protected_paths;
mod proxy_location;
mod schema_check;
mod sections;
mod spans;
mod values;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

pub use chain::{Member, MemberView};
pub use finding::{Code, Diagnostics, Finding, Located, Severity};
pub use plaintext_secrets::PlaintextSecret;
pub use protected_paths::{exposing_mounts, mount_policy, protected_paths, refused_mounts};
pub use proxy_location::{ProxyLocation, Unreadable, proxy_location};
pub use sections::{
    Admin, Approvals, Ceilings, ClientAddressSource, Config, ConnectionBounds, ConnectionLimits,
    Engine, Limits, Listen, Loosening,
};
pub use values::ProxyNetwork;

use indexmap::IndexMap;
use sha2::{Digest as _, Sha256};

use portcullis_protocol::names::ServerName;
use portcullis_upstream::{Images, SignatureVerifier, config::Server};

use document::Document;
use finding::{MAX_FINDINGS, Source};
use portcullis_foundation::json_pointer::child;

/// Maximum length of a socket's path in bytes: `sun_path` has 108 bytes with the closing zero.
pub const SOCKET_PATH_BYTES: usize = 107;

/// Limit of a config file in bytes, far above any real one.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Valid config, with the data that later findings need to point into its file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Settings. Paths are absolute, except those of policies and plugins, which are resolved
    /// against `base` and named as in the file.
    pub config: Config,
    /// File, as the user named it.
    pub path: PathBuf,
    /// Absolute folder that relative paths in the file are relative to.
    pub base: PathBuf,
    /// `sha256:` and the digest of the file.
    pub revision: String,
    /// Findings that do not prevent the proxy from starting.
    pub warnings: Vec<Finding>,
    /// Whether only images with locked tags run (`run --locked`).
    pub only_locked: bool,
    /// Profile of the run (`run --profile`).
    pub profile: Option<String>,
    /// Servers of the file with `enabled = false`. `config` does not have them.
    pub disabled: IndexMap<ServerName, Server>,
    /// Disabled servers, and servers of the file that the profile leaves out or overrides, as the file
    /// defines them.
    /// Their protected paths stay protected from the running servers.
    pub aside: Vec<Server>,
    document: Document,
}

impl Loaded {
    /// Finding at the value of a JSON pointer into the file, such as `/interceptors/0/path`, or at
    /// the nearest surrounding value that exists.
    pub fn finding(&self, pointer: &str, code: Code, message: impl Into<String>) -> Finding {
        self.document.at_value(pointer, code, message)
    }

    /// Finding of another crate about something that the config names, at its position.
    pub fn locate(
        &self,
        pointer: &str,
        diagnostic: impl miette::Diagnostic + Send + Sync + 'static,
    ) -> Located {
        Located::new(Box::new(diagnostic), self.document.at_value(pointer, Code::BadValue, ""))
    }

    /// Line of a key or an array's element, from 1, by its JSON pointer.
    pub fn line(&self, pointer: &str) -> Option<u32> {
        self.document.at_key(pointer, Code::BadValue, "").position().map(|(line, _)| line)
    }

    /// Images of the servers.
    pub fn images(&self) -> Images {
        let Config { state_dir, registries, .. } = &self.config;
        Images::new(&self.base, state_dir, registries, self.only_locked)
    }

    /// Verifier with the signers of images.
    ///
    /// # Errors
    /// JSON pointer of an invalid signer, and the reason.
    pub fn signatures(&self) -> Result<SignatureVerifier, (String, String)> {
        let Config { state_dir, signers, .. } = &self.config;
        SignatureVerifier::of_config(signers, state_dir, self.signed_by_lines())
    }

    /// Positions of secrets that differ by client, by server and name.
    pub fn secret_lines(&self) -> BTreeMap<(ServerName, String), (PathBuf, u32)> {
        let mut lines = BTreeMap::new();
        for (server, settings) in &self.config.servers {
            for binding in
                settings.secret_bindings().filter(|binding| !binding.by_client.is_empty())
            {
                let table = child(&child("/servers", server), binding.table());
                if let Some(line) = self.line(&child(&table, binding.name)) {
                    let key = (server.clone(), binding.name.to_owned());
                    lines.insert(key, (self.path.clone(), line));
                }
            }
        }
        lines
    }

    /// Positions of the servers' `signed-by`, as `FILE:LINE`.
    pub fn signed_by_lines(&self) -> HashMap<ServerName, String> {
        let servers = self.config.servers.iter().filter(|(_, server)| !server.signed_by.is_empty());
        servers
            .filter_map(|(name, _)| {
                let line = self.line(&format!("/servers/{name}/signed-by"))?;
                Some((name.clone(), format!("{}:{line}", self.path.display())))
            })
            .collect()
    }

    /// Line, if the key exists in the file.
    pub fn written(&self, pointer: &str) -> Option<u32> {
        self.document.get(pointer).and_then(|_| self.line(pointer))
    }
}

/// Reads and checks a config file.
///
/// # Errors
/// All problems.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let text = read(path).map_err(|finding| Diagnostics(vec![finding]))?;
    parse(path, &text)
}

/// Checks the text of a config file. Accesses no file: `path` is the name in messages and the base
/// of relative paths.
///
/// # Errors
/// All problems.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Diagnostics> {
    let base = base_of(path);
    let (document, mut findings) = Document::parse(path, text);
    let mut config = None;
    if findings.is_empty() {
        let built = deserialize::build(&document, schema_check::check(&document), &mut findings);
        checks::check(&built, &document, &mut findings);
        config = Some(built.config);
    }
    findings.sort_by_key(Finding::offset);
    findings.truncate(MAX_FINDINGS);
    match config {
        Some(mut config) if findings.iter().all(|f| f.severity == Severity::Warning) => {
            deserialize::resolve(&mut config, &base);
            let (servers, disabled): (_, IndexMap<_, _>) =
                std::mem::take(&mut config.servers).into_iter().partition(|(_, one)| one.enabled);
            config.servers = servers;
            let path = path.to_owned();
            let revision = format!("sha256:{}", hex::encode(Sha256::digest(text)));
            let warnings = findings;
            Ok(Loaded {
                config,
                path,
                base,
                revision,
                warnings,
                only_locked: false,
                profile: None,
                aside: disabled.values().cloned().collect(),
                disabled,
                document,
            })
        }
        _ => Err(Diagnostics(findings)),
    }
}

fn base_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn read(path: &Path) -> Result<String, Finding> {
    let unreadable =
        |what: String| Finding::new(Code::Unreadable, what).within(&Source::new(path, ""), None);
    let shown = path.display();
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(unreadable(format!("config file `{shown}` does not exist")).help(
                "name it with `--config FILE` or PORTCULLIS_CONFIG; `portcullis init` makes a new one \
                 with a first policy",
            ));
        }
        Err(error) => return Err(unreadable(format!("`{shown}` cannot be read: {error}"))),
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!("`{shown}` is larger than {} MiB", MAX_FILE_BYTES >> 20))
            .help("check that it is the right file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes().get(..good).unwrap_or_default());
        Finding::new(Code::Syntax, "not UTF-8 from here on".to_owned())
            .within(&Source::new(path, &text), Some(good..good))
            .help("save the file as UTF-8")
    })
}
