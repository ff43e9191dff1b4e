//! What is decided: who wants to do what to what, in which circumstances.

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

/// One question to the policies.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub subject: Subject<'a>,
    pub action: Action,
    pub resource: Resource<'a>,
    /// What `context.args` shows. Must be free of duplicate keys.
    pub args: Option<&'a Map<String, Value>>,
    /// A JSON text that holds `args` as the server will read them: a number in it that has more
    /// digits than could be shown refuses, where a policy looks at arguments.
    pub written: &'a [u8],
    pub circumstances: Circumstances<'a>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// A client's message.
    Client(&'a Principal),
    /// A server: its message to a client, or what the proxy does for it.
    Server(&'a ServerName),
    /// A plugin that is to be given something, by its name in the config.
    Plugin(&'a str),
}

macro_rules! actions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What is asked for: the actions of the Cedar schema.
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
    /// Greet the proxy, and ask for lists.
    Connect = "connect",
    CallTool = "call_tool",
    GetPrompt = "get_prompt",
    /// Have an argument of a prompt or a template completed.
    Complete = "complete",
    /// Ask for a task that a tool's call became, for its result, or for its end.
    AccessTask = "access_task",
    ReadResource = "read_resource",
    SubscribeResource = "subscribe_resource",
    /// See a resource template in its list.
    SeeTemplate = "see_template",
    /// Send a notification that is not about an exchange under way.
    NotifyServer = "notify_server",
    /// A client's method that has no action of its own.
    OtherMethod = "other_method",
    Sample = "sample",
    Elicit = "elicit",
    ListRoots = "list_roots",
    /// Send a client a notification that is not about an exchange under way.
    NotifyClient = "notify_client",
    /// A server's method that has no action of its own.
    OtherServerMethod = "other_server_method",
    /// Start a server.
    Launch = "launch",
    /// Hand a server a secret.
    DeliverSecret = "deliver_secret",
    /// Let a server's traffic out of this machine.
    Egress = "egress",
    /// Give a plugin a function of the host.
    Grant = "grant",
}

/// What it is asked of. Names are those of the server, without the proxy's prefix.
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
    /// The client that a server asks.
    Client(&'a Principal),
    /// What is started as a server.
    Program(&'a Program),
    /// What a server or a plugin is handed.
    Secret {
        holder: Holder<'a>,
        /// Of the environment variable or the header.
        name: &'a str,
        /// Where the value comes from: what stands before the colon of its reference.
        source: &'a str,
        handed: DeliveredAs,
        /// The client whose own value it is, by its name.
        client: Option<&'a str>,
    },
    /// Where a way out of this machine leads to.
    Host {
        name: &'a str,
        port: u16,
    },
    /// A function of the host, by its name.
    Grant(&'a str),
}

/// How a secret is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveredAs {
    /// In the environment of a server's process.
    Env,
    /// In a file that is the server's alone.
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

/// Who is handed a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    Server(&'a ServerName),
    /// By the name of its entry in the config.
    Plugin(&'a str),
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => write!(f, "{name}"),
            // A server's name holds no `:`, so that none can be taken for a plugin's.
            Self::Plugin(name) => write!(f, "plugin:{name}"),
        }
    }
}

/// What is started as a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// `container`, `sandbox` or `remote`.
    pub runtime: &'static str,
    /// The image as the config has it, the program, or the URL.
    pub name: String,
    /// Of the image, where it is known before the start.
    pub digest: Option<String>,
    /// Keys of the config by which the hardened profile is weakened.
    pub deviations: Vec<String>,
    /// Who of the config's signers signed the image.
    pub signers: Vec<String>,
    /// What they attest of it.
    pub attested: Vec<Attested>,
}

/// What the operator says of tools: it stands in the place of what their servers claim.
#[derive(Debug, Clone, Default)]
pub struct Stated(HashMap<ServerName, BTreeMap<String, Claims>>);

impl Stated {
    /// What the sections of servers in the config say.
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

    /// The claims of a tool, where the operator makes them.
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
    /// The client's address, where it has one.
    pub source_ip: Option<IpAddr>,
    /// Calls made in this session so far.
    pub session_calls: u64,
    /// What the session was given by `@label`, and what interceptors gave this message.
    pub labels: &'a BTreeSet<String>,
}

impl Circumstances<'_> {
    /// Those of what the proxy does of itself.
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
