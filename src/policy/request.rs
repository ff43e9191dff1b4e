//! Requests to the policies: principal, action, resource and circumstances.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Tool;
use portcullis_protocol::{
    claims::{Attested, Claimant, Claims},
    exchange::{self, Transport},
    identity::Principal,
    names::ServerName,
};

/// One request to the policies.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub subject: Subject<'a>,
    pub action: Action,
    pub resource: Resource<'a>,
    /// The value of `context.args`. Must not have duplicate keys.
    pub args: Option<&'a Map<String, Value>>,
    /// JSON text that contains `args` as the server will read them. If a policy reads arguments, a
    /// number with more digits than Cedar can represent is refused.
    pub written: &'a [u8],
    pub circumstances: Circumstances<'a>,
}

/// The principal of a request.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A client, which sent a message.
    Client(&'a Principal),
    /// A server, for its message to a client or for an action of the proxy on its behalf.
    Server(&'a ServerName),
    /// A plugin that gets a grant or a secret, by its name in the config.
    Plugin(&'a str),
}

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Action of a request: the actions of the Cedar schema.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action {
            $($(#[$doc])* $variant,)*
        }

        impl Action {
            /// Every action.
            pub const ALL: &[Action] = &[$(Action::$variant,)*];

            /// The id in `Portcullis::Action::"…"`.
            pub fn as_str(self) -> &'static str {
                match self { $(Action::$variant => $text,)* }
            }
        }
    };
}

actions! {
    /// Perform the handshake with the proxy, and request lists.
    Connect = "connect",
    CallTool = "call_tool",
    GetPrompt = "get_prompt",
    /// Request completion of an argument of a prompt or a template.
    Complete = "complete",
    /// Read or cancel a task that a tool call created, or get its result.
    AccessTask = "access_task",
    ReadResource = "read_resource",
    SubscribeResource = "subscribe_resource",
    /// See a resource template in a list.
    SeeTemplate = "see_template",
    /// Send a notification that does not belong to an exchange in flight.
    NotifyServer = "notify_server",
    /// Send a request with a client method that does not have its own action.
    OtherMethod = "other_method",
    Sample = "sample",
    Elicit = "elicit",
    ListRoots = "list_roots",
    /// Send a client a notification that does not belong to an exchange in flight.
    NotifyClient = "notify_client",
    /// Send a request with a server method that does not have its own action.
    OtherServerMethod = "other_server_method",
    /// Start a server.
    Launch = "launch",
    /// Deliver a secret to a server or a plugin.
    DeliverSecret = "deliver_secret",
    /// Connect a server or a plugin to a host outside this machine.
    Egress = "egress",
    /// Grant a plugin a host function.
    Grant = "grant",
}

/// The resource of a request. Names are those of the server, without the proxy's prefix.
#[derive(Debug, Clone, Copy)]
pub enum Resource<'a> {
    /// All servers at once.
    Proxy,
    Server(&'a ServerName),
    Tool {
        server: &'a ServerName,
        name: &'a str,
        claims: Claims,
    },
    Prompt {
        server: &'a ServerName,
        name: &'a str,
    },
    Resource {
        server: &'a ServerName,
        uri: &'a str,
    },
    Template {
        server: &'a ServerName,
        uri: &'a str,
    },
    /// The client that receives a server's message.
    Client(&'a Principal),
    /// The program that is started as a server.
    Program(&'a Program),
    /// A secret that is delivered to a server or a plugin.
    Secret {
        holder: Holder<'a>,
        /// Name of the environment variable or the header.
        name: &'a str,
        /// Kind of the source: the part of the reference before the colon.
        source: &'a str,
        delivery: DeliveredAs,
        /// Name of the client that the value belongs to, if each client has its own.
        client: Option<&'a str>,
    },
    /// Destination of an egress connection.
    Host {
        name: &'a str,
        port: u16,
    },
    /// A host function, by its name.
    Grant(&'a str),
}

/// How a secret is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveredAs {
    /// In the environment of a server's process.
    Env,
    /// In a file that only the server can read.
    File,
    /// In a header of every request to a server.
    Header,
    /// To a plugin, which may read it.
    Plugin,
}

impl DeliveredAs {
    /// The text that policies see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::File => "file",
            Self::Header => "header",
            Self::Plugin => "plugin",
        }
    }
}

/// The server or plugin that a secret is delivered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    Server(&'a ServerName),
    /// A plugin, by the name of its entry in the config.
    Plugin(&'a str),
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => write!(f, "{name}"),
            // The name of a server never contains `:`, so it cannot be mistaken for a plugin's.
            Self::Plugin(name) => write!(f, "plugin:{name}"),
        }
    }
}

/// A program that is started as a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// `container`, `sandbox` or `remote`.
    pub runtime: &'static str,
    /// The image as written in the config, the program, or the URL.
    pub name: String,
    /// Digest of the image, if it is known before the launch.
    pub digest: Option<String>,
    /// Keys of the config that weaken the hardened profile.
    pub deviations: Vec<String>,
    /// Names of the configured signers that signed the image.
    pub signers: Vec<String>,
    /// Their attestations of the image.
    pub attested: Vec<Attested>,
}

/// Claims of the operator about tools, which replace those of the servers.
#[derive(Debug, Clone, Default)]
pub struct Stated(HashMap<ServerName, BTreeMap<String, Claims>>);

impl Stated {
    /// Reads the claims from the sections of servers in the config.
    pub fn of<'a>(
        servers: impl IntoIterator<Item = (&'a ServerName, &'a BTreeMap<String, Tool>)>,
    ) -> Self {
        let claims = |tool: &Tool| Claims {
            by: Claimant::Operator,
            ..Claims::from_hints(|name| match name {
                "readOnlyHint" => tool.read_only,
                "destructiveHint" => tool.destructive,
                "idempotentHint" => tool.idempotent,
                "openWorldHint" => tool.open_world,
                _ => None,
            })
        };
        let stated = servers.into_iter().map(|(server, tools)| {
            let tools = tools.iter().map(|(name, tool)| (name.clone(), claims(tool)));
            (server.clone(), tools.collect())
        });
        Self(stated.collect())
    }

    /// The claims of a tool, if the operator makes any.
    pub fn claims(&self, server: &ServerName, tool: &str) -> Option<Claims> {
        self.0.get(server)?.get(tool).copied()
    }
}

/// The circumstances of one message.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The method, as on the wire.
    pub method: &'a str,
    pub transport: Option<Transport>,
    pub revision: Option<exchange::Revision>,
    /// When the message arrived.
    pub now: jiff::Timestamp,
    /// Address of the client, if it has one.
    pub source_ip: Option<IpAddr>,
    /// Number of earlier calls in this session.
    pub session_calls: u64,
    /// Labels from `@label` on the session, and from interceptors on this message.
    pub labels: &'a BTreeSet<String>,
}

impl Circumstances<'_> {
    /// Circumstances of an action of the proxy itself.
    pub fn own(now: jiff::Timestamp) -> Self {
        static NONE: BTreeSet<String> = BTreeSet::new();
        Self {
            method: "",
            transport: None,
            revision: None,
            now,
            source_ip: None,
            session_calls: 0,
            labels: &NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_hints_have_the_documented_defaults() {
        let claims = |hints: &'static [(&str, bool)]| {
            let claims = Claims::from_hints(|name| {
                hints.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
            });
            (claims.read_only, claims.destructive, claims.idempotent, claims.open_world)
        };
        for (hints, expected) in [
            (&[] as &[_], (false, true, false, true)),
            (&[("readOnlyHint", true)], (true, false, false, true)),
            (&[("readOnlyHint", true), ("destructiveHint", true)], (true, true, false, true)),
            (&[("destructiveHint", false)], (false, false, false, true)),
            (&[("idempotentHint", true), ("openWorldHint", false)], (false, true, true, false)),
        ] {
            assert_eq!(claims(hints), expected, "{hints:?}");
        }
    }
}
