//! `portcullis server cleanup`: removes orphans of killed proxies that do not return.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    cli::{
        Context, Exit,
        proxy_client::{self, Located},
    },
    manage::servers::current_user,
};
use portcullis_audit::record::{MEMBERS, OrphanRemoval};
use portcullis_audit::record::{Orphan, OrphanKind};
use portcullis_config::Config;
use portcullis_gateway::record_offline;
use portcullis_runtime::container;
use portcullis_upstream::{Orphans, config::Runtime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the orphans without removing them
    #[arg(long)]
    dry_run: bool,
    /// Remove even if neither the config nor the proxy is available; the removal is then not recorded
    #[arg(long, conflicts_with = "dry_run")]
    unrecorded: bool,
}

/// Item that was found, with its result.
struct Row {
    what: &'static str,
    orphan: Orphan,
}

/// Runs the verb. It also works without a proxy or a valid config: that may be why none returns.
pub(super) async fn run(ctx: &Context, args: &Args) -> anyhow::Result<Exit> {
    let log = match proxy_client::find(ctx).await {
        Ok(log) => Some(log),
        Err(wrong) if args.dry_run || args.unrecorded => {
            ctx.note(format_args!("{}: {wrong}", ctx.config.display()));
            None
        }
        Err(wrong) => {
            ctx.note(
                "The removal can't be recorded, so nothing is removed: correct the config, or give \
                 --unrecorded.",
            );
            return Err(wrong);
        }
    };
    let config = log.as_ref().and_then(Located::loaded).map(|loaded| &loaded.config);
    let host = match config {
        Some(config) => Ok(config.engine.host.clone()),
        None => portcullis_config::proxy_location(&ctx.config).engine,
    };
    // For an unreadable config, this is unknown.
    let needs_engine = !matches!(host, Ok(None)) || config.is_none_or(needs_engine);
    let found = {
        let _progress = ctx.progress("looking for what is left");
        let engine = match host {
            Ok(host) => {
                let engine = container::Engine::connect(host.as_deref()).await;
                engine.map_err(|none| none.to_string())
            }
            Err(illegible) => Err(illegible.to_string()),
        };
        Orphans::find(engine).await
    };
    let unseen = found.unseen.clone();
    let mut failed = needs_engine && unseen.is_some();
    let stay: Vec<_> =
        found.stay.iter().cloned().map(|orphan| Row { what: "stays", orphan }).collect();
    let mut rows: Vec<_> = if args.dry_run {
        found.list().into_iter().map(|orphan| Row { what: "would-remove", orphan }).collect()
    } else {
        let _progress = ctx.progress("removing what is left");
        record(log.as_ref(), &found.list(), false)
            .await
            .context("this can't be recorded in the audit log, so it is not done")?;
        let all = found.remove().await;
        if let Err(error) = record(log.as_ref(), &all, true).await {
            failed = true;
            ctx.note(format_args!("The result is not recorded: {error:#}"));
        }
        let what = |orphan: &Orphan| if orphan.error.is_some() { "failed" } else { "removed" };
        all.into_iter().map(|orphan| Row { what: what(&orphan), orphan }).collect()
    };
    failed |= rows.iter().any(|row| row.orphan.error.is_some());
    rows.extend(stay);
    print_report(ctx, &rows)?;
    if let Some(why) = unseen {
        ctx.note(format_args!("Containers were not looked for: {why}"));
    }
    Ok(if failed { Exit::Failure } else { Exit::Ok })
}

/// Whether servers of this config run in containers, which may be orphans.
fn needs_engine(config: &Config) -> bool {
    config.servers.values().any(|server| {
        server.image.is_some() || matches!(server.runtime, Runtime::Container | Runtime::Runsc)
    })
}

/// Records a planned or completed removal, through the running proxy or else by this command.
async fn record(log: Option<&Located>, orphans: &[Orphan], done: bool) -> anyhow::Result<()> {
    let Some(log) = log.filter(|_| !orphans.is_empty()) else { return Ok(()) };
    let parts = orphans.chunks(MEMBERS).map(|part| OrphanRemoval { left: part.to_vec(), done });
    match log {
        Located::Running(proxy, _) => {
            for part in parts {
                let () = proxy.post_json("/v1/leftovers", &part).await?;
            }
            Ok(())
        }
        Located::Alone(loaded) => {
            record_offline(loaded, parts.map(|part| part.by(current_user())).collect())
                .await
                .map_err(|fault| anyhow::anyhow!("{fault}; {}", fault.remedy()))
        }
    }
}

fn print_report(ctx: &Context, rows: &[Row]) -> anyhow::Result<()> {
    if ctx.is_json() {
        let all: Vec<Value> = rows
            .iter()
            .map(|Row { what, orphan: Orphan { kind, name, server, error } }| {
                json!({ "kind": kind, "name": name, "server": server, "what": what, "error": error })
            })
            .collect();
        ctx.json(&all)?;
        return Ok(());
    }
    let stays = |row: &Row| row.what == "stays";
    if rows.iter().all(stays) {
        ctx.note("Nothing is left of proxies that are gone.");
    }
    if !rows.is_empty() {
        let row = |Row { what, orphan: Orphan { kind, name, server, error } }: &Row| {
            let server = server.clone().unwrap_or_default();
            let error = error.clone().unwrap_or_default();
            [(*what).to_owned(), kind.as_str().to_owned(), name.clone(), server, error]
        };
        // A sandbox has several groups with meaningless names, so they are counted.
        let counted =
            |row: &&Row| row.orphan.kind == OrphanKind::ControlGroup && row.orphan.error.is_none();
        let (groups, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(counted);
        let sum = groups.first().map(|first| {
            let name = format!("{} of sandboxes", groups.len());
            row(&Row { what: first.what, orphan: Orphan { name, ..first.orphan.clone() } })
        });
        let header = ["WHAT", "KIND", "NAME", "SERVER", "WHY"];
        ctx.table(&header, others.into_iter().map(row).chain(sum))?;
    }
    if rows.iter().any(stays) {
        ctx.note(
            "What stays is of proxies that live, or of which it can't be told from here: of another \
             machine or another process namespace.",
        );
    }
    Ok(())
}
