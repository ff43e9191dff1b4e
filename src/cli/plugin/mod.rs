//! `portcullis plugin`: the workbench for plugins, one file a verb.

mod build;
mod call;
mod inspect;
mod new;
mod sign;
mod test;

use serde_json::{Map, Value};

use super::{Context, Exit, Usage};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a project that builds and passes its own cases
    New(new::New),
    /// Build a project into its `target/NAME.wasm`
    Build(build::Build),
    /// Run the cases beside a plugin (`NAME.test.yaml`)
    Test(test::Test),
    /// Ask a plugin about one message
    Call(call::Call),
    /// Say what a plugin is, what it asks for, and what it costs
    Inspect(inspect::Inspect),
    /// Make a signing key in a file, and print the verifier key for `signed-by`
    ///
    /// Of a file that is there, the verifier key is printed. Keep the file where plugins are signed,
    /// and not where the proxy runs.
    Key(sign::Key),
    /// Sign a component, in `FILE.sig` beside it
    Sign(sign::Sign),
    /// Say whether the signature beside a component holds
    Verify(sign::Verify),
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::New(options) => new::new(&options, ctx),
        Verb::Build(options) => build::build(&options, ctx),
        Verb::Test(options) => test::test(&options, ctx).await,
        Verb::Call(options) => call::call(&options, ctx).await,
        Verb::Key(options) => sign::key(&options, ctx),
        Verb::Sign(options) => sign::sign(&options, ctx),
        Verb::Verify(options) => sign::verify(&options, ctx),
        Verb::Inspect(options) => inspect::inspect(&options, ctx).await,
    }
}

/// A plugin's `config` from the command line.
fn settings(text: &str) -> Result<Map<String, Value>, Usage> {
    serde_json::from_str(text)
        .map_err(|error| Usage(format!("`--settings` is no JSON object: {error}")))
}

/// Prints the lines of a config and the policies that a plugin takes.
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
