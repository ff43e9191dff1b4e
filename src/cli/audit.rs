//! `portcullis audit`: reads the audit log.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Follow the log
    Tail,
    /// Search the log
    Query,
    /// Show one record
    Show { decision: String },
}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis audit` is not part of this build")
}
