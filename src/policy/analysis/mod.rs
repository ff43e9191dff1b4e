//! Warnings about a valid set: policies without effect, policies that contradict each other,
//! policies that match nobody and nothing, and policies that match everybody and everything.
//!
//! Every warning is correct, but some faults are not found: a condition with an unknown meaning may
//! be true or false, independently of all others.

mod expr;
mod shape;
#[cfg(test)]
mod tests;
mod tools;

use std::collections::BTreeSet;

use cedar_policy::{Policy, PolicyId};

use self::{
    expr::{Expr, Var},
    shape::{Actions, Shape},
};
use super::{
    diagnostics::Finding,
    load::{Loaded, Span, is_absent, is_of_server},
};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    names::{ClientName, Group, ServerName},
    refusal::Rule,
};

/// The existing servers, clients and tools, as stated by the operator. `None` means unknown.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    pub servers: Option<BTreeSet<ServerName>>,
    pub clients: Option<BTreeSet<ClientName>>,
    /// The groups that have at least one client.
    pub groups: Option<BTreeSet<Group>>,
    /// Whether callers without a key may connect.
    pub anonymous: Option<bool>,
    /// All tools of some servers.
    pub tools: Vec<(ServerName, Vec<KnownTool>)>,
}

/// A tool that a server offers.
#[derive(Debug, Clone)]
pub struct KnownTool {
    pub name: String,
    pub claims: Claims,
}

/// A policy with its rule and position, and its comparable form if it is in force.
struct Entry<'a> {
    policy: &'a Policy,
    rule: &'a Rule,
    span: &'a Span,
    shape: Option<Shape>,
}

/// All warnings, by file and line.
pub(super) fn findings(loaded: &Loaded, inventory: &Inventory) -> Vec<Finding> {
    let schema = &loaded.ground.schema;
    let Some(actions) = Actions::of(schema) else { return Vec::new() };
    let mut entries: Vec<_> = loaded
        .policies
        .policies()
        .filter_map(|policy| {
            let rule = loaded.rules.get(policy.id())?;
            let span = loaded.spans.get(policy.id())?;
            Some(Entry { policy, rule, span, shape: Shape::of(policy, &actions) })
        })
        .collect();
    entries.sort_by(|a, b| (&a.rule.file, a.rule.line).cmp(&(&b.rule.file, b.rule.line)));
    let mut findings = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        findings.extend(unknown_names(entry, inventory));
        let Some(shape) = &entry.shape else { continue };
        findings.extend(over_broad(entry, shape));
        findings.extend(overridden(entry, shape, &entries, &actions));
        findings.extend(repeated(at, entry, shape, &entries, &actions));
        findings.extend(nobody(entry, shape, &actions, inventory));
    }
    findings.extend(tools::unmatched(&entries, loaded, schema, inventory));
    findings.sort_by_key(Finding::order);
    findings
}

impl Entry<'_> {
    fn id(&self) -> &PolicyId {
        self.policy.id()
    }

    /// A warning about the whole policy.
    fn warning(&self, code: &'static str, message: String, label: &str) -> Finding {
        let Span { file, start, length } = self.span;
        Finding::error(code, message).warning().at(file, *start, *length, label)
    }

    fn address(&self) -> String {
        let file = self.rule.file.as_deref().unwrap_or_else(|| std::path::Path::new(""));
        format!("{}:{}", file.display(), self.rule.line.unwrap_or_default())
    }
}

/// Actions with a warning for unbounded permits, with the risk and the remedy. The config bounds
/// the other actions of the proxy: it names each secret and each host.
const OVER_BROAD: [(&str, &str, &str); 2] = [
    (
        "call_tool",
        "everybody to call every tool of every server",
        "say who (`principal in Portcullis::Group::\"…\"`), what (`resource in \
         Portcullis::Server::\"…\"`), or when (`when { … }`)",
    ),
    (
        "launch",
        "every server to run every program and image, with every deviation from the hardened profile",
        "say which server (`principal == Portcullis::Server::\"…\"`) and bound its deviations (`when { \
         [\"egress\"].containsAll(resource.deviations) }`)",
    ),
];

/// An unconditional permit for anybody to call any tool, or any server to start any program.
fn over_broad(entry: &Entry<'_>, shape: &Shape) -> Option<Finding> {
    if shape.forbids || shape.obliges || shape.condition != Expr::True {
        return None;
    }
    let (_, what, help) = OVER_BROAD.iter().find(|(act, ..)| shape.actions.contains(*act))?;
    let message = format!("`{}` permits {what}", entry.rule.id);
    Some(
        entry
            .warning("policy-over-broad", message, "names no principal and no resource")
            .help(*help),
    )
}

/// A permit that a forbid always overrides.
fn overridden(
    entry: &Entry<'_>,
    shape: &Shape,
    entries: &[Entry<'_>],
    actions: &Actions,
) -> Option<Finding> {
    if shape.forbids {
        return None;
    }
    // Whenever the permit holds, the forbid holds or fails; both refuse.
    let mut over = entries.iter().filter_map(|other| {
        let forbid = other.shape.as_ref().filter(|forbid| forbid.forbids)?;
        forbid.covers(shape, actions).then(|| (other, shape.covers(forbid, actions)))
    });
    let (other, equal) = over.next()?;
    let (id, forbid) = (&entry.rule.id, &other.rule.id);
    let finding = if equal {
        let message = format!("`{id}` permits exactly what `{forbid}` forbids");
        entry.warning("policy-contradiction", message, "permits nothing")
    } else {
        let message = format!("`{id}` permits nothing: `{forbid}` forbids all of it");
        entry.warning("policy-unreachable", message, "is always overridden")
    };
    Some(finding.help(format!(
        "the forbid is at {}, and a forbid wins over every permit: narrow it, or take this out",
        other.address()
    )))
}

/// A policy that another one makes redundant.
fn repeated(
    at: usize,
    entry: &Entry<'_>,
    shape: &Shape,
    entries: &[Entry<'_>],
    actions: &Actions,
) -> Option<Finding> {
    let mut over = entries.iter().enumerate().filter_map(|(span, other)| {
        let wide = other.shape.as_ref().filter(|wide| wide.forbids == shape.forbids)?;
        // Its obligations, and its message for the agent, would be lost.
        let obliges = shape.obliges || wide.obliges;
        let adds_reason = shape.forbids && shape.reason.is_some() && shape.reason != wide.reason;
        if span == at || obliges || adds_reason || !wide.covers(shape, actions) {
            return None;
        }
        let equal = shape.covers(wide, actions);
        // Of two equal policies, the second one is redundant. A policy that can fail refuses
        // requests that the other one does not.
        let needed = if equal { span > at } else { shape.could_fail };
        (!needed).then_some((other, equal))
    });
    let (other, equal) = over.next()?;
    let (id, wide) = (&entry.rule.id, &other.rule.id);
    let does = if shape.forbids { "forbids" } else { "permits" };
    let finding = if equal {
        let message = format!("`{id}` {does} the same as `{wide}`");
        entry.warning("policy-duplicate", message, "is there already")
    } else {
        let message = format!("`{id}` {does} only what `{wide}` {does} too");
        entry.warning("policy-redundant", message, "changes no decision")
    };
    Some(finding.help(format!("the other is at {}; take one of them out", other.address())))
}

/// A permit for callers that may not connect by the config.
fn nobody(
    entry: &Entry<'_>,
    shape: &Shape,
    actions: &Actions,
    inventory: &Inventory,
) -> Option<Finding> {
    if shape.forbids || inventory.anonymous != Some(false) {
        return None;
    }
    if !shape.kinds(Var::Principal, actions).into_iter().eq(["Portcullis::Anonymous"]) {
        return None;
    }
    let message = format!("`{}` permits only callers without a key", entry.rule.id);
    Some(
        entry
            .warning("policy-nobody", message, "and the config lets none of them in")
            .help("set `anonymous = true` under `[listen]`, or take this out"),
    )
}

/// References to unknown clients and groups. Also in shadow mode, since its findings are used.
fn unknown_names(entry: &Entry<'_>, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    if is_about_absent_servers(entry.policy, inventory) {
        return findings;
    }
    for literal in entry.policy.entity_literals() {
        let (id, text) = (literal.id().unescaped(), literal.to_string());
        let found = match (literal.type_name().basename(), &inventory.groups, &inventory.clients) {
            ("Group", Some(_), _) if id.parse::<Group>().is_err() => Some((
                Vec::new(),
                "policy-empty-group",
                format!("no client can be in the group `{}`", id.escape_debug()),
                "is not a legal name",
                "use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit, as \
                 `portcullis client add --group` does",
            )),
            ("Group", Some(groups), _) => Some((
                groups.iter().map(Group::as_str).collect::<Vec<_>>(),
                "policy-empty-group",
                format!("no client is in the group `{}`", id.escape_debug()),
                "has no member",
                "put a client in it (`portcullis client add --group` or `client connect --group`, or \
                 `groups` under `[clients.NAME]`), or take this out",
            )),
            ("Client", _, Some(clients)) => Some((
                clients.iter().map(ClientName::as_str).collect(),
                "policy-unknown-client",
                format!("there is no client `{}`", id.escape_debug()),
                "has no key",
                "add it (`portcullis client add`), or take this out",
            )),
            _ => None,
        };
        let Some((names, code, message, label, help)) = found else { continue };
        if !names.contains(&id) {
            let finding = entry.span.warn(code, message, &text, label);
            findings.push(match nearest(id, names) {
                Some(near) => finding.help(format!("did you mean `{near}`?")),
                None => finding.help(help),
            });
        }
    }
    findings
}

/// Whether all servers and items that a policy names are of servers that the config lacks.
fn is_about_absent_servers(policy: &Policy, inventory: &Inventory) -> bool {
    let Some(servers) = &inventory.servers else { return false };
    let servers: Vec<_> = servers.iter().collect();
    let literals = policy.entity_literals().into_iter();
    let mut of_servers = literals.filter(is_of_server).peekable();
    of_servers.peek().is_some() && of_servers.all(|literal| is_absent(&literal, &servers))
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map(|(_, known)| known)
}
