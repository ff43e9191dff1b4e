//! What clients notice of plugins that mean harm: their calls beside a client that asks for all harms at
//! once, again and again, against their calls without it, in one run.

use std::{
    cell::Cell,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;

use bench::{
    load::{self, Client, Endpoint, Load, Pace},
    median,
    proxy::{self, Prepared, Processes},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often everything is measured, one after the other
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Clients that mean no harm
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Messages that mean harm, at once
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64])]
    at_once: Vec<usize>,
    /// Clients that these come from, each with a key of its own
    #[arg(long, default_value_t = 1)]
    keys: usize,
    /// Harms, beside that of all together; may be given several times. Default: all together alone
    #[arg(long = "harm", value_name = "NAME")]
    harms: Vec<String>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The folder of the plugins. Default: `plugins` in the target folder
    #[arg(long, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
}

/// Those of `tests/plugins/harms` whose messages fault, every time. Without `hoard`, which does its harm
/// with every message: nothing would be left to compare with.
const HARMS: [&str; 24] = [
    "allocate",
    "crumbs",
    "flood-log",
    "flood-log-wide",
    "flood-metrics",
    "flood-random",
    "flood-state",
    "forged-words",
    "garbage",
    "huge-payload",
    "labels",
    "late",
    "long-error",
    "nesting",
    "never-settles",
    "other-tool",
    "out-of-bounds",
    "recurse",
    "recurse-in-memory",
    "spin",
    "statics",
    "tarpit",
    "trap",
    "two-keys",
];
/// What is written of the tarpit's host within the plugin.
const PLACEHOLDER: &[u8] = b"localhost:54321";

pub async fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let binary = proxy::binary(args.binary.as_deref())?;
    let plugins = args.plugins.clone().unwrap_or_else(|| folder.join("../plugins"));
    let plugins = plugins.canonicalize().context("`plugins/build` makes the plugins")?;
    let scratch = tempfile::Builder::new().prefix("harms-").tempdir_in(folder)?;
    // Takes every connection and says nothing.
    let pit = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = pit.local_addr()?.port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(connection) = pit.accept().await {
            held.push(connection);
        }
    });
    let mut entries = String::new();
    for name in HARMS {
        entries += &entry(name, &plugins, scratch.path(), port)?;
    }
    let mut processes = Processes::default();
    let dir = scratch.path().join("proxy");
    let mut prepared = Prepared::with_plugins(&binary, &dir, &entries, &mut processes)?;
    let endpoint = prepared.client("bench")?;
    let harmful = (0..args.keys.max(1)).map(|at| prepared.client(&format!("harm-{at}")));
    let harmful = harmful.collect::<anyhow::Result<Vec<_>>>()?;
    prepared.run(&mut processes)?;

    let together: (&str, Vec<&str>) = ("all together", HARMS.into());
    let alone = args.harms.iter().map(|name| (name.as_str(), vec![name.as_str()]));
    let kinds: Vec<_> = std::iter::once(together).chain(alone).collect();
    let time = Duration::from_secs_f64(args.seconds);
    let mut quiet: Vec<Load> = Vec::new();
    let mut beside = vec![Vec::new(); kinds.len() * args.at_once.len()];
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        quiet.push(sample(&endpoint, args.clients, time).await?);
        let mut at = 0;
        for (_, names) in &kinds {
            for &count in &args.at_once {
                beside[at].push(
                    beside_harm(&endpoint, args.clients, time, &harmful, names, count).await?,
                );
                at += 1;
            }
        }
    }

    println!(
        "{} plugins in the chain, {} clients; medians of {} rounds of {} s. Times in ms; the ratio of \
         p99 to that without harm in the same round (least to most).\n\n\
         | harm | at once | p50 | p99 | ratio | calls/s | harms/s |\n|---|---|---|---|---|---|---|",
        HARMS.len(),
        args.clients,
        args.rounds,
        args.seconds
    );
    let of = |all: &[Load], part: fn(&Load) -> f64| median(all.iter().map(part).collect());
    let (p50, p99) = (of(&quiet, |s| s.micros(0.5)) / 1e3, of(&quiet, |s| s.micros(0.99)) / 1e3);
    println!("| none | 0 | {p50:.1} | {p99:.1} | 1 | {:.0} | 0 |", of(&quiet, Load::rate));
    for (at, taken) in beside.iter().enumerate() {
        let (name, _) = kinds[at / args.at_once.len()];
        let count = args.at_once[at % args.at_once.len()];
        let samples: Vec<Load> = taken.iter().map(|(sample, _)| sample.clone()).collect();
        let ratios: Vec<f64> = samples
            .iter()
            .zip(&quiet)
            .map(|(one, base)| one.micros(0.99) / base.micros(0.99))
            .collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "| {name} | {count} | {:.1} | {:.1} | {:.2} ({least:.2} to {most:.2}) | {:.0} | {:.0} |",
            of(&samples, |s| s.micros(0.5)) / 1e3,
            of(&samples, |s| s.micros(0.99)) / 1e3,
            median(ratios),
            of(&samples, Load::rate),
            median(taken.iter().map(|(_, rate)| *rate).collect()),
        );
    }
    Ok(())
}

/// An entry of the config, with what the plugin asks for.
fn entry(name: &str, plugins: &Path, scratch: &Path, port: u16) -> anyhow::Result<String> {
    let mut path = plugins.join(name).with_extension("wasm");
    let grants = match name {
        "flood-log" | "flood-log-wide" => "log = true".into(),
        "flood-metrics" => "metrics = true".into(),
        "flood-random" => "random = true".into(),
        "flood-state" => "state = \"1MiB\"".into(),
        "late" => "clock = true".into(),
        "tarpit" => {
            let host = format!("localhost:{port:05}");
            let mut bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let at = memchr::memmem::find(&bytes, PLACEHOLDER).context("no host in `tarpit`")?;
            bytes[at..at + host.len()].copy_from_slice(host.as_bytes());
            path = scratch.join("tarpit.wasm");
            std::fs::write(&path, bytes)?;
            format!("http = [\"http://{host}=127.0.0.1\"]")
        }
        _ => String::new(),
    };
    let mut entries = String::new();
    // One that replaces is not asked about what it replaced itself: only two never come to an end.
    let called = if name == "never-settles" { &["unsettling", name][..] } else { &[name] };
    for name in called {
        write!(
            entries,
            "\n[[interceptors]]\nuse = \"plugin\"\nname = \"{name}\"\npath = {path:?}\n\
             allow-unpinned = true\n[interceptors.grants]\n{grants}\n"
        )?;
    }
    Ok(entries)
}

/// A measurement while others ask for harm, so many messages at once, and how many harms a second
/// there were.
async fn beside_harm(
    endpoint: &Endpoint,
    clients: usize,
    time: Duration,
    harmful: &[Endpoint],
    names: &[&str],
    at_once: usize,
) -> anyhow::Result<(Load, f64)> {
    let connecting = (0..at_once).map(|at| Client::connect(&harmful[at % harmful.len()], 0));
    let mut all = try_join_all(connecting).await?;
    let done = Cell::new(0_u32);
    let began = Instant::now();
    let harm = try_join_all(all.iter_mut().enumerate().map(|(at, client)| {
        let done = &done;
        // Each begins with another one, so that all of them go on at the same time.
        let names = names.iter().cycle().skip(at);
        async move {
            for name in names {
                let refused = client.refused(&format!("harm:{name}")).await?;
                ensure!(refused, "`{name}` was not refused");
                done.set(done.get() + 1);
            }
            Ok(())
        }
    }));
    let sample = tokio::select! {
        sample = sample(endpoint, clients, time) => sample?,
        failed = harm => return Err(failed.err().context("harm has no end")?),
    };
    Ok((sample, f64::from(done.get()) / began.elapsed().as_secs_f64()))
}

async fn sample(endpoint: &Endpoint, clients: usize, time: Duration) -> anyhow::Result<Load> {
    let mut all = load::connect(endpoint, clients, 100).await?;
    let load = load::load(&mut all, Pace::Closed, time, false).await?;
    try_join_all(all.into_iter().map(Client::leave)).await?;
    Ok(load)
}
