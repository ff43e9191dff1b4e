//! `portcullis plugin call`: runs a plugin on one message.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::settings;
use crate::{
    cli::{
        Context, Exit, Reports,
        audit::{LogLocation, Source, conclude},
    },
    plugin_dev::{Answered, PluginCall, Verdict, ask, from_audit},
};
use portcullis_protocol::names::DecisionId;

/// Maximum bytes of a message.
const MESSAGE: u64 = 64 << 20;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Call {
    /// The component
    #[arg(value_name = "FILE")]
    component: PathBuf,
    /// The message: JSON-RPC, or YAML with the keys of test cases; `-` is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "from_audit")]
    message: Option<PathBuf>,
    /// Use the message of this decision from the audit log; needs a policy with `@keep`
    #[arg(long, value_name = "ID", conflicts_with = "message")]
    from_audit: Option<DecisionId>,
    /// Use the response of that decision
    #[arg(long, requires = "from_audit")]
    answer: bool,
    /// The plugin's `config`, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    #[command(flatten)]
    location: LogLocation,
}

/// Runs the verb.
pub async fn call(options: &Call, ctx: &Context) -> anyhow::Result<Exit> {
    let Call { component, message, from_audit, answer, settings: given, location } = options;
    let config = settings(given)?;
    let given = match (from_audit, message) {
        (Some(decision), _) => from_log(*decision, *answer, location, ctx).await?,
        (None, Some(file)) => {
            let text = text(file)?;
            PluginCall::read(file, &text).map_err(|wrong| Reports(vec![wrong]))?
        }
        (None, None) => anyhow::bail!("name a message"),
    };
    let progress = ctx.progress("compiling the plugin and asking it");
    let answered = ask(component, given, Some(config)).await;
    drop(progress);
    let answered = answered.map_err(|wrong| Reports(vec![wrong]))?;
    if ctx.is_json() {
        ctx.json(&answered)?;
    } else {
        print(&answered, ctx)?;
    }
    Ok(match answered.verdict {
        Verdict::Pass | Verdict::Replace { .. } | Verdict::Unasked => Exit::Ok,
        Verdict::Refuse { .. } => Exit::Denied,
        Verdict::Fault { .. } => Exit::Failure,
    })
}

fn text(file: &Path) -> anyhow::Result<String> {
    let named = |error| format!("cannot read the message {}: {error}", file.display());
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => std::io::stdin().take(MESSAGE).read_to_string(&mut text),
        false => {
            std::fs::File::open(file).and_then(|file| file.take(MESSAGE).read_to_string(&mut text))
        }
    };
    read.map_err(|error| anyhow::anyhow!(named(error)))?;
    Ok(text)
}

async fn from_log(
    decision: DecisionId,
    answer: bool,
    location: &LogLocation,
    ctx: &Context,
) -> anyhow::Result<PluginCall> {
    let page = Source::find(location, ctx).await?.show(decision).await?;
    conclude(ctx, &page.unreadable);
    let entries = page.entries().map_err(anyhow::Error::msg)?;
    anyhow::ensure!(!entries.is_empty(), "there is no record of the decision {decision}");
    let (message, taken) = from_audit(&entries, answer.then_some(true))
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("the message of {decision} cannot be had again"))?;
    if taken > 0 {
        ctx.note(format_args!("{taken} secrets were taken out of it when it was recorded"));
    }
    Ok(PluginCall::recorded(message))
}

fn print(answered: &Answered, ctx: &Context) -> anyhow::Result<()> {
    let Answered { plugin, event, verdict, labels, findings, counts, log, requests, .. } = answered;
    let Answered { asked, state, micros, memory, .. } = answered;
    match verdict {
        Verdict::Pass => ctx.line("pass")?,
        Verdict::Refuse { code, reason, detail } => {
            ctx.line(format!("refuse {plugin}/{code}: {reason}"))?;
            if let Some(detail) = detail {
                ctx.line(format!("  for the operator: {detail}"))?;
            }
        }
        Verdict::Replace { payload } => ctx.line(format!("replace {payload}"))?,
        Verdict::Fault { why } => ctx.line(format!("fault: {why}"))?,
        Verdict::Unasked => {
            ctx.line(format!("unasked: {plugin} has no hook for this half of `{event}`"))?;
            ctx.line(format!("  asked by  {asked}"))?;
            return Ok(());
        }
    }
    ctx.line(format!("  asked by  {asked}"))?;
    if !labels.is_empty() {
        ctx.line(format!("  labels    {}", labels.join(", ")))?;
    }
    for finding in findings {
        ctx.line(format!("  reports   {plugin}/{}: {}", finding.code, finding.message))?;
    }
    for (name, by) in counts {
        ctx.line(format!("  counts    {name}: {by}"))?;
    }
    for (key, value) in state {
        ctx.line(format!("  leaves    {key}: {value}"))?;
    }
    for line in log {
        ctx.line(format!("  logs      {line}"))?;
    }
    for request in requests {
        ctx.line(format!("  requests  {request}"))?;
    }
    ctx.line(format!("  took      {micros} µs, {} KiB of memory", memory >> 10))?;
    Ok(())
}
