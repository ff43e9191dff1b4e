//! Overload: a client that floods the proxy beside others, and calls at three times the capacity.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bench::{
    load::{self, Client, Endpoint, Load, Pace},
    median,
    proxy::{self, Prepared, Processes, Setup, full_chain},
};
use rustix::process::setpriority_process;

/// Clients beside the flooding one, each with a key of its own.
const OTHERS: usize = 8;
/// Connections of the flooding client.
const FLOODING: usize = 128;
/// Connections of the overload, of as many clients as there are others.
const OVERLOAD: usize = 512;
/// What the others must keep of their throughput.
const KEPT: f64 = 0.8;
const NICENESS: i32 = 19;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Rounds
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

/// What the others reach, and what the flood reaches.
type Beside = (Load, Option<Load>);

/// Measures and returns tables in Markdown.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let scratch = proxy::scratch()?;
    let mut processes = Processes::default();
    let (_, port) = proxy::server(&mut processes)?;
    // The defaults of a server: 64 calls in flight and a queue of 64.
    let servers = format!("[servers.echo]\nurl = \"http://127.0.0.1:{port}/mcp\"\n");
    let setup = Setup { servers, chain: full_chain(), ..Setup::default() };
    let mut prepared = Prepared::new(&binary, &scratch.path().join("proxy"), &setup)?;
    let others = (0..OTHERS).map(|at| prepared.client(&format!("other-{at}")));
    let others = others.collect::<anyhow::Result<Vec<_>>>()?;
    let flood = prepared.client("flood")?;
    prepared.run(&mut processes)?;
    let time = Duration::from_secs_f64(args.seconds);
    let mut clients = Vec::new();
    for endpoint in &others {
        clients.push(Client::connect(endpoint, 100).await?);
    }
    load::load(&mut clients, Pace::Closed, Duration::from_secs(1), true).await?;

    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        eprintln!("flood: round {} of {}", round + 1, args.rounds);
        let quiet = load::load(&mut clients, Pace::Closed, time, true).await?;
        let (load, flooding) = beside(&flood, &mut clients, time).await?;
        rounds.push([(quiet, None), (load, Some(flooding))]);
    }
    let mut text = format!(
        "{OTHERS} clients call beside a client with {FLOODING} connections that floods; medians of {} \
         rounds of {} s. The flooding client has niceness {NICENESS}, because real ones run on other \
         machines. The goal is that the others keep {KEPT} of their throughput.\n\n| flood | calls/s of the others | of no flood | p99 ms | refused | calls/s of the flood | \
         refusals/s | p99 of refusals, ms |\n|---|---|---|---|---|---|---|---|\n",
        args.rounds, args.seconds
    );
    let middle = |at: usize, part: &dyn Fn(&Beside, f64) -> f64| {
        median(rounds.iter().map(|round| part(&round[at], round[0].0.rate())).collect())
    };
    for (at, name) in ["none", "through the proxy"].iter().enumerate() {
        let flood = |part: fn(&Load) -> f64| {
            middle(at, &|(_, flood), _| flood.as_ref().map(part).unwrap_or_default())
        };
        let _ = writeln!(
            text,
            "| {name} | {:.0} | {:.2} | {:.1} | {:.0} | {:.0} | {:.0} | {:.1} |",
            middle(at, &|(load, _), _| load.rate()),
            middle(at, &|(load, _), quiet| load.rate() / quiet),
            middle(at, &|(load, _), _| load.micros(0.99) / 1e3),
            middle(at, &|(load, _), _| load.refused.len() as f64),
            flood(Load::rate),
            flood(|flood| flood.refused.len() as f64 / flood.elapsed.as_secs_f64()),
            flood(|flood| flood.refused.value_at_quantile(0.99) as f64 / 1e6),
        );
    }
    let kept = middle(1, &|(load, _), quiet| load.rate() / quiet);
    let met = if kept >= KEPT { "yes" } else { "**no**" };
    let _ = writeln!(text, "\nThe others keep {kept:.2} of their throughput; met: {met}.\n");
    for client in clients {
        client.leave().await?;
    }
    text.push_str(&overload(args, &others).await?);
    Ok(text)
}

/// What the clients reach while another thread floods an endpoint, and what the flood reaches.
async fn beside(
    target: &Endpoint,
    clients: &mut [Client],
    time: Duration,
) -> anyhow::Result<(Load, Load)> {
    let started = Arc::new(AtomicBool::new(false));
    let flood = {
        let (target, started) = (target.clone(), started.clone());
        std::thread::spawn(move || -> anyhow::Result<Load> {
            setpriority_process(None, NICENESS)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut all = load::connect(&target, FLOODING, 100).await?;
                started.store(true, Ordering::Release);
                let load = load::load(&mut all, Pace::Closed, time, true).await?;
                for client in all {
                    client.leave().await?;
                }
                Ok(load)
            })
        })
    };
    while !started.load(Ordering::Acquire) && !flood.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let load = load::load(clients, Pace::Closed, time, true).await?;
    let flood = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
    Ok((load, flood))
}

/// Calls at a third, at three times and again at a third of the capacity.
async fn overload(args: &Args, endpoints: &[Endpoint]) -> anyhow::Result<String> {
    let time = Duration::from_secs_f64(args.seconds);
    let mut clients = Vec::new();
    for at in 0..OVERLOAD {
        clients.push(Client::connect(&endpoints[at % endpoints.len()], 100).await?);
    }
    let some = &mut clients[..2 * OTHERS];
    let capacity = load::load(some, Pace::Closed, time, true).await?.rate();
    let mut text = format!(
        "{OVERLOAD} connections of {OTHERS} clients call at fixed times. The capacity is {capacity:.0} \
         calls/s (closed loop, {} connections).\n\n| calls/s offered | answered/s | p50 ms | p99 ms | \
         refused/s | p50 of refusals, ms | p99 |\n|---|---|---|---|---|---|---|\n",
        2 * OTHERS
    );
    let second = Duration::from_secs(1);
    for (what, part, time) in [
        ("a third of the capacity", 1.0 / 3.0, time),
        ("three times the capacity", 3.0, time),
        ("a third again, the first second", 1.0 / 3.0, second),
        ("… the second second", 1.0 / 3.0, second),
    ] {
        let load = load::load(&mut clients, Pace::Fixed(capacity * part), time, true).await?;
        let refused = |quantile| load.refused.value_at_quantile(quantile) as f64 / 1e6;
        let _ = writeln!(
            text,
            "| {what} | {:.0} | {:.1} | {:.1} | {:.0} | {:.1} | {:.1} |",
            load.rate(),
            load.micros(0.5) / 1e3,
            load.micros(0.99) / 1e3,
            load.refused.len() as f64 / load.elapsed.as_secs_f64(),
            refused(0.5),
            refused(0.99),
        );
    }
    for client in clients {
        client.leave().await?;
    }
    Ok(text)
}
