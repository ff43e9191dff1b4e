//! `portcullis policy explain`: explains a recorded decision, and which policies nearly decided it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{engine, in_force};
use crate::cli::{
    Context, Exit,
    audit::{LogLocation, Source, conclude},
};
use portcullis_audit::record::{self, Entry, Record};
use portcullis_policy::{Candidate, Condition, Explanation, PolicyResult, ReadValue, Verdict};
use portcullis_policy_tools::{Recorded, SkipReason};
use portcullis_protocol::{names::DecisionId, refusal::Code};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The decision id, as shown to the agent
    #[arg(value_name = "ID")]
    decision: DecisionId,
    /// Files and folders of policies, instead of the config's
    #[arg(long, value_name = "PATH", num_args = 1..)]
    policies: Vec<PathBuf>,
    #[command(flatten)]
    location: LogLocation,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    id: DecisionId,
    was: Verdict,
    /// Revision of the policies that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    decided_by: Option<&'a str>,
    /// Recorded rules that decided.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rules: &'a [record::Rule],
    /// Whether that revision is the explained one.
    same_policies: bool,
    arguments_known: bool,
    explanation: &'a Explanation,
}

/// Message that was refused because its server may not be started.
#[derive(Debug, Serialize)]
struct StartReport<'a> {
    id: DecisionId,
    was: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    /// Part of the start that policies refused, with the reason.
    start_refused: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    rules: &'a [record::Rule],
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let Args { decision, policies, location } = args;
    let engine = engine(&policies, ctx)?;
    let page = Source::find(&location, ctx).await?.show(decision).await?;
    let exit = conclude(ctx, &page.unreadable);
    let entries = page.entries().map_err(anyhow::Error::msg)?;
    anyhow::ensure!(!entries.is_empty(), "there is no record of the decision {decision}");
    let decided = |entry: &&Entry| matches!(entry.record, Record::Intent(_) | Record::Refused(_));
    // A call that waited can have been decided several times. The last decision counts.
    let entry = entries.iter().rfind(decided);
    let recorded = match entry.map(Recorded::read) {
        Some(Ok(recorded)) => recorded,
        Some(Err(SkipReason::LaunchRefused)) => {
            start(decision, entry, ctx)?;
            return Ok(exit);
        }
        Some(Err(SkipReason::Missing(what))) => anyhow::bail!(
            "the record lacks the {what} that the policies evaluated, so the decision cannot be \
             explained; `portcullis audit show {decision}` has what is on record"
        ),
        Some(Err(SkipReason::NotDecided)) | None => anyhow::bail!(
            "policies did not decide this: `portcullis audit show {decision}` says what did"
        ),
    };
    let answer = entries.iter().find_map(|entry| match &entry.record {
        Record::Outcome(outcome) => outcome.refusal.as_ref(),
        _ => None,
    });
    if answer.is_some_and(|refusal| refusal.code == Code::PolicyDenied.as_str()) {
        ctx.note(
            "the request was allowed, and a policy refused it later: the start of its server, a \
             decision after a wait, or a server request in its answer; `portcullis audit show` has \
             the policies",
        );
    }
    let rules = entry.map(rules).unwrap_or_default();
    let explanation = recorded.explain(&mut engine.inspect());
    let here = if policies.is_empty() { in_force(ctx)? } else { engine.revision() };
    let same = recorded.revision == Some(here.to_string());
    if ctx.is_json() {
        ctx.json(&Report {
            id: decision,
            was: recorded.was,
            decided_by: recorded.revision.as_deref(),
            rules,
            same_policies: same,
            arguments_known: recorded.unknown() == portcullis_policy::Unknown::Nothing,
            explanation: &explanation,
        })?;
        return Ok(exit);
    }
    ctx.line(format!("{decision} was {}", worded(recorded.was)))?;
    print_rules(rules, ctx)?;
    print(&explanation, ctx)?;
    if !same {
        match &recorded.revision {
            Some(before) => ctx.note(format_args!(
                "the policies have changed: revision {before} decided, this explains {here}"
            )),
            None => ctx.note(format_args!(
                "the record does not say which policies decided: this explains revision {here}"
            )),
        }
    }
    Ok(exit)
}

/// Recorded rules that allowed or refused a message.
fn rules(entry: &Entry) -> &[record::Rule] {
    match &entry.record {
        Record::Intent(intent) => &intent.grounds.rules,
        Record::Refused(refused) => &refused.grounds.rules,
        Record::Outcome(_) | Record::Event(_) => &[],
    }
}

fn print_rules(rules: &[record::Rule], ctx: &Context) -> anyhow::Result<()> {
    for record::Rule { id, file, line, reason, .. } in rules {
        let place = match (file, line) {
            (Some(file), Some(line)) => format!("  {file}:{line}"),
            _ => String::new(),
        };
        ctx.line(format!("  recorded  {id}{place}"))?;
        if let Some(reason) = reason {
            ctx.line(format!("            {reason}"))?;
        }
    }
    Ok(())
}

/// Prints why a message was refused whose server may not be started.
fn start(decision: DecisionId, entry: Option<&Entry>, ctx: &Context) -> anyhow::Result<()> {
    let Some(Record::Refused(refused)) = entry.map(|entry| &entry.record) else { return Ok(()) };
    let refusal = &refused.refusal;
    let rules = &refused.grounds.rules;
    if ctx.is_json() {
        return Ok(ctx.json(&StartReport {
            id: decision,
            was: Verdict::Refused,
            server: refused.call.server.as_deref(),
            start_refused: refusal.detail.as_deref(),
            rules,
        })?);
    }
    ctx.line(format!("{decision} was refused, since its server may not be started"))?;
    print_rules(rules, ctx)?;
    if let Some(detail) = &refusal.detail {
        ctx.line(format!("  refused   {detail}"))?;
    }
    let server = refused.call.server.as_deref().unwrap_or("NAME");
    ctx.note(format_args!(
        "policies were not asked about the message itself; `portcullis server inspect {server}` says \
         what its start takes, and which policies decide that"
    ));
    Ok(())
}

fn worded(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Refused => "refused",
        Verdict::Unknown => "unknown: too little of it is on record",
    }
}

/// Prints an explanation.
pub(super) fn print(explanation: &Explanation, ctx: &Context) -> anyhow::Result<()> {
    let Explanation { verdict, revision, principal, action, resource, policies, more, problem } =
        explanation;
    ctx.line(format!("  who       {principal}"))?;
    ctx.line(format!("  what      {action} {resource}"))?;
    ctx.line(format!("  policies  {revision}: {}", worded(*verdict)))?;
    if let Some(problem) = problem {
        ctx.line(format!("  refused   {problem}"))?;
    }
    if policies.is_empty() && problem.is_none() {
        ctx.line("  no policy is about this, or nearly")?;
    }
    for near in policies {
        ctx.line("")?;
        policy(near, ctx)?;
    }
    if *more > 0 {
        ctx.line("")?;
        ctx.line(format!("and {more} policies of other principals or resources"))?;
    }
    Ok(())
}

fn policy(near: &Candidate, ctx: &Context) -> anyhow::Result<()> {
    let Candidate { rule, effect, shadow, standing } = near;
    let file = rule.file.as_deref().unwrap_or(Path::new("")).display();
    let line = rule.line.map(|line| format!(":{line}")).unwrap_or_default();
    let shadow = if *shadow { ", in the shadow" } else { "" };
    let what = match standing {
        PolicyResult::Matched { .. } if *effect == "permit" => "permits it",
        PolicyResult::Matched { .. } => "forbids it",
        PolicyResult::Failed { .. } => "fails",
        PolicyResult::Unmet { .. } => "does not hold",
        PolicyResult::Unknown { .. } => "may hold",
        PolicyResult::Elsewhere { side, .. } => match side.as_str() {
            "principal" => "is for another principal",
            "action" => "is for another action",
            _ => "is for another resource",
        },
    };
    ctx.line(format!("{effect} {} {what}{shadow}  {file}{line}", rule.id))?;
    match standing {
        PolicyResult::Matched { values } => seen(values, ctx),
        PolicyResult::Failed { condition } => because(condition, "cannot be evaluated", ctx),
        PolicyResult::Unmet { condition } => because(condition, "is not so", ctx),
        PolicyResult::Unknown { condition } => because(condition, "is not known", ctx),
        PolicyResult::Elsewhere { wants, .. } => Ok(ctx.line(format!("  asks for: {wants}"))?),
    }
}

fn because(condition: &Condition, what: &str, ctx: &Context) -> anyhow::Result<()> {
    let Condition { text, file, line, values } = condition;
    let place = match (file, line) {
        (Some(file), Some(line)) => format!("  {}:{line}", file.display()),
        _ => String::new(),
    };
    ctx.line(format!("  {what}:{place}"))?;
    let indent = text.lines().skip(1).map(|line| line.len() - line.trim_start().len()).min();
    for (at, line) in text.lines().enumerate() {
        let line = if at == 0 { line } else { line.get(indent.unwrap_or(0)..).unwrap_or(line) };
        ctx.line(format!("    {line}"))?;
    }
    seen(values, ctx)
}

fn seen(values: &[ReadValue], ctx: &Context) -> anyhow::Result<()> {
    for ReadValue { what, value, absent } in values {
        let value = value.as_ref().or(absent.as_ref()).map_or("", String::as_str);
        ctx.line(format!("  {what} is {value}"))?;
    }
    Ok(())
}
