//! How long it takes until a server in a container has answered, beside `docker run -i` of the same
//! image; and what a call costs by way of the engine's attached streams, beside a pipe.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use portcullis_runtime::{container::Engine, process::LaunchSpec};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader,
};

use bench::{
    REVISION,
    load::{Client, Endpoint},
    median,
    proxy::{self, Prepared, Processes},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How often each start is measured, one way after the other
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Calls over attached streams, and over a pipe
    #[arg(long, default_value_t = 3_000)]
    calls: usize,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
const READY: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"lorem ipsum dolor sit amet"}}}"#;

/// Runs the measurement.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(REVISION == "2025-11-25", "the greeting is of another revision");
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?.to_owned();
    let binary = proxy::binary(args.binary.as_deref())?;
    let engine = Engine::connect(None).await?;
    let image = engine.pack(&this).await.map_err(|failure| anyhow::anyhow!(failure.to_string()))?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&folder)?;
    let mut processes = Processes::default();
    let mut endpoints = Vec::new();
    // A session has an instance of its own, so each new one is a start.
    let leading = "warm = 0\negress = [\"api.example.com:443\"]";
    for (name, more) in [("cold", "warm = 0"), ("egress", leading), ("warm", "warm = 4")] {
        let body = format!(
            "[servers.echo]\nimage = {image:?}\ncommand = [\"stdio\"]\nera = \"legacy\"\n\
             sharing = \"per-session\"\n{more}\n"
        );
        let prepared = Prepared::open(&binary, &scratch.path().join(name), &body)?;
        prepared.run(&mut processes)?;
        endpoints.push(prepared.to("echo"));
        // The common one runs from here on, which lists what there is.
        once(&endpoints[endpoints.len() - 1]).await?;
    }
    let mut took: [Vec<f64>; 4] = Default::default();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for turn in 0..took.len() {
            let way = (round + turn) % took.len();
            let time = match way {
                0 => docker_run(&image).await?,
                1 | 2 => once(&endpoints[way - 1]).await?,
                _ => {
                    // For the pool to be full again.
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    once(&endpoints[2]).await?
                }
            };
            took[way].push(time.as_secs_f64() * 1e3);
        }
    }
    drop(processes);
    let ratio = |one: usize, other: usize| {
        median(took[one].iter().zip(&took[other]).map(|(one, other)| one / other).collect())
    };
    println!("| until the first call is answered, ms | least | p50 | most |\n|---|---|---|---|");
    let ways = [
        "`docker run -i`",
        "through the proxy, cold",
        "through the proxy, cold, with `egress`",
        "through the proxy, `warm = 4`",
    ];
    for (name, took) in ways.iter().zip(&took) {
        let least = took.iter().copied().fold(f64::INFINITY, f64::min);
        let most = took.iter().copied().fold(0.0, f64::max);
        println!("| {name} | {least:.0} | {:.0} | {most:.0} |", median(took.clone()));
    }
    println!("\ncold / `docker run -i`, of the same round: {:.2} (median)", ratio(1, 0));
    println!("with `egress` / without, of the same round: {:.2} (median)\n", ratio(2, 1));
    let (cold, warm) = (ratio(1, 0), median(took[3].clone()));
    streams(args, &engine, image, &this).await?;
    // The goals.
    ensure!(cold <= 1.3, "cold took {cold:.2} times `docker run -i`, and 1.3 is the most");
    ensure!(warm < 20.0, "from the warm pool it took {warm:.0} ms, and 20 is the most");
    Ok(())
}

/// A session's first call, from when it is sent to its answer.
async fn once(endpoint: &Endpoint) -> anyhow::Result<Duration> {
    let mut client = Client::connect(endpoint, 100).await?;
    let took = client.call().await?;
    client.leave().await?;
    Ok(took)
}

async fn docker_run(image: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut child = tokio::process::Command::new("docker")
        .args(["run", "-i", "--rm", "--network", "none", image, "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("`docker`")?;
    let mut stdin = child.stdin.take().context("its input")?;
    let mut stdout = BufReader::new(child.stdout.take().context("its output")?);
    ask(&mut stdin, &mut stdout, HELLO).await?;
    stdin.write_all(format!("{READY}\n").as_bytes()).await?;
    ask(&mut stdin, &mut stdout, CALL).await?;
    let took = began.elapsed();
    drop(stdin);
    child.wait().await?;
    Ok(took)
}

async fn ask(
    stdin: &mut (impl AsyncWrite + Unpin),
    stdout: &mut (impl AsyncBufRead + Unpin),
    text: &str,
) -> anyhow::Result<()> {
    stdin.write_all(format!("{text}\n").as_bytes()).await?;
    stdin.flush().await?;
    let mut line = String::new();
    stdout.read_line(&mut line).await?;
    ensure!(line.contains("\"result\""), "no answer: {line}");
    Ok(())
}

/// The same calls over the streams of a container that is attached, and over pipes.
async fn streams(
    args: &Args,
    engine: &Engine,
    image: String,
    this: &std::path::Path,
) -> anyhow::Result<()> {
    let bare = LaunchSpec::bare("echo".parse()?, vec!["stdio".into()], "bench");
    let spec = LaunchSpec { image: Some(image), ..bare };
    let process =
        engine.launch(&spec).await.map_err(|failure| anyhow::anyhow!(failure.to_string()))?;
    let mut child = tokio::process::Command::new(this)
        .arg("stdio")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut piped = (
        child.stdin.take().context("its input")?,
        BufReader::new(child.stdout.take().context("its output")?),
    );
    let mut attached = (process.stdin, BufReader::new(process.stdout));
    let mut took: [Vec<f64>; 2] = Default::default();
    // In turns, so that a busy machine disturbs both alike.
    for _ in 0..args.calls.div_ceil(100) {
        timed(&mut piped.0, &mut piped.1, &mut took[0]).await?;
        timed(&mut attached.0, &mut attached.1, &mut took[1]).await?;
    }
    println!("| one call, µs | p50 | p99 |\n|---|---|---|");
    for (name, mut took) in ["over a pipe", "over the attached streams"].iter().zip(took) {
        took.sort_unstable_by(f64::total_cmp);
        let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
        println!("| {name} | {:.0} | {p99:.0} |", median(took));
    }
    process.handle.stop(Duration::ZERO).await;
    Ok(())
}

async fn timed(
    stdin: &mut (impl AsyncWrite + Unpin),
    stdout: &mut BufReader<impl AsyncRead + Unpin>,
    took: &mut Vec<f64>,
) -> anyhow::Result<()> {
    for _ in 0..100 {
        let began = Instant::now();
        ask(stdin, stdout, CALL).await?;
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}
