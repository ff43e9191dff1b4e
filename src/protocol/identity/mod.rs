//! Identity of callers: an API key, the local user or an anonymous caller becomes a [`Principal`].
//!
//! INVARIANT: a key is stored only as its hash, and shown once by `portcullis client add`. No
//! error, `Debug` or log line of this module contains one.

mod bearer;
mod config;
mod key;
mod keyring;
mod roles;
mod store;

pub use bearer::{BearerFault, bearer};
pub use config::Client;
pub use key::{Key, KeyHash, NoHash, NoKey, NoRandomness};
pub use keyring::{Change, Keyring, Origin, Watch};
pub use roles::{IllegalMember, Member, NameOrId, Role, Roles, UserRights, is_owner};
pub use store::{Store, StoreFault, Stored};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::{ClientName, Group};

/// Sender of a client's messages, as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Principal {
    pub kind: PrincipalKind,
    pub groups: Vec<Group>,
    /// Whether the identity is proven (a key, the owner of the socket).
    pub verified: bool,
    /// Key that proved it: [`KeyHash::id`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Kinds of principals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrincipalKind {
    /// Holder of an API key.
    Client(ClientName),
    /// Operating-system user who runs the proxy, over stdio or the local socket.
    Local { user: String },
    /// Caller without a key, if the config has `anonymous = true`.
    Anonymous,
}

impl Principal {
    /// Whether that is the same principal: a later client with the same name has another key.
    pub fn is(&self, kind: &PrincipalKind, key: Option<&str>) -> bool {
        self.kind == *kind && self.key.as_deref() == key
    }

    /// Holder of an API key.
    pub fn client(name: ClientName, groups: Vec<Group>) -> Self {
        Self { kind: PrincipalKind::Client(name), groups, verified: true, key: None }
    }

    /// User who runs this process, by name, or by number if the number has no name.
    pub fn local() -> Arc<Self> {
        let uid = nix::unistd::Uid::current();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        let user = user.map_or_else(|| uid.to_string(), |user| user.name);
        let kind = PrincipalKind::Local { user };
        Arc::new(Self { kind, groups: Vec::new(), verified: true, key: None })
    }

    /// Caller without a key.
    pub fn anonymous() -> Arc<Self> {
        let kind = PrincipalKind::Anonymous;
        Arc::new(Self { kind, groups: Vec::new(), verified: false, key: None })
    }

    /// Name in logs, metrics and records: the client's name, `local:USER` or `anonymous`.
    pub fn name(&self) -> String {
        self.kind.name()
    }
}

impl PrincipalKind {
    /// As [`Principal::name`].
    pub fn name(&self) -> String {
        match self {
            Self::Client(name) => name.to_string(),
            Self::Local { user } => format!("local:{user}"),
            Self::Anonymous => "anonymous".into(),
        }
    }
}
