//! `portcullis connect`: bridges standard input and output to a running proxy.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis connect` is not part of this build")
}
