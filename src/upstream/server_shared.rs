//! State that all instances of one server share.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::{
    call_error::CallError,
    discovery_cache::DiscoveryCache,
    event::ServerEvent,
    handshake::{Approach, Eras, Handshake},
    launcher::Launcher,
    running::Running,
    secret_set::LoadedSecrets,
    server_secrets::ServerSecrets,
    stderr_log::{Log, Scrub},
    transport::UnroutedMessage,
};
use crate::config::{self, Era, Sharing};
use portcullis_protocol::{
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_runtime::process::Exit;

/// Longest wait for the exit status of a process that was ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest text of a failure.
const MAX_FAILURE_BYTES: usize = 1_000;

/// State that all instances of one server share.
pub(super) struct ServerShared {
    pub name: ServerName,
    pub settings: Arc<config::Server>,
    pub launcher: Arc<Launcher>,
    pub secrets: ServerSecrets,
    pub discovery: Arc<DiscoveryCache>,
    pub log: Log,
    pub scrub: Scrub,
    pub unrouted: mpsc::Sender<UnroutedMessage>,
    events: mpsc::Sender<ServerEvent>,
    /// Reason why no further instance starts.
    stopped: OnceLock<&'static str>,
    /// Whether an operator stopped the server until they start it again.
    pub stopped_by_operator: AtomicBool,
    /// Eras that the server speaks, as far as handshakes have shown.
    pub eras: RwLock<Option<Eras>>,
    /// Whether the server refused `initialize`, although it claims to speak both eras.
    only_modern: AtomicBool,
    /// The last handshake of the shared instance of legacy clients.
    pub legacy_handshake: RwLock<Option<Arc<Handshake>>>,
    /// Whether the server speaks HTTP+SSE only.
    pub sse: AtomicBool,
    /// Number of instances that were ended because they did not answer a health check.
    pub unwell: AtomicU64,
}

impl ServerShared {
    pub fn new(
        name: ServerName,
        settings: config::Server,
        launcher: Arc<Launcher>,
        loaded: LoadedSecrets,
        scrub: Scrub,
        events: mpsc::Sender<ServerEvent>,
        unrouted: mpsc::Sender<UnroutedMessage>,
    ) -> Arc<Self> {
        let settings = Arc::new(settings);
        let secrets = ServerSecrets::new(name.clone(), settings.clone(), launcher.clone(), loaded);
        let discovery =
            DiscoveryCache::new(name.clone(), settings.clone(), launcher.clone(), scrub.clone());
        Arc::new(Self {
            name,
            settings,
            launcher,
            secrets,
            discovery: Arc::new(discovery),
            log: Arc::default(),
            scrub,
            unrouted,
            events,
            stopped: OnceLock::new(),
            stopped_by_operator: AtomicBool::new(false),
            eras: RwLock::default(),
            only_modern: AtomicBool::new(false),
            legacy_handshake: RwLock::default(),
            sse: AtomicBool::new(false),
            unwell: AtomicU64::new(0),
        })
    }

    /// The eras that a handshake shows. Of a server of both eras, the modern one counts if the
    /// config says so, or lets all clients share one instance.
    pub fn eras_of(&self, handshake: &Handshake) -> Eras {
        let one = self.settings.era != Era::Auto
            || self.settings.sharing == Sharing::Shared
            || self.only_modern.load(Ordering::Relaxed);
        match handshake.eras() {
            Eras::Both if one => Eras::Modern,
            eras => eras,
        }
    }

    /// Notes the eras that a handshake shows.
    pub fn learn_eras(&self, handshake: &Handshake, approach: Approach) {
        let mut eras = self.eras.write();
        // A server of both eras that was addressed in the legacy one still speaks both.
        let legacy = matches!(approach, Approach::Legacy | Approach::LegacyFirst);
        if !legacy || *eras != Some(Eras::Both) {
            *eras = Some(self.eras_of(handshake));
        }
    }

    /// Notes that the server speaks only the modern era.
    pub fn refuses_legacy(&self) {
        self.only_modern.store(true, Ordering::Relaxed);
        *self.eras.write() = Some(Eras::Modern);
    }

    /// Refuses all further starts.
    pub fn stop_launches(&self, why: &'static str) {
        let _ = self.stopped.set(why);
    }

    /// Whether instances may start. Long operations ask again at their end.
    ///
    /// # Errors
    /// `server-unavailable` after [`stop_launches`](Self::stop_launches).
    pub fn ensure_active(&self) -> Result<(), Refusal> {
        match self.stopped.get() {
            None => Ok(()),
            Some(why) => {
                let words = format!("server `{}` is not available: {why}", self.name);
                Err(Refusal::new(Code::ServerUnavailable, words))
            }
        }
    }

    /// Whether the server takes calls.
    ///
    /// # Errors
    /// `server-unavailable` after [`stop_launches`](Self::stop_launches), or while an operator has
    /// stopped the server.
    pub fn ensure_started(&self) -> Result<(), Refusal> {
        self.ensure_active()?;
        if self.stopped_by_operator.load(Ordering::Relaxed) {
            let words = format!("server `{}` is stopped by the operator", self.name);
            return Err(Refusal::new(Code::ServerUnavailable, words));
        }
        Ok(())
    }

    /// Longest time of a call.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.settings.call_timeout_s)
    }

    /// Longest time of a start.
    pub fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.settings.start_timeout_s)
    }

    /// Longest wait of a call for an image pull: half of the caller's time stays for the call.
    pub fn pull_patience(&self) -> Duration {
        self.start_timeout().min(self.call_timeout()) / 2
    }

    /// Passes an event to the recorder.
    pub async fn emit(&self, event: ServerEvent) {
        let _ = self.events.send(event).await;
    }

    /// Reports the end of a process or connection, with its exit status.
    pub async fn emit_end(&self, running: &Running, why: String) {
        let (process, exit) = match &running.process {
            Some(process) => {
                let exit = tokio::time::timeout(EXIT_TIMEOUT, process.wait()).await.ok();
                (process.describe(), exit)
            }
            None => (running.placement.why().to_owned(), None),
        };
        let (launch, party) = (running.cleared.launch, running.cleared.party.clone());
        self.emit(ServerEvent::Ended { launch, process, party, why, exit }).await;
    }

    /// A failure with the exit status and a hint at the log. The text does not contain standard
    /// error of the server.
    pub fn with_exit(&self, failure: CallError, exit: &OnceLock<Exit>) -> CallError {
        let mut text = failure.to_string();
        if let Some(exit) = exit.get() {
            text = format!("{text} with {exit}");
        }
        if !self.log.lock().is_empty() {
            text = format!("{text}; see `portcullis server logs {}`", self.name);
        }
        self.scrubbed(CallError::Unavailable(text))
    }

    /// A failure that may be logged: secrets are redacted, and the text is bounded. Parts of the
    /// text can come from the server, such as the name of a header.
    pub fn scrubbed(&self, failure: CallError) -> CallError {
        let clean = |mut text: String| {
            (self.scrub)(&mut text);
            text.truncate(text.floor_char_boundary(MAX_FAILURE_BYTES));
            text
        };
        match failure {
            CallError::Unavailable(text) => CallError::Unavailable(clean(text)),
            CallError::Misbehaved(text) => CallError::Misbehaved(clean(text)),
            CallError::Unrecorded(text) => CallError::Unrecorded(clean(text)),
            CallError::Forgotten => CallError::Unavailable(failure.to_string()),
            CallError::CircuitOpen { why, remaining } => {
                CallError::CircuitOpen { why: clean(why), remaining }
            }
            failure @ (CallError::Timeout(_)
            | CallError::Overloaded { .. }
            | CallError::Forbidden(_)
            | CallError::NoSecret { .. }
            | CallError::Pulling(_)) => failure,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The shared state of a server `s` that has no engine, and its events.
    pub fn shared(settings: config::Server) -> (Arc<ServerShared>, mpsc::Receiver<ServerEvent>) {
        shared_with(settings, LoadedSecrets::default())
    }

    pub fn shared_with(
        settings: config::Server,
        loaded: LoadedSecrets,
    ) -> (Arc<ServerShared>, mpsc::Receiver<ServerEvent>) {
        let (events, receiver) = mpsc::channel(16);
        let (unrouted, _) = mpsc::channel(1);
        let scrub: Scrub = Arc::new(|text| *text = text.replace("secret", "[redacted]"));
        let (name, launcher) = ("s".parse().unwrap(), launcher("/".into(), None));
        (ServerShared::new(name, settings, launcher, loaded, scrub, events, unrouted), receiver)
    }

    /// A launcher without an engine, for a config in the folder `base`.
    pub fn launcher(base: PathBuf, discovery_cache_dir: Option<PathBuf>) -> Arc<Launcher> {
        Arc::new(Launcher {
            engine: crate::Engines::none(None, "none"),
            instance: String::new(),
            base,
            protected: Default::default(),
            discovery_cache_dir,
            caps: portcullis_protocol::codec::Caps {
                bytes: 1_000,
                depth: 9,
                nodes: 99,
                keys: 99,
                object_keys: 99,
            },
            broker: Default::default(),
            runtime: Default::default(),
            digests: Default::default(),
            images: Arc::new(crate::Images::of_nothing()),
            egress_gates: Arc::new(portcullis_runtime::egress_netns::DenyAllEgress),
            signatures: Default::default(),
            dismissed: Default::default(),
            looks: portcullis_foundation::fair_semaphore::FairSemaphore::one_each(),
        })
    }

    #[test]
    fn failures_are_redacted_and_limited() {
        let (server, _events) = shared(config::Server::default());
        server.log.lock().push_back("line".into());
        let failure = CallError::Misbehaved(format!("secret{}", "x".repeat(2_000)));
        let CallError::Misbehaved(text) = server.scrubbed(failure) else { panic!() };
        assert_eq!(text.len(), MAX_FAILURE_BYTES);
        assert!(text.starts_with("[redacted]x"));
        let exit = OnceLock::new();
        let failure = server.with_exit(CallError::Unavailable("it ended".into()), &exit);
        assert_eq!(failure.to_string(), "it ended; see `portcullis server logs s`");
    }

    #[test]
    fn stopped_server_refuses_starts() {
        let (server, _events) = shared(config::Server::default());
        assert_eq!(server.ensure_active(), Ok(()));
        server.stop_launches("it was removed");
        let refusal = server.ensure_active().unwrap_err();
        assert_eq!(refusal.message, "server `s` is not available: it was removed");
    }
}
