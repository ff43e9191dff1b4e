//! `portcullis server lock`, `update` and `pull`: resolve, lock and pull images. Their actions are
//! recorded by the running proxy, or else by the command itself.

use std::{io::IsTerminal as _, sync::Arc};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{configured, handed, launcher};
use crate::cli::{Context, Exit, client::myself};
use portcullis_audit::record::{ImageDid, ImageDone};
use portcullis_catalog::lock::{Lock, ResolvedImage};
use portcullis_config::Loaded;
use portcullis_gateway::{admin, pull_outcome, record_images_offline};
use portcullis_oci::{Reference, names_host};
use portcullis_policy::Start;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::container::Progress;
use portcullis_upstream::{
    Launcher,
    images::{self, Pinned, Pulled, Readiness, mib, pinned},
};

/// Maximum images in one request to record.
const AT_ONCE: usize = 64;
const UNRECORDED: &str = "this can't be recorded in the audit log, so it is not done";

/// The servers that a verb is about.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Servers of the config. Default: all servers with an image
    servers: Vec<ServerName>,
}

impl Which {
    /// Selected servers with their images.
    fn of<'a>(
        &'a self,
        loaded: &'a Loaded,
    ) -> anyhow::Result<Vec<(&'a ServerName, &'a portcullis_upstream::config::Server, &'a str)>>
    {
        let image = |(name, server): (&'a ServerName, &'a portcullis_upstream::config::Server)| {
            Some((name, server, server.image.as_deref()?))
        };
        if self.servers.is_empty() {
            return Ok(loaded.config.servers.iter().filter_map(image).collect());
        }
        let named = self.servers.iter().map(|name| {
            let server = configured(loaded, name)?;
            image((name, server)).ok_or_else(|| anyhow::anyhow!("server `{name}` has no image"))
        });
        named.collect()
    }
}

/// Result for one server.
struct Row {
    server: ServerName,
    image: String,
    what: Result<Done, String>,
}

enum Done {
    /// The config itself fixes the content.
    Fixed(ResolvedImage),
    /// The config itself fixes the content, and its tag now resolves to another.
    Behind {
        has: ResolvedImage,
        means: ResolvedImage,
    },
    Kept(ResolvedImage),
    Locked(ResolvedImage),
    Moved {
        from: String,
        to: ResolvedImage,
    },
}

impl Done {
    /// Content to write to the lock file.
    fn news(&self) -> Option<&ResolvedImage> {
        match self {
            Self::Fixed(_) | Self::Behind { .. } | Self::Kept(_) => None,
            Self::Locked(to) | Self::Moved { to, .. } => Some(to),
        }
    }
}

/// Locks images that are not locked yet.
pub(super) async fn lock(ctx: &Context, which: &Which) -> anyhow::Result<Exit> {
    all(ctx, which, Wish::Lock).await
}

/// Resolves tags again, and locks the result.
pub(super) async fn update(
    ctx: &Context,
    which: &Which,
    allow_downgrade: bool,
    dry: bool,
) -> anyhow::Result<Exit> {
    all(ctx, which, Wish::Update { allow_downgrade, dry }).await
}

#[derive(Clone, Copy)]
enum Wish {
    Lock,
    Update { allow_downgrade: bool, dry: bool },
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
        rows.push(Row { server: name.clone(), image: image.to_owned(), what });
    }
    if !wish.is_dry() {
        let moves: Vec<ImageDone> = rows.iter().filter_map(Row::done).collect();
        locking(&loaded, &moves).await?;
        for row in &mut rows {
            let (Some(to), Some(done)) = (row.news().cloned(), row.done()) else { continue };
            if let Err(why) = write(&launcher.base, &row.server, &row.image, row.was(), to) {
                not_locked(ctx, &loaded, done, &why).await;
                row.what = Err(why);
            }
        }
    }
    tell(ctx, rows, wish.is_dry())
}

impl Row {
    /// Content to write to the lock file.
    fn news(&self) -> Option<&ResolvedImage> {
        self.what.as_ref().ok()?.news()
    }

    /// Content that it replaces.
    fn was(&self) -> Option<&str> {
        match &self.what {
            Ok(Done::Moved { from, .. }) => Some(from),
            _ => None,
        }
    }

    /// Audit record to write before the lock file.
    fn done(&self) -> Option<ImageDone> {
        Some(ImageDone {
            server: self.server.clone(),
            image: self.image.clone(),
            digest: self.news()?.as_str().to_owned(),
            what: ImageDid::Locked { was: self.was().map(str::to_owned) },
        })
    }
}

/// Records that images are about to be locked.
///
/// # Errors
/// The record failed; the images must then not be locked.
pub(in crate::cli) async fn locking(loaded: &Loaded, moves: &[ImageDone]) -> anyhow::Result<()> {
    for some in moves.chunks(AT_ONCE) {
        record(loaded, some.to_vec()).await.context(UNRECORDED)?;
    }
    Ok(())
}

/// Records that an image was not locked after all, although the log says that it was.
pub(in crate::cli) async fn not_locked(ctx: &Context, loaded: &Loaded, done: ImageDone, why: &str) {
    let what = ImageDid::NotLocked { reason: why.to_owned() };
    if let Err(error) = record(loaded, vec![ImageDone { what, ..done }]).await {
        ctx.note(format!("The audit log says that it was done: {error:#}"));
    }
}

/// Records planned or completed actions.
async fn record(loaded: &Loaded, all: Vec<ImageDone>) -> anyhow::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    if let Some(proxy) = admin::Client::connect(&loaded.config.state_dir).await {
        return Ok(proxy.post_json("/v1/images", &all).await?);
    }
    record_images_offline(loaded, all, myself())
        .await
        .map_err(|fault| anyhow::anyhow!("{fault}; {}", fault.remedy()))
}

/// Determines the result for one server. Nothing is written.
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
        // If the config was edited, the lock file follows it.
        if let (Err(_), Some(from)) = (lock.hold(server.as_str(), image), from()) {
            return Ok(Done::Moved { from, to: fixed.meaning });
        }
        let tagged = tagged(image).filter(|_| matches!(wish, Wish::Update { .. }));
        let Some(tagged) = tagged else { return Ok(Done::Fixed(fixed.meaning)) };
        let means = now(ctx, launcher, tagged).await?;
        return Ok(match means == fixed.meaning {
            true => Done::Fixed(means),
            false => Done::Behind { has: fixed.meaning, means },
        });
    }
    let known = lock.meaning(server.as_str(), image);
    if let (Some(known), Wish::Lock) = (&known, wish) {
        return Ok(Done::Kept(known.clone()));
    }
    let now = now(ctx, launcher, image).await?;
    pinned(image, now.clone(), true).map_err(|error| fault(&error))?;
    let Some(known) = known else {
        // It may have been locked under another name.
        return Ok(match from() {
            Some(from) if from != now.as_str() => Done::Moved { from, to: now },
            _ => Done::Locked(now),
        });
    };
    if known == now {
        return Ok(Done::Kept(now));
    }
    let goes_back = locked.is_some_and(|locked| locked.was_once(now.as_str()));
    if let (true, Wish::Update { allow_downgrade: false, .. }) = (goes_back, wish) {
        return Err(format!(
            "`{image}` would go back to {}, which was replaced earlier: the registry may have been rolled back; to accept it, add `--allow-downgrade`",
            now.as_str()
        ));
    }
    Ok(Done::Moved { from: known.as_str().to_owned(), to: now })
}

/// Content that a name resolves to now.
async fn now(ctx: &Context, launcher: &Launcher, image: &str) -> Result<ResolvedImage, String> {
    let _progress = ctx.progress(format!("asking what {image} means"));
    launcher.images.ask(&launcher.engine.now(), image).await.map_err(|error| error.to_string())
}

/// Name with its tag, if the config names the image by both a tag and a digest.
fn tagged(image: &str) -> Option<&str> {
    let (tagged, _) = image.split_once('@')?;
    let has_tag = Reference::of_image(tagged).is_ok_and(|name| name.tag().is_some());
    (has_tag && names_host(tagged) && tagged.rsplit('/').next()?.contains(':')).then_some(tagged)
}

fn write(
    base: &std::path::Path,
    server: &ServerName,
    image: &str,
    was: Option<&str>,
    to: ResolvedImage,
) -> Result<(), String> {
    let mut moved = Ok(());
    let change = |lock: &mut Lock| moved = lock.move_from(server.as_str(), image, was, to);
    let changed = Lock::change(base, change).map(drop);
    changed.and(moved).map_err(|error| error.to_string())
}

fn tell(ctx: &Context, rows: Vec<Row>, dry: bool) -> anyhow::Result<Exit> {
    let failed = rows.iter().any(|row| row.what.is_err());
    if ctx.is_json() {
        let all: Vec<Value> = rows
            .iter()
            .map(|Row { server, image, what }| {
                let (word, from, to, error) = match what {
                    Ok(Done::Fixed(to)) => ("in-config", None, Some(to), None),
                    Ok(Done::Behind { has, means }) => {
                        ("behind", Some(has.as_str()), Some(means), None)
                    }
                    Ok(Done::Kept(to)) => ("kept", None, Some(to), None),
                    Ok(Done::Locked(to)) if dry => ("would-lock", None, Some(to), None),
                    Ok(Done::Locked(to)) => ("locked", None, Some(to), None),
                    Ok(Done::Moved { from, to }) if dry => {
                        ("would-move", Some(from.as_str()), Some(to), None)
                    }
                    Ok(Done::Moved { from, to }) => ("moved", Some(from.as_str()), Some(to), None),
                    Err(error) => ("failed", None, None, Some(error)),
                };
                let to = to.map(ResolvedImage::as_str);
                json!({ "server": server, "image": image, "what": word, "from": from, "to": to, "error": error })
            })
            .collect();
        ctx.json(&all)?;
    } else {
        for Row { server, image, what } in &rows {
            match what {
                Ok(Done::Fixed(_)) => ctx.line(format!("{server}: the config has the digest"))?,
                Ok(Done::Behind { has: _, means }) => {
                    let (name, digest) = (tagged(image).unwrap_or(image), means.as_str());
                    ctx.line(format!(
                        "{server}: the config has the digest, and {name} is now {digest}"
                    ))?;
                    ctx.line(format!(
                        "  to take that, write `image = \"{name}@{digest}\"`, then `portcullis server lock {server}`"
                    ))?;
                }
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
    let policies = portcullis_policy::Engine::open(
        portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir),
        &loaded.base,
    )
    .map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
    let mut all = Vec::new();
    let mut failed = false;
    for (name, server, image) in which.of(&loaded)? {
        let outcome = fetch(ctx, &loaded, &launcher, &policies, name, server).await;
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
    loaded: &Loaded,
    launcher: &Launcher,
    policies: &portcullis_policy::Engine,
    name: &ServerName,
    server: &portcullis_upstream::config::Server,
) -> anyhow::Result<(Pinned, Option<Pulled>)> {
    let engine = &launcher.engine.now().map_err(|why| anyhow::anyhow!("{why}"))?;
    let pinned = {
        let _progress = ctx.progress(format!("asking for the image of {name}"));
        launcher.images.pin(&launcher.engine.now(), name, server).await?
    };
    let pinned = pinned.ok_or_else(|| anyhow::anyhow!("server `{name}` has no image"))?;
    let mut program = launcher.program_of(name, server, Some(&pinned))?;
    program.signed = launcher.signed(name, server, &pinned).await?;
    let program = program.for_policies(&launcher.place(server));
    let url = server.url.as_deref();
    // Single clients may have other secrets; the image is pulled for all.
    let mut secrets = handed(server);
    secrets.retain(|secret| secret.client.is_none());
    let start = Start { server: name, program: &program, url, secrets };
    let forbidden = policies.decide_start(&start);
    if let Some(part) = forbidden.iter().find(|part| !part.outcome.permits_alone()) {
        anyhow::bail!(
            "policies do not permit the start of {}: {} {}: {}",
            pinned.image(),
            part.action.as_str(),
            part.target,
            part.outcome.explain_alone()
        );
    }
    let done = |what| ImageDone {
        server: name.clone(),
        image: pinned.name.clone(),
        digest: pinned.digest().to_owned(),
        what,
    };
    if pinned.is_new {
        let locking = done(ImageDid::Locked { was: None });
        record(loaded, vec![locking.clone()]).await.context(UNRECORDED)?;
        if let Err(failed) = launcher.images.lock(name, &pinned).await {
            not_locked(ctx, loaded, locking, &failed.to_string()).await;
            return Err(failed.into());
        }
    }
    if launcher.images.has(engine, &pinned).await? {
        return Ok((pinned, None));
    }
    if let Some(reference) = &pinned.reference {
        let found = launcher.images.look(engine, reference).await?;
        ctx.note(format!("{name}: {reference}: {}, {}", found.platform, mib(found.size)));
        // Before an interruption is possible: the engine may continue the pull.
        record(loaded, vec![done(ImageDid::Pulling)]).await.context(UNRECORDED)?;
    }
    show(&launcher.images);
    let ready = launcher.images.ready(engine, &pinned).await;
    if let Err(failed) = &ready {
        let did = pull_outcome(Err(failed.clone()));
        record(loaded, vec![done(did)]).await.context("nor can that be recorded")?;
    }
    match ready? {
        // Another process pulled it meanwhile, and records that.
        Readiness::Ready => Ok((pinned, None)),
        Readiness::Pulling(pull, _) => {
            let ended = pull.end.await;
            let recorded = record(loaded, vec![done(pull_outcome(ended.clone()))]).await;
            let pulled = ended?;
            recorded.context("it was pulled, and that can't be recorded in the audit log")?;
            Ok((pinned, Some(pulled)))
        }
    }
}

/// Shows pulls as progress bars, if standard error is a terminal.
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
        // The sender is dropped at the end.
        if progress.changed().await.is_err() {
            return bar.finish_and_clear();
        }
    }
}
