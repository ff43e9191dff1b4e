//! A server's process in any runtime: the contract between the runtimes (container, sandbox) and
//! the connection that speaks MCP over the process's pipes.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::{MountPolicy, mount::Mount};
use crate::config::{Hardening, Resources};
use portcullis_egress::Destination;
use portcullis_protocol::names::ServerName;
use portcullis_vault::Secret;

/// Folder inside with the secrets that are delivered as files.
pub const SECRETS: &str = "/run/secrets";

/// Description of a start, the same for every runtime.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    pub server: ServerName,
    /// Program and arguments. For an image: arguments after the image's entry point.
    pub command: Vec<String>,
    /// Image, for containers.
    pub image: Option<String>,
    /// Environment variables without secrets.
    pub env: Vec<(String, String)>,
    /// Secrets delivered as environment variables.
    pub secrets: Vec<(String, Secret)>,
    /// Host folder on a tmpfs with the secrets that are delivered as files. Inside it is
    /// [`SECRETS`], read-only.
    pub secret_files: Option<PathBuf>,
    /// Host folders with their targets inside.
    pub mounts: Vec<Mount>,
    /// Paths of this machine that the server may not see, whatever is mounted.
    pub mount_policy: Arc<MountPolicy>,
    pub resources: Resources,
    /// OCI runtime for containers, by the engine's name for it. `None`: the engine chooses.
    pub runtime: Option<&'static str>,
    /// Deviations from the hardened default profile that the operator allows.
    pub hardening: Hardening,
    /// Hosts that the server may reach.
    pub egress: Vec<Destination>,
    /// Instance of the proxy that starts it, for labels and reaping.
    pub instance: String,
}

impl LaunchSpec {
    /// Program with default settings, without environment, mounts or egress.
    pub fn bare(server: ServerName, command: Vec<String>, instance: impl Into<String>) -> Self {
        Self {
            server,
            command,
            image: None,
            env: Vec::new(),
            secrets: Vec::new(),
            secret_files: None,
            mounts: Vec::new(),
            mount_policy: Arc::new(MountPolicy::of_host()),
            resources: Resources::default(),
            runtime: None,
            hardening: Hardening::default(),
            egress: Vec::new(),
            instance: instance.into(),
        }
    }

    /// Usual variables of programs, except those that are already `set`.
    pub fn home(&self, set: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
        // The only folder that every user can write: caches and settings go there.
        let home = [("HOME", "/tmp")];
        // Mounted files belong to a user of the host, so git would refuse them ("dubious
        // ownership"). That check protects a person from another user's repository, and no person
        // works here.
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

/// What runs and how it is confined, for the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Program, if it is one of this machine.
    pub program: Option<String>,
    /// Image as named in the config.
    pub image_ref: Option<String>,
    /// Digest by which the engine knows the image.
    pub image: Option<String>,
    /// Digest of the container's profile.
    pub profile: Option<String>,
    /// Differences from the default profile, one a line.
    pub deviations: Vec<String>,
    /// Whether a test from inside confirmed that only the egress sockets are reachable.
    pub egress_tried: bool,
}

/// Controls a process and reports about it. Dropping it ends the process immediately, even if tasks
/// still wait for its end.
#[async_trait]
pub trait Handle: Send + Sync {
    /// Location in one line: `container 0123456789ab`, `sandbox pid 42`.
    fn describe(&self) -> String;

    /// Waits for the process's end. Can be called several times. The future does not keep the
    /// process alive: it resolves when the handle is dropped.
    fn wait(&self) -> BoxFuture<'static, Exit>;

    /// Requests the end, and kills the process after `grace`. Returns after its end.
    async fn stop(&self, grace: Duration);

    /// Present resource usage, if known.
    async fn usage(&self) -> Option<Usage>;
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n after signal n; -1 if unknown.
    pub code: i64,
    /// Explanation, if there is one: out of memory, could not execute.
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

/// Resource usage of a server's process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Bytes of memory.
    pub memory: u64,
    /// Seconds of processor time since the start.
    pub cpu_seconds: f64,
}

/// Failure to start a server.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct LaunchFailure {
    /// Cause, for the operator. Never contains a secret.
    pub what: String,
    /// Remedy.
    pub remedy: Option<String>,
}
