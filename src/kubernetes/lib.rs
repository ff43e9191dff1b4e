//! Kubernetes manifests of one MCP server behind its own proxy, in the form that a security team
//! would apply. Nothing is requested from a cluster: the input is a [`Workload`], the output text.
//!
//! A server over standard input and output has its own container in the proxy's pod. An init
//! container copies the proxy's executable and its libraries there, and `portcullis pod-exec`
//! starts the server's program for the proxy, which connects over a socket in a volume that no
//! other container mounts. A remote server has no container: its pod has only the proxy.
//!
//! # Invariants
//!
//! - Every pod satisfies the Pod Security Standard "restricted", and its namespace enforces that.
//! - The output contains no secret value: a [`Secret`] has none. The operator creates the `Secret`
//!   object; volumes refer to it.
//! - Only the configured clients reach the pod, and the pod reaches only the server's `egress`
//!   list, as far as the cluster's network can distinguish that.

mod network;
mod pod;
mod settings;

use std::{fmt::Write as _, net::IpAddr};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use pod::{LOADERS, PROXY_USER, SERVER_USER};

/// Port of the proxy, in its pod and as a service.
pub const PORT: u16 = 8811;
/// Path of the proxy's config in its pod.
pub const CONFIG: &str = "/etc/portcullis/portcullis.toml";
/// Folder of the policies, relative to the config.
pub const POLICIES: &str = "policies";
/// State folder.
pub const STATE: &str = "/var/lib/portcullis/state";
/// Folder of the secrets, one file each.
pub const SECRETS: &str = "/etc/portcullis-secrets";
/// Socket at which the server's container accepts connections.
pub const SOCKET: &str = "/run/portcullis/server.sock";
/// Limit in bytes of a `ConfigMap`'s data in a cluster's store.
const MAX_DATA_BYTES: usize = 1_000_000;
/// Limit of a server's name, so that all derived names are labels.
const MAX_NAME_CHARS: usize = 50;

/// Workload to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    /// Name of the server in the config.
    pub server: String,
    /// Namespace, a DNS label.
    pub namespace: String,
    /// Image with Portcullis, by digest.
    pub portcullis: String,
    /// Architecture of the nodes by Kubernetes's name: `amd64`.
    pub architecture: String,
    /// Text of the proxy's config.
    pub config: String,
    /// Text of the lock file, if it has the digest of the server's image.
    pub lock: Option<String>,
    /// Policies by file name.
    pub policies: Vec<(String, String)>,
    /// Container of the server; `None` for a remote server.
    pub container: Option<Container>,
    /// Secrets, by the keys of the `Secret` object.
    pub secrets: Vec<Secret>,
    /// Destinations that the pod may reach.
    pub egress: Vec<Egress>,
    /// Network plugin that enforces network policies.
    pub cni: Cni,
    /// Size of the proxy's volume as a quantity: `10Gi`.
    pub storage: String,
    /// Storage class; `None` for the cluster's default.
    pub storage_class: Option<String>,
    /// Deviations in the config, one a line with its position; shown above the pod.
    pub deviations: Vec<String>,
}

/// Container of a server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// Image by digest.
    pub image: String,
    /// Entry point.
    pub program: Vec<String>,
    /// User and group; [`SERVER_USER`] if the config sets none.
    pub user: Option<(u32, u32)>,
    pub memory_mib: u64,
    pub cpus: f64,
    /// Size of `/tmp` in MiB, in memory.
    pub tmp_mib: u64,
    pub writable_root: bool,
    /// Capabilities without `CAP_`. The standard permits only one.
    pub capabilities: Vec<String>,
    /// Volumes of the operator.
    pub claims: Vec<Claim>,
    pub runtime_class: Option<String>,
}

/// Claim of a volume that replaces a host folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// Path in the server's container.
    pub target: String,
    pub writable: bool,
}

/// A secret, by name only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub name: String,
    /// Whether the server gets it as a file. The proxy always does: it delivers the others, and
    /// scans traffic for all of them.
    pub file: bool,
}

/// Destination that the pod may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Host.
    pub host: EgressHost,
    pub port: u16,
}

/// Host of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressHost {
    /// DNS name.
    Name(String),
    /// Every name below one.
    Below(String),
    /// Address.
    Address(IpAddr),
}

/// Network plugin that enforces network policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cni {
    /// Any plugin with `NetworkPolicy`, which supports only addresses.
    #[default]
    Any,
    /// Cilium, which supports names.
    Cilium,
}

/// Reason why a workload cannot have manifests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("`{0}` is not a namespace name: 1 to 63 of a-z, 0-9 and `-`, not at an end")]
    Namespace(String),
    #[error(
        "the name of the server is too long for objects of a cluster: at most {MAX_NAME_CHARS} \
        characters"
    )]
    Server,
    #[error("`{0}` is not a legal key of a ConfigMap or a Secret")]
    Key(String),
    #[error(
        "config and policies have {0} bytes; an object of a cluster has at most \
        {MAX_DATA_BYTES}"
    )]
    Large(usize),
    #[error("two policy files are called `{0}`; the pod has all of them in one folder")]
    Twice(String),
    #[error("the standard \"restricted\" permits only NET_BIND_SERVICE, not `{0}`")]
    Capability(String),
    #[error("the standard \"restricted\" does not permit root (user {0}:{1})")]
    Root(u32, u32),
    #[error("the user {0} is that of the proxy in the pod: choose another")]
    Proxy(u32),
    #[error(
        "`{0}` is not a quantity: write a whole number with `Ki`, `Mi`, `Gi` or `Ti`, such as \
        `10Gi`"
    )]
    Quantity(String),
}

/// One manifest file.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// File name.
    pub file: &'static str,
    /// Comment, one line each.
    pub comment: Vec<String>,
    /// Object.
    pub object: Value,
}

impl Manifest {
    /// YAML document with the comment above.
    #[must_use]
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        for line in &self.comment {
            // A line break in a comment must not end the comment.
            let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "# {}", line.trim_end());
        }
        // Every JSON value is a valid YAML value.
        text.push_str(&serde_yaml_ng::to_string(&self.object).unwrap_or_default());
        text
    }
}

/// All documents as one text.
#[must_use]
pub fn stream(manifests: &[Manifest]) -> String {
    manifests.iter().map(|manifest| format!("---\n{}", manifest.yaml())).collect()
}

/// Host names of a proxy in its cluster, as clients send them in `Host`.
#[must_use]
pub fn hosts(server: &str, namespace: &str) -> Vec<String> {
    let name = object_name(server);
    let in_namespace = format!("{name}.{namespace}");
    [
        name,
        in_namespace.clone(),
        format!("{in_namespace}.svc"),
        format!("{in_namespace}.svc.cluster.local"),
    ]
    .map(|host| format!("{host}:{PORT}"))
    .into()
}

/// Name of a server's objects.
#[must_use]
pub fn object_name(server: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name = server.chars().map(plain).collect::<String>();
    let name = name.trim_matches('-');
    if name == server {
        return format!("mcp-{name}");
    }
    // The digest prevents two servers from having the same name.
    let digest = hex::encode(Sha256::digest(server));
    format!("mcp-{name}-{}", &digest[..6])
}

/// Name of the `Secret` object that the operator creates.
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

    /// Label selector of the pod.
    fn selector(&self) -> Value {
        json!({
            "app.kubernetes.io/name": "portcullis",
            "app.kubernetes.io/instance": self.name(),
        })
    }

    fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "namespace": self.namespace, "labels": self.labels() })
    }

    /// Manifests of this workload, in the order to apply them.
    ///
    /// # Errors
    /// Which part cannot or must not be in a pod.
    pub fn manifests(&self) -> Result<Vec<Manifest>, ManifestError> {
        self.check()?;
        let mut all = settings::manifests(self);
        all.push(pod::manifest(self));
        all.extend(network::manifests(self));
        Ok(all)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let label = |text: &str| {
            (1..=63).contains(&text.len())
                && !text.starts_with('-')
                && !text.ends_with('-')
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !label(&self.namespace) {
            return Err(ManifestError::Namespace(self.namespace.clone()));
        }
        if self.server.len() > MAX_NAME_CHARS || !label(&self.name()) {
            return Err(ManifestError::Server);
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
            return Err(ManifestError::Key(illegal.to_owned()));
        }
        for (at, name) in names.clone().enumerate() {
            if names.clone().take(at).any(|other| other == name) {
                return Err(ManifestError::Twice(name.to_owned()));
            }
        }
        let texts = self.policies.iter().map(|(name, text)| name.len() + text.len());
        let policies: usize = texts.sum();
        if policies.max(self.config.len()) > MAX_DATA_BYTES {
            return Err(ManifestError::Large(policies.max(self.config.len())));
        }
        let digits = self.storage.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = self.storage.get(digits.len()..).unwrap_or_default();
        if !["Ki", "Mi", "Gi", "Ti"].contains(&unit)
            || digits.is_empty()
            || !digits.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(ManifestError::Quantity(self.storage.clone()));
        }
        let Some(container) = &self.container else { return Ok(()) };
        let unfit = container.capabilities.iter().find(|name| *name != "NET_BIND_SERVICE");
        if let Some(capability) = unfit {
            return Err(ManifestError::Capability(capability.clone()));
        }
        match container.user {
            Some((uid, gid)) if uid == 0 || gid == 0 => Err(ManifestError::Root(uid, gid)),
            Some((uid, _)) if uid == PROXY_USER.0 => Err(ManifestError::Proxy(uid)),
            _ => Ok(()),
        }
    }
}
