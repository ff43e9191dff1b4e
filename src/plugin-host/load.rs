//! Loads a plugin from a file, with one clear error on failure.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use wasmtime::{
    Engine, Store, UpdateDeadline,
    component::{Component, HasSelf, Linker},
};

use super::{
    Cache, LoadError, Manifest, Plugin, PluginHost,
    artifact::Artifact,
    bindings::{Plugin as World, PluginPre, exports::portcullis::interceptor::guest as wit},
    functions::{Values, http::Client, shared::Shared},
    grants::{Function, Grants, Missing, RequestedGrants},
    guest::Guest,
    host::{Host, MAX_MEMORY_MIB},
    limits::{DESCRIBE_TIMEOUT, START_TIMEOUT},
    output::excerpt,
    secret_redactor::SecretRedactor,
    signature::Signed,
    template::Template,
};
use portcullis_foundation::note_key::Verifier;
use portcullis_vault::Secret;

/// Limit of the problems of a `config` that an error names.
const MAX_REPORTED_PROBLEMS: usize = 8;
/// Limit of the foreign imports that an error names.
const MAX_REPORTED_IMPORTS: usize = 32;

/// How the operator identifies the file.
#[derive(Debug, Clone, Copy)]
pub enum Pin<'a> {
    /// SHA-256 in hex, with or without the prefix `sha256:`.
    Sha256(&'a str),
    /// Signed by one of these keys; if a digest is set, that must match, too.
    Signed { by: &'a [Verifier], sha256: Option<&'a str> },
    /// Any file: `allow-unpinned = true`.
    Any,
    /// Not set, which is refused with the digest to write.
    Missing,
}

/// Grants and settings of the operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of its entry.
    pub entry: String,
    /// Configuration of the plugin.
    pub config: Map<String, Value>,
    /// Memory limit of one instance in MiB, 1 to 256.
    pub memory_mib: u64,
    /// Time limit for one verdict.
    pub deadline: Duration,
    /// Whether messages pass if it fails. Its circuit then never opens, because a few failing
    /// messages would let all others pass.
    pub fail_open: bool,
    /// Set in audit mode, when its verdicts have no effect and nothing else must have one either.
    pub trial: Option<Trial>,
    /// Host functions that it may use.
    pub grants: Grants,
    /// Secrets of the grants.
    pub secrets: BTreeMap<String, Secret>,
}

/// Settings of audit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// Whether its requests are sent anyway.
    pub http: bool,
}

/// SHA-256 of the present file, in hex.
///
/// # Errors
/// If it cannot be read.
pub fn digest(path: &Path) -> Result<String, LoadError> {
    Artifact::file(path).map(|found| hex::encode(Sha256::digest(&found.bytes)))
}

/// Component that was read, checked, compiled and described; nothing is granted yet.
pub struct Compiled {
    path: PathBuf,
    size: usize,
    sha256: String,
    signed_by: Vec<Verifier>,
    host: &'static Host,
    pre: PluginPre<Guest>,
    functions: Vec<Function>,
    manifest: Manifest,
}

impl Compiled {
    /// Reads, checks, compiles and describes a component. Takes as long as compilation (0.1 s for a
    /// small plugin in Rust), so call it outside the async threads.
    ///
    /// # Errors
    /// Problem of the file, its digest, its imports and exports, or its manifest.
    pub fn read(path: &Path, pin: Pin<'_>) -> Result<Self, LoadError> {
        Self::read_cached(path, pin, None)
    }

    /// Same, with compiled code from the cache if possible.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_cached(
        path: &Path,
        pin: Pin<'_>,
        cache: Option<&Cache>,
    ) -> Result<Self, LoadError> {
        Self::of(&Artifact::file(path)?, pin, cache)
    }

    /// Same for a component that was already read.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of(found: &Artifact, pin: Pin<'_>, cache: Option<&Cache>) -> Result<Self, LoadError> {
        let Artifact { place: path, bytes, .. } = found;
        let sha256 = hex::encode(Sha256::digest(bytes));
        let signed = check_pin(found, pin, &sha256)?;
        let host = Host::shared().map_err(|reason| LoadError::Host { reason })?;
        let component = compile(path, &host.engine, bytes, &sha256, cache)?;
        let functions = imports(path, &host.engine, &component)?;
        let pre = link(path, &host.engine, &component)?;
        let bare = Arc::new(Shared::bare("", PluginHost::bare().services));
        let memory = usize::try_from(MAX_MEMORY_MIB << 20).unwrap_or(usize::MAX);
        let template = Template::new(host, pre, memory, DESCRIBE_TIMEOUT, bare);
        let manifest = describe(path, &template)?;
        let signed_by = match signed {
            Some((statement, keys)) => {
                agrees(found, &manifest, statement)?;
                keys
            }
            None => Vec::new(),
        };
        let (path, size, pre) = (path.to_owned(), bytes.len(), template.pre);
        Ok(Self { path, size, sha256, signed_by, host, pre, functions, manifest })
    }

    /// Manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Imported host functions.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Digest of its file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Keys whose signatures were accepted, if the pin requires that.
    pub fn signed_by(&self) -> &[Verifier] {
        &self.signed_by
    }

    /// Size of its file in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Requested grants that are missing, from its imports and its manifest.
    pub fn missing(&self, grants: &Grants) -> Option<Missing> {
        let Manifest { hosts, secrets, .. } = &self.manifest;
        grants.missing(&RequestedGrants { functions: &self.functions, hosts, secrets })
    }

    /// Plugin with these settings.
    ///
    /// # Errors
    /// Missing grants, and problems of its configuration.
    pub fn plugin(
        &self,
        settings: Settings,
        plugin_host: &PluginHost,
    ) -> Result<Plugin, LoadError> {
        let Self { path, host, pre, manifest, .. } = self;
        if !(1..=MAX_MEMORY_MIB).contains(&settings.memory_mib) {
            return Err(LoadError::Memory { path: path.clone(), configured: settings.memory_mib });
        }
        if let Some(missing) = self.missing(&settings.grants) {
            return Err(LoadError::Ungranted { path: path.clone(), missing: Box::new(missing) });
        }
        let memory = usize::try_from(settings.memory_mib << 20).unwrap_or(usize::MAX);
        let tried = Arc::new(granted(manifest, &settings, plugin_host, Persistence::Temporary)?);
        let mut template = Template::new(host, pre.clone(), memory, settings.deadline, tried);
        template.fail_open = settings.fail_open;
        template.config = check_config(path, manifest, settings.config.clone())?.into();
        begin(manifest, &template)?;
        template.shared =
            Arc::new(granted(manifest, &settings, plugin_host, Persistence::Persistent)?);
        let sha256 = self.sha256.clone();
        let names: Vec<_> = self.signed_by.iter().map(Verifier::name).collect();
        let signed_by = (!names.is_empty()).then(|| names.join(", "));
        Ok(Plugin::new(template, manifest.clone(), sha256, signed_by))
    }
}

/// Whether a plugin's values persist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Persistence {
    Temporary,
    Persistent,
}

/// Effective grants of a plugin: those requested and granted.
fn granted(
    manifest: &Manifest,
    settings: &Settings,
    plugin_host: &PluginHost,
    persistence: Persistence,
) -> Result<Shared, LoadError> {
    let (entry, grants) = (&settings.entry, &settings.grants);
    let declared = |name: &String| manifest.secrets.contains(name);
    let secrets: BTreeMap<_, _> =
        settings.secrets.clone().into_iter().filter(|(name, _)| declared(name)).collect();
    let veil = SecretRedactor::over(secrets.values())
        .map_err(|reason| LoadError::Secrets { plugin: manifest.name.clone(), reason })?;
    let destinations =
        grants.hosts().filter(|granted| manifest.hosts.iter().any(|host| granted.is_same(host)));
    let state = grants.state.map(|max| match (&plugin_host.states, persistence, settings.trial) {
        (Some(states), Persistence::Persistent, None) => states.of(entry, max.0),
        _ => Values::for_now(entry, max.0),
    });
    Ok(Shared {
        log: grants.log,
        metrics: grants.metrics && persistence == Persistence::Persistent,
        state,
        http: grants.http.is_some().then(|| Client::to(destinations.cloned())),
        sends: settings.trial.is_none_or(|trial| trial.http),
        secrets,
        veil,
        ..Shared::bare(entry, plugin_host.services.clone())
    })
}

/// Checks that it is the intended file. Returns the signed content and the keys, if the pin
/// requires a signature.
fn check_pin(
    found: &Artifact,
    pin: Pin<'_>,
    sha256: &str,
) -> Result<Option<(Signed, Vec<Verifier>)>, LoadError> {
    let path = &*found.place;
    match pin {
        Pin::Any => Ok(None),
        Pin::Missing => Err(LoadError::Unpinned { path: path.into(), sha256: sha256.into() }),
        Pin::Sha256(configured) => check_digest(path, configured, sha256).map(|()| None),
        Pin::Signed { by, sha256: configured } => {
            if let Some(configured) = configured {
                check_digest(path, configured, sha256)?;
            }
            let unsigned = |why: String| unsigned(found, why);
            let note = found.note().map_err(|why| unsigned(why.to_owned()))?;
            let (signed, by) =
                Signed::verify(note, sha256, by).map_err(|error| unsigned(error.to_string()))?;
            Ok(Some((signed, by.into_iter().cloned().collect())))
        }
    }
}

fn unsigned(found: &Artifact, why: String) -> LoadError {
    let (path, note) = (found.place.clone(), found.note_path.clone());
    LoadError::Unsigned { path, why, note }
}

/// Checks that the signed content is that of the plugin in the file.
fn agrees(found: &Artifact, manifest: &Manifest, signed: Signed) -> Result<(), LoadError> {
    if (&signed.name, &signed.version) == (&manifest.name, &manifest.version) {
        return Ok(());
    }
    let why = format!(
        "`{} {}` is signed, but the plugin's manifest has `{} {}`",
        excerpt(&signed.name, 64),
        excerpt(&signed.version, 64),
        manifest.name,
        manifest.version
    );
    Err(unsigned(found, why))
}

fn check_digest(path: &Path, configured: &str, sha256: &str) -> Result<(), LoadError> {
    let (path, sha256) = (path.to_owned(), sha256.to_owned());
    let pinned = configured.strip_prefix("sha256:").unwrap_or(configured).to_ascii_lowercase();
    if pinned.len() != 64 || !pinned.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(LoadError::DigestIllegal { path, configured: configured.into(), sha256 });
    }
    if pinned != sha256 {
        return Err(LoadError::DigestMismatch { path, pinned, sha256 });
    }
    Ok(())
}

fn compile(
    path: &Path,
    engine: &Engine,
    bytes: &[u8],
    sha256: &str,
    cache: Option<&Cache>,
) -> Result<Component, LoadError> {
    // Preamble: magic, version, and layer 0 for a core module or 1 for a component.
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => {}
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            return Err(LoadError::CoreModule { path: path.into() });
        }
        _ => return Err(LoadError::NotWasm { path: path.into() }),
    }
    if let Some(found) = cache.and_then(|cache| cache.find(engine, sha256)) {
        return Ok(found);
    }
    let compiled = Component::from_binary(engine, bytes).map_err(|error| LoadError::Invalid {
        path: path.into(),
        reason: excerpt(&format!("{error:#}"), 300),
    })?;
    if let Some(cache) = cache {
        cache.keep(engine, sha256, &compiled);
    }
    Ok(compiled)
}

/// Imported host functions of a component that imports nothing else.
fn imports(
    path: &Path,
    engine: &Engine,
    component: &Component,
) -> Result<Vec<Function>, LoadError> {
    let (mut functions, mut foreign) = (Vec::new(), Vec::new());
    for (name, _) in component.component_type().imports(engine) {
        match Function::imported(name) {
            Some(function) => functions.push(function),
            None => foreign.push(excerpt(name, 128)),
        }
    }
    if foreign.is_empty() {
        Ok(functions)
    } else {
        foreign.truncate(MAX_REPORTED_IMPORTS);
        Err(LoadError::Foreign { path: path.into(), imports: foreign })
    }
}

fn link(
    path: &Path,
    engine: &Engine,
    component: &Component,
) -> Result<PluginPre<Guest>, LoadError> {
    let mut linker = Linker::new(engine);
    World::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest)
        .map_err(|error| LoadError::Host { reason: format!("{error:#}") })?;
    linker.instantiate_pre(component).and_then(PluginPre::new).map_err(|error| LoadError::World {
        path: path.into(),
        reason: excerpt(&format!("{error:#}"), 300),
    })
}

fn describe(path: &Path, template: &Template) -> Result<Manifest, LoadError> {
    let mut store = template.store(Instant::now() + DESCRIBE_TIMEOUT, None);
    store.epoch_deadline_callback(|guest| guest.data().tick(UpdateDeadline::Continue(1)));
    let configured =
        at_once(described(&mut store, template)).map_err(|error| LoadError::Describe {
            path: path.into(),
            reason: template.failure(&error, store.data(), DESCRIBE_TIMEOUT).to_string(),
        })?;
    Manifest::check(configured).map_err(|reason| LoadError::Manifest { path: path.into(), reason })
}

async fn described(
    store: &mut Store<Guest>,
    template: &Template,
) -> wasmtime::Result<wit::Manifest> {
    let world = template.pre.instantiate_async(&mut *store).await?;
    world.portcullis_interceptor_guest().call_describe(store).await
}

/// Starts an instance as a test, so that the plugin reports errors of its config now and not at the
/// first message.
fn begin(manifest: &Manifest, template: &Template) -> Result<(), LoadError> {
    let mut store = template.store(Instant::now() + START_TIMEOUT, None);
    store.epoch_deadline_callback(|guest| guest.data().tick(UpdateDeadline::Continue(1)));
    let begun = at_once(template.begin(&mut store));
    let failed = |reason: String| LoadError::Start { plugin: manifest.name.clone(), reason };
    match begun {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(own)) => Err(failed(own)),
        Err(error) => {
            Err(failed(template.failure(&error, store.data(), START_TIMEOUT).to_string()))
        }
    }
}

/// Runs a guest call that never waits: it continues at every tick, and functions that could wait
/// are available in `inspect` only. So no async runtime is needed.
fn at_once<T>(future: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    future.now_or_never().unwrap_or_else(|| Err(wasmtime::format_err!("it waited")))
}

fn check_config(
    path: &Path,
    manifest: &Manifest,
    config: Map<String, Value>,
) -> Result<String, LoadError> {
    let config = Value::Object(config);
    if let Some(text) = &manifest.config_schema {
        let wrong = |reason: String| LoadError::Manifest {
            path: path.into(),
            reason: format!("its `config-schema` is not a JSON Schema: {}", excerpt(&reason, 300)),
        };
        let schema: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let validator =
            jsonschema::draft202012::new(&schema).map_err(|error| wrong(error.to_string()))?;
        let wrong: Vec<_> = validator.iter_errors(&config).take(MAX_REPORTED_PROBLEMS).collect();
        if let Some(first) = wrong.first() {
            let at = first.instance_path().as_str().to_owned();
            let reasons = wrong.iter().map(|error| {
                // Position and expectation without the value, which can be a secret.
                let what = excerpt(&error.masked_with("the value").to_string(), 200);
                match error.instance_path().as_str() {
                    "" => what,
                    pointer => format!("`{pointer}`: {what}"),
                }
            });
            return Err(LoadError::Config {
                plugin: manifest.name.clone(),
                reason: reasons.collect::<Vec<_>>().join("; "),
                schema: excerpt(&schema.to_string(), 1_000),
                at,
            });
        }
    }
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use miette::Diagnostic as _;

    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    /// Component that imports an empty interface with that name.
    fn importing(name: &str) -> Vec<u8> {
        let mut bytes = COMPONENT.to_vec();
        // Section 7, types: one, an instance without declarations.
        bytes.extend([7, 3, 1, 0x42, 0]);
        // Section 10, imports: one, an instance of type 0.
        let name_len = u8::try_from(name.len()).unwrap();
        bytes.extend([10, name_len + 5, 1, 0, name_len]);
        bytes.extend(name.bytes());
        bytes.extend([5, 0]);
        bytes
    }

    fn refusal(bytes: &[u8]) -> LoadError {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Compiled::read(file.path(), Pin::Any).err().unwrap()
    }

    #[test]
    fn files_that_are_not_plugins_have_distinct_errors() {
        let code = |bytes: &[u8]| refusal(bytes).code().unwrap().to_string();
        for bytes in [&b""[..], b"\0as", b"\x7fELF\x02\x01\x01\0", b"(component)"] {
            assert_eq!(code(bytes), "plugin-not-wasm", "{bytes:?}");
        }
        assert_eq!(code(MODULE), "plugin-core-module");
        assert_eq!(code(&[COMPONENT, &[99, 0]].concat()), "plugin-invalid");
        assert_eq!(code(COMPONENT), "plugin-world");
        assert_eq!(code(&importing("portcullis:interceptor/log@0.1.7")), "plugin-world");
    }

    #[test]
    fn imports_beyond_the_contract_are_listed() {
        for name in [
            "wasi:cli/environment@0.2.3",
            "wasi:http/outgoing-handler@0.2.0",
            "portcullis:interceptor/log@0.2.0",
            "portcullis:interceptor/files@0.1.0",
            "log",
        ] {
            match refusal(&importing(name)) {
                LoadError::Foreign { imports, .. } => assert_eq!(imports, [name]),
                other => panic!("{name}: {other}"),
            }
        }
    }

    #[test]
    fn missing_file_is_an_error() {
        let missing = Compiled::read(Path::new("no/such.wasm"), Pin::Any).err().unwrap();
        assert_eq!(
            missing.to_string(),
            "cannot read the plugin `no/such.wasm`: No such file or directory (os error 2)"
        );
    }
}
