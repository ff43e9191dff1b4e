//! What `tools/call` costs through portcullis, against the same call made directly, in one run.

mod audit;
mod counts;
mod cpu;
mod crowd;
mod echo;
#[path = "../../gate/support/ground.rs"]
mod ground;
mod hardening;
mod harms;
mod kills;
mod load;
mod plugin;
mod policy;
mod replay;
mod rows;
mod stall;
mod starts;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use futures_util::future::try_join_all;
use load::Client;
use rows::{Processes, Row};

const REVISION: &str = "2025-11-25";
/// Calls before the time counts.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Debug, Parser)]
#[command(
    about = "What `tools/call` costs through portcullis, against the same call made directly"
)]
struct Args {
    /// How often everything is measured, each time one row after the other
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Clients at once
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    clients: Vec<usize>,
    /// Bytes of the argument
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Rows beside `direct`; may be given several times. Default: all
    #[arg(long = "row", value_name = "NAME")]
    rows: Vec<String>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The plugin of the row with a plugin. Default: `plugins/redact-pii.wasm` in the target
    /// folder; without it (`plugins/build`) there is no such row
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// Another measurement, and the parts that the benchmark starts itself as.
#[derive(Debug, clap::Subcommand)]
enum Role {
    /// What the audit log costs to write, to keep and to verify
    Audit(audit::Args),
    /// How long recorded calls take to be decided again, and to be learned from
    Replay(replay::Args),
    /// What a decision and a filtered list cost, beside plain Cedar
    Policy(policy::Args),
    /// What clients notice of plugins that mean harm
    Harms(harms::Args),
    /// How far a server is confined, beside the engine's defaults and other gateways' flags
    Hardening(hardening::Args),
    /// What a plugin adds to a message, and how long many take to be loaded
    Plugin(plugin::Args),
    /// How long a server in a container takes to answer, beside `docker run -i`
    Starts(starts::Args),
    /// What many sessions on many containers leave behind in the proxy
    Crowd(crowd::Args),
    /// What is left over once servers, the proxy and the engine were killed again and again
    Kills(kills::Args),
    /// What one client notices of large messages of another
    Stall(stall::Args),
    /// Instructions and system calls of a call, which a busy machine does not change
    Counts(counts::Args),
    /// The echo server over streamable HTTP
    #[command(hide = true)]
    Serve,
    /// The echo server over standard input and output
    #[command(hide = true)]
    Stdio,
}

/// One measurement; times in µs, CPU time by call.
#[derive(Debug, Clone, Copy)]
struct Sample {
    p50: f64,
    p99: f64,
    rate: f64,
    proxy: f64,
    server: f64,
    client: f64,
}

impl Sample {
    fn total(&self) -> f64 {
        self.proxy + self.server + self.client
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match &args.role {
        Some(Role::Audit(args)) => audit::run(args),
        Some(Role::Replay(args)) => replay::run(args),
        Some(Role::Policy(args)) => policy::run(args),
        Some(Role::Harms(args)) => runtime()?.block_on(harms::run(args)),
        Some(Role::Hardening(args)) => runtime()?.block_on(hardening::run(args)),
        Some(Role::Plugin(args)) => plugin::run(args),
        Some(Role::Starts(args)) => runtime()?.block_on(starts::run(args)),
        Some(Role::Crowd(args)) => runtime()?.block_on(crowd::run(args)),
        Some(Role::Kills(args)) => runtime()?.block_on(kills::run(args)),
        Some(Role::Stall(args)) => runtime()?.block_on(stall::run(args)),
        Some(Role::Counts(args)) => runtime()?.block_on(counts::run(args)),
        Some(Role::Serve) => runtime()?.block_on(echo::http()),
        Some(Role::Stdio) => echo::stdio(),
        None => runtime()?.block_on(measure_all(&args)),
    }
}

async fn measure_all(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let binary = rows::proxy(args.binary.as_deref())?;
    let built = folder.join("../plugins/redact-pii.wasm");
    let plugin = match &args.plugin {
        Some(plugin) => Some(plugin.canonicalize().with_context(|| plugin.display().to_string())?),
        None => built.canonicalize().ok(),
    };
    // Not in /tmp, which may be memory: audit records go to a disk.
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(folder)?;
    let mut processes = Processes::default();
    let mut rows =
        rows::start(&binary, plugin.as_deref(), scratch.path(), &args.rows, &mut processes)?;
    for row in &mut rows {
        // Starts the server behind the proxy, and shows early what does not work.
        sample(row, 1, args.bytes, Duration::ZERO)
            .await
            .with_context(|| explained(row, scratch.path()))?;
        row.find_server();
        eprintln!("{}: proxy {:?}, server {:?}", row.name, row.proxy, row.servers);
    }

    let mut samples: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for &clients in &args.clients {
            // Another row is first each time, so that none is always after the same one.
            for turn in 0..rows.len() {
                let at = (round + turn) % rows.len();
                let time = Duration::from_secs_f64(args.seconds);
                let taken = sample(&rows[at], clients, args.bytes, time)
                    .await
                    .with_context(|| explained(&rows[at], scratch.path()))?;
                samples.entry((clients, at)).or_default().push(taken);
            }
        }
    }
    drop(processes);
    report(args, &rows, &samples);
    Ok(())
}

fn explained(row: &Row, scratch: &Path) -> String {
    let mut text = format!("measuring `{}`", row.name);
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let log = std::fs::read_to_string(entry.path().join("log")).unwrap_or_default();
        if let Some(last) = log.lines().last() {
            text.push_str(&format!("; {} last logged: {last}", entry.file_name().display()));
        }
    }
    text
}

/// CPU time of the proxy, of the server, of the clients.
fn used(row: &Row) -> anyhow::Result<[Duration; 3]> {
    let proxy = row.proxy.map(cpu::used).transpose()?.unwrap_or_default();
    let mut server = Duration::ZERO;
    for &pid in &row.servers {
        server += cpu::used(pid)?;
    }
    Ok([proxy, server, cpu::own()?])
}

async fn sample(row: &Row, clients: usize, bytes: usize, time: Duration) -> anyhow::Result<Sample> {
    let mut all = try_join_all((0..clients).map(|_| Client::connect(&row.endpoint, bytes))).await?;
    try_join_all(all.iter_mut().map(|client| client.run(WARM_UP))).await?;
    let before = used(row)?;
    let began = Instant::now();
    let took = try_join_all(all.iter_mut().map(|client| client.run(time))).await?;
    let elapsed = began.elapsed();
    let after = used(row)?;
    try_join_all(all.into_iter().map(Client::leave)).await?;

    let mut took = took.concat();
    took.sort_unstable();
    let calls = took.len().max(1) as f64;
    let quantile = |q: f64| {
        let at = (q * calls) as usize;
        took.get(at.min(took.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    };
    let [proxy, server, client] =
        [0, 1, 2].map(|part| (after[part] - before[part]).as_secs_f64() * 1e6 / calls);
    let rate = calls / elapsed.as_secs_f64();
    Ok(Sample { p50: quantile(0.5), p99: quantile(0.99), rate, proxy, server, client })
}

fn report(args: &Args, rows: &[Row], samples: &BTreeMap<(usize, usize), Vec<Sample>>) {
    println!(
        "`tools/call` with an argument of {} bytes; medians of {} rounds of {} s.\n\
         Times in µs; CPU time by call; ratio: all CPU time through / direct, in the same round \
         (least to most).\n",
        args.bytes, args.rounds, args.seconds
    );
    println!(
        "| clients | way | p50 | p99 | calls/s | CPU proxy | server | client | total | ratio |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    );
    for &clients in &args.clients {
        let direct = &samples[&(clients, 0)];
        for (at, row) in rows.iter().enumerate() {
            let taken = &samples[&(clients, at)];
            let middle = |part: fn(&Sample) -> f64| median(taken.iter().map(part).collect());
            let ratios: Vec<f64> =
                taken.iter().zip(direct).map(|(one, base)| one.total() / base.total()).collect();
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            println!(
                "| {clients} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} ({least:.1} to {most:.1}) |",
                row.name,
                middle(|s| s.p50),
                middle(|s| s.p99),
                middle(|s| s.rate),
                middle(|s| s.proxy),
                middle(|s| s.server),
                middle(|s| s.client),
                middle(Sample::total),
                median(ratios),
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
