//! How an instance is started: its process, its line, its greeting.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{SetOnce, oneshot},
};
use tokio_util::task::TaskTracker;

use super::{
    Deadline,
    discovery::Definitions,
    event::{
        Connecting, DeliveryMethod, LaunchDenied, LaunchRequest, Pulling, SecretDelivery,
        ServerEvent,
    },
    handshake::{Handshake, HandshakeParams, greet},
    http::{Http, Sse},
    images::{ImageError, Pinned, Pull, Readiness, on_its_way},
    instance::{Instance, ServerShared},
    launcher::{Placement, PreparedLaunch, origin},
    message_sink::MessageSink,
    running::{NUMBERS, Running, SecretHistory, end},
    server_secrets::{DeliveredSecret, SecretSet},
    stderr_log,
    stdio::StdioTransport,
    transport::{CallError, ServerTransport},
};
use crate::config::{Era, Transport};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{identity::PrincipalKind, names::DecisionId};
use portcullis_runtime::container::Engine;
use portcullis_runtime::{
    egress_netns::EgressContext,
    process::{Exit, Handle, LaunchFailure, Origin},
};
use portcullis_vault::Folder;

/// A line with what is at its end.
struct ConnectedProcess {
    link: Arc<dyn ServerTransport>,
    process: Option<Arc<dyn Handle>>,
    exit: Arc<OnceLock<Exit>>,
    place: Placement,
    origin: Origin,
    /// What was permitted to be done for it.
    cleared: Arc<LaunchRequest>,
    /// The secrets that it has.
    handed: Arc<SecretSet>,
    given: SecretHistory,
    /// Where it finds those that it gets as files.
    folder: Option<Folder>,
}

/// A process that runs and was told nothing yet.
pub(super) struct SpawnedProcess {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub handle: Arc<dyn Handle>,
    /// Set once it has ended.
    pub exit: Arc<OnceLock<Exit>>,
    /// The one client for which alone it runs, once there is one.
    principal: Arc<OnceLock<PrincipalKind>>,
    /// Where it runs.
    pub place: Placement,
    origin: Origin,
    /// What was permitted to be done for it.
    pub cleared: Arc<LaunchRequest>,
    /// The secrets that it has.
    pub handed: Arc<SecretSet>,
    given: SecretHistory,
    /// Where it finds those that it gets as files.
    pub folder: Option<Folder>,
}

/// One start of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// What joins all that is told of it.
    pub id: DecisionId,
    /// How long it may take. It stands still while the audit log is waited for, which has a
    /// deadline of its own.
    pub clock: &'a Deadline,
    /// Until when its image is waited for.
    pub until: Instant,
}

impl Instance {
    /// Starts it, by way of a spare process where there is one.
    pub(super) async fn start(
        &self,
        launch: Launch<'_>,
        mut spare: Option<SpawnedProcess>,
    ) -> Result<Running, CallError> {
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
                tracing::debug!(server = %self.common.name, %failure, "server exited during discovery; starting it as a legacy server");
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
        spare: Option<SpawnedProcess>,
    ) -> Result<Running, (CallError, bool)> {
        let definitions = Arc::new(Definitions::default());
        let ear = MessageSink::new(
            self.common.name.clone(),
            self.party().cloned(),
            definitions.clone(),
            self.common.heard.clone(),
            self.lost.clone(),
        );
        let ear = if self.quiet { ear.without_lists() } else { ear };
        let hello = self.party.as_ref().map(HandshakeParams::of).unwrap_or_default();
        let line = self.line(launch, &ear, spare).await;
        let mut line = line.map_err(|failure| (failure, false))?;
        let greeting = greet(line.link.as_ref(), era, &hello, self.start_timeout());
        let mut greeted =
            in_turns(Party::Server(self.common.name.clone()), Weight::NONE, greeting).await;
        if greeted.is_err()
            && line.link.turned_away()
            && self.common.settings.transport == Transport::Auto
            && let Ok((older, cleared, handed, greeting)) =
                self.older(launch, ear.clone(), &hello).await
        {
            (line.link, line.cleared, line.handed, greeted) =
                (older, cleared, handed, Ok(greeting));
        }
        let ConnectedProcess { link, process, exit, place, origin, cleared, handed, given, folder } =
            line;
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
                    first: handed.clone(),
                    given,
                    handed: Mutex::new(handed),
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

    /// Gets together what a start goes by.
    ///
    /// # Errors
    /// Where a secret does not resolve, or the image does not resolve, or nothing may
    /// be started any more.
    async fn prepare(&self) -> Result<PreparedLaunch, CallError> {
        let ServerShared { launcher, name, settings, .. } = &*self.common;
        let handed = self.common.hand(&self.whose()).await;
        let handed = handed.map_err(|failure| refused(&failure))?;
        let prepared = launcher.prepare(name, settings, handed).await;
        let prepared = prepared.map_err(|failure| refused(&failure))?;
        self.still_there()?;
        Ok(prepared)
    }

    async fn line(
        &self,
        launch: Launch<'_>,
        ear: &MessageSink,
        spare: Option<SpawnedProcess>,
    ) -> Result<ConnectedProcess, CallError> {
        let (settings, launcher) = (&self.common.settings, &self.common.launcher);
        if let Some(url) = &settings.url {
            let prepared = self.prepare().await?;
            let headers = &prepared.handed.by(DeliveryMethod::Header);
            let found = self.common.sse.load(Ordering::Relaxed);
            let sse = match settings.transport {
                Transport::Auto => found,
                other => other == Transport::Sse,
            };
            let cleared = self.announce(launch, Some((url, sse)), &prepared).await?;
            self.still_there()?;
            let link: Arc<dyn ServerTransport> = match settings.transport {
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
            let (place, exit) = (Placement::Remote { url: origin(url) }, Arc::default());
            let origin = Origin::default();
            let (process, folder, handed) = (None, None, prepared.handed);
            let given = SecretHistory::new(handed.clone());
            return Ok(ConnectedProcess {
                link,
                process,
                exit,
                place,
                origin,
                cleared,
                handed,
                given,
                folder,
            });
        }
        let begun = self.begin(launch, spare).await?;
        let SpawnedProcess { stdin, stdout, handle, exit, place, origin, cleared, handed, .. } =
            begun;
        let SpawnedProcess { given, folder, .. } = begun;
        let (link, process) =
            (StdioTransport::new(stdin, stdout, launcher.caps, ear.clone()), Some(handle));
        let link = Arc::new(link);
        Ok(ConnectedProcess { link, process, exit, place, origin, cleared, handed, given, folder })
    }

    /// Has a process running: a new one, or a spare that was started in nobody's name.
    ///
    /// # Errors
    /// A [`CallError`] where it may not be started, or does not start.
    pub(super) async fn begin(
        &self,
        launch: Launch<'_>,
        spare: Option<SpawnedProcess>,
    ) -> Result<SpawnedProcess, CallError> {
        let (name, settings) = (&self.common.name, &self.common.settings);
        let launcher = &self.common.launcher;
        let mut prepared = self.prepare().await?;
        if let Some(spare) = &spare {
            prepared.place = spare.place.clone();
        }
        let cleared = self.announce(launch, None, &prepared).await?;
        if let Err(over) = self.still_there() {
            if let Some(spare) = spare {
                end(spare.handle.as_ref(), Duration::ZERO).await;
            }
            return Err(over);
        }
        if let Some(spare) = spare {
            // What runs is what was decided now, not what was when it began.
            if spare.cleared.program.digest != cleared.program.digest {
                end(spare.handle.as_ref(), Duration::ZERO).await;
                let why = "the spare process is of what was there before";
                return Err(CallError::Unavailable(why.into()));
            }
            // Nobody has what is another's.
            if !Arc::ptr_eq(&spare.handed, &prepared.handed) {
                end(spare.handle.as_ref(), Duration::ZERO).await;
                let why = "the spare process has other secrets";
                return Err(CallError::Unavailable(why.into()));
            }
            // From here on it runs for this party, and what it reaches is decided so.
            if let Some(party) = self.principal()
                && spare.principal.set(party).is_err()
            {
                return Err(CallError::Unavailable("the spare process is another's".into()));
            }
            return Ok(SpawnedProcess { cleared, ..spare });
        }
        // An image that runs already is its cluster's to have pulled.
        if let (Some(pinned), Ok(engine)) = (&prepared.pinned, &prepared.engine)
            && settings.pod_socket.is_none()
        {
            self.fetch(launch, engine, pinned).await?;
            self.still_there()?;
        }
        let principal = Arc::new(self.principal().map_or_else(OnceLock::new, OnceLock::from));
        let reacher =
            EgressContext { launch: launch.id, server: name.clone(), principal: principal.clone() };
        let started = launcher.start(reacher, settings, &prepared).await;
        let (process, folder) = started.map_err(|failure| refused(&failure))?;
        let PreparedLaunch { handed, place, .. } = prepared;
        let (log, scrub) = (self.common.log.clone(), self.common.scrub.clone());
        let given = SecretHistory::new(handed.clone());
        tokio::spawn(stderr_log::keep(process.stderr, log, scrub, {
            let given = given.clone();
            move || given.all()
        }));
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
        Ok(SpawnedProcess {
            stdin,
            stdout,
            handle,
            exit,
            principal,
            place,
            origin,
            cleared,
            handed,
            given,
            folder,
        })
    }

    /// Locks an image that was just found out, and waits for it to be on the engine; not too long,
    /// since somebody waits for an answer. The pull goes on.
    async fn fetch(
        &self,
        launch: Launch<'_>,
        engine: &Engine,
        pinned: &Pinned,
    ) -> Result<(), CallError> {
        let ServerShared { launcher, name, .. } = &*self.common;
        let failed = |failed: ImageError| refused(&failed.into());
        if pinned.is_new {
            launcher.images.lock(name, pinned).await.map_err(failed)?;
            self.still_there()?;
        }
        let ready = launcher.images.ready(engine, pinned).await.map_err(failed)?;
        let Readiness::Pulling(pull, by_us) = ready else { return Ok(()) };
        if by_us {
            let (launch, events, end) = (launch.id, self.common.events.clone(), pull.end.clone());
            let (image, digest) = (pinned.name.clone(), pinned.digest().to_owned());
            tokio::spawn(async move {
                let outcome = end.await;
                let pulling = Box::new(Pulling { launch, image, digest, outcome });
                let _ = events.send(ServerEvent::Pulled(pulling)).await;
            });
        }
        // Whoever looks whether it is over finds that it is, though nobody may wait for it.
        tokio::spawn(pull.end.clone());
        self.pull.send_replace(Some(pull));
        self.pulled(launch.until).await
    }

    /// Waits where its image is being pulled, until then at the latest.
    ///
    /// # Errors
    /// [`Failure::Pulling`] where it still is, or why it was not pulled.
    pub(super) async fn pulled(&self, until: Instant) -> Result<(), CallError> {
        let Some(pull) = self.pulling() else { return Ok(()) };
        match tokio::time::timeout_at(until.into(), pull.end.clone()).await {
            Ok(ended) => ended.map(drop).map_err(|failed| refused(&failed.into())),
            Err(_) => Err(on_the_way(&pull)),
        }
    }

    /// The pull of its image that is under way.
    pub(super) fn pulling(&self) -> Option<Pull> {
        self.pull.borrow().clone().filter(|pull| pull.end.peek().is_none())
    }

    /// Done once that time is over and whoever starts it waits for its image.
    pub(super) async fn pulled_past(&self, until: Instant) -> CallError {
        tokio::time::sleep_until(until.into()).await;
        let mut pull = self.pull.subscribe();
        let under_way =
            |pull: &Option<Pull>| pull.as_ref().is_some_and(|pull| pull.end.peek().is_none());
        match pull.wait_for(under_way).await.ok().as_deref() {
            Some(Some(pull)) => on_the_way(pull),
            // The sender is this instance's, so it is there.
            _ => CallError::Pulling(String::new()),
        }
    }

    /// Whether anything may still be started of it: the config may have another in its place. Asked
    /// again after whatever takes a while.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn still_there(&self) -> Result<(), CallError> {
        self.common.still_there().map_err(|refusal| CallError::Forbidden(Box::new(refusal)))
    }

    /// Greets a remote server over HTTP+SSE, which it may speak where it takes no greeting over
    /// streamable HTTP.
    async fn older(
        &self,
        launch: Launch<'_>,
        ear: MessageSink,
        hello: &HandshakeParams,
    ) -> Result<(Arc<dyn ServerTransport>, Arc<LaunchRequest>, Arc<SecretSet>, Handshake), CallError>
    {
        let url = self.common.settings.url.as_deref().unwrap_or_default();
        let prepared = self.prepare().await?;
        let cleared = self.announce(launch, Some((url, true)), &prepared).await?;
        self.still_there()?;
        let handed = prepared.handed;
        let link =
            Sse::open(url, &handed.by(DeliveryMethod::Header), self.common.launcher.caps, ear)
                .await?;
        let greeting = greet(&link, Era::Legacy, hello, self.start_timeout());
        let greeting =
            in_turns(Party::Server(self.common.name.clone()), Weight::NONE, greeting).await?;
        self.common.sse.store(true, Ordering::Relaxed);
        Ok((Arc::new(link), cleared, handed, greeting))
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
        way: Option<(&str, bool)>,
        PreparedLaunch { handed, pinned, hashed, place, .. }: &PreparedLaunch,
    ) -> Result<Arc<LaunchRequest>, CallError> {
        let launcher = &self.common.launcher;
        let program = launcher.looking(&self.common.name, &self.common.settings, {
            let pinned = pinned.clone();
            move |launcher, name, settings| launcher.program_of(name, settings, pinned.as_ref())
        });
        let mut program = program.await.map_err(|failure| refused(&failure))?;
        let pinned = pinned.as_ref();
        if let Some(hashed) = hashed {
            program.digest = Some(hashed.digest.clone());
        }
        if let Some(pinned) = pinned {
            let signed = launcher.signed(&self.common.name, &self.common.settings, pinned).await;
            program.signed = signed.map_err(|failure| refused(&failure))?;
        }
        let launching = Arc::new(LaunchRequest {
            launch: launch.id,
            place: place.clone(),
            program,
            party: self.principal(),
            way: way.map(|(url, sse)| Connecting {
                url: origin(url),
                protocol: if sse { "sse" } else { "streamable-http" },
            }),
            handing: handed.0.iter().map(SecretDelivery::from).collect(),
            resolved: pinned
                .filter(|pinned| pinned.is_new)
                .map(|pinned| (pinned.name.clone(), pinned.digest().to_owned())),
        });
        let _paused = launch.clock.pause();
        let (recorded, answer) = oneshot::channel();
        self.say(ServerEvent::Launching(launching.clone(), recorded)).await;
        let nobody = |_| Err(LaunchDenied::Unrecorded("the proxy is shutting down".to_owned()));
        answer.await.unwrap_or_else(nobody).map_err(|why| match why {
            LaunchDenied::Unrecorded(why) => CallError::Unrecorded(why),
            LaunchDenied::Forbidden(refusal) => {
                if let Some(image) = pinned.and_then(|pinned| pinned.reference.as_ref()) {
                    launcher.signatures.refused(image);
                }
                CallError::Forbidden(refusal)
            }
        })?;
        Ok(launching)
    }
}

impl From<&DeliveredSecret> for SecretDelivery {
    fn from(secret: &DeliveredSecret) -> Self {
        let DeliveredSecret { name, value: _, source, by, client } = secret;
        Self { secret: name.clone(), source: source.clone(), by: *by, client: client.clone() }
    }
}

pub(super) fn on_the_way(pull: &Pull) -> CallError {
    CallError::Pulling(on_its_way(*pull.progress.borrow()))
}

fn refused(failure: &LaunchFailure) -> CallError {
    CallError::Unavailable(match &failure.remedy {
        Some(remedy) => format!("{} ({remedy})", failure.what),
        None => failure.what.clone(),
    })
}
