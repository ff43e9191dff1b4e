//! What is wrong with a plugin that cannot be used, for the operator.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use super::{
    grants::Missing,
    host::MEMORY_MIB_MAX,
    load::{DESCRIBE, FILE_BYTES, GUEST, START},
};

/// Why a plugin cannot be loaded.
#[derive(Debug, Error, Diagnostic)]
pub enum LoadError {
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

    #[error("the plugin `{}` is not taken for signed: {why}", path.display())]
    #[diagnostic(
        code("plugin-unsigned"),
        help("its signature is a note in {note}; put that there before the plugin itself")
    )]
    Unsigned { path: PathBuf, why: String, note: String },

    #[error("the plugin `{reference}` cannot be had: {source}")]
    #[diagnostic(code("plugin-artifact"), help("{}", source.help()))]
    Artifact { reference: String, source: portcullis_oci::Error },

    #[error("the plugin `{reference}` is not pinned: what a tag names can change")]
    #[diagnostic(code("plugin-unpinned"), help("{line}"))]
    UnpinnedArtifact { reference: String, line: String },

    #[error("`path` or `oci` has to say where the plugin is, and not both")]
    #[diagnostic(code("plugin-nowhere"), help("write one of them"))]
    Nowhere,

    #[error("the entry of the signed plugin `{}` does not say which plugin it means", path.display())]
    #[diagnostic(
        code("plugin-unnamed"),
        help(
            "the same key signs other plugins, and versions that were mended since: write beside its `path`, if `{name} {version}` is the one you mean,\nplugin = \"{name}\"\nversion = \">={version}\""
        )
    )]
    Unnamed { path: PathBuf, name: String, version: String },

    #[error("`{}` is the plugin `{name} {version}`, and `{meant}` is meant", path.display())]
    #[diagnostic(
        code("plugin-not-meant"),
        help(
            "find out who put it there; if it is the one you mean, say so in `plugin` and `version` of its entry"
        )
    )]
    NotMeant { path: PathBuf, name: String, version: String, meant: String },

    #[error("`signed-by` of the plugin `{}` has no verifier key at {at}, NAME+HASH+KEY", path.display())]
    #[diagnostic(code("plugin-key-illegal"), help("the signer of the plugin has this key"))]
    Key { path: PathBuf, at: usize },

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
            "link it with `wasm-component-ld`, as plugins/examples/redact-pii/.cargo/config.toml does, or run `wasm-tools component new` on it"
        )
    )]
    CoreModule { path: PathBuf },

    #[error("`{}` is not a valid component: {reason}", path.display())]
    #[diagnostic(code("plugin-invalid"), help("build it again"))]
    Invalid { path: PathBuf, reason: String },

    #[error("the plugin `{}` asks for {}, which no plugin is given", path.display(), imports.join(", "))]
    #[diagnostic(
        code("plugin-import-foreign"),
        help(
            "a plugin may import functions of portcullis:interceptor@0.1 alone: build it for a target without a system, such as wasm32-unknown-unknown"
        )
    )]
    Foreign { path: PathBuf, imports: Vec<String> },

    #[error("the plugin `{}` asks for {}, which is not granted", path.display(), missing.what())]
    #[diagnostic(code("plugin-import-ungranted"), help("{}\n{}", missing.place(), missing.lines()))]
    Ungranted { path: PathBuf, missing: Box<Missing> },

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
    Config {
        plugin: String,
        reason: String,
        schema: String,
        /// The first value within `config` that does not fit, as a JSON pointer.
        at: String,
    },

    #[error("the plugin `{plugin}` does not begin with its `config`: {reason}")]
    #[diagnostic(code("plugin-start"), help("its `start` says so; it has {START:?}"))]
    Start { plugin: String, reason: String },

    #[error("the secrets of the plugin `{plugin}` cannot be kept out of what it says: {reason}")]
    #[diagnostic(code("plugin-secrets"), help("grant it fewer secrets"))]
    Secrets { plugin: String, reason: String },

    #[error("`{}` is the plugin `{name}`, and `{running}` runs in its place", path.display())]
    #[diagnostic(
        code("plugin-another"),
        help("put a version of `{running}` there, or restart the proxy if `{name}` is meant")
    )]
    Another { path: PathBuf, name: String, running: String },

    #[error("`{}` is version {version} of the plugin, and {running} runs", path.display())]
    #[diagnostic(
        code("plugin-older"),
        help(
            "a signature holds for what was wrong with old versions, too: restart the proxy if the older one is meant"
        )
    )]
    Older { path: PathBuf, version: String, running: String },

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
