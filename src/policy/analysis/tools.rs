//! Comparison of policies with the known tools of servers.

use std::collections::HashSet;

use cedar_policy::{
    EntityId, EntityTypeName, EntityUid, PartialEntities, PartialEntityUid, PartialRequest,
    PolicyId, Schema,
};
use cedar_policy_core::ast::{Expr, ExprKind, Var};
use serde_json::json;

use super::{
    super::{diagnostics::Finding, load::Loaded, request::Action},
    Entry, Inventory, KnownTool, nearest,
};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::names::ServerName;

/// Actions whose resource is a tool.
const ON_TOOLS: [Action; 2] = [Action::CallTool, Action::AccessTask];
/// The types of principals of these actions.
const CALLERS: [&str; 3] = ["Portcullis::Client", "Portcullis::Local", "Portcullis::Anonymous"];

/// References to tools that a server does not offer, and policies that hold for no known tool.
pub(super) fn unmatched(
    entries: &[Entry<'_>],
    loaded: &Loaded,
    schema: &Schema,
    inventory: &Inventory,
) -> Vec<Finding> {
    if inventory.tools.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    // Without an answer of Cedar nothing is reported.
    let matching = matching(loaded, schema, inventory);
    let is_known = |server: &str| inventory.tools.iter().any(|(name, _)| name.as_str() == server);
    // A server with unknown tools may have any tool.
    let all_known = inventory
        .servers
        .as_ref()
        .is_some_and(|servers| servers.iter().all(|server| is_known(server.as_str())));
    for entry in entries {
        let unknown = unknown_tools(entry, inventory);
        let Some(shape) = entry.shape.as_ref().filter(|_| unknown.is_empty()) else {
            findings.extend(unknown);
            continue;
        };
        let on_tools = |action: &String| {
            // An id with a `/` is a tool's own action.
            action.contains('/') || ON_TOOLS.iter().any(|known| known.as_str() == action)
        };
        let about_tools = !shape.actions.is_empty() && shape.actions.iter().all(on_tools);
        let in_known =
            || shape.servers().is_some_and(|servers| servers.iter().all(|server| is_known(server)));
        // A guard may be for future tools; a policy that names tools is not.
        let means_it = !shape.forbids || names_tools(entry);
        let matches = matching.as_ref().is_none_or(|matching| matching.contains(entry.id()));
        if about_tools && means_it && !matches && (all_known || in_known()) {
            let message = format!("`{}` holds for no known tool", entry.rule.id);
            findings.push(entry.warning("policy-no-tool", message, "matches none").help(
                "`--tools` names the file of what a server offers; correct this, or take it out",
            ));
        }
    }
    findings
}

fn unknown_tools(entry: &Entry<'_>, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for literal in entry.policy.entity_literals() {
        if literal.type_name().basename() != "Tool" {
            continue;
        }
        let Some((server, name)) = literal.id().unescaped().split_once('/') else { continue };
        let of_server = |(known, _): &&(ServerName, Vec<KnownTool>)| known.as_str() == server;
        let Some((_, tools)) = inventory.tools.iter().find(of_server) else { continue };
        if tools.iter().any(|tool| tool.name == name) {
            continue;
        }
        let message = format!("the server `{server}` has no tool `{}`", name.escape_debug());
        let text = literal.to_string();
        let finding = entry.span.warn("policy-unknown-tool", message, &text, "is not a tool of it");
        findings.push(match nearest(name, tools.iter().map(|tool| tool.name.as_str())) {
            Some(near) => finding.help(format!("did you mean `{server}/{near}`?")),
            None => finding.help("correct the name, or take this out"),
        });
    }
    findings
}

/// Whether a policy names tools, by id or by name.
fn names_tools(entry: &Entry<'_>) -> bool {
    let is_name = |expr: &Expr| {
        matches!(expr.expr_kind(), ExprKind::GetAttr { expr, attr }
            if attr == "name" && matches!(expr.expr_kind(), ExprKind::Var(Var::Resource)))
    };
    let condition = entry.policy.as_ref().non_scope_constraints();
    entry.policy.entity_literals().iter().any(|uid| uid.type_name().basename() == "Tool")
        || condition.is_some_and(|condition| condition.subexpressions().any(is_name))
}

/// The policies that could hold for some known tool, for any principal and circumstances.
fn matching(loaded: &Loaded, schema: &Schema, inventory: &Inventory) -> Option<HashSet<PolicyId>> {
    let mut matching = HashSet::new();
    for (server, tools) in &inventory.tools {
        for tool in tools {
            let entities = entities(server, tool, schema)?;
            let own = format!("{server}/{}", tool.name);
            let own = schema.actions().find(|action| action.id().unescaped() == own);
            let all = ON_TOOLS.map(Action::as_str).into_iter();
            for action in all.chain(own.map(|action| action.id().unescaped())) {
                for caller in CALLERS {
                    let request = request(server, tool, action, caller, schema)?;
                    let response = loaded.policies.tpe(&request, &entities, schema).ok()?;
                    let fails: HashSet<_> =
                        response.false_permits().chain(response.false_forbids()).collect();
                    let ids = loaded.policies.policies().map(|policy| policy.id());
                    matching.extend(ids.filter(|id| !fails.contains(id)).cloned());
                }
            }
        }
    }
    Some(matching)
}

fn uid(kind: &str, id: &str) -> Option<EntityUid> {
    Some(EntityUid::from_type_name_and_id(kind.parse().ok()?, EntityId::new(id)))
}

fn request(
    server: &ServerName,
    tool: &KnownTool,
    action: &str,
    caller: &str,
    schema: &Schema,
) -> Option<PartialRequest> {
    let caller: EntityTypeName = caller.parse().ok()?;
    let tool = uid("Portcullis::Tool", &format!("{server}/{}", tool.name))?;
    PartialRequest::new(
        PartialEntityUid::new(caller, None),
        uid("Portcullis::Action", action)?,
        PartialEntityUid::from_concrete(tool),
        None,
        schema,
    )
    .ok()
}

fn entities(server: &ServerName, tool: &KnownTool, schema: &Schema) -> Option<PartialEntities> {
    let on = json!({ "type": "Portcullis::Server", "id": server });
    let Claims { read_only, destructive, idempotent, open_world, by } = tool.claims;
    let claims = json!({
        "read_only": read_only,
        "destructive": destructive,
        "idempotent": idempotent,
        "open_world": open_world,
        "by": by.as_str(),
    });
    let entities = json!([
        { "uid": on, "attrs": { "name": server }, "parents": [] },
        {
            "uid": { "type": "Portcullis::Tool", "id": format!("{server}/{}", tool.name) },
            "attrs": { "name": tool.name, "claims": claims },
            "parents": [on],
        },
    ]);
    PartialEntities::from_json_value(entities, schema).ok()
}
