//! Errors of loading a plugin, for the operator.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use super::{
    grants::Missing,
    host::MAX_MEMORY_MIB,
    limits::{DESCRIBE_TIMEOUT, GUEST, MAX_FILE_BYTES, START_TIMEOUT},
};

/// Reason why a plugin cannot be loaded.
#[derive(Debug, Error, Diagnostic)]
pub enum LoadError {
    #[error("cannot read the plugin `{}`: {source}", path.display())]
    #[diagnostic(
        code("plugin-unreadable"),
        help("`path` is relative to the config; if this is your plugin, build it first")
    )]
    Unreadable { path: PathBuf, source: io::Error },

    #[error("the plugin `{}` is larger than {} MiB", path.display(), MAX_FILE_BYTES >> 20)]
    #[diagnostic(code("plugin-too-large"), help("build it for release and strip it"))]
    TooLarge { path: PathBuf },

    #[error("the plugin `{}` is not pinned", path.display())]
    #[diagnostic(
        code("plugin-unpinned"),
        help(
            "write `sha256 = \"{sha256}\"` beside its `path` if this is the right file, or \
            `allow-unpinned = true` during development"
        )
    )]
    Unpinned { path: PathBuf, sha256: String },

    #[error("`sha256` of the plugin `{}` is not a SHA-256 digest: {configured}", path.display())]
    #[diagnostic(code("plugin-digest-illegal"), help("this file's is `{sha256}`"))]
    DigestIllegal { path: PathBuf, configured: String, sha256: String },

    #[error("the plugin `{}` is not the pinned one: its SHA-256 is {sha256}, not {pinned}", path.display())]
    #[diagnostic(
        code("plugin-digest-mismatch"),
        help("find out who changed the file; if it was you, set its new digest in the config")
    )]
    DigestMismatch { path: PathBuf, pinned: String, sha256: String },

    #[error("the plugin `{}` has no accepted signature: {why}", path.display())]
    #[diagnostic(
        code("plugin-unsigned"),
        help("its signature is a note in {note}; put it there before the plugin itself")
    )]
    Unsigned { path: PathBuf, why: String, note: String },

    #[error("the plugin `{reference}` is unavailable: {source}")]
    #[diagnostic(code("plugin-artifact"), help("{}", source.help()))]
    Artifact { reference: String, source: portcullis_oci::Error },

    #[error("the plugin `{reference}` is not pinned: the content of a tag can change")]
    #[diagnostic(code("plugin-unpinned"), help("{line}"))]
    UnpinnedArtifact { reference: String, line: String },

    #[error("exactly one of `path` and `oci` is required")]
    #[diagnostic(code("plugin-nowhere"), help("set one of them"))]
    Nowhere,

    #[error("the entry of the signed plugin `{}` does not name the plugin", path.display())]
    #[diagnostic(
        code("plugin-unnamed"),
        help(
            "the same key also signs other plugins, and old versions with errors: if `{name} \
            {version}` is the right one, write beside its `path`:\nplugin = \"{name}\"\nversion = \
            \">={version}\""
        )
    )]
    Unnamed { path: PathBuf, name: String, version: String },

    #[error("`{}` is the plugin `{name} {version}`, but the entry requires \
        `{expected}`", path.display())]
    #[diagnostic(
        code("plugin-not-meant"),
        help(
            "find out who put it there; if it is the right one, change `plugin` and `version` of \
            its entry"
        )
    )]
    NotMeant { path: PathBuf, name: String, version: String, expected: String },

    #[error("`signed-by` of the plugin `{}` has no verifier key at {at}, NAME+HASH+KEY", path.display())]
    #[diagnostic(code("plugin-key-illegal"), help("the signer of the plugin has this key"))]
    Key { path: PathBuf, at: usize },

    #[error("`{}` is not WebAssembly", path.display())]
    #[diagnostic(
        code("plugin-not-wasm"),
        help("`path` must name a component in binary form (`*.wasm`)")
    )]
    NotWasm { path: PathBuf },

    #[error("`{}` is a core WebAssembly module, not a component", path.display())]
    #[diagnostic(
        code("plugin-core-module"),
        help(
            "link it with `wasm-component-ld`, as plugins/examples/redact-pii/.cargo/config.toml does, or run `wasm-tools component new` on it"
        )
    )]
    CoreModule { path: PathBuf },

    #[error("`{}` is not a valid component: {reason}", path.display())]
    #[diagnostic(code("plugin-invalid"), help("build it again"))]
    Invalid { path: PathBuf, reason: String },

    #[error("the plugin `{}` imports {}, which no plugin can \
        get", path.display(), imports.join(", "))]
    #[diagnostic(
        code("plugin-import-foreign"),
        help(
            "a plugin may import only functions of portcullis:interceptor@0.1: build it for a \
            target without a system, such as wasm32-unknown-unknown"
        )
    )]
    Foreign { path: PathBuf, imports: Vec<String> },

    #[error("the plugin `{}` requires {}, which is not granted", path.display(), missing.what())]
    #[diagnostic(code("plugin-import-ungranted"), help("{}\n{}", missing.instruction(), missing.lines()))]
    Ungranted { path: PathBuf, missing: Box<Missing> },

    #[error("`{}` is not a plugin of this version: {reason}", path.display())]
    #[diagnostic(
        code("plugin-world"),
        help("a plugin must export {GUEST}.*: build it against this version's plugins/wit")
    )]
    World { path: PathBuf, reason: String },

    #[error("the plugin `{}` does not describe itself: {reason}", path.display())]
    #[diagnostic(
        code("plugin-describe"),
        help(
            "its `describe` must answer within \
        {DESCRIBE_TIMEOUT:?}"
        )
    )]
    Describe { path: PathBuf, reason: String },

    #[error("the manifest of the plugin `{}` is invalid: {reason}", path.display())]
    #[diagnostic(code("plugin-manifest"), help("the plugin's author must correct it"))]
    Manifest { path: PathBuf, reason: String },

    #[error("`config` does not fit the plugin `{plugin}`: {reason}")]
    #[diagnostic(code("plugin-config"), help("the plugin's schema for it: {schema}"))]
    Config {
        plugin: String,
        reason: String,
        schema: String,
        /// First value within `config` that does not fit, as a JSON pointer.
        at: String,
    },

    #[error("the plugin `{plugin}` does not start with its `config`: {reason}")]
    #[diagnostic(
        code("plugin-start"),
        help(
            "its `start` failed; its time limit is \
        {START_TIMEOUT:?}"
        )
    )]
    Start { plugin: String, reason: String },

    #[error("the secrets of the plugin `{plugin}` cannot be redacted in its output: {reason}")]
    #[diagnostic(code("plugin-secrets"), help("grant it fewer secrets"))]
    Secrets { plugin: String, reason: String },

    #[error("`{}` is the plugin `{name}`, but `{running}` is running", path.display())]
    #[diagnostic(
        code("plugin-another"),
        help("put a version of `{running}` there, or restart the proxy to run `{name}`")
    )]
    Another { path: PathBuf, name: String, running: String },

    #[error("`{}` is version {version} of the plugin, but {running} is running", path.display())]
    #[diagnostic(
        code("plugin-older"),
        help("old versions with errors are signed, too: restart the proxy to run the older one")
    )]
    Older { path: PathBuf, version: String, running: String },

    #[error("`memory-mib = {configured}` of the plugin `{}` is out of range", path.display())]
    #[diagnostic(code("plugin-memory"), help("set a number from 1 to {MAX_MEMORY_MIB}"))]
    Memory { path: PathBuf, configured: u64 },

    #[error("`events` exclude all hooks of the plugin `{plugin}`: `{hooked}`")]
    #[diagnostic(code("plugin-no-events"), help("name some of these events, or remove `events`"))]
    NeverAsked { plugin: String, hooked: String },

    #[error("plugins cannot run here: {reason}")]
    #[diagnostic(
        code("plugin-host"),
        help("plugins reserve address space: check that `ulimit -v` does not limit it")
    )]
    Host { reason: String },
}
