//! `portcullis policy diff`: which policies changed from one set to another, and which principals
//! gain or lose which tools by that.

use std::path::PathBuf;

use clap::ArgAction;
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use super::{check::read_tools, check::tools_of, count, engine, replay::decisions};
use crate::cli::{
    Context, Exit,
    audit::{LogLocation, Source, conclude},
};
use portcullis_audit::Filter;
use portcullis_policy::{Revision, Stated};
use portcullis_policy_tools::{
    Access, Comparison, Difference, Place, PolicyChange, Recorded, changes,
};
use portcullis_protocol::{
    identity::{Principal, Store},
    names::ServerName,
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One or two files or folders of policies; a single one is compared with the config's
    #[arg(value_name = "PATH", num_args = 1..=2, required = true)]
    sets: Vec<PathBuf>,
    /// A JSON file with the `tools/list` result of a server; repeatable
    #[arg(long, value_name = "SERVER=FILE", value_parser = tools_of, action = ArgAction::Append)]
    tools: Vec<(ServerName, PathBuf)>,
    /// Include the clients and tools in the audit log
    #[arg(long)]
    recorded: bool,
    #[command(flatten)]
    location: LogLocation,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    before: Revision,
    after: Revision,
    policies: &'a [PolicyChange],
    principals: usize,
    tools: usize,
    differences: &'a [Difference],
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let Args { sets, tools, recorded, location } = args;
    let (before, after) = match sets.as_slice() {
        [after] => (engine(&[], ctx)?, engine(std::slice::from_ref(after), ctx)?),
        [before, after, ..] => {
            (engine(std::slice::from_ref(before), ctx)?, engine(std::slice::from_ref(after), ctx)?)
        }
        [] => return Ok(Exit::Usage),
    };
    let mut comparison = Comparison::default();
    // Two folders can be compared without a config.
    let stated = match ctx.load() {
        Ok(loaded) => {
            of_config(&mut comparison, &loaded.config)?;
            Some(Stated::of(loaded.config.tools()))
        }
        Err(error) if sets.len() == 1 => return Err(error),
        Err(_) => None,
    };
    comparison.principal((*Principal::local()).clone());
    comparison.principal((*Principal::anonymous()).clone());
    comparison.named(&before);
    comparison.named(&after);
    for (server, file) in &tools {
        comparison.tools(server, &read_tools(server, file, stated.as_ref())?);
    }
    let mut unreadable = Vec::new();
    if recorded {
        let source = Source::find(&location, ctx).await?;
        let take = |entry: &_| {
            if let Ok(recorded) = Recorded::read(entry) {
                comparison.recorded(&recorded);
            }
        };
        unreadable = decisions(&source, Filter::default(), take).await?;
    }
    let policies = changes(&before, &after);
    let differences = comparison.differences(&before, &after);
    let (principals, tools) = comparison.size();
    if ctx.is_json() {
        ctx.json(&Report {
            before: before.revision(),
            after: after.revision(),
            policies: &policies,
            principals,
            tools,
            differences: &differences,
        })?;
    } else {
        for change in &policies {
            print(change, ctx)?;
        }
        if !differences.is_empty() {
            let header = ["CLIENT", "TOOL", "NOW", "BEFORE", "POLICIES NOW", "POLICIES BEFORE"];
            ctx.table(&header, differences.iter().map(row))?;
        }
        let principals = count(principals, "principal", "principals");
        let tools = count(tools, "tool", "tools");
        let found = count(differences.len(), "difference", "differences");
        let changed = match policies.len() {
            0 => "no policy changed".to_owned(),
            changed => format!("{} changed", count(changed, "policy", "policies")),
        };
        ctx.line(format!("{changed}; {found} among {principals} and {tools}"))?;
    }
    let exit = conclude(ctx, &unreadable);
    let same = policies.is_empty() && differences.is_empty();
    Ok(if exit == Exit::Ok && !same { Exit::Findings } else { exit })
}

/// Prints a change with its places; for a changed policy, its changed lines, too.
fn print(change: &PolicyChange, ctx: &Context) -> anyhow::Result<()> {
    let PolicyChange { kind, effect, id, before, after } = change;
    let place = |place: &Place| format!("{}:{}", place.file.display(), place.line);
    let places = match (before.as_ref().map(place), after.as_ref().map(place)) {
        (Some(before), Some(after)) if before != after => format!("{after}, before {before}"),
        (before, after) => after.or(before).unwrap_or_default(),
    };
    ctx.state(kind.as_str(), format!(": {effect} `{id}`  {places}"))?;
    if let (Some(before), Some(after)) = (before, after) {
        let lines = TextDiff::from_lines(&before.text, &after.text);
        for line in lines.iter_all_changes() {
            let sign = match line.tag() {
                ChangeTag::Equal => continue,
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
            };
            ctx.line(format!("  {sign} {}", line.value().trim_end()))?;
        }
    }
    Ok(())
}

fn of_config(
    comparison: &mut Comparison,
    config: &portcullis_config::Config,
) -> anyhow::Result<()> {
    for (name, client) in Store::in_state_dir(&config.state_dir).read()? {
        comparison.principal(Principal::client(name, client.groups));
    }
    for (name, client) in &config.clients {
        comparison.principal(Principal::client(name.clone(), client.groups.clone()));
    }
    for server in config.servers.keys() {
        comparison.server(server.as_str());
    }
    Ok(())
}

fn row(difference: &Difference) -> [String; 6] {
    let Difference { principal, tool, before, after, before_rules, after_rules } = difference;
    let change = match (before, after) {
        (Access::No, Access::Yes) => "gained",
        (_, Access::No) => "lost",
        (Access::No, Access::Conditional) => "gained, if …",
        (Access::Yes, Access::Conditional) => "now only if …",
        (Access::Conditional, Access::Yes) => "now always",
        (Access::Conditional, Access::Conditional) => "other conditions",
        (Access::Yes, Access::Yes) => "the same",
    };
    let was = match before {
        Access::No => "no",
        Access::Conditional => "if …",
        Access::Yes => "yes",
    };
    let rules = |ids: &std::collections::BTreeSet<String>| {
        let ids: Vec<_> = ids.iter().take(4).map(String::as_str).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
    };
    [
        principal.clone(),
        tool.clone(),
        change.to_owned(),
        was.to_owned(),
        rules(after_rules),
        rules(before_rules),
    ]
}
