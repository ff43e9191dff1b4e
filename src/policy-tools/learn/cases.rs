//! Cases for learned policies: recorded calls are allowed, and others are refused.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{Access, Learner};

/// Maximum number of names in one case.
const NAMES: usize = 200;

/// Any text as YAML: strings of JSON are valid YAML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn list(texts: impl IntoIterator<Item = String>) -> String {
    let texts: Vec<_> = texts.into_iter().take(NAMES).map(|text| quoted(&text)).collect();
    format!("[{}]", texts.join(", "))
}

/// Writes the case file.
pub(super) fn cases(learner: &Learner, file: &str) -> String {
    let mut text = format!(
        "# What was recorded is allowed, and what was not is refused.\npolicies: {}\n",
        quoted(file)
    );
    hints(&mut text, learner);
    if learner.uses.is_empty() {
        text.push_str("\ncases: []\n");
        return text;
    }
    text.push_str("\ncases:\n");
    for (access, names) in &learner.uses {
        let Some((action, targets)) = targets(access, names.keys()) else { continue };
        let name = format!("{} keeps {} {}", access.who.name(), access.action, access.server());
        case(&mut text, &name, &access.who.party(), action, targets, "allow", Some(&access.id()));
    }
    refusals(&mut text, learner);
    text
}

fn case(
    text: &mut String,
    name: &str,
    who: &str,
    action: &str,
    targets: Vec<String>,
    expect: &str,
    by: Option<&str>,
) {
    let _ = write!(
        text,
        "  - name: {}\n    as: {}\n    do: {}\n",
        quoted(name.trim()),
        quoted(who),
        quoted(action)
    );
    if !targets.is_empty() {
        let _ = writeln!(text, "    on: {}", list(targets));
    }
    let _ = writeln!(text, "    expect: {expect}");
    match by {
        Some(by) => {
            let _ = writeln!(text, "    by: {}", quoted(by));
        }
        None => text.push_str("    by: []\n"),
    }
}

/// Method and targets of a case. `None` for server requests, which have no cases.
fn targets<'a>(
    access: &'a Access,
    names: impl Iterator<Item = &'a String>,
) -> Option<(&'a str, Vec<String>)> {
    if access.is_by_server() {
        return None;
    }
    match (access.of, &access.server) {
        ("Proxy", _) if access.action == "connect" => Some((access.action, Vec::new())),
        // Decided by method: the first one represents all.
        ("Proxy", _) => names.map(String::as_str).next().map(|method| (method, Vec::new())),
        ("Server", Some(server)) => {
            names.map(String::as_str).next().map(|method| (method, vec![server.clone()]))
        }
        ("Server", None) => Some((access.action, names.cloned().collect())),
        (_, Some(server)) => {
            Some((access.action, names.map(|name| format!("{server}/{name}")).collect()))
        }
        (_, None) => None,
    }
}

impl Access {
    fn server(&self) -> &str {
        self.server.as_deref().unwrap_or_default()
    }
}

/// Writes the claims of servers about their tools.
fn hints(text: &mut String, learner: &Learner) {
    let mut begun = false;
    for (server, tools) in learner.tools() {
        for (name, one) in tools {
            let Some(claims) = one.claims else { continue };
            if !begun {
                text.push_str("\ntools:\n");
                begun = true;
            }
            let _ = writeln!(
                text,
                "  {}: {{ readOnlyHint: {}, destructiveHint: {}, idempotentHint: {}, \
                 openWorldHint: {} }}",
                quoted(&format!("{server}/{name}")),
                claims.read_only,
                claims.destructive,
                claims.idempotent,
                claims.open_world
            );
        }
    }
}

/// Writes cases of refused calls: tools that nobody called, and tools that only others called.
fn refusals(text: &mut String, learner: &Learner) {
    let tools = learner.tools();
    let called = |access: &Access| access.of == "Tool" && access.action == "call_tool";
    let whom: BTreeSet<_> = learner.uses.keys().map(|access| &access.who).collect();
    for who in &whom {
        let mut others = Vec::new();
        for (server, names) in &tools {
            let own = learner.uses.iter().find(|(access, _)| {
                called(access) && access.who == **who && access.server.as_deref() == Some(server)
            });
            let is_own = |name: &str| own.is_some_and(|(_, names)| names.contains_key(name));
            let foreign = names.keys().filter(|name| !is_own(name));
            others.extend(foreign.map(|name| format!("{server}/{name}")));
            others.push(format!("{server}/{}", nowhere(|name| names.contains_key(name))));
        }
        others.push(format!("{}/anything", nowhere(|name| tools.contains_key(name))));
        let name = format!("{} gains nothing", who.name());
        case(text, &name, &who.party(), "tools/call", others, "deny", None);
    }
    let all: Vec<_> = tools
        .iter()
        .flat_map(|(server, names)| names.keys().map(move |name| format!("{server}/{name}")))
        .collect();
    if !all.is_empty() {
        let stranger = nowhere(|name| whom.iter().any(|who| who.name() == name));
        let who = format!("client:{stranger}");
        case(text, "strangers may do nothing", &who, "tools/call", all, "deny", None);
    }
}

/// A name that is not in use.
fn nowhere(taken: impl Fn(&str) -> bool) -> String {
    let mut name = "never-recorded".to_owned();
    while taken(&name) {
        name.push('x');
    }
    name
}
