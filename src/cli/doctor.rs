//! `portcullis doctor`: says what this machine offers.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub async fn run(_args: Args, _ctx: &Context) -> anyhow::Result<Exit> {
    anyhow::bail!("`portcullis doctor` is not part of this build")
}
