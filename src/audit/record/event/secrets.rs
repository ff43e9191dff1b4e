//! Events of the secrets of servers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::content::{Content, content, then};
use portcullis_protocol::names::DecisionId;

content! {
    /// Secrets are about to be delivered to a server. Values are not recorded.
    pub struct SecretsDelivered {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        /// Client for which the dedicated instance starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        pub secrets: Vec<DeliveredSecret>,
    }
    summary(
        "delivering secrets to server {server}:{}",
        secrets
            .iter()
            .map(|delivery| match delivery.by {
                DeliveryKind::Environment => format!(" {} (environment)", delivery.secret),
                DeliveryKind::File => format!(" {} (file)", delivery.secret),
                DeliveryKind::Header => format!(" {} (header)", delivery.secret),
            })
            .collect::<String>()
    );

    /// A secret did not resolve. At the start of the proxy: its server cannot start (only for
    /// `principal`, if there is one). At a later read: the old value stays in use, and `kept` is
    /// true.
    pub struct SecretUnresolved {
        pub server: String,
        /// Name of the secret at the server.
        pub secret: String,
        pub source: SecretSource,
        /// Client to which the value belongs, for a secret by client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Whether an earlier value stays in use.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub kept: bool,
        pub reason: String,
    }
    summary(
        "server {server}: secret {secret}{} does not resolve{}: {reason}",
        then(" of ", principal),
        if *kept { "; the old value stays in use" } else { "" }
    );

    /// A secret changed that a running server has in its environment or gets as a header. The
    /// server uses the old value until its next start.
    pub struct SecretsStale {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        /// Client of the dedicated instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Names of all secrets of which the server has an old value.
        pub secrets: Vec<String>,
    }
    summary("server {server} has old values until its next start: {}", secrets.join(", "));

    /// Secret that is delivered to a server.
    pub struct DeliveredSecret {
        /// Name of the secret at the server.
        pub secret: String,
        pub source: SecretSource,
        /// Kind of delivery.
        pub by: DeliveryKind,
        /// Whether the value belongs to the client; else it is the common value.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub own: bool,
    }
}

/// Source of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// Variable of the proxy's environment.
    Env,
    File,
    /// A `.env` file.
    Dotenv,
    /// Keyring of the desktop.
    Keyring,
    /// Keyring of the kernel.
    Keyctl,
    DockerPass,
    /// Credential helper.
    DockerCredential,
    /// HashiCorp Vault.
    Vault,
    /// Encrypted store of Portcullis.
    Age,
    /// The text is not a valid reference.
    Illegal,
}

impl Content for SecretSource {}

/// Kind of delivery of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryKind {
    /// Environment variable of the process.
    Environment,
    /// File on a tmpfs that only the server sees.
    File,
    /// Header of every request to the server.
    Header,
}

impl Content for DeliveryKind {}
