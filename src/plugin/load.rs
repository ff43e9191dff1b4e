//! From a file to a plugin that can be asked, or one clear error.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use miette::Diagnostic;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;
use wasmtime::{
    Engine, Store, UpdateDeadline,
    component::{Component, HasSelf, Linker},
};

use super::{
    Manifest, Plugin,
    bindings::{Plugin as World, PluginPre},
    guest::Guest,
    host::{Host, MEMORY_MIB_MAX},
    output::excerpt,
    run::Template,
};

/// Bytes of a component's file. Interpreters of other languages take 10 to 20 MiB.
const FILE_BYTES: u64 = 64 << 20;
/// For `describe`, when a plugin is loaded.
const DESCRIBE: Duration = Duration::from_secs(1);
/// All that a plugin may import.
const GRANTED: &str = "portcullis:interceptor/log@0.1";
/// What it has to export.
const GUEST: &str = "portcullis:interceptor/guest@0.1";

/// How the operator says which file it is.
#[derive(Debug, Clone, Copy)]
pub enum Pin<'a> {
    /// SHA-256 in hex, with or without `sha256:` before it.
    Sha256(&'a str),
    /// Whatever is there: `allow-unpinned = true`.
    Any,
    /// Nothing was said, which is refused with the digest to write.
    Missing,
}

/// What the operator grants and sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The plugin's own configuration.
    pub config: Map<String, Value>,
    /// MiB of memory for one instance, 1 to 256.
    pub memory_mib: u64,
    /// For one verdict.
    pub deadline: Duration,
    /// Whether its log lines are written.
    pub log: bool,
}

/// Why a plugin cannot be loaded.
#[derive(Debug, Error, Diagnostic)]
pub enum Unusable {
    #[error("cannot read the plugin `{}`: {source}", path.display())]
    #[diagnostic(
        code("plugin-unreadable"),
        help("`path` is relative to the config; build the plugin first if it is made here")
    )]
    Unreadable { path: PathBuf, source: io::Error },

    #[error("the plugin `{}` is larger than {} MiB", path.display(), FILE_BYTES >> 20)]
    #[diagnostic(code("plugin-too-large"), help("build it for release and strip it"))]
    TooLarge { path: PathBuf },

    #[error("the plugin `{}` is not pinned", path.display())]
    #[diagnostic(
        code("plugin-unpinned"),
        help(
            "write `sha256 = \"{sha256}\"` beside its `path` if this is the file you mean, or `allow-unpinned = true` while you work on it"
        )
    )]
    Unpinned { path: PathBuf, sha256: String },

    #[error("`sha256` of the plugin `{}` is not a SHA-256 digest: {said}", path.display())]
    #[diagnostic(code("plugin-digest-illegal"), help("this file's is `{sha256}`"))]
    DigestIllegal { path: PathBuf, said: String, sha256: String },

    #[error("the plugin `{}` is not the pinned one: its SHA-256 is {sha256}, not {pinned}", path.display())]
    #[diagnostic(
        code("plugin-digest-mismatch"),
        help("find out who changed the file; if it was you, write its new digest into the config")
    )]
    DigestMismatch { path: PathBuf, pinned: String, sha256: String },

    #[error("`{}` is not WebAssembly", path.display())]
    #[diagnostic(
        code("plugin-not-wasm"),
        help("`path` has to name a component in binary form (`*.wasm`)")
    )]
    NotWasm { path: PathBuf },

    #[error("`{}` is a core WebAssembly module, not a component", path.display())]
    #[diagnostic(
        code("plugin-core-module"),
        help(
            "link it with `wasm-component-ld`, as plugins/examples/redact-email/.cargo/config.toml does, or run `wasm-tools component new` on it"
        )
    )]
    CoreModule { path: PathBuf },

    #[error("`{}` is not a valid component: {reason}", path.display())]
    #[diagnostic(code("plugin-invalid"), help("build it again"))]
    Invalid { path: PathBuf, reason: String },

    #[error("the plugin `{}` asks for {}; none is granted", path.display(), imports.join(", "))]
    #[diagnostic(
        code("plugin-import-ungranted"),
        help(
            "a plugin may import {GRANTED}.* alone: build it for a target without a system, such as wasm32-unknown-unknown"
        )
    )]
    Ungranted { path: PathBuf, imports: Vec<String> },

    #[error("`{}` is not a plugin of this version: {reason}", path.display())]
    #[diagnostic(
        code("plugin-world"),
        help("a plugin exports {GUEST}.*: build it against this version's plugins/wit")
    )]
    World { path: PathBuf, reason: String },

    #[error("the plugin `{}` does not say what it is: {reason}", path.display())]
    #[diagnostic(code("plugin-describe"), help("its `describe` has to answer within {DESCRIBE:?}"))]
    Describe { path: PathBuf, reason: String },

    #[error("the manifest of the plugin `{}` is wrong: {reason}", path.display())]
    #[diagnostic(code("plugin-manifest"), help("this is for the plugin's author to mend"))]
    Manifest { path: PathBuf, reason: String },

    #[error("`config` does not fit the plugin `{plugin}`: {reason}")]
    #[diagnostic(code("plugin-config"), help("the plugin's schema for it: {schema}"))]
    Config { plugin: String, reason: String, schema: String },

    #[error("`memory-mib = {said}` of the plugin `{}` is not possible", path.display())]
    #[diagnostic(code("plugin-memory"), help("write a number from 1 to {MEMORY_MIB_MAX}"))]
    Memory { path: PathBuf, said: u64 },

    #[error("`events` leave the plugin `{plugin}` nothing to do: it hooks `{hooked}`")]
    #[diagnostic(code("plugin-never-asked"), help("name some of these events, or remove `events`"))]
    NeverAsked { plugin: String, hooked: String },

    #[error("plugins cannot run here: {reason}")]
    #[diagnostic(
        code("plugin-host"),
        help("plugins reserve address space: see that `ulimit -v` does not cap it")
    )]
    Host { reason: String },
}

/// Reads, checks, compiles and asks. Takes as long as compiling takes (0.1 s for a small plugin in
/// Rust), so call it off the async threads.
pub(super) fn load(path: &Path, pin: Pin<'_>, settings: Settings) -> Result<Plugin, Unusable> {
    let bytes = read(path)?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    check_pin(path, pin, &sha256)?;
    if !(1..=MEMORY_MIB_MAX).contains(&settings.memory_mib) {
        return Err(Unusable::Memory { path: path.into(), said: settings.memory_mib });
    }
    let host = Host::shared().map_err(|reason| Unusable::Host { reason })?;
    let component = compile(path, &host.engine, &bytes)?;
    refuse_ungranted(path, &host.engine, &component)?;
    let pre = link(path, &host.engine, &component)?;

    let memory = usize::try_from(settings.memory_mib << 20).unwrap_or(usize::MAX);
    let mut template = Template::new(host, pre, memory, settings.deadline);
    let manifest = describe(path, &template)?;
    let config = check_config(path, &manifest, settings.config)?;
    template.log = settings.log.then(|| Arc::from(manifest.name.as_str()));
    Ok(Plugin::new(template, manifest, config, sha256))
}

fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
    let unreadable = |source| Unusable::Unreadable { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(Unusable::TooLarge { path: path.into() });
    }
    Ok(bytes)
}

fn check_pin(path: &Path, pin: Pin<'_>, sha256: &str) -> Result<(), Unusable> {
    let (path, sha256) = (path.to_owned(), sha256.to_owned());
    let said = match pin {
        Pin::Any => return Ok(()),
        Pin::Missing => return Err(Unusable::Unpinned { path, sha256 }),
        Pin::Sha256(said) => said,
    };
    let pinned = said.strip_prefix("sha256:").unwrap_or(said).to_ascii_lowercase();
    if pinned.len() != 64 || !pinned.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Unusable::DigestIllegal { path, said: said.into(), sha256 });
    }
    if pinned != sha256 {
        return Err(Unusable::DigestMismatch { path, pinned, sha256 });
    }
    Ok(())
}

fn compile(path: &Path, engine: &Engine, bytes: &[u8]) -> Result<Component, Unusable> {
    // The preamble: magic, version, and layer 0 for a core module or 1 for a component.
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => {}
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            return Err(Unusable::CoreModule { path: path.into() });
        }
        _ => return Err(Unusable::NotWasm { path: path.into() }),
    }
    Component::from_binary(engine, bytes).map_err(|error| Unusable::Invalid {
        path: path.into(),
        reason: excerpt(&format!("{error:#}"), 300),
    })
}

fn refuse_ungranted(path: &Path, engine: &Engine, component: &Component) -> Result<(), Unusable> {
    let imports: Vec<String> = component
        .component_type()
        .imports(engine)
        .map(|(name, _)| name)
        .filter(|name| name.rsplit_once('.').is_none_or(|(minor, _)| minor != GRANTED))
        .map(|name| excerpt(name, 128))
        .collect();
    if imports.is_empty() {
        Ok(())
    } else {
        Err(Unusable::Ungranted { path: path.into(), imports })
    }
}

fn link(path: &Path, engine: &Engine, component: &Component) -> Result<PluginPre<Guest>, Unusable> {
    let mut linker = Linker::new(engine);
    World::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest)
        .map_err(|error| Unusable::Host { reason: format!("{error:#}") })?;
    linker.instantiate_pre(component).and_then(PluginPre::new).map_err(|error| Unusable::World {
        path: path.into(),
        reason: excerpt(&format!("{error:#}"), 300),
    })
}

fn describe(path: &Path, template: &Template) -> Result<Manifest, Unusable> {
    let mut store = template.store(Instant::now() + DESCRIBE);
    store.epoch_deadline_callback(|guest| guest.data().tick(UpdateDeadline::Continue(1)));
    let said = ask(&mut store, template).map_err(|error| Unusable::Describe {
        path: path.into(),
        reason: template.failure(&error, store.data(), DESCRIBE).to_string(),
    })?;
    Manifest::check(said).map_err(|reason| Unusable::Manifest { path: path.into(), reason })
}

fn ask(
    store: &mut Store<Guest>,
    template: &Template,
) -> wasmtime::Result<super::bindings::exports::portcullis::interceptor::guest::Manifest> {
    let instance = template.pre.instance_pre().instantiate(&mut *store)?;
    let world = World::new(&mut *store, &instance)?;
    world.portcullis_interceptor_guest().call_describe(store)
}

fn check_config(
    path: &Path,
    manifest: &Manifest,
    config: Map<String, Value>,
) -> Result<String, Unusable> {
    let config = Value::Object(config);
    if let Some(text) = &manifest.config_schema {
        let wrong = |reason: String| Unusable::Manifest {
            path: path.into(),
            reason: format!("its `config-schema` is no JSON Schema: {}", excerpt(&reason, 300)),
        };
        let schema: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let validator =
            jsonschema::draft202012::new(&schema).map_err(|error| wrong(error.to_string()))?;
        if let Some(error) = validator.iter_errors(&config).next() {
            // Where and what was expected, not what stands there: it can be a secret.
            let place = match error.instance_path().as_str() {
                "" => "it".to_owned(),
                pointer => format!("`{pointer}`"),
            };
            return Err(Unusable::Config {
                plugin: manifest.name.clone(),
                reason: format!(
                    "{place}: {}",
                    excerpt(&error.masked_with("what stands there").to_string(), 300)
                ),
                schema: excerpt(&schema.to_string(), 1_000),
            });
        }
    }
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    /// A component that imports an empty interface of that name.
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

    fn refusal(bytes: &[u8]) -> Unusable {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        let settings = Settings {
            config: Map::new(),
            memory_mib: 64,
            deadline: Duration::from_secs(1),
            log: false,
        };
        load(file.path(), Pin::Any, settings).err().unwrap()
    }

    #[test]
    fn what_is_no_plugin_is_told_apart() {
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
    fn what_it_asks_for_beyond_its_grants_is_listed() {
        for name in [
            "wasi:cli/environment@0.2.3",
            "wasi:http/outgoing-handler@0.2.0",
            "portcullis:interceptor/log@0.2.0",
            "portcullis:interceptor/clock@0.1.0",
            "log",
        ] {
            match refusal(&importing(name)) {
                Unusable::Ungranted { imports, .. } => assert_eq!(imports, [name]),
                other => panic!("{name}: {other}"),
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there() {
        let settings = Settings {
            config: Map::new(),
            memory_mib: 64,
            deadline: Duration::from_secs(1),
            log: false,
        };
        let missing = load(Path::new("no/such.wasm"), Pin::Any, settings).err().unwrap();
        assert_eq!(
            missing.to_string(),
            "cannot read the plugin `no/such.wasm`: No such file or directory (os error 2)"
        );
    }
}
