//! Writes learned policies as text.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Access, Learner, Use, uid};

/// Maximum number of names with counts in a comment.
const MAX_LISTED: usize = 12;

/// The policies, before formatting.
pub(super) fn policies(learner: &Learner) -> String {
    let mut text = String::new();
    let calls = learner.calls;
    let _ = writeln!(text, "// Proposed from {calls} recorded calls that were allowed");
    if let Some((first, last)) = learner.time {
        let day = |at: jiff::Timestamp| at.strftime("%Y-%m-%d").to_string();
        let _ = writeln!(text, "// ({} to {}).", day(first), day(last));
    }
    text.push_str(
        "// Each client may do just what it did, by name; arguments are not limited. Read it, widen \
         it to\n// groups, narrow it with conditions, then put it beside what must hold for all.\n",
    );
    for (server, starts) in learner.started() {
        starts.write(&mut text, server);
    }
    for server in learner.not_started() {
        let _ = writeln!(
            text,
            "\n// No start of {} is on record in this time: its start is not permitted here.",
            server.escape_debug()
        );
    }
    let mut whom = None;
    for (access, names) in &learner.uses {
        if whom != Some(&access.who) {
            whom = Some(&access.who);
            let name = access.who.name();
            let _ = write!(text, "\n// ---- {} ----\n", name.escape_debug());
        }
        policy(&mut text, access, names);
    }
    text
}

fn policy(text: &mut String, access: &Access, names: &BTreeMap<String, Use>) {
    text.push('\n');
    comment(text, access, names);
    let id = access.id();
    let action = uid("Action", access.action);
    let who = access.who.uid();
    let _ = write!(text, "@id(\"{}\")\npermit (", id.escape_debug());
    let server = access.server.as_deref();
    match (access.of, server) {
        ("Method of a server", Some(server)) => {
            let server = uid("Server", server);
            let _ = write!(text, "principal == {server}, action == {action}, resource == {who})");
            methods(text, access, names);
        }
        ("Proxy", _) => {
            let proxy = uid("Proxy", "portcullis");
            let _ = write!(text, "principal == {who}, action == {action}, resource == {proxy})");
            if access.action != "connect" {
                methods(text, access, names);
            }
        }
        ("Server", Some(server)) => {
            let server = uid("Server", server);
            let _ = write!(text, "principal == {who}, action == {action}, resource == {server})");
            methods(text, access, names);
        }
        ("Server", None) => {
            let all: Vec<_> = names.keys().map(|name| uid("Server", name)).collect();
            let _ = write!(text, "principal == {who}, action == {action}, ");
            match all.as_slice() {
                [one] => {
                    let _ = write!(text, "resource == {one})");
                }
                all => {
                    let all = all.join(", ");
                    let _ = write!(
                        text,
                        "resource is Portcullis::Server) when {{ resource in [{all}] }}"
                    );
                }
            }
        }
        (kind, server) => {
            let server = server.unwrap_or_default();
            let all: Vec<_> =
                names.keys().map(|name| uid(kind, &format!("{server}/{name}"))).collect();
            let _ = write!(text, "principal == {who}, action == {action}, ");
            match all.as_slice() {
                [one] => {
                    let _ = write!(text, "resource == {one})");
                }
                all => {
                    let (server, all) = (uid("Server", server), all.join(", "));
                    let _ = write!(
                        text,
                        "resource is Portcullis::{kind} in {server}) when {{ resource in [{all}] }}"
                    );
                }
            }
        }
    }
    text.push_str(";\n");
}

/// Adds the condition that the method is one of these.
fn methods(text: &mut String, access: &Access, names: &BTreeMap<String, Use>) {
    // These actions have one method each.
    if matches!(access.action, "sample" | "elicit" | "list_roots") {
        return;
    }
    let all: Vec<_> = names.keys().map(|name| format!("\"{}\"", name.escape_debug())).collect();
    let _ = write!(text, " when {{ [{}].contains(context.method) }}", all.join(", "));
}

/// Adds a comment with the recorded uses: the most frequent first.
fn comment(text: &mut String, access: &Access, names: &BTreeMap<String, Use>) {
    let calls: u64 = names.values().map(|one| one.calls).sum();
    if access.action == "connect" && access.of == "Server" {
        text.push_str("// It connects to the servers that it used, and lists what they offer.\n");
        return;
    }
    let of = match &access.server {
        Some(server) => format!(" of {}", server.escape_debug()),
        None => String::new(),
    };
    let _ = writeln!(text, "// {}{of}: {calls} recorded.", access.action);
    if names.len() < 2 && names.values().all(|one| one.claims.is_none_or(|c| !c.destructive)) {
        return;
    }
    let mut all: Vec<_> = names.iter().collect();
    all.sort_by_key(|(name, one)| (u64::MAX - one.calls, (*name).clone()));
    for (name, one) in all.iter().take(MAX_LISTED) {
        let claims = match one.claims {
            Some(claims) if claims.read_only => ", claims to be read-only",
            Some(claims) if claims.destructive => ", counts as destructive",
            _ => "",
        };
        let _ = writeln!(text, "//   {} {}{claims}", name.escape_debug(), one.calls);
    }
    if all.len() > MAX_LISTED {
        let _ = writeln!(text, "//   and {} more", all.len() - MAX_LISTED);
    }
}
