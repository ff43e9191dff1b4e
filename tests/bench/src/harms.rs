//! What clients notice of plugins that mean harm: their calls beside a client that asks for one harm
//! after the other, against their calls without it, in one run.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{
    load::Client,
    rows::{self, Processes, Row},
    sample,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often both are measured, one after the other
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Clients that mean no harm
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The folder of the plugins. Default: `plugins` in the target folder
    #[arg(long, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
}

/// Those of `tests/plugins/harms` that need no grant and fault every time.
const HARMS: [&str; 17] = [
    "allocate",
    "crumbs",
    "forged-words",
    "garbage",
    "hoard",
    "huge-payload",
    "labels",
    "long-error",
    "nesting",
    "never-settles",
    "other-tool",
    "out-of-bounds",
    "recurse",
    "recurse-in-memory",
    "spin",
    "trap",
    "two-keys",
];
/// For one verdict: how long those that never end have.
const DEADLINE_MS: u64 = 1_000;

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let binary = args.binary.clone().unwrap_or_else(|| folder.join("portcullis"));
    let plugins = args.plugins.clone().unwrap_or_else(|| folder.join("../plugins"));
    let plugins = plugins.canonicalize().context("`plugins/build` makes the plugins")?;
    let mut entries = String::new();
    for name in HARMS {
        let path = plugins.join(name).with_extension("wasm");
        write!(
            entries,
            "\n[[interceptors]]\nuse = \"plugin\"\nname = \"{name}\"\npath = {path:?}\n\
             allow-unpinned = true\ndeadline-ms = {DEADLINE_MS}\n"
        )?;
    }
    let scratch = tempfile::Builder::new().prefix("harms-").tempdir_in(folder)?;
    let mut processes = Processes::default();
    let row = rows::one(&binary, scratch.path(), "harms", &entries, &mut processes)?;
    sample(&row, 1, 100, Duration::ZERO).await?;

    println!(
        "{} plugins in the chain; {} clients; p99 in ms.\n\n\
         | round | p50 | p99 | p99 beside harm | ratio | harms done |\n|---|---|---|---|---|---|",
        HARMS.len(),
        args.clients
    );
    let time = Duration::from_secs_f64(args.seconds);
    for round in 1..=args.rounds {
        let quiet = sample(&row, args.clients, 100, time).await?;
        let (beside, done) = beside_harm(&row, args.clients, time).await?;
        println!(
            "| {round} | {:.2} | {:.2} | {:.2} | {:.2} | {done} |",
            quiet.p50 / 1e3,
            quiet.p99 / 1e3,
            beside.p99 / 1e3,
            beside.p99 / quiet.p99,
        );
    }
    Ok(())
}

/// A measurement while one more client asks for harm, and how much of it there was.
async fn beside_harm(
    row: &Row,
    clients: usize,
    time: Duration,
) -> anyhow::Result<(crate::Sample, usize)> {
    let mut one = Client::connect(&row.endpoint, 0).await?;
    let mut done = 0;
    let harm = async {
        for name in HARMS.iter().cycle() {
            let refused = one.refused(&format!("harm:{name}")).await?;
            ensure!(refused, "`{name}` was not refused");
            done += 1;
        }
        Ok(())
    };
    let sample = tokio::select! {
        sample = sample(row, clients, 100, time) => sample?,
        failed = harm => return Err(failed.err().context("harm has no end")?),
    };
    Ok((sample, done))
}
