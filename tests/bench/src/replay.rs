//! How long it takes to decide recorded calls again, and to learn from them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    audit::{Calendar, fill},
    rows,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recorded calls
    #[arg(long, default_value_t = 100_000)]
    calls: u64,
    /// The program. Default: `portcullis` beside this one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Policies of which a part depends on arguments that are not on record.
const POLICIES: &str = r#"
permit (
  principal in Portcullis::Group::"readers",
  action == Portcullis::Action::"call_tool",
  resource
)
unless { context.args.hasTag("/force") || resource.claims.read_only };

@id("half-the-servers")
permit (
  principal in Portcullis::Group::"readers",
  action == Portcullis::Action::"call_tool",
  resource is Portcullis::Tool
)
when {
  resource in [
    Portcullis::Server::"server-0", Portcullis::Server::"server-1", Portcullis::Server::"server-2"
  ]
};
"#;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let binary = rows::proxy(args.binary.as_deref())?;
    let scratch = tempfile::Builder::new().prefix("replay-").tempdir_in(folder)?;
    let at = scratch.path();
    let state = at.join("state");
    // A call that is allowed has two records, one that is refused has one.
    let records = args.calls * 39 / 20;
    fill(&state.join("audit"), records, &Calendar::new(7))?;
    fs::write(at.join("some.cedar"), POLICIES)?;
    println!("| what | time | |\n|---|---|---|");
    let ask = |what: &str, more: &[&str]| measure(&binary, at, &state, what, more);
    ask(
        "`policy replay` under policies that look at arguments",
        &["replay", "--policies", "some.cedar"],
    )?;
    ask("`policy learn`", &["learn", "--output", "learned.cedar"])?;
    let again =
        ask("`policy replay` under what was learned", &["replay", "--policies", "learned.cedar"])?;
    ensure!(again["calls"] == again["same"], "what was learned is not what was recorded: {again}");
    Ok(())
}

fn measure(
    binary: &Path,
    at: &Path,
    state: &Path,
    what: &str,
    more: &[&str],
) -> anyhow::Result<Value> {
    let began = Instant::now();
    let mut command = Command::new(binary);
    command.arg("policy").args(more).args(["--format", "json", "--state-dir"]).arg(state);
    let output = command.current_dir(at).output()?;
    let took = began.elapsed();
    let failed = || format!("{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut told: Value = serde_json::from_slice(&output.stdout).with_context(failed)?;
    let counts: Vec<_> = ["calls", "same", "refused", "allowed", "unknown", "rules"]
        .into_iter()
        .filter_map(|name| Some(format!("{name} {}", told.get(name)?)))
        .collect();
    println!("| {what} | {:.1} s | {} |", took.as_secs_f64(), counts.join(", "));
    Ok(told.take())
}
