//! `portcullis client`: clients and their keys.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Add a client and print its key, this once
    Add {
        name: String,
        /// A group for policies; may be given several times
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// List the clients
    Ls,
    /// Remove a client; its key ends at once
    Rm { name: String },
}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis client` is not part of this build")
}
