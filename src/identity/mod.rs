//! Who is calling: an API key, the local user, or nobody in particular becomes a [`Principal`].

mod key;

pub use key::{Key, KeyHash, NoHash, NoKey, NoRandomness};

use serde::Serialize;

use crate::names::{ClientName, Group};

/// Who sends a client's messages, as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Principal {
    pub kind: PrincipalKind,
    pub groups: Vec<Group>,
    /// Whether the identity was proven (a key, the owner of the socket).
    pub verified: bool,
}

/// The kinds of principal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrincipalKind {
    /// The holder of an API key.
    Client(ClientName),
    /// The operating-system user who runs the proxy, over stdio or the local socket.
    Local { user: String },
    /// A caller without a key, where the config says `anonymous = true`.
    Anonymous,
}

impl Principal {
    /// The name in logs, metrics and records: the client's name, `local:USER` or `anonymous`.
    pub fn name(&self) -> String {
        match &self.kind {
            PrincipalKind::Client(name) => name.to_string(),
            PrincipalKind::Local { user } => format!("local:{user}"),
            PrincipalKind::Anonymous => "anonymous".into(),
        }
    }
}
