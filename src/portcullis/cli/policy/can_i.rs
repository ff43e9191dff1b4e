//! `portcullis policy can-i`: evaluates one request with the policies.

use std::{net::IpAddr, path::Path};

use clap::ArgAction;
use serde::{Deserialize as _, de::IntoDeserializer as _};

use super::{explain, load, reports, source};
use crate::{
    cli::{Context, Exit},
    manage::{
        can_i::{Answer, HINTS, Origin, Question, answer, start_parts},
        server_facts::PartDecision,
    },
};
use portcullis_protocol::{exchange::Transport, names::Group, refusal::Rule};

#[derive(Debug, clap::Args)]
pub struct CanI {
    /// The principal: a client's name, `group:NAME` (any client in that group), `local:USER`,
    /// `anonymous`; for actions of the proxy `server:NAME` or `plugin:NAME`
    #[arg(long = "as", value_name = "PARTY")]
    party: String,
    /// An additional group of the client; repeatable
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<Group>,
    /// An action (`call_tool`) or a method (`tools/call`)
    #[arg(value_name = "ACTION")]
    action: String,
    /// The target: SERVER/TOOL, SERVER/PROMPT, SERVER/URI or SERVER; default: all servers at once.
    /// For `egress`: HOST:PORT; for `grant`: the function; for `deliver_secret`: the secret
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The arguments, as a JSON object
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// A hint of the tool's annotations, such as `readOnlyHint=true`; repeatable
    #[arg(long = "hint", value_name = "NAME=BOOL", value_parser = hint, action = ArgAction::Append)]
    hints: Vec<(String, bool)>,
    /// Value of `context.method`, if ACTION is not a method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Value of `context.transport`: `http`, `unix`, `stdio` or `cli`
    #[arg(long, value_name = "TRANSPORT", value_parser = transport)]
    transport: Option<Transport>,
    /// Value of `context.source_ip`
    #[arg(long, value_name = "ADDRESS")]
    source_ip: Option<IpAddr>,
    /// Value of `context.session_calls`
    #[arg(long, value_name = "NUMBER")]
    session_calls: Option<u64>,
    /// Evaluate at this time, such as `2026-11-21T17:00:00Z`. Default: now
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,
    /// Explain the result of each policy that matches or nearly matches
    #[arg(long)]
    explain: bool,
}

fn transport(text: &str) -> Result<Transport, serde::de::value::Error> {
    Transport::deserialize(text.into_deserializer())
}

fn hint(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=true or NAME=false")?;
    if !HINTS.contains(&name) {
        return Err(format!("the hints are {}", HINTS.join(", ")));
    }
    let value = value.parse().map_err(|_| format!("`{value}` is neither `true` nor `false`"))?;
    Ok((name.to_owned(), value))
}

/// Runs the verb.
pub async fn can_i(args: CanI, ctx: &Context) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let engine = load(source(&loaded)).map_err(reports)?;
    let question = args.into();
    if let Some(parts) = start_parts(&question, &loaded).await? {
        print_parts(&parts, ctx)?;
        let allowed = parts.iter().all(|part| part.allowed);
        return Ok(if allowed { Exit::Ok } else { Exit::Denied });
    }
    let answer = answer(&question, &loaded.config, &engine)?;
    print(&answer, ctx)?;
    Ok(if answer.outcome.allowed { Exit::Ok } else { Exit::Denied })
}

impl From<CanI> for Question {
    fn from(args: CanI) -> Self {
        let CanI {
            party,
            groups,
            action,
            target,
            args,
            hints,
            method,
            transport,
            source_ip,
            session_calls,
            at,
            explain,
        } = args;
        Self {
            principal: party,
            groups,
            action,
            target,
            args,
            hints,
            method,
            transport,
            source_ip,
            session_calls,
            at,
            explain,
        }
    }
}

fn print(answer: &Answer, ctx: &Context) -> anyhow::Result<()> {
    if ctx.is_json() {
        ctx.json(answer)?;
        return Ok(());
    }
    let Answer { outcome, explanation, why, origin, .. } = answer;
    ctx.state(verdict(outcome.allowed), format!(": {explanation}"))?;
    print_rules(&outcome.rules, ctx)?;
    let would = if outcome.allowed { "refuse" } else { "permit" };
    for shadow in &outcome.shadows {
        let problem = shadow.problem.as_ref().map(|problem| format!(": {problem}"));
        let problem = problem.unwrap_or_default();
        ctx.line(format!("in shadow, `{}` would {would} it{problem}", shadow.rule.id))?;
    }
    if let Some(why) = why {
        explain::print(why, ctx)?;
    }
    if *origin == Some(Origin::Unknown) {
        ctx.note(
            "the tool's annotations are not known, since its server has listed no tools to this \
             proxy yet; whatever they are, the answer is the same",
        );
    }
    Ok(())
}

fn verdict(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// Prints the decisions about the parts of a start.
fn print_parts(parts: &[PartDecision], ctx: &Context) -> anyhow::Result<()> {
    if ctx.is_json() {
        return Ok(ctx.json(&parts)?);
    }
    for PartDecision { action, target, allowed, why, rules } in parts {
        ctx.state(verdict(*allowed), format!(": {action} {target}: {why}"))?;
        print_rules(rules, ctx)?;
    }
    Ok(())
}

fn print_rules(rules: &[Rule], ctx: &Context) -> anyhow::Result<()> {
    for rule in rules {
        let file = rule.file.as_deref().unwrap_or(Path::new("")).display();
        let line = rule.line.map(|line| format!(":{line}")).unwrap_or_default();
        ctx.line(format!("  {}  {file}{line}", rule.id))?;
        if let Some(reason) = &rule.reason {
            ctx.line(format!("    {reason}"))?;
        }
    }
    Ok(())
}
