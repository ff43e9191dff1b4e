//! `portcullis policy replay`: evaluates recorded calls with these policies.

use std::path::PathBuf;

use serde::Serialize;

use super::{count, engine};
use crate::cli::{
    Context, Exit,
    audit::{FilterArgs, LogLocation, Source, conclude},
};
use portcullis_audit::{Filter, Order, PAGE_MAX, Query, record::Entry};
use portcullis_policy::{Revision, Verdict};
use portcullis_policy_tools::{Change, Replay, Replayed};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and folders of policies, instead of the config's
    #[arg(long, value_name = "PATH", num_args = 1..)]
    policies: Vec<PathBuf>,
    /// Maximum number of changes to show, the most frequent first
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    which: FilterArgs,
    #[command(flatten)]
    location: LogLocation,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    revision: Revision,
    #[serde(flatten)]
    replayed: &'a Replayed,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let filter = args.which.filter()?;
    let engine = engine(&args.policies, ctx)?;
    let source = Source::find(&args.location, ctx).await?;
    let mut replay = Replay::new(engine.inspect());
    let progress = ctx.progress("deciding the recorded calls again");
    let unreadable = decisions(&source, filter, |entry| replay.take(entry)).await?;
    drop(progress);
    let mut replayed = replay.finish();
    let changes = replayed.changes.len();
    replayed.changes.truncate(args.limit);
    if ctx.is_json() {
        ctx.json(&Report { revision: engine.revision(), replayed: &replayed })?;
    } else {
        print(&replayed, ctx)?;
    }
    if changes > args.limit {
        ctx.note(format_args!("and {} more: --limit shows them", changes - args.limit));
    }
    let exit = conclude(ctx, &unreadable);
    let differs = replayed.refused + replayed.allowed > 0;
    Ok(if exit == Exit::Ok && differs { Exit::Findings } else { exit })
}

/// Passes each record of a message that was decided before it left to `take`, oldest first. Returns
/// the parts of the log that could not be read.
pub(super) async fn decisions(
    source: &Source,
    filter: Filter,
    take: impl FnMut(&Entry),
) -> anyhow::Result<Vec<String>> {
    records(source, filter, "kind in (intent, refused)", take).await
}

/// The same for other records, by a filter in text form.
pub(super) async fn records(
    source: &Source,
    filter: Filter,
    which: &str,
    mut take: impl FnMut(&Entry),
) -> anyhow::Result<Vec<String>> {
    let which = Filter::parse(which, &jiff::Zoned::now())
        .map_err(|illegal| anyhow::anyhow!("{illegal}"))?;
    let mut query = Query {
        filter: filter.and(which),
        intents: true,
        order: Order::OldestFirst,
        limit: Some(PAGE_MAX),
        after: None,
    };
    let mut unreadable = Vec::new();
    loop {
        let page = source.query(&query).await?;
        for line in &page.lines {
            take(&line.entry().map_err(anyhow::Error::msg)?);
        }
        unreadable.extend(page.unreadable);
        query.after = page.next;
        if page.next.is_none() {
            return Ok(unreadable);
        }
    }
}

fn print(replayed: &Replayed, ctx: &Context) -> anyhow::Result<()> {
    let Replayed { calls, same, refused, allowed, unknown, lacking, changes, beyond, .. } =
        replayed;
    let calls = usize::try_from(*calls).unwrap_or(usize::MAX);
    ctx.line(format!(
        "{}: {same} the same, {refused} would be refused, {allowed} would be allowed, {unknown} \
         unknown",
        count(calls, "recorded call", "recorded calls")
    ))?;
    for (what, calls) in lacking {
        ctx.line(format!("  unknown: {calls} of which the {what} are not on record in full"))?;
    }
    if !changes.is_empty() {
        let header = ["NOW", "WAS", "CALLS", "CLIENT", "ACTION", "TARGET", "POLICIES", "EXAMPLE"];
        ctx.table(&header, changes.iter().map(row))?;
    }
    if *beyond > 0 {
        ctx.note(format_args!("{beyond} more calls are in none of these"));
    }
    Ok(())
}

fn row(change: &Change) -> [String; 8] {
    let rules: Vec<&str> = change.rules.iter().map(String::as_str).collect();
    let by = match (rules.is_empty(), change.now) {
        (true, _) => "none permits it".to_owned(),
        (false, Verdict::Unknown) => format!("depends on {}", rules.join(", ")),
        (false, _) => rules.join(", "),
    };
    [
        worded(change.now).to_owned(),
        worded(change.was).to_owned(),
        change.calls.to_string(),
        change.principal.clone(),
        change.action.to_owned(),
        change.target.clone(),
        by,
        change.example.to_string(),
    ]
}

fn worded(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Refused => "refused",
        Verdict::Unknown => "unknown",
    }
}
