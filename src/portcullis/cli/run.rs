//! `portcullis run`: runs the proxy.

use super::{Context, Exit, exit::reports, server::show_pulls, start_failure::not_started};
use crate::manage::run::{Offered, RunOptions, start};
use portcullis_runtime::sandbox;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check everything, start the servers, list the tools that the local user may see, and exit
    #[arg(long)]
    dry_run: bool,
    /// Serve one client over stdio in addition to HTTP; exit at the end of its input
    #[arg(long)]
    stdio: bool,
    /// Refuse images with a tag that portcullis.lock does not have
    #[arg(long)]
    locked: bool,
    /// Run only the servers of this profile
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    sandbox::prepare_cgroups();
    let Args { dry_run, stdio, locked, profile } = args;
    let options = RunOptions { dry_run, stdio, locked, profile };
    let loaded = options.read(&ctx.config).map_err(reports)?;
    for warning in &loaded.warnings {
        ctx.report(warning);
    }
    let started = start(&options, &loaded, ctx).await.map_err(not_started)?;
    show_pulls(&started.proxy.launcher.images);
    let placements = started.placements(&loaded);
    if dry_run {
        placements.iter().for_each(|placement| ctx.note(placement));
        let offered = {
            let _progress = ctx.progress("starting the servers");
            started.list().await?
        };
        return print(&offered, ctx);
    }
    let listening = |address| {
        ctx.note(format_args!("portcullis listens on http://{address}/mcp"));
        placements.iter().for_each(|placement| ctx.note(placement));
    };
    started.serve(&options, &loaded, listening).await?;
    Ok(Exit::Ok)
}

fn print(offered: &Offered, ctx: &Context) -> anyhow::Result<Exit> {
    let Offered { names, refused, failed } = offered;
    refused.iter().for_each(|refused| ctx.note(refused));
    if ctx.is_json() {
        ctx.json(names)?;
    } else {
        for (kind, names) in names {
            for name in names {
                ctx.line(format_args!("{kind}: {name}"))?;
            }
        }
    }
    failed.iter().for_each(|failure| ctx.note(failure));
    Ok(if failed.is_empty() { Exit::Ok } else { Exit::Failure })
}
