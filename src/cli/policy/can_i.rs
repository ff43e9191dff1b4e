//! `portcullis policy can-i`: asks the policies one question.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use clap::ArgAction;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{explain, load, reports, source};
use crate::{
    cli::{Context, Exit, Usage},
    config::Config,
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind, Store},
    names::Group,
    policy::{
        Action, Circumstances, Claims, Explanation, Outcome, Request, Stated, Target, Unknown,
        worded_action,
    },
};

#[derive(Debug, clap::Args)]
pub struct CanI {
    /// Who asks: a client's name, `local:USER` or `anonymous`
    #[arg(long = "as", value_name = "CLIENT")]
    client: String,
    /// A group of the client, beside those that it has; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<Group>,
    /// An action (`call_tool`) or a method (`tools/call`)
    #[arg(value_name = "ACTION")]
    action: String,
    /// SERVER/TOOL, SERVER/PROMPT, SERVER/URI, or only SERVER; nothing for all servers at once
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The arguments, as a JSON object
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// A hint of the tool's annotations: `readOnlyHint=true`; may be given several times
    #[arg(long = "hint", value_name = "NAME=BOOL", value_parser = hint, action = ArgAction::Append)]
    hints: Vec<(String, bool)>,
    /// What `context.method` is, where ACTION is not a method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Say what each policy comes to that is about this, or nearly, and why
    #[arg(long)]
    explain: bool,
}

const HINTS: [&str; 4] = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];

fn hint(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=true or NAME=false")?;
    if !HINTS.contains(&name) {
        return Err(format!("the hints are {}", HINTS.join(", ")));
    }
    let value = value.parse().map_err(|_| format!("`{value}` is neither `true` nor `false`"))?;
    Ok((name.to_owned(), value))
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    principal: String,
    action: &'a str,
    target: Option<&'a str>,
    #[serde(flatten)]
    outcome: &'a Outcome,
    /// The sentence of the text format.
    explanation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a Explanation>,
}

/// Runs the verb.
pub fn can_i(question: &CanI, ctx: &Context) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let engine = load(source(&loaded)).map_err(reports)?;
    let principal = principal(question, &loaded.config)?;
    let (action, method) = worded_action(&question.action);
    let method = question.method.as_deref().unwrap_or(method);
    let target = Target::parse(action, question.target.as_deref())
        .map_err(|error| Usage(error.to_string()))?;
    let args: Option<Map<String, Value>> = match &question.args {
        Some(json) => Some(
            serde_json::from_str(json)
                .map_err(|error| Usage(format!("`--args` is no JSON object: {error}")))?,
        ),
        None => None,
    };
    let hinted = Claims::from_hints(|name| {
        question.hints.iter().rev().find(|(hint, _)| hint == name).map(|(_, value)| *value)
    });
    let stated = target
        .tool()
        .and_then(|(server, tool)| Stated::of(&loaded.config.servers).claims(server, tool));
    let claims = stated.unwrap_or(hinted);
    let (subject, resource) = target.sides(&principal, claims);
    let request = Request {
        subject,
        action,
        resource,
        args: args.as_ref(),
        written: question.args.as_deref().unwrap_or_default().as_bytes(),
        circumstances: Circumstances {
            method,
            transport: Some(Transport::Http),
            revision: Some(exchange::Revision::LATEST_LEGACY),
            now: jiff::Timestamp::now(),
            source_ip: None,
            session_calls: 0,
            labels: &BTreeSet::new(),
        },
    };
    let outcome = engine.decide(&request);
    let why = question
        .explain
        .then(|| engine.inspect().explain(&request, Unknown::Nothing, &BTreeMap::new()));
    print(question, &principal, action, &outcome, why.as_ref(), ctx)?;
    Ok(if outcome.allowed { Exit::Ok } else { Exit::Denied })
}

fn print(
    question: &CanI,
    principal: &Principal,
    action: Action,
    outcome: &Outcome,
    why: Option<&Explanation>,
    ctx: &Context,
) -> anyhow::Result<()> {
    let target = question.target.as_deref();
    if ctx.is_json() {
        ctx.json(&Answer {
            principal: principal.name(),
            action: action.as_str(),
            target,
            outcome,
            explanation: outcome.explain(),
            why,
        })?;
        return Ok(());
    }
    let verdict = if outcome.allowed { "allowed" } else { "denied" };
    ctx.line(format!("{verdict}: {}", outcome.explain()))?;
    for rule in &outcome.rules {
        let file = rule.file.as_deref().unwrap_or(Path::new("")).display();
        let line = rule.line.map(|line| format!(":{line}")).unwrap_or_default();
        ctx.line(format!("  {}  {file}{line}", rule.id))?;
        if let Some(reason) = &rule.reason {
            ctx.line(format!("    {reason}"))?;
        }
    }
    let would = if outcome.allowed { "refuse" } else { "permit" };
    for shadow in &outcome.shadows {
        let problem = shadow.problem.as_ref().map(|problem| format!(": {problem}"));
        let problem = problem.unwrap_or_default();
        ctx.line(format!("in shadow, `{}` would {would} it{problem}", shadow.rule.id))?;
    }
    if let Some(why) = why {
        explain::print(why, ctx)?;
    }
    if action == Action::CallTool && question.hints.is_empty() {
        ctx.note(
            "asked as for a tool without annotations, which counts as destructive and open-world; \
             `--hint` gives others",
        );
    }
    Ok(())
}

fn principal(question: &CanI, config: &Config) -> anyhow::Result<Principal> {
    let mut groups = question.groups.clone();
    let kind = match (question.client.as_str(), question.client.strip_prefix("local:")) {
        ("anonymous", _) => PrincipalKind::Anonymous,
        (_, Some(user)) => PrincipalKind::Local { user: user.to_owned() },
        (name, None) => {
            let name = name.parse().map_err(|error| Usage(format!("`--as`: {error}")))?;
            let added = Store::within(&config.state_dir).read()?;
            groups.extend(added.get(&name).into_iter().flat_map(|client| client.groups.clone()));
            let written = config.clients.get(&name);
            groups.extend(written.into_iter().flat_map(|client| client.groups.clone()));
            PrincipalKind::Client(name)
        }
    };
    let verified = kind != PrincipalKind::Anonymous;
    Ok(Principal { kind, groups, verified, key: None })
}
