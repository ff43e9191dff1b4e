//! Images of servers: resolved, locked and pulled. The running proxy records these actions, or else
//! the command itself.

use anyhow::Context as _;

use super::{
    Reporter,
    servers::{configured, current_user, launch_secrets, launcher, signatures},
};
use portcullis_audit::record::{ImageAction, ImageEvent};
use portcullis_catalog::lock::{Lock, ResolvedImage};
use portcullis_config::Loaded;
use portcullis_gateway::{admin, pull_outcome, record_images_offline};
use portcullis_oci::{Reference, names_host};
use portcullis_policy::{Engine, Source, Start};
use portcullis_protocol::names::ServerName;
use portcullis_upstream::{
    Launcher,
    config::Server,
    images::{self, Pinned, Pulled, Readiness, mib, pinned},
};

/// Maximum images in one request to record.
const AT_ONCE: usize = 64;
const UNRECORDED: &str = "this can't be recorded in the audit log, so it is not done";

/// The named servers with their images; without names, all servers with an image.
///
/// # Errors
/// A named server does not exist or has no image.
pub fn selected<'a>(
    loaded: &'a Loaded,
    names: &'a [ServerName],
) -> anyhow::Result<Vec<(&'a ServerName, &'a Server, &'a str)>> {
    let image = |(name, server): (&'a ServerName, &'a Server)| {
        Some((name, server, server.image.as_deref()?))
    };
    if names.is_empty() {
        return Ok(loaded.config.servers.iter().filter_map(image).collect());
    }
    let named = names.iter().map(|name| {
        let server = configured(loaded, name)?;
        image((name, server)).ok_or_else(|| anyhow::anyhow!("server `{name}` has no image"))
    });
    named.collect()
}

/// Treatment of locked images by [`lock`].
#[derive(Debug, Clone, Copy)]
pub enum LockMode {
    /// Keeps them.
    Lock,
    /// Resolves their tags again.
    Update {
        /// Whether content that was replaced earlier is accepted.
        allow_downgrade: bool,
        /// Whether the lock file stays unchanged.
        dry_run: bool,
    },
}

impl LockMode {
    /// Whether the lock file stays unchanged.
    pub fn is_dry(self) -> bool {
        matches!(self, Self::Update { dry_run: true, .. })
    }
}

/// Result of [`lock`] for one server.
#[derive(Debug)]
pub struct LockedImage {
    /// The server.
    pub server: ServerName,
    /// Its image, as the config names it.
    pub image: String,
    /// Outcome, or the error.
    pub result: Result<LockOutcome, String>,
}

/// Outcome for one image; in a dry run, the planned one.
#[derive(Debug)]
pub enum LockOutcome {
    /// The config itself fixes the content.
    Fixed(ResolvedImage),
    /// The config itself fixes the content, and its tag now resolves to another.
    Behind {
        /// Content in the config.
        has: ResolvedImage,
        /// Content that the tag resolves to.
        means: ResolvedImage,
    },
    /// The lock file has it already.
    Kept(ResolvedImage),
    /// Newly locked.
    Locked(ResolvedImage),
    /// Other content was locked.
    Moved {
        /// Content that was locked.
        from: String,
        /// Content that replaces it.
        to: ResolvedImage,
    },
}

impl LockOutcome {
    /// Content to write to the lock file.
    fn new_content(&self) -> Option<&ResolvedImage> {
        match self {
            Self::Fixed(_) | Self::Behind { .. } | Self::Kept(_) => None,
            Self::Locked(to) | Self::Moved { to, .. } => Some(to),
        }
    }
}

/// Locks the images of the named servers, or of all, and records what is locked before it is.
///
/// # Errors
/// A server does not exist or has no image, or the record failed: then nothing is locked.
pub async fn lock(
    reporter: &dyn Reporter,
    loaded: &Loaded,
    names: &[ServerName],
    mode: LockMode,
) -> anyhow::Result<Vec<LockedImage>> {
    let launcher = launcher(loaded).await;
    let mut all = Vec::new();
    for (name, _, image) in selected(loaded, names)? {
        let result = one(reporter, &launcher, name, image, mode).await;
        all.push(LockedImage { server: name.clone(), image: image.to_owned(), result });
    }
    if mode.is_dry() {
        return Ok(all);
    }
    let moves: Vec<ImageEvent> = all.iter().filter_map(LockedImage::done).collect();
    locking(loaded, &moves).await?;
    for one in &mut all {
        let (Some(to), Some(done)) = (one.new_content().cloned(), one.done()) else { continue };
        if let Err(why) = write(&launcher.base, &one.server, &one.image, one.was(), to) {
            not_locked(reporter, loaded, done, &why).await;
            one.result = Err(why);
        }
    }
    Ok(all)
}

impl LockedImage {
    /// Content to write to the lock file.
    fn new_content(&self) -> Option<&ResolvedImage> {
        self.result.as_ref().ok()?.new_content()
    }

    /// Content that it replaces.
    fn was(&self) -> Option<&str> {
        match &self.result {
            Ok(LockOutcome::Moved { from, .. }) => Some(from),
            _ => None,
        }
    }

    /// Audit record to write before the lock file.
    fn done(&self) -> Option<ImageEvent> {
        Some(ImageEvent {
            server: self.server.clone(),
            image: self.image.clone(),
            digest: self.new_content()?.as_str().to_owned(),
            what: ImageAction::Locked { was: self.was().map(str::to_owned) },
        })
    }
}

/// Records that images are about to be locked.
///
/// # Errors
/// The record failed; the images must then not be locked.
pub async fn locking(loaded: &Loaded, moves: &[ImageEvent]) -> anyhow::Result<()> {
    for some in moves.chunks(AT_ONCE) {
        record(loaded, some.to_vec()).await.context(UNRECORDED)?;
    }
    Ok(())
}

/// Records that an image was not locked after all, although the log says that it was.
pub async fn not_locked(reporter: &dyn Reporter, loaded: &Loaded, done: ImageEvent, why: &str) {
    let what = ImageAction::NotLocked { reason: why.to_owned() };
    if let Err(error) = record(loaded, vec![ImageEvent { what, ..done }]).await {
        reporter.note(&format!("The audit log says that it was done: {error:#}"));
    }
}

/// Records planned or completed actions.
async fn record(loaded: &Loaded, all: Vec<ImageEvent>) -> anyhow::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    if let Some(proxy) = admin::Client::connect(&loaded.config.state_dir).await {
        return Ok(proxy.post_json("/v1/images", &all).await?);
    }
    record_images_offline(loaded, all, current_user())
        .await
        .map_err(|fault| anyhow::anyhow!("{fault}; {}", fault.remedy()))
}

/// Determines the result for one server. Nothing is written.
async fn one(
    reporter: &dyn Reporter,
    launcher: &Launcher,
    server: &ServerName,
    image: &str,
    mode: LockMode,
) -> Result<LockOutcome, String> {
    let fault = |error: &dyn std::error::Error| error.to_string();
    let lock = Lock::read(&launcher.base).map_err(|error| fault(&error))?;
    let pin = lock.servers.get(server.as_str());
    let from = || pin.and_then(|pin| pin.content()).map(str::to_owned);
    if let Some(fixed) = images::fixed(image).map_err(|error| fault(&error))? {
        // If the config was edited, the lock file follows it.
        if let (Err(_), Some(from)) = (lock.hold(server.as_str(), image), from()) {
            return Ok(LockOutcome::Moved { from, to: fixed.meaning });
        }
        let tagged = tagged(image).filter(|_| matches!(mode, LockMode::Update { .. }));
        let Some(tagged) = tagged else { return Ok(LockOutcome::Fixed(fixed.meaning)) };
        let means = now(reporter, launcher, tagged).await?;
        return Ok(match means == fixed.meaning {
            true => LockOutcome::Fixed(means),
            false => LockOutcome::Behind { has: fixed.meaning, means },
        });
    }
    let locked = lock.meaning(server.as_str(), image);
    if let (Some(locked), LockMode::Lock) = (&locked, mode) {
        return Ok(LockOutcome::Kept(locked.clone()));
    }
    let now = now(reporter, launcher, image).await?;
    pinned(image, now.clone(), true).map_err(|error| fault(&error))?;
    let Some(locked) = locked else {
        // It may have been locked under another name.
        return Ok(match from() {
            Some(from) if from != now.as_str() => LockOutcome::Moved { from, to: now },
            _ => LockOutcome::Locked(now),
        });
    };
    if locked == now {
        return Ok(LockOutcome::Kept(now));
    }
    let goes_back = pin.is_some_and(|pin| pin.was_once(now.as_str()));
    if let (true, LockMode::Update { allow_downgrade: false, .. }) = (goes_back, mode) {
        return Err(format!(
            "`{image}` would go back to {}, which was replaced earlier: the registry may have been rolled back; to accept it, add `--allow-downgrade`",
            now.as_str()
        ));
    }
    Ok(LockOutcome::Moved { from: locked.as_str().to_owned(), to: now })
}

/// Content that a name resolves to now.
async fn now(
    reporter: &dyn Reporter,
    launcher: &Launcher,
    image: &str,
) -> Result<ResolvedImage, String> {
    let _progress = reporter.step(format!("asking what {image} means"));
    launcher.images.ask(&launcher.engine.now(), image).await.map_err(|error| error.to_string())
}

/// Name with its tag, if the config names the image by both a tag and a digest.
pub fn tagged(image: &str) -> Option<&str> {
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

/// Puller of images, once policies permit the start of their servers.
pub struct Puller<'a> {
    loaded: &'a Loaded,
    /// Launcher with the image store.
    pub launcher: Launcher,
    policies: Engine,
}

impl<'a> Puller<'a> {
    /// Puller for a config.
    ///
    /// # Errors
    /// The signers or the policies cannot be loaded.
    pub async fn open(loaded: &'a Loaded) -> anyhow::Result<Self> {
        let mut launcher = launcher(loaded).await;
        launcher.signatures = signatures(loaded)?;
        let source = Source::of(&loaded.config.policy, &loaded.config.state_dir);
        let policies = Engine::open(source, &loaded.base)
            .map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
        Ok(Self { loaded, launcher, policies })
    }

    /// Image of a server, and its pull unless the engine has it already.
    ///
    /// # Errors
    /// Policies do not permit the start, a step cannot be recorded, or the pull fails.
    pub async fn pull(
        &self,
        reporter: &dyn Reporter,
        name: &ServerName,
        server: &Server,
    ) -> anyhow::Result<(Pinned, Option<Pulled>)> {
        let Self { loaded, launcher, policies } = self;
        let engine = &launcher.engine.now().map_err(|why| anyhow::anyhow!("{why}"))?;
        let pinned = {
            let _progress = reporter.step(format!("asking for the image of {name}"));
            launcher.images.pin(&launcher.engine.now(), name, server).await?
        };
        let pinned = pinned.ok_or_else(|| anyhow::anyhow!("server `{name}` has no image"))?;
        let mut program = launcher.program_of(name, server, Some(&pinned))?;
        program.signed = launcher.signed(name, server, &pinned).await?;
        let program = program.for_policies(&launcher.placement(server));
        let url = server.url.as_deref();
        // Single clients may have other secrets; the image is pulled for all.
        let mut secrets = launch_secrets(server);
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
        let done = |what| ImageEvent {
            server: name.clone(),
            image: pinned.name.clone(),
            digest: pinned.digest().to_owned(),
            what,
        };
        if pinned.is_new {
            let locking = done(ImageAction::Locked { was: None });
            record(loaded, vec![locking.clone()]).await.context(UNRECORDED)?;
            if let Err(failed) = launcher.images.lock(name, &pinned).await {
                not_locked(reporter, loaded, locking, &failed.to_string()).await;
                return Err(failed.into());
            }
        }
        if launcher.images.has(engine, &pinned).await? {
            return Ok((pinned, None));
        }
        if let Some(reference) = &pinned.reference {
            let found = launcher.images.look(engine, reference).await?;
            reporter.note(&format!("{name}: {reference}: {}, {}", found.platform, mib(found.size)));
            // Before an interruption is possible: the engine may continue the pull.
            record(loaded, vec![done(ImageAction::Pulling)]).await.context(UNRECORDED)?;
        }
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
}
