//! A long run at half of the capacity: memory, files and threads must not grow.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use bench::{
    load::{self, Pace},
    process::Held,
    proxy::{self, Prepared, Processes, Setup, full_chain},
};

const CLIENTS: usize = 16;
/// Rows of the table.
const PARTS: u32 = 20;
/// Growth of memory that allocators and caches explain.
const GROWTH: f64 = 1.1;
const GROWTH_KIB: f64 = 4_096.0;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Minutes
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs, and fails if a call fails or the proxy grows after the first quarter.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let scratch = proxy::scratch()?;
    let mut processes = Processes::default();
    let (_, port) = proxy::server(&mut processes)?;
    let servers = proxy::remote("echo", port);
    let setup = Setup { servers, chain: full_chain(), ..Setup::default() };
    let mut prepared = Prepared::new(&binary, &scratch.path().join("proxy"), &setup)?;
    let endpoint = prepared.client("bench")?;
    let pid = prepared.run(&mut processes)?;
    let mut clients = load::connect(&endpoint, CLIENTS, 100).await?;
    load::load(&mut clients, Pace::Closed, Duration::from_secs(1), false).await?;
    let half =
        load::load(&mut clients, Pace::Closed, Duration::from_secs(3), false).await?.rate() / 2.0;
    let mut text = format!(
        "{CLIENTS} clients, {half:.0} calls/s at fixed times: half of the capacity.\n\n\
         | minutes | calls/s | p50 µs | p99 | p99.9 | memory MiB | files | threads |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    let part = Duration::from_secs_f64(args.minutes * 60.0) / PARTS;
    let began = Instant::now();
    let mut held = Vec::new();
    for _ in 0..PARTS {
        // Sessions come and go.
        let mut clients = load::connect(&endpoint, CLIENTS, 100).await?;
        let load = load::load(&mut clients, Pace::Fixed(half), part, false).await?;
        for client in clients {
            client.leave().await?;
        }
        let now = Held::by(pid)?;
        let _ = writeln!(
            text,
            "| {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {} | {} |",
            began.elapsed().as_secs_f64() / 60.0,
            load.rate(),
            load.micros(0.5),
            load.micros(0.99),
            load.micros(0.999),
            now.kib as f64 / 1024.0,
            now.files,
            now.threads
        );
        held.push(now);
    }
    let (early, late) = (held[held.len() / 4], held[held.len() - 1]);
    let most = early.kib as f64 * GROWTH + GROWTH_KIB;
    ensure!(late.kib as f64 <= most, "{text}\nmemory grows: {early:?}, then {late:?}");
    ensure!(late.files <= early.files + 8, "{text}\nfiles grow: {early:?}, then {late:?}");
    ensure!(late.threads <= early.threads + 8, "{text}\nthreads grow: {early:?}, then {late:?}");
    Ok(text)
}
