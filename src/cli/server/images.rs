//! `portcullis server lock`, `update` and `pull`: what images mean, and getting them.

use std::{io::IsTerminal as _, sync::Arc};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{configured, launcher};
use crate::{
    catalog::lock::{Lock, Meaning},
    cli::{Context, Exit},
    config::{self, Loaded},
    container::Progress,
    names::ServerName,
    policy::{self, Action, Program, Resource, Subject},
    upstream::{
        Launcher,
        images::{self, Pinned, Pulled, Readiness, mib, pinned},
    },
};

/// The servers that a verb is about.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Servers of the config. Default: all that are images
    servers: Vec<ServerName>,
}

impl Which {
    /// Those servers with their images.
    fn of<'a>(
        &'a self,
        loaded: &'a Loaded,
    ) -> anyhow::Result<Vec<(&'a ServerName, &'a config::Server, &'a str)>> {
        let image = |(name, server): (&'a ServerName, &'a config::Server)| {
            Some((name, server, server.image.as_deref()?))
        };
        if self.servers.is_empty() {
            return Ok(loaded.config.servers.iter().filter_map(image).collect());
        }
        let named = self.servers.iter().map(|name| {
            let server = configured(loaded, name)?;
            image((name, server)).ok_or_else(|| anyhow::anyhow!("the server `{name}` is no image"))
        });
        named.collect()
    }
}

/// What became of one server.
struct Row {
    server: ServerName,
    image: String,
    what: Result<Done, String>,
}

enum Done {
    /// The config says it itself.
    Fixed(Meaning),
    Kept(Meaning),
    Locked(Meaning),
    Moved {
        from: String,
        to: Meaning,
    },
}

impl Done {
    /// What is to be written into the lock file.
    fn news(&self) -> Option<&Meaning> {
        match self {
            Self::Fixed(_) | Self::Kept(_) => None,
            Self::Locked(to) | Self::Moved { to, .. } => Some(to),
        }
    }
}

/// Locks what is not locked yet.
pub(super) async fn lock(ctx: &Context, which: &Which) -> anyhow::Result<Exit> {
    all(ctx, which, Wish::Lock).await
}

/// Has tags mean what they mean now.
pub(super) async fn update(
    ctx: &Context,
    which: &Which,
    back: bool,
    dry: bool,
) -> anyhow::Result<Exit> {
    all(ctx, which, Wish::Update { back, dry }).await
}

#[derive(Clone, Copy)]
enum Wish {
    Lock,
    Update { back: bool, dry: bool },
}

impl Wish {
    fn is_dry(self) -> bool {
        matches!(self, Self::Update { dry: true, .. })
    }
}

async fn all(ctx: &Context, which: &Which, wish: Wish) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let launcher = launcher(&loaded).await;
    let mut rows = Vec::new();
    for (name, _, image) in which.of(&loaded)? {
        let what = one(ctx, &launcher, name, image, wish).await;
        let what = what.and_then(|done| match done.news() {
            Some(to) if !wish.is_dry() => {
                write(&launcher.base, name, image, to.clone()).map(|()| done)
            }
            _ => Ok(done),
        });
        rows.push(Row { server: name.clone(), image: image.to_owned(), what });
    }
    tell(ctx, rows, wish.is_dry())
}

/// What is to become of one server. Nothing is written.
async fn one(
    ctx: &Context,
    launcher: &Launcher,
    server: &ServerName,
    image: &str,
    wish: Wish,
) -> Result<Done, String> {
    let fault = |error: &dyn std::error::Error| error.to_string();
    let lock = Lock::read(&launcher.base).map_err(|error| fault(&error))?;
    let locked = lock.servers.get(server.as_str());
    let from = || locked.and_then(|locked| locked.content()).map(str::to_owned);
    if let Some(fixed) = images::fixed(image).map_err(|error| fault(&error))? {
        // Where the config was changed by hand, the lock follows.
        return Ok(match (lock.hold(server.as_str(), image), from()) {
            (Err(_), Some(from)) => Done::Moved { from, to: fixed.meaning },
            _ => Done::Fixed(fixed.meaning),
        });
    }
    let known = lock.meaning(server.as_str(), image);
    if let (Some(known), Wish::Lock) = (&known, wish) {
        return Ok(Done::Kept(known.clone()));
    }
    let now = {
        let _progress = ctx.progress(format!("asking what {image} means"));
        launcher.images.ask(&launcher.engine.now(), image).await.map_err(|error| fault(&error))?
    };
    pinned(image, now.clone(), true).map_err(|error| fault(&error))?;
    let Some(known) = known else {
        // By another name, it may have been locked.
        return Ok(match from() {
            Some(from) if from != now.as_str() => Done::Moved { from, to: now },
            _ => Done::Locked(now),
        });
    };
    if known == now {
        return Ok(Done::Kept(now));
    }
    let goes_back = locked.is_some_and(|locked| locked.was.iter().any(|one| one == now.as_str()));
    if let (true, Wish::Update { back: false, .. }) = (goes_back, wish) {
        return Err(format!(
            "`{image}` means {} again, which was moved on from: somebody may have put an old version back; \
             if that is meant, say `--back`",
            now.as_str()
        ));
    }
    Ok(Done::Moved { from: known.as_str().to_owned(), to: now })
}

fn write(
    base: &std::path::Path,
    server: &ServerName,
    image: &str,
    meaning: Meaning,
) -> Result<(), String> {
    let moved = Lock::change(base, |lock| {
        lock.servers.entry(server.to_string()).or_default().move_to(image, meaning);
    });
    moved.map(drop).map_err(|error| error.to_string())
}

fn tell(ctx: &Context, rows: Vec<Row>, dry: bool) -> anyhow::Result<Exit> {
    let failed = rows.iter().any(|row| row.what.is_err());
    if ctx.is_json() {
        let all: Vec<Value> = rows
            .iter()
            .map(|Row { server, image, what }| {
                let (word, from, to, error) = match what {
                    Ok(Done::Fixed(to)) => ("in-config", None, Some(to), None),
                    Ok(Done::Kept(to)) => ("kept", None, Some(to), None),
                    Ok(Done::Locked(to)) if dry => ("would-lock", None, Some(to), None),
                    Ok(Done::Locked(to)) => ("locked", None, Some(to), None),
                    Ok(Done::Moved { from, to }) if dry => {
                        ("would-move", Some(from), Some(to), None)
                    }
                    Ok(Done::Moved { from, to }) => ("moved", Some(from), Some(to), None),
                    Err(error) => ("failed", None, None, Some(error)),
                };
                let to = to.map(Meaning::as_str);
                json!({ "server": server, "image": image, "what": word, "from": from, "to": to, "error": error })
            })
            .collect();
        ctx.json(&all)?;
    } else {
        for Row { server, image, what } in &rows {
            match what {
                Ok(Done::Fixed(_)) => ctx.line(format!("{server}: the config has the digest"))?,
                Ok(Done::Kept(to)) => ctx.line(format!("{server}: {image} is {}", to.as_str()))?,
                Ok(Done::Locked(to)) if dry => {
                    ctx.line(format!("{server}: {image} would be {}", to.as_str()))?;
                }
                Ok(Done::Locked(to)) => {
                    ctx.line(format!("{server}: {image} is {} from now on", to.as_str()))?;
                }
                Ok(Done::Moved { from, to }) => {
                    ctx.line(format!("{server}: {image}"))?;
                    ctx.line(format!("  from {from}"))?;
                    ctx.line(format!("  to   {}", to.as_str()))?;
                }
                Err(error) => ctx.note(format!("{server}: {error}")),
            }
        }
        let moved = |row: &Row| matches!(row.what, Ok(Done::Moved { .. }));
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
pub(super) async fn pull(ctx: &Context, which: &Which) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let mut launcher = launcher(&loaded).await;
    launcher.signatures = super::verify::signatures(&loaded)?;
    let policies = policy::Engine::open(policy::Source::of(&loaded.config), &loaded.base)
        .map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
    let mut all = Vec::new();
    let mut failed = false;
    for (name, server, image) in which.of(&loaded)? {
        let outcome = fetch(ctx, &launcher, &policies, name, server).await;
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

async fn fetch(
    ctx: &Context,
    launcher: &Launcher,
    policies: &policy::Engine,
    name: &ServerName,
    server: &config::Server,
) -> anyhow::Result<(Pinned, Option<Pulled>)> {
    let engine = &launcher.engine.now().map_err(|why| anyhow::anyhow!("{why}"))?;
    let pinned = {
        let _progress = ctx.progress(format!("asking for the image of {name}"));
        launcher.images.pin(&launcher.engine.now(), name, server).await?
    };
    let pinned = pinned.ok_or_else(|| anyhow::anyhow!("the server `{name}` is no image"))?;
    let of = launcher.program_of(name, server, Some(&pinned))?;
    let signed = launcher.signed(name, server, &pinned).await?;
    let program = Program {
        runtime: launcher.place(server).kind(),
        name: of.name,
        digest: of.digest,
        deviations: of.deviations.iter().map(|key| (*key).to_owned()).collect(),
        signers: signed.signers,
        attested: signed.attested,
    };
    let (subject, resource) = (Subject::Server(name), Resource::Program(&program));
    let outcome = policies.decide_own(subject, Action::Launch, resource);
    if !outcome.allowed {
        anyhow::bail!(
            "policies do not permit the start of {}: {}",
            pinned.image(),
            outcome.explain()
        );
    }
    if pinned.is_new {
        launcher.images.lock(name, &pinned).await?;
    }
    if let (None, Some(reference)) = (engine.has(&pinned.image()).await?, &pinned.reference) {
        let found = launcher.images.look(engine, reference).await?;
        ctx.note(format!("{name}: {reference}: {}, {}", found.platform, mib(found.size)));
    }
    show(&launcher.images);
    match launcher.images.ready(engine, &pinned).await? {
        Readiness::Ready => Ok((pinned, None)),
        Readiness::Pulling(pull, _) => Ok((pinned, Some(pull.end.await?))),
    }
}

/// Shows pulls as bars, where standard error is a terminal.
pub(in crate::cli) fn show(images: &Arc<images::Images>) {
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
        // Whoever tells of it is gone when it is over.
        if progress.changed().await.is_err() {
            return bar.finish_and_clear();
        }
    }
}
