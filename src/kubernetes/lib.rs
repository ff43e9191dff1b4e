//! Kubernetes manifests of one MCP server behind a proxy of its own, as a security team would
//! apply them. Nothing is requested from a cluster: a [`Workload`] goes in, text comes out.
//!
//! A server that speaks over standard input and output has its own container in the proxy's pod.
//! An init container copies the proxy's executable and its libraries there, and `portcullis
//! pod-exec` starts the server's program for the proxy, which reaches it over a socket in a volume
//! that nothing else sees. A remote server has no container: its pod has only the proxy.
//!
//! # Invariants
//! - Every pod satisfies the Pod Security Standard "restricted", and its namespace enforces that.
//! - The output contains no secret value: a [`Secret`] has none. The operator creates the `Secret`
//!   object; volumes refer to it.
//! - Only the configured clients reach the pod, and the pod reaches only the server's `egress`
//!   list, as far as the cluster's network can tell that apart.

mod network;
mod pod;
mod settings;

use std::{fmt::Write as _, net::IpAddr};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use pod::{LOADERS, PROXY_USER, SERVER_USER};

/// Where the proxy listens, in its pod and as a service.
pub const PORT: u16 = 8811;
/// Where the proxy finds its config in its pod.
pub const CONFIG: &str = "/etc/portcullis/portcullis.toml";
/// Where it finds its policies, from there.
pub const POLICIES: &str = "policies";
/// Where it keeps its state.
pub const STATE: &str = "/var/lib/portcullis/state";
/// Where it finds the secrets, each a file.
pub const SECRETS: &str = "/etc/portcullis-secrets";
/// The socket at which the server's container takes orders.
pub const SOCKET: &str = "/run/portcullis/server.sock";
/// Bytes that an object may have in a cluster's store, less what is around a `ConfigMap`'s data.
const LARGEST: usize = 1_000_000;
/// How long the name of a server may be, so that all names that are made of it are labels.
const LONGEST: usize = 50;

/// What is to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    /// The server's name in the config.
    pub server: String,
    /// The namespace, a label of DNS.
    pub namespace: String,
    /// The image with Portcullis, by digest.
    pub portcullis: String,
    /// Of nodes, in Kubernetes's word: `amd64`.
    pub architecture: String,
    /// The text of the proxy's config.
    pub config: String,
    /// That of the lock file beside it, where what the server's image means stands there.
    pub lock: Option<String>,
    /// Policies, by the names of their files.
    pub policies: Vec<(String, String)>,
    /// The server's container; none for a remote server.
    pub container: Option<Container>,
    /// Secrets, by the keys of the `Secret` object.
    pub secrets: Vec<Secret>,
    /// What the pod may reach.
    pub egress: Vec<Egress>,
    /// Who carries out network policies.
    pub cni: Cni,
    /// How much the proxy may keep, in Kubernetes's words: `10Gi`.
    pub storage: String,
    /// Of which class; none for the cluster's default.
    pub storage_class: Option<String>,
    /// What the config loosens, one a line, with the place: shown above the pod.
    pub deviations: Vec<String>,
}

/// A server's own container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// By digest.
    pub image: String,
    /// Its entry point.
    pub program: Vec<String>,
    /// User and group; [`SERVER_USER`] where the config names none.
    pub user: Option<(u32, u32)>,
    pub memory_mib: u64,
    pub cpus: f64,
    /// MiB of `/tmp`, in memory.
    pub tmp_mib: u64,
    pub writable_root: bool,
    /// Capabilities without `CAP_`. The standard lets a pod have one alone.
    pub capabilities: Vec<String>,
    /// Volumes that the operator has.
    pub claims: Vec<Claim>,
    pub runtime_class: Option<String>,
}

/// A claim of a volume that stands for a folder of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// The place in the server's container.
    pub target: String,
    pub writable: bool,
}

/// A secret, by its name alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: String,
    /// Whether the server finds it as a file. The proxy always does, which hands over the others
    /// and looks for all of them in traffic.
    pub file: bool,
}

/// A place outside that the pod may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The host.
    pub host: EgressHost,
    pub port: u16,
}

/// Where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressHost {
    /// A name of DNS.
    Name(String),
    /// Every name below one.
    Below(String),
    /// An address, whatever it is called.
    Address(IpAddr),
}

/// Who carries out network policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cni {
    /// Whoever does `NetworkPolicy`, which knows addresses alone.
    #[default]
    Any,
    /// Cilium, which knows names.
    Cilium,
}

/// What no manifests can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("`{0}` is no name of a namespace: 1 to 63 of a-z, 0-9 and `-`, not at an end")]
    Namespace(String),
    #[error(
        "the name of the server is too long for objects of a cluster: at most {LONGEST} characters"
    )]
    Server,
    #[error("`{0}` is no name that a key of a ConfigMap or a Secret can have")]
    Key(String),
    #[error("config and policies have {0} bytes, and an object of a cluster at most {LARGEST}")]
    Large(usize),
    #[error("two policies are called `{0}`, and all are in one folder of the pod")]
    Twice(String),
    #[error("the standard \"restricted\" lets no container have `{0}`, only NET_BIND_SERVICE")]
    Capability(String),
    #[error("the standard \"restricted\" lets nothing run as root (user {0}:{1})")]
    Root(u32, u32),
    #[error("the user {0} is the proxy's own in the pod: take another")]
    Proxy(u32),
    #[error("`{0}` is no quantity: a whole number with `Ki`, `Mi`, `Gi` or `Ti`, such as `10Gi`")]
    Quantity(String),
}

/// One file of manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub file: &'static str,
    /// What is to be known of it, one line each.
    pub comment: Vec<String>,
    /// The object.
    pub object: Value,
}

impl Manifest {
    /// As a document of YAML, with the comment above.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        for line in &self.comment {
            // One line of a comment never becomes a line of the document.
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "# {}", line.trim_end());
        }
        // A value of JSON has no key that YAML could not have.
        text.push_str(&serde_yaml_ng::to_string(&self.object).unwrap_or_default());
        text
    }
}

/// All documents as one text.
#[must_use]
pub fn stream(manifests: &[Manifest]) -> String {
    manifests.iter().map(|manifest| format!("---\n{}", manifest.yaml())).collect()
}

/// The names by which a proxy is reached in its cluster, as clients write them in `Host`.
#[must_use]
pub fn hosts(server: &str, namespace: &str) -> Vec<String> {
    let name = object_name(server);
    let within = format!("{name}.{namespace}");
    [name, within.clone(), format!("{within}.svc"), format!("{within}.svc.cluster.local")]
        .map(|host| format!("{host}:{PORT}"))
        .into()
}

/// What objects of a server are called.
#[must_use]
pub fn object_name(server: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name = server.chars().map(plain).collect::<String>();
    let name = name.trim_matches('-');
    if name == server {
        return format!("mcp-{name}");
    }
    // Another server's name could become the same one.
    let digest = hex::encode(Sha256::digest(server));
    format!("mcp-{name}-{}", &digest[..6])
}

/// The name of the `Secret` object that the operator makes.
#[must_use]
pub fn secret_name(server: &str) -> String {
    format!("{}-secrets", object_name(server))
}

impl Workload {
    fn name(&self) -> String {
        object_name(&self.server)
    }

    fn labels(&self) -> Value {
        json!({
            "app.kubernetes.io/name": "portcullis",
            "app.kubernetes.io/instance": self.name(),
            "app.kubernetes.io/component": "mcp-server",
            "app.kubernetes.io/managed-by": "portcullis",
        })
    }

    /// What finds the pod.
    fn selector(&self) -> Value {
        json!({
            "app.kubernetes.io/name": "portcullis",
            "app.kubernetes.io/instance": self.name(),
        })
    }

    fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "namespace": self.namespace, "labels": self.labels() })
    }

    /// Its manifests, in the order in which they are to be applied.
    ///
    /// # Errors
    /// What of it no pod can or may be.
    pub fn manifests(&self) -> Result<Vec<Manifest>, Unfit> {
        self.check()?;
        let mut all = settings::manifests(self);
        all.push(pod::manifest(self));
        all.extend(network::manifests(self));
        Ok(all)
    }

    fn check(&self) -> Result<(), Unfit> {
        let label = |text: &str| {
            (1..=63).contains(&text.len())
                && !text.starts_with('-')
                && !text.ends_with('-')
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !label(&self.namespace) {
            return Err(Unfit::Namespace(self.namespace.clone()));
        }
        if self.server.len() > LONGEST || !label(&self.name()) {
            return Err(Unfit::Server);
        }
        let key = |text: &&str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            text.is_empty()
                || text.len() > 253
                || text.starts_with("..")
                || !text.bytes().all(plain)
        };
        let names = self.policies.iter().map(|(name, _)| name.as_str());
        let mut keys = names.clone().chain(self.secrets.iter().map(|secret| secret.name.as_str()));
        if let Some(illegal) = keys.find(key) {
            return Err(Unfit::Key(illegal.to_owned()));
        }
        for (at, name) in names.clone().enumerate() {
            if names.clone().take(at).any(|other| other == name) {
                return Err(Unfit::Twice(name.to_owned()));
            }
        }
        let texts = self.policies.iter().map(|(name, text)| name.len() + text.len());
        let policies: usize = texts.sum();
        if policies.max(self.config.len()) > LARGEST {
            return Err(Unfit::Large(policies.max(self.config.len())));
        }
        let digits = self.storage.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = self.storage.get(digits.len()..).unwrap_or_default();
        if !["Ki", "Mi", "Gi", "Ti"].contains(&unit)
            || digits.is_empty()
            || !digits.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(Unfit::Quantity(self.storage.clone()));
        }
        let Some(container) = &self.container else { return Ok(()) };
        let unfit = container.capabilities.iter().find(|name| *name != "NET_BIND_SERVICE");
        if let Some(capability) = unfit {
            return Err(Unfit::Capability(capability.clone()));
        }
        match container.user {
            Some((uid, gid)) if uid == 0 || gid == 0 => Err(Unfit::Root(uid, gid)),
            Some((uid, _)) if uid == PROXY_USER.0 => Err(Unfit::Proxy(uid)),
            _ => Ok(()),
        }
    }
}
