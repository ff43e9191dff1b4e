//! Two sets of policies held against each other: which principals gain or lose which tools.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::replay::Recorded;
use portcullis_policy::{
    Action, Circumstances, Engine, Explained, Inspector, KnownTool, Request, Resource, Subject,
    Target, Unknown, Verdict,
};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    identity::{Principal, PrincipalKind},
    names::{ClientName, Group, ServerName},
};

/// Tools of one comparison.
const TOOLS: usize = 20_000;
/// Stands for all tools of a server that nobody names.
const ANY: &str = "*";

/// Who is asked about what.
#[derive(Default)]
pub struct Comparison {
    /// By their names.
    principals: BTreeMap<String, Principal>,
    /// What is claimed of each, where that is known.
    tools: BTreeMap<(ServerName, String), Option<Claims>>,
}

/// What somebody may do with a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    No,
    /// It depends on arguments, circumstances, or what is claimed of the tool.
    Conditional,
    Yes,
}

/// Something that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub principal: String,
    /// `SERVER/TOOL`; `SERVER/*` for all that nobody names.
    pub tool: String,
    pub before: Access,
    pub after: Access,
    /// The policies of the one set that decide, or on which it depends.
    pub before_rules: BTreeSet<String>,
    pub after_rules: BTreeSet<String>,
}

impl Comparison {
    /// With this principal.
    pub fn principal(&mut self, principal: Principal) {
        self.principals.entry(principal.name()).or_insert(principal);
    }

    /// With these tools of a server.
    pub fn tools(&mut self, server: &ServerName, tools: &[KnownTool]) {
        for KnownTool { name, claims } in tools {
            self.tool(server, name, Some(*claims));
        }
    }

    /// With who and what a record is about.
    pub fn recorded(&mut self, recorded: &Recorded) {
        self.principal(recorded.principal.clone());
        if let Target::Tool(server, name) = &recorded.target {
            self.tool(server, name, Some(recorded.claims));
        }
    }

    /// With everybody and everything that these policies name.
    pub fn named(&mut self, engine: &Engine) {
        for (kind, id) in engine.literals() {
            match kind.as_str() {
                "Client" => {
                    if let Ok(name) = id.parse::<ClientName>() {
                        self.principal(Principal::client(name, Vec::new()));
                    }
                }
                "Group" => {
                    if let Ok(group) = id.parse::<Group>() {
                        self.member(group);
                    }
                }
                "Local" => {
                    let kind = PrincipalKind::Local { user: id };
                    let groups = Vec::new();
                    self.principal(Principal { kind, groups, verified: true, key: None });
                }
                // Of actions, only those of one tool have one in it.
                "Tool" | "Action" => {
                    if let Some((server, name)) = id.split_once('/')
                        && let Ok(server) = server.parse()
                    {
                        self.tool(&server, name, None);
                    }
                }
                "Server" => self.server(&id),
                _ => {}
            }
        }
    }

    /// With a server, of which no tool need be known.
    pub fn server(&mut self, name: &str) {
        if let Ok(server) = name.parse() {
            self.tool(&server, ANY, None);
        }
    }

    /// With somebody of whom nothing is known but a group.
    fn member(&mut self, group: Group) {
        if let Ok(name) = "someone".parse() {
            let name = Principal::client(name, vec![group.clone()]);
            self.principals.entry(format!("group {group}")).or_insert(name);
        }
    }

    fn tool(&mut self, server: &ServerName, name: &str, claims: Option<Claims>) {
        let any = (server.clone(), ANY.to_owned());
        self.tools.entry(any).or_default();
        let key = (server.clone(), name.to_owned());
        if self.tools.len() < TOOLS || self.tools.contains_key(&key) {
            let known = self.tools.entry(key).or_default();
            *known = claims.or(*known);
        }
    }

    /// How many principals and tools there are.
    pub fn size(&self) -> (usize, usize) {
        (self.principals.len(), self.tools.len())
    }

    /// What differs, by principal and tool.
    pub fn differences(&self, before: &Engine, after: &Engine) -> Vec<Difference> {
        let (mut before, mut after) = (before.inspect(), after.inspect());
        let mut found = Vec::new();
        for (who, principal) in &self.principals {
            for ((server, tool), claims) in &self.tools {
                let one = judge(&mut before, principal, server, tool, *claims);
                let other = judge(&mut after, principal, server, tool, *claims);
                let (was, is) = (access(&one), access(&other));
                // The same policies, wherever they stand and however they are called.
                let texts = |inspector: &Inspector, judgement: &Explained| -> BTreeSet<String> {
                    judgement.rules.iter().filter_map(|rule| inspector.body(rule)).collect()
                };
                let same = was == is
                    && (was != Access::Conditional
                        || texts(&before, &one) == texts(&after, &other));
                if same {
                    continue;
                }
                let ids = |judgement: Explained| -> BTreeSet<String> {
                    judgement.rules.into_iter().map(|rule| rule.id).collect()
                };
                found.push(Difference {
                    principal: who.clone(),
                    tool: format!("{server}/{tool}"),
                    before: was,
                    after: is,
                    before_rules: ids(one),
                    after_rules: ids(other),
                });
            }
        }
        found
    }
}

fn access(judgement: &Explained) -> Access {
    match judgement.verdict {
        Verdict::Allowed => Access::Yes,
        Verdict::Refused => Access::No,
        Verdict::Unknown => Access::Conditional,
    }
}

fn judge(
    inspector: &mut Inspector,
    principal: &Principal,
    server: &ServerName,
    name: &str,
    claims: Option<Claims>,
) -> Explained {
    let unknown = if claims.is_some() { Unknown::Circumstances } else { Unknown::Claims };
    let claims = claims.unwrap_or_default();
    let request = Request {
        subject: Subject::Client(principal),
        action: Action::CallTool,
        resource: Resource::Tool { server, name, claims },
        args: None,
        written: b"",
        circumstances: Circumstances::own(Timestamp::UNIX_EPOCH),
    };
    inspector.judge(&request, unknown)
}
