//! Throughput, times, CPU time and memory of `tools/call`, way beside way.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use bench::{
    load::{self, Endpoint, Pace},
    median,
    process::{self, Held},
    proxy::{self, Prepared, Processes, RATE_LIMIT, SCHEMA, SECRETS, Setup, chain, full_chain},
};

use crate::device::Device;

/// Calls before the measurement.
const WARM_UP: Duration = Duration::from_millis(200);
/// How much more than the floor a call of one client may take, beside two syncs.
const GOAL_MICROS: f64 = 120.0;
pub const FULL: &str = "full chain";
const FLOOR: &str = "floor";
const STDIO_FLOOR: &str = "floor, stdio";
const FULL_STDIO: &str = "full chain, stdio";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Rounds. In each round every way is measured once, in turn
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Bytes of the argument
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000, 1_000_000])]
    bytes: Vec<usize>,
    /// Clients at once. Default: 1, 16 and 128; of 1 MB 1, 4 and 16
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Calls a second of all clients together, at fixed times. Default: a client calls as soon as its
    /// last call is answered
    #[arg(long)]
    rate: Option<f64>,
    /// Ways, such as `floor`; repeatable. Default: all
    #[arg(long = "way", value_name = "NAME")]
    ways: Vec<String>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

impl Args {
    fn cells(&self) -> Vec<(usize, usize)> {
        let mut cells = Vec::new();
        for &bytes in &self.bytes {
            let clients: &[usize] = match (&self.clients[..], bytes) {
                ([], 0..1_000_000) => &[1, 16, 128],
                // A client may have 128 MiB in flight.
                ([], _) => &[1, 4, 16],
                (clients, _) => clients,
            };
            cells.extend(clients.iter().map(|&clients| (bytes, clients)));
        }
        cells
    }
}

/// A way to the tool.
struct Way {
    name: &'static str,
    endpoint: Endpoint,
    /// The proxy; none if clients call the server.
    pids: Vec<u32>,
    floor: &'static str,
    idle_kib: u64,
}

/// One measurement; times in µs, CPU time per call.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    cpu: f64,
    peak_kib: f64,
}

type Samples = BTreeMap<(usize, usize), Vec<Vec<Option<Sample>>>>;

/// Measures and returns tables in Markdown.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let scratch = proxy::scratch()?;
    let mut processes = Processes::default();
    let wants = |name: &str| args.ways.is_empty() || args.ways.iter().any(|way| way == name);
    let mut ways = start(&binary, scratch.path(), &wants, &mut processes)?;
    for way in &mut ways {
        // Starts the server behind the proxy, and shows early what fails.
        sample(way, (100, 1), Pace::Closed, Duration::ZERO).await.context(way.name)?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for way in &mut ways {
        way.idle_kib = memory(&way.pids, |held| held.kib)?;
    }
    let mut device = Device::new(scratch.path())?;
    let mut syncs = Vec::new();
    let mut samples: Samples = BTreeMap::new();
    let pace = args.rate.map_or(Pace::Closed, Pace::Fixed);
    let time = Duration::from_secs_f64(args.seconds);
    let cells = args.cells();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for &cell in &cells {
            syncs.push(device.sync()?.as_secs_f64() * 1e6);
            let mut taken = vec![None; ways.len()];
            // Another way is first each time, so that no way is always after the same one.
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let (bytes, clients) = cell;
                let what = || format!("{}: {bytes} bytes, {clients} clients", ways[at].name);
                match sample(&ways[at], cell, pace, time).await.with_context(what) {
                    Ok(sample) => taken[at] = Some(sample),
                    Err(error) => eprintln!("{error:#}"),
                }
            }
            samples.entry(cell).or_default().push(taken);
        }
    }
    drop(processes);
    Ok(report(args, &ways, &cells, &samples, median(syncs)))
}

fn start(
    binary: &Path,
    scratch: &Path,
    wants: &dyn Fn(&str) -> bool,
    processes: &mut Processes,
) -> anyhow::Result<Vec<Way>> {
    let (_, port) = proxy::server(processes)?;
    let way = |name, port, pids, floor| Way {
        name,
        endpoint: Endpoint { port, path: "/mcp".into(), key: None },
        pids,
        floor,
        idle_kib: 0,
    };
    let mut ways = Vec::new();
    if wants("direct") {
        ways.push(way("direct", port, Vec::new(), FLOOR));
    }
    if wants("nginx")
        && let Some((master, own)) = proxy::nginx(&scratch.join("nginx"), port, processes)?
    {
        let mut pids = process::descendants(master);
        pids.push(master);
        ways.push(way("nginx", own, pids, FLOOR));
    }
    if wants(FLOOR) {
        let (pid, own) = proxy::own(&["floor", "--upstream", &port.to_string()], processes)?;
        ways.push(way(FLOOR, own, vec![pid], FLOOR));
    }
    if wants(STDIO_FLOOR) {
        let (pid, own) = proxy::own(&["floor"], processes)?;
        ways.push(way(STDIO_FLOOR, own, vec![pid], STDIO_FLOOR));
    }
    let remote = proxy::remote("echo", port);
    let local = proxy::local("echo")?;
    let proxies = [
        ("policy+audit", &remote, chain(&[])),
        ("+ rate limit", &remote, chain(&[RATE_LIMIT])),
        ("+ schema", &remote, chain(&[SCHEMA])),
        ("+ secrets", &remote, chain(&[SECRETS])),
        (FULL, &remote, full_chain()),
        (FULL_STDIO, &local, full_chain()),
    ];
    for (at, (name, server, chain)) in proxies.into_iter().enumerate() {
        if wants(name) {
            let setup = Setup { servers: server.clone(), chain, ..Setup::default() };
            let mut prepared = Prepared::new(binary, &scratch.join(at.to_string()), &setup)?;
            let endpoint = prepared.client("bench")?;
            let pid = prepared.run(processes).context(name)?;
            let floor = if name == FULL_STDIO { STDIO_FLOOR } else { FLOOR };
            ways.push(Way { name, endpoint, pids: vec![pid], floor, idle_kib: 0 });
        }
    }
    Ok(ways)
}

fn memory(pids: &[u32], part: fn(Held) -> u64) -> anyhow::Result<u64> {
    pids.iter().map(|&pid| Held::by(pid).map(part)).sum()
}

async fn sample(
    way: &Way,
    (bytes, clients): (usize, usize),
    pace: Pace,
    time: Duration,
) -> anyhow::Result<Sample> {
    let mut all = load::connect(&way.endpoint, clients, bytes).await?;
    load::load(&mut all, pace, WARM_UP, false).await?;
    way.pids.iter().for_each(|&pid| process::reset_peak(pid));
    let before = process::cpu_of(&way.pids)?;
    let load = load::load(&mut all, pace, time, false).await?;
    let cpu = process::cpu_of(&way.pids)? - before;
    let peak_kib = memory(&way.pids, |held| held.peak_kib)? as f64;
    let end = Instant::now() + WARM_UP;
    for client in all {
        client.leave().await?;
    }
    tokio::time::sleep_until(end.into()).await;
    Ok(Sample {
        rate: load.rate(),
        p50: load.micros(0.5),
        p99: load.micros(0.99),
        p999: load.micros(0.999),
        cpu: cpu.as_secs_f64() * 1e6 / load.times.len().max(1) as f64,
        peak_kib,
    })
}

fn report(
    args: &Args,
    ways: &[Way],
    cells: &[(usize, usize)],
    samples: &Samples,
    sync: f64,
) -> String {
    let mut text = format!(
        "Medians of {} rounds of {} s{}. A write with `fdatasync` took {sync:.0} µs (median) in this \
         run.\n\n| bytes | clients | way | calls/s | p50 µs | p99 | p99.9 | CPU µs | peak MiB | \
         calls/s ÷ floor | CPU ÷ floor |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        args.rate.map(|rate| format!(", {rate} calls/s at fixed times")).unwrap_or_default()
    );
    let place = |name: &str| ways.iter().position(|way| way.name == name);
    let mut goals = String::new();
    for cell in cells {
        let rounds = &samples[cell];
        for (at, way) in ways.iter().enumerate() {
            let taken: Vec<Sample> = rounds.iter().filter_map(|round| round[at]).collect();
            let (bytes, clients) = cell;
            if taken.is_empty() {
                let _ = writeln!(text, "| {bytes} | {clients} | {} | failed |||||||||", way.name);
                continue;
            }
            let middle = |part: fn(&Sample) -> f64| median(taken.iter().map(part).collect());
            let ratio = |part: fn(&Sample) -> f64| {
                let floor = place(way.floor)?;
                let pairs = rounds.iter().filter_map(|round| Some((round[at]?, round[floor]?)));
                let ratios: Vec<f64> =
                    pairs.map(|(one, floor)| part(&one) / part(&floor)).collect();
                let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let most = ratios.iter().copied().fold(0.0, f64::max);
                (!ratios.is_empty()).then(|| (median(ratios), least, most))
            };
            let shown = |ratio: Option<(f64, f64, f64)>| {
                ratio.map_or(String::new(), |(middle, least, most)| {
                    format!("{middle:.2} ({least:.2} to {most:.2})")
                })
            };
            let proxied = !way.pids.is_empty();
            let _ = writeln!(
                text,
                "| {bytes} | {clients} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} |",
                way.name,
                middle(|s| s.rate),
                middle(|s| s.p50),
                middle(|s| s.p99),
                middle(|s| s.p999),
                if proxied { format!("{:.0}", middle(|s| s.cpu)) } else { String::new() },
                if proxied {
                    format!("{:.0}", middle(|s| s.peak_kib) / 1024.0)
                } else {
                    String::new()
                },
                shown(ratio(|s| s.rate)),
                if proxied { shown(ratio(|s| s.cpu)) } else { String::new() },
            );
            if ![FULL, FULL_STDIO].contains(&way.name) {
                continue;
            }
            let mut goal = |what: &str, value: f64, sign: &str, limit: f64, digits: usize| {
                let met = if sign == "≤" { value <= limit } else { value >= limit };
                let met = if met { "yes" } else { "**no**" };
                let _ = writeln!(
                    goals,
                    "| {bytes} B, {clients} clients, {}: {what} | {value:.digits$} | \
                     {sign} {limit:.digits$} | {met} |",
                    way.name
                );
            };
            if let Some((cpu, ..)) = ratio(|s| s.cpu)
                && *bytes == 100
                && *clients > 1
            {
                goal("CPU ÷ floor", cpu, "≤", 4.0, 1);
            }
            if let Some((rate, ..)) = ratio(|s| s.rate)
                && [(100, 128), (1_000_000, 4)].contains(cell)
            {
                goal("calls/s ÷ floor", rate, "≥", 0.5, 2);
            }
            if let Some(floor) = place(way.floor)
                && *cell == (100, 1)
            {
                let floor = rounds.iter().filter_map(|round| round[floor]).map(|s| s.p50);
                let limit = median(floor.collect()) + GOAL_MICROS + 2.0 * sync;
                goal("p50 µs", middle(|s| s.p50), "≤", limit, 0);
            }
            if *cell == (100, 128) {
                goal("memory idle, MiB", way.idle_kib as f64 / 1024.0, "≤", 40.0, 0);
                goal("memory under load, MiB", middle(|s| s.peak_kib) / 1024.0, "≤", 100.0, 0);
            }
        }
    }
    let _ = write!(text, "\n| way | memory idle, MiB |\n|---|---|\n");
    for way in ways.iter().filter(|way| !way.pids.is_empty()) {
        let _ = writeln!(text, "| {} | {:.0} |", way.name, way.idle_kib as f64 / 1024.0);
    }
    if !goals.is_empty() && args.rate.is_none() {
        let _ = write!(text, "\n| goal | measured | limit | met |\n|---|---|---|---|\n{goals}");
    }
    text
}
