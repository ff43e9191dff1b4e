//! How an instance is started: its process, its line, its greeting.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{SetOnce, oneshot},
};
use tokio_util::task::TaskTracker;

use super::{
    Clock,
    definitions::Definitions,
    digest::Hashed,
    ear::Ear,
    event::{By, Connecting, Event, Handing, Launching, NotCleared, Pulling},
    greeting::{Greeting, Hello, greet},
    hands::{Handed, HandedSecret},
    http::{Http, Sse},
    images::{Failed, Pinned, Readiness, on_its_way},
    instance::{Common, Instance},
    launcher::Place,
    link::{Failure, Link},
    log,
    outward::Reacher,
    pipe::Pipe,
    process::{Exit, Handle, LaunchFailure, Origin},
    running::{Running, end},
};
use crate::{
    config::{Era, Transport},
    identity::PrincipalKind,
    names::DecisionId,
    vault::Folder,
};

/// Numbers of running instances.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A line with what is at its end.
struct Line {
    link: Arc<dyn Link>,
    process: Option<Arc<dyn Handle>>,
    exit: Arc<OnceLock<Exit>>,
    place: Place,
    origin: Origin,
    /// What was permitted to be done for it.
    cleared: Arc<Launching>,
    /// Where it finds secrets.
    folder: Option<Folder>,
}

/// A process that runs and was told nothing yet.
pub(super) struct Begun {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub handle: Arc<dyn Handle>,
    /// Set once it has ended.
    pub exit: Arc<OnceLock<Exit>>,
    /// The one client for which alone it runs, once there is one.
    principal: Arc<OnceLock<PrincipalKind>>,
    place: Place,
    origin: Origin,
    /// What was permitted to be done for it.
    pub cleared: Arc<Launching>,
    /// Where it finds secrets.
    pub folder: Option<Folder>,
}

/// One start of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// What joins all that is told of it.
    pub id: DecisionId,
    /// How long it may take. It stands still while the audit log is waited for, which has a
    /// deadline of its own.
    pub clock: &'a Clock,
}

impl Instance {
    /// Starts it, by way of a spare process where there is one.
    pub(super) async fn start(
        &self,
        launch: Launch<'_>,
        mut spare: Option<Begun>,
    ) -> Result<Running, Failure> {
        // One of a party's own exists because the server is a legacy one, as the shared one found.
        let known = self.known_legacy.load(Ordering::Relaxed)
            || self.party.is_some() && *self.common.era.read() == Some(Era::Legacy);
        let probe = self.common.settings.era == Era::Auto && !known;
        let era = match self.common.settings.era {
            Era::Auto if !probe => Era::Legacy,
            era => era,
        };
        match self.start_as(launch, era, spare.take()).await {
            Err((failure, true)) if probe => {
                let failure = self.told(failure);
                tracing::debug!(server = %self.common.name, %failure, "the server ended when asked for its era; starting it as legacy");
                self.known_legacy.store(true, Ordering::Relaxed);
                self.start_as(launch, Era::Legacy, None).await.map_err(|(failure, _)| failure)
            }
            started => started.map_err(|(failure, _)| failure),
        }
    }

    /// Starts and greets; the flag of an error says whether the process died over the greeting.
    async fn start_as(
        &self,
        launch: Launch<'_>,
        era: Era,
        spare: Option<Begun>,
    ) -> Result<Running, (Failure, bool)> {
        let definitions = Arc::new(Definitions::default());
        let ear = Ear::new(
            self.common.name.clone(),
            self.party().cloned(),
            definitions.clone(),
            self.common.heard.clone(),
            self.lost.clone(),
        );
        let ear = if self.quiet { ear.without_lists() } else { ear };
        let hello = self.party.as_ref().map(Hello::of).unwrap_or_default();
        let line = self.line(launch, &ear, spare).await;
        let mut line = line.map_err(|failure| (failure, false))?;
        let mut greeted = greet(line.link.as_ref(), era, &hello, self.start_timeout()).await;
        if greeted.is_err()
            && line.link.turned_away()
            && self.common.settings.transport == Transport::Auto
            && let Ok((older, cleared, greeting)) = self.older(launch, ear.clone(), &hello).await
        {
            (line.link, line.cleared, greeted) = (older, cleared, Ok(greeting));
        }
        let Line { link, process, exit, place, origin, cleared, folder } = line;
        match greeted {
            Ok(greeting) => {
                let greeting = Arc::new(greeting);
                if self.party.is_none() {
                    self.common.learn_greeting(&greeting);
                }
                let modern = greeting.revision.is_modern();
                *self.common.era.write() = Some(if modern { Era::Modern } else { Era::Legacy });
                let (number, since) = (NUMBERS.fetch_add(1, Ordering::Relaxed), Instant::now());
                Ok(Running {
                    number,
                    launch: launch.id,
                    link,
                    ear,
                    listening: Mutex::default(),
                    greeting,
                    definitions,
                    process,
                    exit,
                    place,
                    origin,
                    since,
                    level: Mutex::default(),
                    cleared,
                    folder,
                    calls: TaskTracker::new(),
                    revoked: SetOnce::new(),
                })
            }
            Err(failure) => {
                let died = link.dead().is_some();
                if let Some(process) = &process {
                    end(process.as_ref(), Duration::ZERO).await;
                }
                let failure = if died { self.with_exit(failure, &exit) } else { failure };
                Err((failure, died))
            }
        }
    }

    async fn line(
        &self,
        launch: Launch<'_>,
        ear: &Ear,
        spare: Option<Begun>,
    ) -> Result<Line, Failure> {
        let (name, settings) = (&self.common.name, &self.common.settings);
        let launcher = &self.common.launcher;
        if let Some(url) = &settings.url {
            let handed =
                launcher.hand(name, settings).await.map_err(|failure| refused(&failure))?;
            let headers = &handed.by(By::Header);
            let found = self.common.sse.load(Ordering::Relaxed);
            let sse = match settings.transport {
                Transport::Auto => found,
                other => other == Transport::Sse,
            };
            let cleared = self.announce(launch, &handed, Some((url, sse)), (None, None)).await?;
            let link: Arc<dyn Link> = match settings.transport {
                Transport::Auto if found => {
                    let opened = Sse::open(url, headers, launcher.caps, ear.clone()).await;
                    // It may speak otherwise by now: next time it is asked anew.
                    self.common.sse.store(opened.is_ok(), Ordering::Relaxed);
                    Arc::new(opened?)
                }
                Transport::Sse => {
                    Arc::new(Sse::open(url, headers, launcher.caps, ear.clone()).await?)
                }
                Transport::Auto | Transport::StreamableHttp => {
                    Arc::new(Http::new(url, headers, launcher.caps, ear.clone())?)
                }
            };
            let (place, exit) = (Place::Remote { url: url.clone() }, Arc::default());
            let origin = Origin::default();
            return Ok(Line { link, process: None, exit, place, origin, cleared, folder: None });
        }
        let begun = self.begin(launch, spare).await?;
        let Begun { stdin, stdout, handle, exit, place, origin, cleared, folder, .. } = begun;
        let link = Arc::new(Pipe::new(stdin, stdout, launcher.caps, ear.clone()));
        Ok(Line { link, process: Some(handle), exit, place, origin, cleared, folder })
    }

    /// Has a process running: a new one, or a spare that was started in nobody's name.
    ///
    /// # Errors
    /// A [`Failure`] where it may not be started, or does not start.
    pub(super) async fn begin(
        &self,
        launch: Launch<'_>,
        spare: Option<Begun>,
    ) -> Result<Begun, Failure> {
        let (name, settings) = (&self.common.name, &self.common.settings);
        let launcher = &self.common.launcher;
        let hashed = launcher.hashed(settings).await;
        let handed = launcher.hand(name, settings).await.map_err(|failure| refused(&failure))?;
        let pinned = launcher.images.pin(&launcher.engine, name, settings).await;
        let pinned = pinned.map_err(|failed| refused(&failed.into()))?;
        let what = (pinned.as_ref(), hashed.as_ref());
        let cleared = self.announce(launch, &handed, None, what).await?;
        if let Some(spare) = spare {
            // What runs is what was decided now, not what was when it began.
            if spare.cleared.program.digest != cleared.program.digest {
                end(spare.handle.as_ref(), Duration::ZERO).await;
                let why = "the spare process is of what was there before";
                return Err(Failure::Unavailable(why.into()));
            }
            // From here on it runs for this party, and what it reaches is decided so.
            if let Some(party) = self.principal()
                && spare.principal.set(party).is_err()
            {
                return Err(Failure::Unavailable("the spare process is another's".into()));
            }
            return Ok(Begun { cleared, ..spare });
        }
        if let Some(pinned) = &pinned {
            self.fetch(launch, pinned).await?;
        }
        let principal = Arc::new(self.principal().map_or_else(OnceLock::new, OnceLock::from));
        let reacher =
            Reacher { launch: launch.id, server: name.clone(), principal: principal.clone() };
        let started = launcher.start(reacher, settings, &handed, what.0, what.1).await;
        let (process, place, folder) = started.map_err(|failure| refused(&failure))?;
        let (log, scrub) = (self.common.log.clone(), self.common.scrub.clone());
        tokio::spawn(log::keep(process.stderr, log, scrub, self.secrets(handed)));
        let handle: Arc<dyn Handle> = process.handle.into();
        let exit = Arc::new(OnceLock::new());
        tokio::spawn({
            let (end, exit) = (handle.wait(), exit.clone());
            async move {
                let _ = exit.set(end.await);
            }
        });
        let (stdin, stdout) = (process.stdin, process.stdout);
        let origin = process.origin;
        Ok(Begun { stdin, stdout, handle, exit, principal, place, origin, cleared, folder })
    }

    /// Locks an image that was just found out, and waits for it to be on the engine; not too long,
    /// since somebody waits for an answer. The pull goes on.
    async fn fetch(&self, launch: Launch<'_>, pinned: &Pinned) -> Result<(), Failure> {
        let Common { launcher, name, settings, .. } = &*self.common;
        let failed = |failed: Failed| refused(&failed.into());
        if pinned.is_new {
            launcher.images.lock(name, pinned).await.map_err(failed)?;
        }
        // The launch itself says what there is to say of that.
        let Ok(engine) = &launcher.engine else { return Ok(()) };
        let ready = launcher.images.ready(engine, pinned).await.map_err(failed)?;
        let Readiness::Pulling(pull, by_us) = ready else { return Ok(()) };
        if by_us {
            let (launch, events, end) = (launch.id, self.common.events.clone(), pull.end.clone());
            let (image, digest) = (pinned.name.clone(), pinned.digest().to_owned());
            tokio::spawn(async move {
                let outcome = end.await;
                let pulling = Box::new(Pulling { launch, image, digest, outcome });
                let _ = events.send(Event::Pulled(pulling)).await;
            });
        }
        let patience =
            Duration::from_secs(settings.start_timeout_s.min(settings.call_timeout_s)) / 2;
        match tokio::time::timeout(patience, pull.end).await {
            Ok(ended) => ended.map(drop).map_err(failed),
            Err(_) => Err(Failure::Pulling(on_its_way(*pull.progress.borrow()))),
        }
    }

    /// What it was handed when it was started, and has been since.
    fn secrets(&self, first: Arc<Handed>) -> impl Fn() -> Vec<Arc<Handed>> + Send + use<> {
        let (name, launcher) = (self.common.name.clone(), self.common.launcher.clone());
        move || [first.clone()].into_iter().chain(launcher.hands.of(&name).ok()).collect()
    }

    /// Greets a remote server over HTTP+SSE, which it may speak where it takes no greeting over
    /// streamable HTTP.
    async fn older(
        &self,
        launch: Launch<'_>,
        ear: Ear,
        hello: &Hello,
    ) -> Result<(Arc<dyn Link>, Arc<Launching>, Greeting), Failure> {
        let url = self.common.settings.url.as_deref().unwrap_or_default();
        let (name, settings) = (&self.common.name, &self.common.settings);
        let handed = self.common.launcher.hand(name, settings).await;
        let handed = handed.map_err(|failure| refused(&failure))?;
        let cleared = self.announce(launch, &handed, Some((url, true)), (None, None)).await?;
        let link = Sse::open(url, &handed.by(By::Header), self.common.launcher.caps, ear).await?;
        let greeting = greet(&link, Era::Legacy, hello, self.start_timeout()).await?;
        self.common.sse.store(true, Ordering::Relaxed);
        Ok((Arc::new(link), cleared, greeting))
    }

    /// Has it decided and recorded what is about to be done: that it is started, the way to it, and
    /// the secrets that it is handed. `way` is a URL and whether HTTP+SSE is spoken there. Tells
    /// what was permitted.
    ///
    /// # Errors
    /// [`Failure::Forbidden`] and [`Failure::Unrecorded`]: then nothing of it may be done.
    async fn announce(
        &self,
        launch: Launch<'_>,
        handed: &Handed,
        way: Option<(&str, bool)>,
        (pinned, hashed): (Option<&Pinned>, Option<&Hashed>),
    ) -> Result<Arc<Launching>, Failure> {
        let launcher = &self.common.launcher;
        let mut program = launcher
            .program_of(&self.common.name, &self.common.settings, pinned)
            .map_err(|failure| refused(&failure))?;
        if let Some(hashed) = hashed {
            program.digest = Some(hashed.digest.clone());
        }
        if let Some(pinned) = pinned {
            let signed = launcher.signed(&self.common.name, &self.common.settings, pinned).await;
            program.signed = signed.map_err(|failure| refused(&failure))?;
        }
        let launching = Arc::new(Launching {
            launch: launch.id,
            place: self.common.launcher.place(&self.common.settings),
            program,
            party: self.principal(),
            way: way.map(|(url, sse)| Connecting {
                url: url.to_owned(),
                protocol: if sse { "sse" } else { "streamable-http" },
            }),
            handing: handed.0.iter().map(Handing::from).collect(),
            resolved: pinned
                .filter(|pinned| pinned.is_new)
                .map(|pinned| (pinned.name.clone(), pinned.digest().to_owned())),
        });
        let _paused = launch.clock.pause();
        let (recorded, answer) = oneshot::channel();
        self.say(Event::Launching(launching.clone(), recorded)).await;
        let nobody = |_| Err(NotCleared::Unrecorded("the proxy is shutting down".to_owned()));
        answer.await.unwrap_or_else(nobody).map_err(|why| match why {
            NotCleared::Unrecorded(why) => Failure::Unrecorded(why),
            NotCleared::Forbidden(refusal) => Failure::Forbidden(refusal),
        })?;
        Ok(launching)
    }
}

impl From<&HandedSecret> for Handing {
    fn from(secret: &HandedSecret) -> Self {
        let HandedSecret { name, value: _, source, by } = secret;
        Self { secret: name.clone(), source: source.clone(), by: *by }
    }
}

fn refused(failure: &LaunchFailure) -> Failure {
    Failure::Unavailable(match &failure.remedy {
        Some(remedy) => format!("{} ({remedy})", failure.what),
        None => failure.what.clone(),
    })
}
