//! Who is calling: an API key, the local user, or nobody in particular becomes a [`Principal`].
//!
//! INVARIANT: a key is kept as its hash alone and shown once, by `portcullis client add`. No error,
//! `Debug` or log line of this module holds one.

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
pub use roles::{IllegalMember, Member, Named, Role, Roles, Standing, is_owner};
pub use store::{Store, StoreFault, Stored};

use std::sync::Arc;

use serde::Serialize;

use crate::names::{ClientName, Group};

/// Who sends a client's messages, as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Principal {
    pub kind: PrincipalKind,
    pub groups: Vec<Group>,
    /// Whether the identity was proven (a key, the owner of the socket).
    pub verified: bool,
    /// Which key proved it: [`KeyHash::id`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
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
    /// Whether that is the same one: a client that was given another's name has another key.
    pub fn is(&self, kind: &PrincipalKind, key: Option<&str>) -> bool {
        self.kind == *kind && self.key.as_deref() == key
    }

    /// The holder of an API key.
    pub fn client(name: ClientName, groups: Vec<Group>) -> Self {
        Self { kind: PrincipalKind::Client(name), groups, verified: true, key: None }
    }

    /// The user who runs this process, by name, or by number where the number has no name.
    pub fn local() -> Arc<Self> {
        let uid = nix::unistd::Uid::current();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        let user = user.map_or_else(|| uid.to_string(), |user| user.name);
        let kind = PrincipalKind::Local { user };
        Arc::new(Self { kind, groups: Vec::new(), verified: true, key: None })
    }

    /// A caller without a key.
    pub fn anonymous() -> Arc<Self> {
        let kind = PrincipalKind::Anonymous;
        Arc::new(Self { kind, groups: Vec::new(), verified: false, key: None })
    }

    /// The name in logs, metrics and records: the client's name, `local:USER` or `anonymous`.
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
