//! `portcullis tools`: tools, as a client sees them.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the tools that a client may see
    Ls {
        /// The client; without it, the local user
        #[arg(long = "as", value_name = "CLIENT")]
        client: Option<String>,
    },
    /// Call a tool
    Call {
        /// The client; without it, the local user
        #[arg(long = "as", value_name = "CLIENT")]
        client: Option<String>,
        /// The name of the tool, as lists show it
        tool: String,
        /// The arguments, a JSON object
        #[arg(default_value = "{}")]
        arguments: String,
    },
}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis tools` is not part of this build")
}
