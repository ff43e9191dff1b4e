//! `portcullis plugin`: development tools for plugins, one file per command.

mod build;
mod call;
mod inspect;
mod new;
mod push;
mod sign;
mod test;

use std::{fs, io, path::Path};

use serde_json::{Map, Value};

use super::{Context, Exit, Reports, Usage};
use portcullis_gateway as gateway;
use portcullis_oci::Url;
use portcullis_plugin_host::{Artifact, Artifacts, Compiled, LoadError, Pin, PluginHost};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Create a project that builds and passes its own test cases
    New(new::New),
    /// Build a project into `target/NAME.wasm`
    Build(build::Build),
    /// Run the test cases of a plugin (`NAME.test.yaml`)
    Test(test::Test),
    /// Run a plugin on one message
    Call(call::Call),
    /// Show a plugin's metadata, requested grants and cost
    Inspect(inspect::Inspect),
    /// Create a signing key file, and print the verifier key for `signed-by`
    ///
    /// If the file exists, only the verifier key is printed. Keep the file where plugins are
    /// signed, not on the proxy's machine.
    Key(sign::Key),
    /// Sign a component; writes `FILE.sig` next to it
    Sign(sign::Sign),
    /// Verify the signature of a component: next to the file, or in the registry
    Verify(sign::Verify),
    /// Push a component to an OCI registry, and print its config entry
    Push(push::Push),
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::New(options) => new::new(&options, ctx),
        Verb::Build(options) => build::build(&options, ctx).await,
        Verb::Test(options) => test::test(&options, ctx).await,
        Verb::Call(options) => call::call(&options, ctx).await,
        Verb::Key(options) => sign::key(&options, ctx),
        Verb::Sign(options) => sign::sign(&options, ctx),
        Verb::Verify(options) => sign::verify(&options, ctx).await,
        Verb::Push(options) => push::push(&options, ctx).await,
        Verb::Inspect(options) => inspect::inspect(&options, ctx).await,
    }
}

/// Reads the given component: a file, `oci://` and a reference, or `https://` and a URL.
async fn found(name: &str, ctx: &Context) -> anyhow::Result<Artifact> {
    let registries = || registries(ctx);
    let found = if let Some(reference) = name.strip_prefix("oci://") {
        match reference.contains('@') {
            true => registries()?.component(reference).await,
            // A tag is resolved now; the output names its digest.
            false => {
                let registries = registries()?;
                match registries.pinned(reference).await {
                    Ok(pinned) => registries.component(&pinned).await,
                    Err(unusable) => Err(unusable),
                }
            }
        }
    } else if name.starts_with("https://") || name.starts_with("http://") {
        let url: Url = name.parse().map_err(|error| Usage(format!("`{name}`: {error}")))?;
        registries()?.download(&url).await
    } else {
        Artifact::file(Path::new(name))
    };
    found.map_err(wrong)
}

/// Access to registries as the config defines it, if there is one. Nothing is cached.
fn registries(ctx: &Context) -> anyhow::Result<Artifacts> {
    match fs::symlink_metadata(&ctx.config) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PluginHost::bare().artifacts),
        // An invalid config is an error: without its `ca-file`, a login would be sent unencrypted.
        _ => Ok(gateway::artifacts(&ctx.load()?, false)),
    }
}

fn compiled(found: &Artifact) -> anyhow::Result<Compiled> {
    Compiled::of(found, Pin::Any, None).map_err(wrong)
}

fn wrong(unusable: LoadError) -> anyhow::Error {
    Reports(vec![Box::new(unusable)]).into()
}

/// Parses a plugin's `config` from the command line.
fn settings(text: &str) -> Result<Map<String, Value>, Usage> {
    serde_json::from_str(text)
        .map_err(|error| Usage(format!("`--settings` is not a JSON object: {error}")))
}

/// Prints the lines of a config and the policies that a plugin needs.
fn print_lines(ctx: &Context, config: &str, policies: &[String]) -> std::io::Result<()> {
    ctx.line("")?;
    for line in config.lines() {
        ctx.line(line)?;
    }
    if !policies.is_empty() {
        ctx.line("")?;
        ctx.line("// and among the policies:")?;
        for policy in policies {
            ctx.line(policy)?;
        }
    }
    Ok(())
}
