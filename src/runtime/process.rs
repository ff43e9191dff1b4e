//! A server's process, wherever it runs: the contract between the runtimes (container, sandbox)
//! and the connection that speaks MCP over its pipes.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MountPolicy, egress_netns::EgressSockets};
use crate::config::{Hardening, Resources};
use portcullis_egress::Destination;
use portcullis_protocol::names::ServerName;
use portcullis_vault::Secret;

/// Where a server finds the secrets that it is handed as files.
pub const SECRETS: &str = "/run/secrets";

/// What to start, the same for every runtime.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    pub server: ServerName,
    /// The program and its arguments. For an image: arguments after the image's entry point.
    pub command: Vec<String>,
    /// The image, for containers.
    pub image: Option<String>,
    /// Plain environment.
    pub env: Vec<(String, String)>,
    /// Secrets, handed over as environment.
    pub secrets: Vec<(String, Secret)>,
    /// A folder of the host, on a tmpfs of ours, with secrets that are handed over as files: seen
    /// as [`SECRETS`] inside, read-only.
    pub secret_files: Option<PathBuf>,
    /// Host folders, with their place inside.
    pub mounts: Vec<Mount>,
    /// What of this machine it may not see, whatever is mounted.
    pub places: Arc<MountPolicy>,
    pub resources: Resources,
    /// The OCI runtime, for containers, by the engine's name for it. None: the engine's own choice.
    pub runtime: Option<&'static str>,
    /// What the operator allows beyond the hardened default profile.
    pub hardening: Hardening,
    /// The hosts that it may reach.
    pub egress: Vec<Destination>,
    /// The instance of the proxy that starts it, for labels and reaping.
    pub instance: String,
}

impl LaunchSpec {
    /// A program with everything at its default, and nothing of its own.
    pub fn bare(server: ServerName, command: Vec<String>, instance: impl Into<String>) -> Self {
        Self {
            server,
            command,
            image: None,
            env: Vec::new(),
            secrets: Vec::new(),
            secret_files: None,
            mounts: Vec::new(),
            places: Arc::new(MountPolicy::of_host()),
            resources: Resources::default(),
            runtime: None,
            hardening: Hardening::default(),
            egress: Vec::new(),
            instance: instance.into(),
        }
    }

    /// The usual variables of programs, except those that are `set` already.
    pub fn home(&self, set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
        // The one place where everybody may write: caches and settings go there.
        let home = [("HOME", "/tmp")];
        // What is mounted belongs to somebody of the host, so git would take none of it ("dubious
        // ownership"). That shields a person from a repository of another one: here is no person.
        let git = [
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "*"),
        ];
        let git = (!self.mounts.is_empty() && !set("GIT_CONFIG_COUNT")).then_some(git);
        let home = home.into_iter().filter(|(name, _)| !set(name));
        home.chain(git.into_iter().flatten()).collect()
    }
}

/// A host folder that a server sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host: absolute. Once it was checked, without symbolic links.
    pub source: PathBuf,
    /// Inside: absolute.
    pub target: PathBuf,
    pub writable: bool,
}

/// A started process: three byte streams and an end.
pub struct Process {
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    pub handle: Box<dyn Handle>,
    pub origin: Origin,
    /// Where it asks for the hosts that it may reach: it is there since before the program began, and who
    /// asks waits. Nobody answers there yet.
    pub door: Option<EgressSockets>,
}

/// What runs, and how it is confined: for the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The program, where it is one of this machine.
    pub program: Option<String>,
    /// The image as it was named.
    pub image_ref: Option<String>,
    /// The digest by which the engine knows the image.
    pub image: Option<String>,
    /// The digest of the container's profile.
    pub profile: Option<String>,
    /// What the config changed against the default profile, one a line.
    pub deviations: Vec<String>,
    /// Whether it was tried from inside that nothing but its way out is to be reached.
    pub egress_tried: bool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("handle", &self.handle.describe()).finish_non_exhaustive()
    }
}

/// The way to end a process and to ask about it. Dropping it ends the process at once, whoever
/// still waits for its end.
#[async_trait]
pub trait Handle: Send + Sync {
    /// Where it runs, in one line: `container 0123456789ab`, `sandbox pid 42`.
    fn describe(&self) -> String;

    /// Waits for its end. May be called more than once. What waits does not hold the process: it
    /// sees the end that the handle's drop brings about.
    fn wait(&self) -> BoxFuture<'static, Exit>;

    /// Asks it to end, and ends it by force after `grace`. Returns once it is gone.
    async fn stop(&self, grace: Duration);

    /// What it uses now, where that can be told.
    async fn usage(&self) -> Option<Usage>;
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n after signal n; -1 where it could not be told.
    pub code: i64,
    /// In words, where there is more to say: killed for memory, could not execute.
    pub reason: Option<String>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}", self.code)?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// What a server's process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Bytes of memory.
    pub memory: u64,
    /// Seconds of processor time since it started.
    pub cpu_seconds: f64,
}

/// A server that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct LaunchFailure {
    /// What went wrong, for the operator. Never holds a secret.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<String>,
}
