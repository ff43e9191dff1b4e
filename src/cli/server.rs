//! `portcullis server`: the servers behind the proxy.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the servers
    Ls,
    /// Show one server, its hardening and every deviation
    Inspect { name: String },
    /// Show what a server wrote to standard error
    Logs { name: String },
}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis server` is not part of this build")
}
