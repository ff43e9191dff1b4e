//! `portcullis check`: lists every finding in config, policies and plugins.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis check` is not part of this build")
}
