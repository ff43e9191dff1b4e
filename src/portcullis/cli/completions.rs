//! `portcullis completions`: completions for a shell.

use clap_complete::Shell;

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "portcullis", &mut script);
    ctx.verbatim(&String::from_utf8(script)?)?;
    Ok(Exit::Ok)
}
