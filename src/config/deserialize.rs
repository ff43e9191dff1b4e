//! Converts plain values to a [`Config`], part by part, so that an invalid part hides no other.

use std::{collections::HashSet, path::Path};

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use portcullis_audit::config::Destination;

use portcullis_upstream::config::Sharing;

use portcullis_interceptors::{InterceptorEntry, InterceptorKind};

use super::{
    Config, Finding, document::Document, finding::Code, schema_check::SchemaViolation,
    sections::STATE_DIR,
};
use portcullis_foundation::json_pointer::{child, segments};
use portcullis_interceptors::entry::{self, FieldError};
use portcullis_protocol::names::IllegalName;

/// Config of the valid parts, and which these are.
pub(super) struct Built {
    pub config: Config,
    /// Pointers of the chain's valid entries, in order.
    pub interceptors: Vec<String>,
}

/// Builds all valid parts.
pub(super) fn build(
    document: &Document,
    misshapen: Vec<SchemaViolation>,
    findings: &mut Vec<Finding>,
) -> Built {
    let mut builder = Builder { document, wrong: HashSet::new(), findings };
    for SchemaViolation { pointer, finding } in misshapen {
        builder.wrong.extend(parts_of(&pointer));
        builder.findings.push(finding);
    }
    let mut config = Config {
        listen: builder.section("listen"),
        state_dir: STATE_DIR.into(),
        policy: builder.section("policy"),
        audit: builder.section("audit"),
        admin: builder.section("admin"),
        approvals: builder.section("approvals"),
        limits: builder.section("limits"),
        telemetry: builder.section("telemetry"),
        engine: builder.section("engine"),
        registries: builder.section("registries"),
        signers: builder.named("signers").into_iter().collect(),
        clients: builder.named("clients").into_iter().collect(),
        servers: builder.named("servers"),
        interceptors: Vec::new(),
    };
    if let Some(Value::String(dir)) = document.get("/state-dir") {
        config.state_dir = dir.into();
    }
    let mut interceptors = Vec::new();
    if let Some(Value::Array(entries)) = builder.part("/interceptors").cloned() {
        for (at, value) in entries.iter().enumerate() {
            let pointer = child("/interceptors", at);
            if let Some(entry) = builder.table(&pointer, value, InterceptorEntry::from_table) {
                config.interceptors.push(entry);
                interceptors.push(pointer);
            }
        }
    }
    Built { config, interceptors }
}

/// Part that a finding invalidates: a server, a client, an entry of the chain, or a key of a
/// section.
fn parts_of(pointer: &str) -> Option<String> {
    let parts = segments(pointer);
    let two = parts.iter().take(2).fold(String::new(), |pointer, part| child(&pointer, part));
    (!two.is_empty()).then_some(two)
}

struct Builder<'a> {
    document: &'a Document,
    wrong: HashSet<String>,
    findings: &'a mut Vec<Finding>,
}

impl Builder<'_> {
    /// Part of the file, unless a finding invalidates it.
    fn part(&self, pointer: &str) -> Option<&Value> {
        if self.wrong.contains(pointer) { None } else { self.document.get(pointer) }
    }

    fn section<T: DeserializeOwned + Default>(&mut self, key: &str) -> T {
        let pointer = child("", key);
        let Some(Value::Object(table)) = self.part(&pointer).cloned() else { return T::default() };
        let right: Map<_, _> = table
            .into_iter()
            .filter(|(key, _)| !self.wrong.contains(&child(&pointer, key)))
            .collect();
        self.table(&pointer, &Value::Object(right), entry::typed).unwrap_or_default()
    }

    fn named<N, T>(&mut self, key: &str) -> IndexMap<N, T>
    where
        N: std::str::FromStr<Err = IllegalName> + std::hash::Hash + Eq,
        T: DeserializeOwned,
    {
        let all = child("", key);
        let Some(Value::Object(table)) = self.part(&all).cloned() else { return IndexMap::new() };
        let mut named = IndexMap::new();
        for (name, value) in &table {
            let pointer = child(&all, name);
            let legal = name.parse::<N>().map_err(|error| {
                let finding = self.document.at_key(&pointer, Code::BadValue, error.to_string());
                self.findings.push(finding);
            });
            let value = self.table(&pointer, value, entry::typed);
            if let (Ok(name), Some(value)) = (legal, value) {
                named.insert(name, value);
            }
        }
        named
    }

    fn table<T>(
        &mut self,
        pointer: &str,
        value: &Value,
        make: impl FnOnce(Map<String, Value>) -> Result<T, FieldError>,
    ) -> Option<T> {
        if self.wrong.contains(pointer) {
            return None;
        }
        let Value::Object(table) = value else { return None };
        let misfit = match make(table.clone()) {
            Ok(made) => return Some(made),
            Err(misfit) => misfit,
        };
        let at = format!("{pointer}{}", misfit.pointer);
        self.findings.push(self.document.at_value(&at, Code::BadValue, misfit.message));
        None
    }
}

/// Makes every path absolute, except those of policies and plugins: their crates get the base, and
/// name files as the operator wrote them.
pub(super) fn resolve(config: &mut Config, base: &Path) {
    config.state_dir = base.join(&config.state_dir);
    config.audit.dir = Some(match &config.audit.dir {
        Some(dir) => base.join(dir),
        None => config.state_dir.join("audit"),
    });
    let keys = config.audit.encryption.iter_mut();
    for key in keys.flat_map(|keys| std::iter::once(&mut keys.key).chain(&mut keys.old_keys)) {
        if let Ok(source) = portcullis_vault::Source::try_from(&*key) {
            key.from = source.relative_to(base).to_string();
        }
    }
    if let Some(socket) = &mut config.admin.socket {
        *socket = base.join(&*socket);
    }
    if let Some(file) = &mut config.registries.ca_file {
        *file = base.join(&*file);
    }
    for entry in &mut config.interceptors {
        if let InterceptorKind::Secrets(secrets) = &mut entry.kind {
            for file in secrets.gitleaks.iter_mut().chain(&mut secrets.baselines) {
                *file = base.join(&*file);
            }
        }
    }
    for signer in config.signers.values_mut() {
        for file in signer.key.iter_mut().chain(&mut signer.trusted_root) {
            *file = base.join(&*file);
        }
    }
    for witness in &mut config.audit.witness {
        witness.file = witness.file.as_ref().map(|file| base.join(file));
    }
    for export in &mut config.audit.export {
        if let Some(file) = &mut export.ca_file {
            *file = base.join(&*file);
        }
        let to = match &mut export.to {
            Destination::Secret(secret) => Some(secret),
            Destination::Plain(_) => None,
        };
        for secret in export.headers.values_mut().chain(to) {
            if let Ok(source) = portcullis_vault::Source::try_from(&*secret) {
                secret.from = source.relative_to(base).to_string();
            }
        }
    }
    for server in config.servers.values_mut() {
        for mount in &mut server.mounts {
            mount.source = base.join(&mount.source);
        }
        // Clients with their own secrets share no instance.
        if server.has_secrets_by_client() && server.sharing == Sharing::Auto {
            server.sharing = Sharing::PerClient;
        }
        for from in server.references_mut() {
            if let Ok(source) = from.parse::<portcullis_vault::Source>() {
                *from = source.relative_to(base).to_string();
            }
        }
        if server.image.is_none()
            && let Some(program) = server.command.as_mut().and_then(|command| command.first_mut())
            // A name without a slash is searched in PATH at the start.
            && program.contains('/')
        {
            *program = base.join(&*program).to_string_lossy().into_owned();
        }
    }
}
