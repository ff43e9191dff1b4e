//! `portcullis policy learn`: a least-privilege policy proposed from the recorded calls.

use std::{
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    count,
    replay::{decisions, records},
};
use crate::cli::{
    Context, Exit, Reports, Usage,
    audit::{FilterArgs, LogLocation, Source, conclude},
};
use portcullis_policy_tools::{Learner, Proposal, START_EVENTS};

/// Maximum calls under obligations in the text format; JSON has all.
const MAX_LISTED: usize = 20;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the policies to this new file instead of standard output, and the cases to
    /// NAME.test.yaml next to it
    #[arg(short, long, value_name = "NAME.cedar")]
    output: Option<PathBuf>,
    #[command(flatten)]
    which: FilterArgs,
    #[command(flatten)]
    location: LogLocation,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let Args { output, which, location } = args;
    let times = which.times(&jiff::Zoned::now())?;
    let filter = which.filter()?;
    let file = match &output {
        Some(path) => named(path)?,
        None => "learned.cedar".to_owned(),
    };
    let source = Source::find(&location, ctx).await?;
    let mut learner = Learner::default();
    let progress = ctx.progress("learning from the recorded calls");
    let mut unreadable = decisions(&source, filter, |entry| learner.take(entry)).await?;
    // Starts of servers are events of no client, so only the time selects them.
    let starts = format!("event in ({})", START_EVENTS.join(", "));
    for part in records(&source, times, &starts, |entry| learner.take_start(entry)).await? {
        if !unreadable.contains(&part) {
            unreadable.push(part);
        }
    }
    drop(progress);
    let learned = learner
        .finish(&file)
        .map_err(|findings| Reports(findings.into_iter().map(|f| Box::new(f) as _).collect()))?;
    let cases = output.as_deref().map(|path| path.with_extension("test.yaml"));
    if let (Some(path), Some(cases)) = (&output, &cases) {
        create(path, &learned.policies)?;
        create(cases, &learned.cases)?;
    }
    match (&output, &cases) {
        _ if ctx.is_json() => ctx.json(&learned)?,
        (Some(path), Some(cases)) => {
            let rules = count(learned.rules, "policy", "policies");
            let calls = usize::try_from(learned.calls).unwrap_or(usize::MAX);
            let calls = count(calls, "recorded call", "recorded calls");
            let (path, cases) = (path.display(), cases.display());
            ctx.line(format!("{rules} from {calls}: {path}, with cases in {cases}"))?;
        }
        _ => ctx.verbatim(&learned.policies)?,
    }
    notes(&learned, ctx);
    Ok(conclude(ctx, &unreadable))
}

fn notes(learned: &Proposal, ctx: &Context) {
    for (why, calls) in &learned.left_out {
        ctx.note(format_args!("not learned from {calls} calls, not on record in full: {why}"));
    }
    if !learned.obliged.is_empty() {
        let calls: u64 = learned.obliged.values().sum();
        ctx.note(format_args!(
            "not learned from {calls} calls that passed under an obligation, which a plain permit \
             would drop; keep the policies that permit them:"
        ));
        for (what, calls) in learned.obliged.iter().take(MAX_LISTED) {
            ctx.note(format_args!("  {calls} of {what}"));
        }
        if learned.obliged.len() > MAX_LISTED {
            ctx.note(format_args!("  and more of {} others", learned.obliged.len() - MAX_LISTED));
        }
    }
    for server in &learned.not_started {
        ctx.note(format_args!(
            "no start of `{server}` is on record in this time, so no policy permits it: begin \
             earlier (`--since`), or use `portcullis policy new launch --server {server}`"
        ));
    }
    if learned.refused > 0 {
        ctx.note(format_args!(
            "{} refused calls match these policies: other data decided, such as arguments; add \
             conditions of your own",
            learned.refused
        ));
    }
}

/// Name of the file, as its cases refer to it.
fn named(path: &Path) -> anyhow::Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    match name {
        Some(name) if name.ends_with(".cedar") => Ok(name.to_owned()),
        _ => {
            Err(Usage("--output takes the name of a new file that ends in `.cedar`".into()).into())
        }
    }
}

fn create(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(path).with_context(|| {
            match path.exists() {
                true => {
                    format!("{} exists already: name another file, or remove it", path.display())
                }
                false => format!("cannot make {}", path.display()),
            }
        })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
