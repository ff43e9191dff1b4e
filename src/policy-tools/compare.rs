//! Comparison of two policy sets: the tools that each principal gains or loses.

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

/// Maximum number of tools in one comparison.
const TOOLS: usize = 20_000;
/// Name for all unnamed tools of a server.
const ANY: &str = "*";

/// The principals and tools to compare.
#[derive(Default)]
pub struct Comparison {
    /// By name.
    principals: BTreeMap<String, Principal>,
    /// Claims of each tool, if they are known.
    tools: BTreeMap<(ServerName, String), Option<Claims>>,
}

/// Access of a principal to a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    No,
    /// It depends on arguments, circumstances, or claims of the tool.
    Conditional,
    Yes,
}

/// A difference between the sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub principal: String,
    /// `SERVER/TOOL`, or `SERVER/*` for all unnamed tools.
    pub tool: String,
    pub before: Access,
    pub after: Access,
    /// Ids of the policies that decide in the first set, or on which its decision depends.
    pub before_rules: BTreeSet<String>,
    pub after_rules: BTreeSet<String>,
}

impl Comparison {
    /// Adds a principal.
    pub fn principal(&mut self, principal: Principal) {
        self.principals.entry(principal.name()).or_insert(principal);
    }

    /// Adds tools of a server.
    pub fn tools(&mut self, server: &ServerName, tools: &[KnownTool]) {
        for KnownTool { name, claims } in tools {
            self.tool(server, name, Some(*claims));
        }
    }

    /// Adds the principal and the tool of a record.
    pub fn recorded(&mut self, recorded: &Recorded) {
        self.principal(recorded.principal.clone());
        if let Target::Tool(server, name) = &recorded.target {
            self.tool(server, name, Some(recorded.claims));
        }
    }

    /// Adds all principals and tools that these policies name.
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
                // Only own actions of tools contain `/`.
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

    /// Adds a server, whose tools may be unknown.
    pub fn server(&mut self, name: &str) {
        if let Ok(server) = name.parse() {
            self.tool(&server, ANY, None);
        }
    }

    /// Adds a client of which only one group is known.
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
            let existing = self.tools.entry(key).or_default();
            *existing = claims.or(*existing);
        }
    }

    /// Number of principals and of tools.
    pub fn size(&self) -> (usize, usize) {
        (self.principals.len(), self.tools.len())
    }

    /// The differences, by principal and tool.
    pub fn differences(&self, before: &Engine, after: &Engine) -> Vec<Difference> {
        let (mut before, mut after) = (before.inspect(), after.inspect());
        let mut found = Vec::new();
        for (who, principal) in &self.principals {
            for ((server, tool), claims) in &self.tools {
                let one = judge(&mut before, principal, server, tool, *claims);
                let other = judge(&mut after, principal, server, tool, *claims);
                let (was, is) = (access(&one), access(&other));
                // Compares the bodies of policies, independent of their position and id.
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
