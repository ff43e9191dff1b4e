//! Many sessions on many containers, again and again: what the proxy holds afterwards is what it held
//! before.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use portcullis_runtime::container::Engine;

use bench::{
    load::Client,
    process::Held,
    proxy::{self, Prepared, Processes},
};

/// How long the containers may take to be gone once nobody uses them.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sessions at once
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Servers, each a container
    #[arg(long, default_value_t = 50)]
    servers: usize,
    /// How often all come and go
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Calls of each session in each round
    #[arg(long, default_value_t = 20)]
    calls: usize,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs the measurement; fails where something leaks.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 2, "what leaks is seen after a third round");
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?.to_owned();
    let binary = proxy::binary(args.binary.as_deref())?;
    let engine = Engine::connect(None).await?;
    let image = engine.pack(&this).await.map_err(|failure| anyhow::anyhow!(failure.to_string()))?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&folder)?;
    // Servers of the crowd are known by a name that no other's have.
    let name = |at: usize| format!("crowd{}-{at}", std::process::id());
    let mut body = String::new();
    for at in 0..args.servers {
        let name = name(at);
        body.push_str(&format!(
            "[servers.{name}]\nimage = {image:?}\ncommand = [\"stdio\"]\nera = \"legacy\"\n\
             idle-stop-s = 20\nstart-timeout-s = 300\nresources = {{ memory-mib = 32 }}\n"
        ));
    }
    let prepared = Prepared::open(&binary, &scratch.path().join("proxy"), &body)?;
    let mut processes = Processes::default();
    let pid = prepared.run(&mut processes)?;
    let ours = async || -> anyhow::Result<usize> {
        let all = engine.list().await?;
        let prefix = format!("portcullis-crowd{}-", std::process::id());
        Ok(all.iter().filter(|container| container.name.contains(&prefix)).count())
    };
    println!("| round | sessions | containers | calls | s | files | threads | memory, MiB |");
    println!("|---|---|---|---|---|---|---|---|");
    let row = |what: &str, sessions, containers, calls, took: Duration, held: Held| {
        println!(
            "| {what} | {sessions} | {containers} | {calls} | {:.1} | {} | {} | {:.1} |",
            took.as_secs_f64(),
            held.files,
            held.threads,
            held.kib as f64 / 1024.0
        );
    };
    row("at its start", 0, ours().await?, 0, Duration::ZERO, Held::by(pid)?);
    let mut after: Vec<Held> = Vec::new();
    for round in 1..=args.rounds {
        let began = Instant::now();
        let sessions = (0..args.sessions).map(|at| {
            let endpoint = prepared.to(&name(at % args.servers));
            async move {
                let mut client = Client::connect(&endpoint, 100).await?;
                for _ in 0..args.calls {
                    client.call().await?;
                }
                anyhow::Ok(client)
            }
        });
        let sessions = try_join_all(sessions).await?;
        let running = ours().await?;
        ensure!(running == args.servers, "{running} containers for {} servers", args.servers);
        let calls = args.sessions * args.calls;
        row(&round.to_string(), args.sessions, running, calls, began.elapsed(), Held::by(pid)?);
        try_join_all(sessions.into_iter().map(Client::leave)).await?;
        let end = Instant::now() + PATIENCE;
        while ours().await? > 0 {
            ensure!(Instant::now() < end, "containers that nobody uses stay");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let held = Held::by(pid)?;
        row("then", 0, 0, 0, began.elapsed(), held);
        after.push(held);
    }
    drop(processes);
    ensure!(ours().await? == 0, "containers are left over");
    // The first round is what comes once: pools of threads and of connections, caches.
    if let [_, second, .., last] = after.as_slice() {
        ensure!(last.files <= second.files + 8, "files leak: {second:?}, then {last:?}");
        ensure!(last.threads <= second.threads + 8, "threads leak: {second:?}, then {last:?}");
        let most = second.kib + second.kib / 10 + 4096;
        ensure!(last.kib <= most, "memory leaks: {second:?}, then {last:?}");
        println!("\nNothing leaks.");
    }
    Ok(())
}
