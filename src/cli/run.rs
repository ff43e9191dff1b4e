//! `portcullis run`: runs the proxy.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check everything, start the servers, list what a client would see, and end
    #[arg(long)]
    dry_run: bool,
    /// Serve one client over standard input and output, beside HTTP
    #[arg(long)]
    stdio: bool,
}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis run` is not part of this build")
}
