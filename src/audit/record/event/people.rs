//! Events of clients, and of users at the command line and the admin socket.

use std::net::SocketAddr;

use super::{
    super::shared::{Decision, Transport},
    content::{Content, content, then},
};

content! {
    /// User who did something at the command line. Empty if the file was changed in another way and
    /// the proxy detected it.
    #[derive(Default)]
    pub struct By {
        /// User id, as reported by the system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub uid: Option<u32>,
        /// Name of the user, if the system has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
        /// Reason, if this event reverts a failed change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
    }
    summary("{}{}", by(user, uid), then(": ", reason));

    /// User who did something at the command line; empty if the proxy did it by itself.
    #[derive(Default)]
    pub struct CommandUser {
        /// Id of the user of the command line, as reported by the system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub uid: Option<u32>,
        /// Name of the user, if the system has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
    }
    summary("{}", by(user, uid));

    /// Principal of a connection.
    pub struct ConnectedPrincipal {
        /// Name of the client, `local:USER` or `anonymous`.
        pub principal: String,
        /// Whether the identity was proven.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub verified: bool,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub groups: Vec<String>,
        /// First digits of the hash of the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key_id: Option<String>,
        /// Address and port of the client, for connections over a network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        pub client_addr: Option<SocketAddr>,
        pub transport: Transport,
    }

    /// First message of a principal with this key from this address, or the first one after an hour
    /// without messages.
    pub struct ClientSeen {
        #[serde(flatten)]
        pub who: ConnectedPrincipal,
    }
    summary("{} came in{}", who.principal, then(" from ", &who.client_addr));

    /// `initialize` opened a session. The message itself has its own records.
    pub struct SessionOpened {
        /// First characters of the session id, as in the records of its calls.
        pub session: String,
        #[serde(flatten)]
        pub who: ConnectedPrincipal,
        pub revision: String,
        /// Name and version that the client claims.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub client_info: Option<String>,
    }
    summary("{} opened session {session}", who.principal);

    /// A session ended. Sessions that are open when the proxy stops have no such event.
    pub struct SessionEnded {
        pub session: String,
        pub principal: String,
        /// Number of requests in the session.
        pub requests: u64,
        /// Reason for the end.
        pub reason: String,
    }
    summary("session {session} of {principal} ended after {requests} requests: {reason}");

    /// A client gets a key. If `portcullis client` cannot record this, it creates no key.
    pub struct ClientAdded {
        pub client: String,
        /// First digits of the hash of the client's key.
        pub key_id: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub groups: Vec<String>,
        #[serde(flatten)]
        pub by: By,
    }
    summary("client {client} added, key {key_id}{by}");

    /// A client's key is removed.
    pub struct ClientRemoved {
        pub client: String,
        /// First digits of the hash of the client's key.
        pub key_id: String,
        #[serde(flatten)]
        pub by: By,
    }
    summary("client {client} removed, key {key_id}{by}");

    /// A user sent a request to the admin socket of the running proxy.
    pub struct AdminAction {
        /// User id, as reported by the system.
        pub uid: u32,
        /// Name of the user, if the system has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub pid: Option<i32>,
        /// HTTP method and path, such as `POST /v1/audit/query`.
        pub verb: String,
        /// Target of the request: a filter, the name of a server, or a decision id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub target: Option<String>,
        pub decision: Decision,
        /// Code of the refusal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub code: Option<String>,
    }
    summary(
        "{} asked: {verb}{}{}",
        user.clone().unwrap_or_else(|| format!("user {uid}")),
        then(" ", target),
        then(", refused: ", code)
    );
}

/// The user by name, or else by id.
fn by(user: &Option<String>, uid: &Option<u32>) -> String {
    if user.is_some() { then(", by ", user) } else { then(", by user ", uid) }
}
