//! A case file as it is written: YAML, every unknown key an error.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use indexmap::IndexMap;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use portcullis_policy::DeliveredAs;
use portcullis_protocol::claims::Attested;
use portcullis_protocol::{
    exchange::{Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::{ClientName, Group, ServerName},
};

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Files and folders of policies, relative to this file.
    pub(super) policies: Option<Spanned<Words>>,
    /// Parties by a name of this file.
    #[serde(default)]
    pub(super) principals: IndexMap<String, Spanned<Who>>,
    /// What servers claim of tools, by `SERVER/TOOL`.
    #[serde(default)]
    pub(super) tools: IndexMap<String, Hints>,
    /// The circumstances of all cases, where a case says no other.
    #[serde(default)]
    pub(super) context: Context,
    pub(super) cases: Vec<Spanned<Case>>,
}

/// A case, or one row of its `each`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: Option<String>,
    /// Who asks; several ask one after another.
    #[serde(rename = "as")]
    pub(super) who: Option<Spanned<Words>>,
    /// `do: tools/call` of these.
    pub(super) call: Option<Spanned<Words>>,
    /// `do: resources/read` of these.
    pub(super) read: Option<Spanned<Words>>,
    /// `do: prompts/get` of these.
    pub(super) get: Option<Spanned<Words>>,
    /// Actions or methods.
    #[serde(rename = "do")]
    pub(super) action: Option<Spanned<Words>>,
    /// What `do` is asked of.
    pub(super) on: Option<Spanned<Words>>,
    /// What is started, for the server that asks.
    pub(super) launch: Option<Spanned<Program>>,
    /// What the server that asks is handed.
    pub(super) deliver: Option<Spanned<Secret>>,
    /// `HOST:PORT` of what the server that asks reaches.
    pub(super) egress: Option<Spanned<Words>>,
    /// Functions that the plugin that asks is given.
    pub(super) grant: Option<Spanned<Words>>,
    pub(super) args: Option<Map<String, Value>>,
    /// Instead of those under `tools`.
    pub(super) hints: Option<Hints>,
    #[serde(default)]
    pub(super) context: Context,
    pub(super) expect: Option<Spanned<Expect>>,
    /// Policies that must be among those that decide. An empty list: none decides.
    pub(super) by: Option<Spanned<Words>>,
    /// Obligations that these policies must ask for. An empty list: none.
    pub(super) asks: Option<Spanned<Words>>,
    /// Rows: the case once for each, with what a row says instead of what the case says.
    pub(super) each: Option<Vec<Spanned<Case>>>,
}

/// What should become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Expect {
    Allow,
    Deny,
    /// Refused, because a policy fails on it.
    Error,
    /// In lists.
    Shown,
    /// Not in lists.
    Hidden,
}

impl Expect {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Error => "error",
            Self::Shown => "shown",
            Self::Hidden => "hidden",
        }
    }
}

/// A tool's annotations, as MCP names them.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "MCP's names")]
pub(super) struct Hints {
    pub(super) read_only_hint: Option<bool>,
    pub(super) destructive_hint: Option<bool>,
    pub(super) idempotent_hint: Option<bool>,
    pub(super) open_world_hint: Option<bool>,
}

/// What is started as a server, as policies see it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Program {
    pub(super) runtime: Runtime,
    pub(super) name: String,
    pub(super) digest: Option<String>,
    #[serde(default)]
    pub(super) deviations: Vec<String>,
    #[serde(default)]
    pub(super) signers: Vec<String>,
    #[serde(default)]
    pub(super) attested: Vec<Attested>,
}

/// What runs a server.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Runtime {
    Container,
    Sandbox,
    Remote,
}

/// What a server is handed, as policies see it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) source: String,
    #[serde(default)]
    pub(super) header: bool,
    pub(super) delivery: Option<DeliveredAs>,
    pub(super) client: Option<String>,
}

/// Circumstances, by their names in `context`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    pub(super) now: Option<jiff::Timestamp>,
    pub(super) source_ip: Option<IpAddr>,
    pub(super) transport: Option<Transport>,
    pub(super) revision: Option<Revision>,
    pub(super) session_calls: Option<u64>,
    pub(super) labels: Option<BTreeSet<String>>,
    pub(super) method: Option<String>,
}

impl Context {
    /// This, and what another says where this says nothing.
    pub(super) fn or(&self, other: &Self) -> Self {
        Self {
            now: self.now.or(other.now),
            source_ip: self.source_ip.or(other.source_ip),
            transport: self.transport.or(other.transport),
            revision: self.revision.or(other.revision),
            session_calls: self.session_calls.or(other.session_calls),
            labels: self.labels.clone().or_else(|| other.labels.clone()),
            method: self.method.clone().or_else(|| other.method.clone()),
        }
    }
}

/// One text or several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Words(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// A party to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Client {
        name: ClientName,
        groups: Vec<Group>,
    },
    Local {
        user: String,
        groups: Vec<Group>,
    },
    Anonymous,
    Server(ServerName),
    /// By its name in the config.
    Plugin(String),
}

/// The forms in which a party can be written without a name of its own.
pub(super) const FORMS: &str = "write `client:NAME`, `group:NAME` (some client in that group), `local:USER`, `server:NAME`, \
     `plugin:NAME` or `anonymous`";

impl Who {
    /// A party in one word.
    pub fn parse(word: &str) -> Result<Self, String> {
        if word == "anonymous" {
            return Ok(Self::Anonymous);
        }
        let (kind, name) = word.split_once(':').ok_or_else(|| FORMS.to_owned())?;
        let illegal = |error: portcullis_protocol::names::IllegalName| error.to_string();
        match kind {
            "client" => {
                Ok(Self::Client { name: name.parse().map_err(illegal)?, groups: Vec::new() })
            }
            "group" => {
                let group: Group = name.parse().map_err(illegal)?;
                let name = "someone".parse().map_err(illegal)?;
                Ok(Self::Client { name, groups: vec![group] })
            }
            "local" => Ok(Self::Local { user: name.to_owned(), groups: Vec::new() }),
            "server" => Ok(Self::Server(name.parse().map_err(illegal)?)),
            "plugin" => Ok(Self::Plugin(name.to_owned())),
            _ => Err(FORMS.to_owned()),
        }
    }
}

impl Who {
    /// The client that it is, where it is one.
    pub fn principal(&self) -> Option<Principal> {
        let (kind, groups) = match self {
            Self::Client { name, groups } => (PrincipalKind::Client(name.clone()), groups.clone()),
            Self::Local { user, groups } => {
                (PrincipalKind::Local { user: user.clone() }, groups.clone())
            }
            Self::Anonymous => (PrincipalKind::Anonymous, Vec::new()),
            Self::Server(_) | Self::Plugin(_) => return None,
        };
        let verified = kind != PrincipalKind::Anonymous;
        Some(Principal { kind, groups, verified, key: None })
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            client: Option<ClientName>,
            local: Option<String>,
            server: Option<ServerName>,
            #[serde(default)]
            groups: Vec<Group>,
        }

        struct Party;

        impl<'de> Visitor<'de> for Party {
            type Value = Who;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a party, such as `client:NAME` or `{client: NAME, groups: [NAME]}`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Who, E> {
                Who::parse(word).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Who, A::Error> {
                let written = Written::deserialize(MapAccessDeserializer::new(map))?;
                let Written { client, local, server, groups } = written;
                match (client, local, server) {
                    (Some(name), None, None) => Ok(Who::Client { name, groups }),
                    (None, Some(user), None) => Ok(Who::Local { user, groups }),
                    (None, None, Some(name)) if groups.is_empty() => Ok(Who::Server(name)),
                    (None, None, Some(_)) => Err(de::Error::custom("a server is in no group")),
                    _ => Err(de::Error::custom("give one of `client`, `local` and `server`")),
                }
            }
        }

        deserializer.deserialize_any(Party)
    }
}

/// The name of a party among those of a file, or a party in one word.
pub(super) fn party(word: &str, document: &Document) -> Result<Who, String> {
    if let Some(who) = document.principals.get(word) {
        return Ok(who.value.clone());
    }
    Who::parse(word).map_err(|problem| {
        let near = document
            .principals
            .keys()
            .map(|name| (strsim::damerau_levenshtein(name, word), name))
            .min()
            .filter(|(distance, _)| *distance <= 2);
        match near {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None => format!("name it under `principals`, or {problem}"),
        }
    })
}
