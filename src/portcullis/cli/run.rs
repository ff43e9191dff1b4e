//! `portcullis run`: runs the proxy.

use super::{Context, Exit, exit::reports, server::show_pulls, start_failure::not_started};
use crate::manage::run::{Offered, PassedSockets, RunOptions, start};
use portcullis_config::Loaded;
use portcullis_runtime::sandbox;
use portcullis_upstream::Launcher;

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
    #[arg(skip)]
    pub(super) sockets: PassedSockets,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    sandbox::prepare_cgroups();
    let Args { dry_run, stdio, locked, profile, sockets } = args;
    let options = RunOptions { dry_run, stdio, locked, profile };
    let loaded = options.read(&ctx.config).map_err(reports)?;
    for warning in &loaded.warnings {
        ctx.report(warning);
    }
    let started = start(ctx, &options, &loaded, sockets).await.map_err(not_started)?;
    let proxy = started.proxy.clone();
    show_pulls(&proxy.launcher.images);
    if dry_run {
        let _progress = ctx.progress("starting the servers");
        show_placements(ctx, &proxy.launcher, &loaded);
        let ran = started.list(ctx).await.and_then(|offered| print(&offered, ctx));
        let reason = ran.as_ref().err().map(|error| format!("{error:#}"));
        started.close(reason.as_deref().unwrap_or("the dry run is over")).await;
        return ran;
    }
    let listening = |address| {
        ctx.note(format_args!("portcullis listens on http://{address}/mcp"));
        show_placements(ctx, &proxy.launcher, &loaded);
    };
    started.serve(&options, &loaded, listening).await?;
    Ok(Exit::Ok)
}

/// Prints where each server of the config will run, and why.
fn show_placements(ctx: &Context, launcher: &Launcher, loaded: &Loaded) {
    for (name, settings) in &loaded.config.servers {
        let placement = launcher.placement(settings);
        ctx.note(format_args!("server `{name}`: {} ({})", placement.kind(), placement.why()));
    }
}

fn print(offered: &Offered, ctx: &Context) -> anyhow::Result<Exit> {
    let Offered { names, failed } = offered;
    if ctx.is_json() {
        ctx.json(names)?;
    } else {
        for (kind, names) in names {
            for name in names {
                ctx.line(format_args!("{kind}: {name}"))?;
            }
        }
    }
    for (name, failure) in failed {
        ctx.note(format_args!("server `{name}`: {failure}"));
    }
    Ok(if failed.is_empty() { Exit::Ok } else { Exit::Failure })
}
