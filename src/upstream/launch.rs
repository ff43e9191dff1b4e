//! Starts of shared and dedicated instances: process, connection, handshake.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{SetOnce, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    call_error::CallError,
    deadline::Deadline,
    discovery::Definitions,
    drain::GRACE,
    event::{
        Connecting, LaunchDenied, LaunchRequest, Pulling, SecretDelivery, ServerEvent, Started,
    },
    handshake::{Approach, Eras, Handshake, HandshakeParams, perform_handshake},
    http::{Http, Sse},
    image_pull::ImagePull,
    images::{Pinned, Readiness},
    instance_key::{InstanceKey, InstanceOwner},
    launcher::PreparedLaunch,
    message_sink::{LostMessages, MessageSink},
    placement::{Placement, origin},
    running::{NUMBERS, Running, SecretHistory, end},
    secret_set::{DeliveredSecret, DeliveryMethod, SecretScope, SecretSet},
    server_shared::ServerShared,
    stderr_log,
    stdio::StdioTransport,
    transport::ServerTransport,
};
use crate::config::{Era, Transport};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{identity::PrincipalKind, names::DecisionId};
use portcullis_runtime::container::Engine;
use portcullis_runtime::{
    egress_netns::EgressContext,
    process::{Exit, Handle, Origin},
};
use portcullis_vault::Folder;

/// A connection to a server, with its process.
struct ConnectedProcess {
    link: Arc<dyn ServerTransport>,
    process: Option<Arc<dyn Handle>>,
    exit: Arc<OnceLock<Exit>>,
    placement: Placement,
    origin: Origin,
    /// The launch that policies permitted.
    cleared: Arc<LaunchRequest>,
    /// The delivered secrets.
    secrets: Arc<SecretSet>,
    secret_history: SecretHistory,
    /// Folder of the secrets that are delivered as files.
    folder: Option<Folder>,
}

/// A running process that has received no message.
pub(super) struct SpawnedProcess {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub handle: Arc<dyn Handle>,
    /// Exit status, set after the end of the process.
    pub exit: Arc<OnceLock<Exit>>,
    /// Owner of the dedicated instance, set when the process gets one.
    principal: Arc<OnceLock<PrincipalKind>>,
    /// Runtime of the process.
    pub placement: Placement,
    origin: Origin,
    /// The launch that policies permitted.
    pub cleared: Arc<LaunchRequest>,
    /// The delivered secrets.
    pub secrets: Arc<SecretSet>,
    secret_history: SecretHistory,
    /// Folder of the secrets that are delivered as files.
    pub folder: Option<Folder>,
}

/// One start of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// Id that all events of the launch have.
    pub id: DecisionId,
    /// Deadline of the start. It is paused during waits for the audit log, which has a
    /// deadline of its own.
    pub clock: &'a Deadline,
    /// End of the wait for the image.
    pub until: Instant,
}

/// Starts one instance, shared or dedicated.
pub(super) struct Starter {
    pub server: Arc<ServerShared>,
    pub owner: Option<InstanceOwner>,
    /// Scope of the instance's secrets.
    pub scope: SecretScope,
    /// Whether the instance is shared by the clients before 2026-07-28 of a server of both eras.
    pub serves_legacy: bool,
    /// Whether changes of lists are reported. Only one of the shared instances reports them.
    pub reports_lists: bool,
    /// Whether a probe of the era crashed the process, so that it is not repeated.
    known_legacy: AtomicBool,
    pub pull: ImagePull,
    pub lost: Arc<LostMessages>,
}

impl Starter {
    pub fn new(server: Arc<ServerShared>, owner: Option<InstanceOwner>) -> Self {
        let scope = SecretScope::of(&server.settings, owner.as_ref().map(|owner| &owner.principal));
        Self {
            server,
            owner,
            scope,
            serves_legacy: false,
            reports_lists: true,
            known_legacy: AtomicBool::new(false),
            pull: ImagePull::default(),
            lost: Arc::default(),
        }
    }

    /// Key of the instance; `None` for the shared one.
    pub fn key(&self) -> Option<InstanceKey> {
        match &self.owner {
            Some(owner) => Some(owner.key.clone()),
            None => self.serves_legacy.then_some(InstanceKey::Legacy),
        }
    }

    /// Whether the instance is for clients before 2026-07-28, if the server speaks both eras.
    fn is_for_legacy(&self) -> bool {
        let is_legacy = |owner: &InstanceOwner| !owner.revision.is_modern();
        self.serves_legacy || self.owner.as_ref().is_some_and(is_legacy)
    }

    /// The owner of a dedicated instance.
    pub fn principal(&self) -> Option<PrincipalKind> {
        self.owner.as_ref().map(|owner| owner.principal.clone())
    }

    /// Starts a process, or takes the process `warm_process`, and does the handshake. Reports the
    /// result. Waits for the image until `until`.
    pub async fn launch(
        &self,
        warm_process: impl Future<Output = Option<SpawnedProcess>>,
        until: Instant,
        closing: &CancellationToken,
    ) -> Result<Arc<Running>, CallError> {
        let clock = Deadline::new(self.server.start_timeout());
        let began = Instant::now();
        let warm_process = warm_process.await;
        let id = warm_process
            .as_ref()
            .map_or_else(DecisionId::next, |warm_process| warm_process.cleared.launch);
        let started = tokio::select! {
            biased;
            started = self.start(Launch { id, clock: &clock, until }, warm_process) => started,
            () = clock.expired() => Err(CallError::Unavailable(format!(
                "it did not start within {} s (`start-timeout-s`)",
                self.server.settings.start_timeout_s
            ))),
            () = closing.cancelled() => {
                let ended = || CallError::Unavailable("it was ended while it was being started".into());
                Err(self.server.ensure_active().map_or_else(CallError::from, |()| ended()))
            }
        };
        match started {
            Ok(running) => {
                self.server
                    .emit(ServerEvent::Started(Box::new(Started {
                        launch: id,
                        placement: running.placement.clone(),
                        process: running.process.as_ref().map(|p| p.describe()).unwrap_or_default(),
                        origin: running.origin.clone(),
                        party: self.principal(),
                        revision: running.handshake.revision,
                        server_info: running.handshake.claims(),
                        took: began.elapsed(),
                    })))
                    .await;
                Ok(Arc::new(running))
            }
            Err(failure) => Err(self.not_started(id, failure).await),
        }
    }

    /// Reports a failed start. Returns the failure without secrets.
    pub async fn not_started(&self, launch: DecisionId, failure: CallError) -> CallError {
        let failure = self.server.scrubbed(failure);
        let why = failure.to_string();
        let placement = self.server.launcher.placement(&self.server.settings);
        let party = self.principal();
        self.server.emit(ServerEvent::NotStarted { launch, placement, party, why }).await;
        failure
    }

    /// Starts the instance, with the process `warm_process` if there is one.
    async fn start(
        &self,
        launch: Launch<'_>,
        warm_process: Option<SpawnedProcess>,
    ) -> Result<Running, CallError> {
        // A dedicated instance does not repeat the probe after a handshake in the legacy era.
        let known_legacy = self.known_legacy.load(Ordering::Relaxed)
            || match *self.server.eras.read() {
                Some(Eras::Legacy) => self.owner.is_some() || self.serves_legacy,
                Some(Eras::Both) => self.is_for_legacy(),
                Some(Eras::Modern) | None => false,
            };
        let both = *self.server.eras.read() == Some(Eras::Both);
        let approach = match self.server.settings.era {
            Era::Legacy => Approach::Legacy,
            Era::Modern => Approach::Modern,
            Era::Auto if known_legacy && both => {
                return self.start_legacy_first(launch, warm_process).await;
            }
            Era::Auto if known_legacy => Approach::Legacy,
            Era::Auto => Approach::ModernFirst,
        };
        let probe = approach == Approach::ModernFirst;
        match self.start_as(launch, approach, warm_process).await {
            Err((failure, true)) if probe => {
                let failure = self.server.scrubbed(failure);
                tracing::debug!(server = %self.server.name, %failure, "server exited during discovery; starting it as a legacy server");
                self.known_legacy.store(true, Ordering::Relaxed);
                let started = self.start_as(launch, Approach::Legacy, None).await;
                started.map_err(|(failure, _)| failure)
            }
            // The server may speak both eras, and this connection has the other one.
            Ok(running)
                if probe
                    && self.is_for_legacy()
                    && self.server.eras_of(&running.handshake) == Eras::Both =>
            {
                running.stop(GRACE).await;
                self.start_legacy_first(launch, None).await
            }
            started => started.map_err(|(failure, _)| failure),
        }
    }

    /// Starts a server of the modern era in the legacy one, or in the modern one if it does not
    /// speak the legacy one.
    async fn start_legacy_first(
        &self,
        launch: Launch<'_>,
        warm_process: Option<SpawnedProcess>,
    ) -> Result<Running, CallError> {
        let running = match self.start_as(launch, Approach::LegacyFirst, warm_process).await {
            Err((failure, true)) => {
                let started = self.start_as(launch, Approach::Modern, None).await;
                started.map_err(|_| failure)?
            }
            started => started.map_err(|(failure, _)| failure)?,
        };
        // A dedicated instance declares the capabilities of its client, so its failure says nothing
        // about other clients.
        if running.handshake.revision.is_modern() && self.owner.is_none() {
            tracing::debug!(server = %self.server.name, "server does not speak the legacy era");
            self.server.refuses_legacy();
        }
        Ok(running)
    }

    /// Starts a process and does the handshake. The flag of an error is true if the process died.
    async fn start_as(
        &self,
        launch: Launch<'_>,
        approach: Approach,
        warm_process: Option<SpawnedProcess>,
    ) -> Result<Running, (CallError, bool)> {
        let definitions = Arc::new(Definitions::default());
        let sink = MessageSink::new(
            self.server.name.clone(),
            self.key(),
            definitions.clone(),
            self.server.unrouted.clone(),
            self.lost.clone(),
        );
        let sink = if self.reports_lists { sink } else { sink.without_lists() };
        let handshake_params = self.owner.as_ref().map(HandshakeParams::of).unwrap_or_default();
        let line = self.line(launch, &sink, warm_process).await;
        let mut line = line.map_err(|failure| (failure, false))?;
        let handshake = perform_handshake(
            line.link.as_ref(),
            approach,
            &handshake_params,
            self.server.start_timeout(),
        );
        let mut outcome =
            in_turns(Party::Server(self.server.name.clone()), Weight::NONE, handshake).await;
        if outcome.is_err()
            && line.link.older_transport_suspected()
            && self.server.settings.transport == Transport::Auto
            && let Ok((older, cleared, secrets, handshake)) =
                self.older(launch, sink.clone(), &handshake_params).await
        {
            (line.link, line.cleared, line.secrets, outcome) =
                (older, cleared, secrets, Ok(handshake));
        }
        match outcome {
            Ok(handshake) => {
                let handshake = Arc::new(handshake);
                if self.serves_legacy {
                    *self.server.legacy_handshake.write() = Some(handshake.clone());
                } else if self.owner.is_none() {
                    self.server.discovery.store_handshake(&handshake);
                }
                self.server.learn_eras(&handshake, approach);
                let (number, since) = (NUMBERS.fetch_add(1, Ordering::Relaxed), Instant::now());
                Ok(Running {
                    number,
                    link: line.link,
                    sink,
                    listening: Mutex::default(),
                    handshake,
                    definitions,
                    process: line.process,
                    exit: line.exit,
                    placement: line.placement,
                    origin: line.origin,
                    since,
                    level: Mutex::default(),
                    cleared: line.cleared,
                    first: line.secrets.clone(),
                    secret_history: line.secret_history,
                    secrets: Mutex::new(line.secrets),
                    folder: line.folder,
                    calls: TaskTracker::new(),
                    revoked: SetOnce::new(),
                })
            }
            Err(failure) => {
                let died = line.link.dead().is_some();
                if let Some(process) = &line.process {
                    end(process.as_ref(), Duration::ZERO).await;
                }
                let failure =
                    if died { self.server.with_exit(failure, &line.exit) } else { failure };
                Err((failure, died))
            }
        }
    }

    /// Prepares a start: resolves the secrets and the image.
    ///
    /// # Errors
    /// A [`CallError`] if a secret or the image does not resolve, or no further instance may start.
    async fn prepare(&self) -> Result<PreparedLaunch, CallError> {
        let ServerShared { launcher, name, settings, .. } = &*self.server;
        let secrets = self.server.secrets.load(&self.scope).await?;
        let prepared = launcher.prepare(name, settings, secrets).await?;
        self.server.ensure_active()?;
        Ok(prepared)
    }

    async fn line(
        &self,
        launch: Launch<'_>,
        sink: &MessageSink,
        warm_process: Option<SpawnedProcess>,
    ) -> Result<ConnectedProcess, CallError> {
        let (settings, launcher) = (&self.server.settings, &self.server.launcher);
        if let Some(url) = &settings.url {
            let prepared = self.prepare().await?;
            let headers = &prepared.secrets.by(DeliveryMethod::Header);
            let found = self.server.sse.load(Ordering::Relaxed);
            let sse = match settings.transport {
                Transport::Auto => found,
                other => other == Transport::Sse,
            };
            let cleared = self.announce(launch, Some((url, sse)), &prepared).await?;
            self.server.ensure_active()?;
            let link: Arc<dyn ServerTransport> = match settings.transport {
                Transport::Auto if found => {
                    let opened = Sse::open(url, headers, launcher.caps, sink.clone()).await;
                    // The server may have changed: the next start detects the transport again.
                    self.server.sse.store(opened.is_ok(), Ordering::Relaxed);
                    Arc::new(opened?)
                }
                Transport::Sse => {
                    Arc::new(Sse::open(url, headers, launcher.caps, sink.clone()).await?)
                }
                Transport::Auto | Transport::StreamableHttp => {
                    Arc::new(Http::new(url, headers, launcher.caps, sink.clone())?)
                }
            };
            return Ok(ConnectedProcess {
                link,
                process: None,
                exit: Arc::default(),
                placement: Placement::Remote { url: origin(url) },
                origin: Origin::default(),
                cleared,
                secret_history: SecretHistory::new(prepared.secrets.clone()),
                secrets: prepared.secrets,
                folder: None,
            });
        }
        let spawned = self.begin(launch, warm_process).await?;
        let link = StdioTransport::new(spawned.stdin, spawned.stdout, launcher.caps, sink.clone());
        Ok(ConnectedProcess {
            link: Arc::new(link),
            process: Some(spawned.handle),
            exit: spawned.exit,
            placement: spawned.placement,
            origin: spawned.origin,
            cleared: spawned.cleared,
            secrets: spawned.secrets,
            secret_history: spawned.secret_history,
            folder: spawned.folder,
        })
    }

    /// Starts a process, or takes over the process `warm_process`.
    ///
    /// # Errors
    /// A [`CallError`] if the start is not permitted, or fails.
    pub async fn begin(
        &self,
        launch: Launch<'_>,
        warm_process: Option<SpawnedProcess>,
    ) -> Result<SpawnedProcess, CallError> {
        let (name, settings) = (&self.server.name, &self.server.settings);
        let launcher = &self.server.launcher;
        let mut prepared = self.prepare().await?;
        if let Some(warm_process) = &warm_process {
            prepared.placement = warm_process.placement.clone();
        }
        let cleared = self.announce(launch, None, &prepared).await?;
        if let Err(refusal) = self.server.ensure_active() {
            if let Some(warm_process) = warm_process {
                end(warm_process.handle.as_ref(), Duration::ZERO).await;
            }
            return Err(refusal.into());
        }
        if let Some(warm_process) = warm_process {
            // The process must be of the program that was just permitted.
            if warm_process.cleared.program.digest != cleared.program.digest {
                end(warm_process.handle.as_ref(), Duration::ZERO).await;
                let why = "the warm process is of a replaced image or program";
                return Err(CallError::Unavailable(why.into()));
            }
            // The process must have the secrets of this instance.
            if !Arc::ptr_eq(&warm_process.secrets, &prepared.secrets) {
                end(warm_process.handle.as_ref(), Duration::ZERO).await;
                let why = "the warm process has other secrets";
                return Err(CallError::Unavailable(why.into()));
            }
            // From now on, the process has this owner, also for decisions on egress.
            if let Some(party) = self.principal()
                && warm_process.principal.set(party).is_err()
            {
                return Err(CallError::Unavailable("the warm process is another client's".into()));
            }
            return Ok(SpawnedProcess { cleared, ..warm_process });
        }
        // The cluster pulls the image of a pod's container.
        if let (Some(pinned), Ok(engine)) = (&prepared.pinned, &prepared.engine)
            && settings.pod_socket.is_none()
        {
            self.fetch(launch, engine, pinned).await?;
            self.server.ensure_active()?;
        }
        let principal = Arc::new(self.principal().map_or_else(OnceLock::new, OnceLock::from));
        let egress_context =
            EgressContext { launch: launch.id, server: name.clone(), principal: principal.clone() };
        let (process, folder) = launcher.start(egress_context, settings, &prepared).await?;
        let PreparedLaunch { secrets, placement, .. } = prepared;
        let (log, scrub) = (self.server.log.clone(), self.server.scrub.clone());
        let secret_history = SecretHistory::new(secrets.clone());
        tokio::spawn(stderr_log::keep(process.stderr, log, scrub, {
            let secret_history = secret_history.clone();
            move || secret_history.all()
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
            placement,
            origin,
            cleared,
            secrets,
            secret_history,
            folder,
        })
    }

    /// Locks a newly resolved image, and waits until the engine has it, within the bound for a
    /// caller that waits. The pull continues after that.
    async fn fetch(
        &self,
        launch: Launch<'_>,
        engine: &Engine,
        pinned: &Pinned,
    ) -> Result<(), CallError> {
        let ServerShared { launcher, name, .. } = &*self.server;
        if pinned.is_new {
            launcher.images.lock(name, pinned).await?;
            self.server.ensure_active()?;
        }
        let ready = launcher.images.ready(engine, pinned).await?;
        let Readiness::Pulling(pull, by_us) = ready else { return Ok(()) };
        if by_us {
            let (launch, server, end) = (launch.id, self.server.clone(), pull.end.clone());
            let (image, digest) = (pinned.name.clone(), pinned.digest().to_owned());
            tokio::spawn(async move {
                let outcome = end.await;
                let pulling = Box::new(Pulling { launch, image, digest, outcome });
                server.emit(ServerEvent::Pulled(pulling)).await;
            });
        }
        // Drives the pull's future, so that its end is visible even without a waiting caller.
        tokio::spawn(pull.end.clone());
        self.pull.set(pull);
        self.pull.finished(launch.until).await
    }

    /// Does the handshake with a remote server over HTTP+SSE, after it refused one over streamable
    /// HTTP.
    async fn older(
        &self,
        launch: Launch<'_>,
        sink: MessageSink,
        handshake_params: &HandshakeParams,
    ) -> Result<(Arc<dyn ServerTransport>, Arc<LaunchRequest>, Arc<SecretSet>, Handshake), CallError>
    {
        let url = self.server.settings.url.as_deref().unwrap_or_default();
        let prepared = self.prepare().await?;
        let cleared = self.announce(launch, Some((url, true)), &prepared).await?;
        self.server.ensure_active()?;
        let secrets = prepared.secrets;
        let link =
            Sse::open(url, &secrets.by(DeliveryMethod::Header), self.server.launcher.caps, sink)
                .await?;
        let handshake = perform_handshake(
            &link,
            Approach::Legacy,
            handshake_params,
            self.server.start_timeout(),
        );
        let handshake =
            in_turns(Party::Server(self.server.name.clone()), Weight::NONE, handshake).await?;
        self.server.sse.store(true, Ordering::Relaxed);
        Ok((Arc::new(link), cleared, secrets, handshake))
    }

    /// Requests the decision on a start and its record: the program, the connection, and the
    /// secrets. `connecting` is a URL and whether its transport is HTTP+SSE. Returns the permitted
    /// launch.
    ///
    /// # Errors
    /// [`CallError::Forbidden`] and [`CallError::Unrecorded`]: the caller must not start anything.
    async fn announce(
        &self,
        launch: Launch<'_>,
        connecting: Option<(&str, bool)>,
        PreparedLaunch { secrets, pinned, hashed, placement, .. }: &PreparedLaunch,
    ) -> Result<Arc<LaunchRequest>, CallError> {
        let launcher = &self.server.launcher;
        let program = launcher.looking(&self.server.name, &self.server.settings, {
            let pinned = pinned.clone();
            move |launcher, name, settings| launcher.program_of(name, settings, pinned.as_ref())
        });
        let mut program = program.await?;
        let pinned = pinned.as_ref();
        if let Some(hashed) = hashed {
            program.digest = Some(hashed.digest.clone());
        }
        if let Some(pinned) = pinned {
            program.signed =
                launcher.signed(&self.server.name, &self.server.settings, pinned).await?;
        }
        let launching = Arc::new(LaunchRequest {
            launch: launch.id,
            placement: placement.clone(),
            program,
            party: self.principal(),
            connecting: connecting.map(|(url, sse)| Connecting {
                url: origin(url),
                protocol: if sse { "sse" } else { "streamable-http" },
            }),
            deliveries: secrets.0.iter().map(SecretDelivery::from).collect(),
            resolved: pinned
                .filter(|pinned| pinned.is_new)
                .map(|pinned| (pinned.name.clone(), pinned.digest().to_owned())),
        });
        let _paused = launch.clock.pause();
        let (recorded, answer) = oneshot::channel();
        self.server.emit(ServerEvent::Launching(launching.clone(), recorded)).await;
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::running::tests::{cleared, handle};

    /// A process that has received no message.
    pub fn spawned(secrets: Arc<SecretSet>) -> SpawnedProcess {
        SpawnedProcess {
            stdin: Box::new(tokio::io::sink()),
            stdout: Box::new(tokio::io::empty()),
            handle: handle(),
            exit: Arc::default(),
            principal: Arc::default(),
            placement: Placement::Sandbox { why: "test".into() },
            origin: Origin::default(),
            cleared: cleared(),
            secret_history: SecretHistory::new(secrets.clone()),
            secrets,
            folder: None,
        }
    }
}
