//! `portcullis server lock`, `update` and `pull`: resolve, lock and pull images.

use std::{io::IsTerminal as _, sync::Arc};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    cli::{Context, Exit},
    manage::images::{self, LockMode, LockOutcome, LockedImage, Puller, tagged},
};
use portcullis_catalog::lock::ResolvedImage;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::container::Progress;
use portcullis_upstream::images::{Images, mib};

/// The servers that a verb is about.
#[derive(Debug, clap::Args)]
pub struct ServerSelection {
    /// Servers of the config. Default: all servers with an image
    servers: Vec<ServerName>,
}

/// Locks images, or resolves their tags again.
pub(super) async fn lock(
    ctx: &Context,
    selection: &ServerSelection,
    mode: LockMode,
) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let rows = images::lock(ctx, &loaded, &selection.servers, mode).await?;
    print_report(ctx, &rows, mode.is_dry())
}

fn print_report(ctx: &Context, rows: &[LockedImage], dry: bool) -> anyhow::Result<Exit> {
    let failed = rows.iter().any(|row| row.result.is_err());
    if ctx.is_json() {
        let all: Vec<Value> = rows
            .iter()
            .map(|LockedImage { server, image, result }| {
                let (word, from, to, error) = match result {
                    Ok(LockOutcome::Fixed(to)) => ("in-config", None, Some(to), None),
                    Ok(LockOutcome::Behind { has, means }) => {
                        ("behind", Some(has.as_str()), Some(means), None)
                    }
                    Ok(LockOutcome::Kept(to)) => ("kept", None, Some(to), None),
                    Ok(LockOutcome::Locked(to)) if dry => ("would-lock", None, Some(to), None),
                    Ok(LockOutcome::Locked(to)) => ("locked", None, Some(to), None),
                    Ok(LockOutcome::Moved { from, to }) if dry => {
                        ("would-move", Some(from.as_str()), Some(to), None)
                    }
                    Ok(LockOutcome::Moved { from, to }) => ("moved", Some(from.as_str()), Some(to), None),
                    Err(error) => ("failed", None, None, Some(error)),
                };
                let to = to.map(ResolvedImage::as_str);
                json!({ "server": server, "image": image, "what": word, "from": from, "to": to, "error": error })
            })
            .collect();
        ctx.json(&all)?;
    } else {
        for LockedImage { server, image, result } in rows {
            match result {
                Ok(LockOutcome::Fixed(_)) => {
                    ctx.line(format!("{server}: the config has the digest"))?
                }
                Ok(LockOutcome::Behind { has: _, means }) => {
                    let (name, digest) = (tagged(image).unwrap_or(image), means.as_str());
                    ctx.line(format!(
                        "{server}: the config has the digest, and {name} is now {digest}"
                    ))?;
                    ctx.line(format!(
                        "  to take that, write `image = \"{name}@{digest}\"`, then `portcullis server lock {server}`"
                    ))?;
                }
                Ok(LockOutcome::Kept(to)) => {
                    ctx.line(format!("{server}: {image} is {}", to.as_str()))?
                }
                Ok(LockOutcome::Locked(to)) if dry => {
                    ctx.line(format!("{server}: {image} would be {}", to.as_str()))?;
                }
                Ok(LockOutcome::Locked(to)) => {
                    ctx.line(format!("{server}: {image} is {} from now on", to.as_str()))?;
                }
                Ok(LockOutcome::Moved { from, to }) => {
                    ctx.line(format!("{server}: {image}"))?;
                    ctx.line(format!("  from {from}"))?;
                    ctx.line(format!("  to   {}", to.as_str()))?;
                }
                Err(error) => ctx.note(format!("{server}: {error}")),
            }
        }
        let moved = |row: &LockedImage| matches!(row.result, Ok(LockOutcome::Moved { .. }));
        if !dry && rows.iter().any(moved) {
            ctx.note(
                "A policy that names the old digest does not permit the new one. What runs goes on; the next \
                 start takes the new one.",
            );
        }
    }
    Ok(if failed { Exit::Failure } else { Exit::Ok })
}

/// Pulls images, once policies permit their start.
pub(super) async fn pull(ctx: &Context, selection: &ServerSelection) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let puller = Puller::open(&loaded).await?;
    show(&puller.launcher.images);
    let mut all = Vec::new();
    let mut failed = false;
    for (name, server, image) in images::selected(&loaded, &selection.servers)? {
        let outcome = puller.pull(ctx, name, server).await;
        failed |= outcome.is_err();
        match (&outcome, ctx.is_json()) {
            (Ok((pinned, pulled)), true) => all.push(json!({
                "server": name,
                "image": image,
                "digest": pinned.digest(),
                "platform": pulled.as_ref().map(|pulled| &pulled.platform),
                "size": pulled.as_ref().map(|pulled| pulled.size),
                "pulled": pulled.is_some(),
            })),
            (Err(error), true) => {
                all.push(json!({ "server": name, "image": image, "error": format!("{error:#}") }));
            }
            (Ok((pinned, None)), false) => {
                ctx.line(format!("{name}: {} is there", pinned.image()))?;
            }
            (Ok((pinned, Some(pulled))), false) => ctx.line(format!(
                "{name}: pulled {} ({}, {}) in {:.1} s",
                pinned.image(),
                pulled.platform,
                mib(pulled.size),
                pulled.took.as_secs_f64()
            ))?,
            (Err(error), false) => ctx.note(format!("{name}: {error:#}")),
        }
    }
    if ctx.is_json() {
        ctx.json(&all)?;
    }
    Ok(if failed { Exit::Failure } else { Exit::Ok })
}

/// Shows pulls as progress bars, if standard error is a terminal.
pub(in crate::cli) fn show(images: &Arc<Images>) {
    if std::io::stderr().is_terminal() {
        images.show(Box::new(|name, progress| drop(tokio::spawn(bar(name.to_owned(), progress)))));
    }
}

async fn bar(name: String, mut progress: watch::Receiver<Progress>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes} {eta}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    let name = name.split('@').next().unwrap_or_default().to_owned();
    loop {
        let Progress { done, total } = *progress.borrow_and_update();
        bar.set_length(total);
        bar.set_position(done);
        let unpacks = total > 0 && done >= total;
        bar.set_message(format!("{} {name}", if unpacks { "unpacking" } else { "pulling" }));
        // The sender is dropped at the end.
        if progress.changed().await.is_err() {
            return bar.finish_and_clear();
        }
    }
}
