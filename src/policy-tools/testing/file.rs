//! Format of a case file: YAML, in which every unknown key is an error.

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

/// A complete file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Policy files and folders, relative to this file.
    pub(super) policies: Option<Spanned<OneOrMany>>,
    /// Principals, by their names in this file.
    #[serde(default)]
    pub(super) principals: IndexMap<String, Spanned<CasePrincipal>>,
    /// Claims of servers about tools, by `SERVER/TOOL`.
    #[serde(default)]
    pub(super) tools: IndexMap<String, Hints>,
    /// The default circumstances of all cases.
    #[serde(default)]
    pub(super) context: Context,
    pub(super) cases: Vec<Spanned<Case>>,
}

/// A case, or one row of its `each`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: Option<String>,
    /// One or more principals, each with its own request.
    #[serde(rename = "as")]
    pub(super) who: Option<Spanned<OneOrMany>>,
    /// Short for `do: tools/call` on these.
    pub(super) call: Option<Spanned<OneOrMany>>,
    /// Short for `do: resources/read` on these.
    pub(super) read: Option<Spanned<OneOrMany>>,
    /// Short for `do: prompts/get` on these.
    pub(super) get: Option<Spanned<OneOrMany>>,
    /// Actions or methods.
    #[serde(rename = "do")]
    pub(super) action: Option<Spanned<OneOrMany>>,
    /// Targets of `do`.
    pub(super) on: Option<Spanned<OneOrMany>>,
    /// The program that is started for the server.
    pub(super) launch: Option<Spanned<Program>>,
    /// The secret that is delivered to the server or plugin.
    pub(super) deliver: Option<Spanned<Secret>>,
    /// `HOST:PORT` of egress, for the server or plugin.
    pub(super) egress: Option<Spanned<OneOrMany>>,
    /// Host functions that the plugin is granted.
    pub(super) grant: Option<Spanned<OneOrMany>>,
    pub(super) args: Option<Map<String, Value>>,
    /// Claims that replace those under `tools`.
    pub(super) hints: Option<Hints>,
    #[serde(default)]
    pub(super) context: Context,
    pub(super) expect: Option<Spanned<Expect>>,
    /// Policies that must be among the deciding ones. An empty list: no policy may decide.
    pub(super) by: Option<Spanned<OneOrMany>>,
    /// Obligations that these policies must have. An empty list: none.
    pub(super) asks: Option<Spanned<OneOrMany>>,
    /// Rows: the case is run once for each, with the keys of the row in place of its own.
    pub(super) each: Option<Vec<Spanned<Case>>>,
}

/// Expected result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Expect {
    Allow,
    Deny,
    /// Refused, because a policy fails on it.
    Error,
    /// Visible in lists.
    Shown,
    /// Hidden in lists.
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

/// Annotations of a tool, with the names of MCP.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "MCP's names")]
pub(super) struct Hints {
    pub(super) read_only_hint: Option<bool>,
    pub(super) destructive_hint: Option<bool>,
    pub(super) idempotent_hint: Option<bool>,
    pub(super) open_world_hint: Option<bool>,
}

/// A program that is started as a server, as policies see it.
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

/// Runtime of a server.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Runtime {
    Container,
    Sandbox,
    Remote,
}

/// A secret for a server, as policies see it.
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
    /// These circumstances, with missing ones taken from another.
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

/// One or more texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element()? {
                    words.push(word);
                }
                Ok(OneOrMany(words))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// A principal in a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasePrincipal {
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
    /// A plugin, by its name in the config.
    Plugin(String),
}

/// Help text on the forms of principals that need no definition.
pub(super) const FORMS: &str = "write `client:NAME`, `group:NAME` (some client in that group), `local:USER`, `server:NAME`, \
     `plugin:NAME` or `anonymous`";

impl CasePrincipal {
    /// Parses a principal.
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

impl CasePrincipal {
    /// The client, if it is one.
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

impl<'de> Deserialize<'de> for CasePrincipal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct PrincipalFields {
            client: Option<ClientName>,
            local: Option<String>,
            server: Option<ServerName>,
            #[serde(default)]
            groups: Vec<Group>,
        }

        struct Party;

        impl<'de> Visitor<'de> for Party {
            type Value = CasePrincipal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a party, such as `client:NAME` or `{client: NAME, groups: [NAME]}`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<CasePrincipal, E> {
                CasePrincipal::parse(word).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CasePrincipal, A::Error> {
                let written = PrincipalFields::deserialize(MapAccessDeserializer::new(map))?;
                let PrincipalFields { client, local, server, groups } = written;
                match (client, local, server) {
                    (Some(name), None, None) => Ok(CasePrincipal::Client { name, groups }),
                    (None, Some(user), None) => Ok(CasePrincipal::Local { user, groups }),
                    (None, None, Some(name)) if groups.is_empty() => {
                        Ok(CasePrincipal::Server(name))
                    }
                    (None, None, Some(_)) => Err(de::Error::custom("a server is in no group")),
                    _ => Err(de::Error::custom("give one of `client`, `local` and `server`")),
                }
            }
        }

        deserializer.deserialize_any(Party)
    }
}

/// A principal by its name in the file, or in one of the direct forms.
pub(super) fn party(word: &str, document: &Document) -> Result<CasePrincipal, String> {
    if let Some(who) = document.principals.get(word) {
        return Ok(who.value.clone());
    }
    CasePrincipal::parse(word).map_err(|problem| {
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
