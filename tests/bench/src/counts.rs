//! Instructions and system calls of one `tools/call` through the proxy with the full chain. Both
//! are counts, so a busy machine changes them little, unlike times.
//!
//! Each is a slope: the difference between two moments of a proxy that runs, divided by the calls
//! between them. Start, handshake and first call are before the first moment.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    load::{Client, Endpoint},
    rows::{self, Prepared, Processes},
};

/// How long the proxy may take to start under valgrind.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long strace may take to attach, or to write its table.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Calls between the two moments. The audit log packs a block after 2,048 calls, so use a
    /// multiple of that
    #[arg(long, default_value_t = 4_096)]
    calls: usize,
    /// Calls before the first moment
    #[arg(long, default_value_t = 2_048)]
    warm_up: usize,
    /// Bytes of the argument
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// What the echo server speaks. Default: both
    #[arg(long = "server", value_enum)]
    servers: Vec<Server>,
    /// What is counted. Default: both
    #[arg(long = "count", value_enum)]
    what: Vec<What>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Keep the profiles in this folder, for `callgrind_annotate --inclusive=yes FILE`
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Server {
    Http,
    Stdio,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Stdio => "stdio",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// By callgrind, of Debian's package `valgrind`
    Instructions,
    /// By strace
    SystemCalls,
}

/// Runs the measurement.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.calls > 0, "--calls must be at least 1");
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let binary = rows::proxy(args.binary.as_deref())?;
    // Not in /tmp, which may be memory: audit records go to a disk.
    let scratch = tempfile::Builder::new().prefix("counts-").tempdir_in(folder)?;
    let servers = pick(&args.servers, &[Server::Http, Server::Stdio]);
    let what = pick(&args.what, &[What::Instructions, What::SystemCalls]);
    println!(
        "A `tools/call` with an argument of {} bytes, over {} calls by one client.\n",
        args.bytes, args.calls
    );
    println!("| server | | a call |\n|---|---|---|");
    for server in servers {
        for &what in &what {
            let dir = scratch.path().join(format!("{server:?}-{what:?}"));
            let mut processes = Processes::default();
            let mut prepared = match server {
                Server::Http => rows::prepare(&binary, &dir, "", &mut processes)?,
                Server::Stdio => rows::prepare_stdio(&binary, &dir)?,
            };
            let endpoint = prepared.client("bench")?;
            let name = server.name();
            match what {
                What::Instructions => {
                    let profile = dir.join("callgrind");
                    let count =
                        instructions(&prepared, &endpoint, &profile, args, &mut processes).await?;
                    println!("| {name} | instructions | {:.0} |", count / args.calls as f64);
                    if let Some(keep) = &args.keep {
                        fs::create_dir_all(keep)?;
                        fs::copy(dumped(&profile), keep.join(format!("callgrind.{name}")))?;
                    }
                }
                What::SystemCalls => {
                    let counts =
                        system_calls(&prepared, &endpoint, &dir, args, &mut processes).await?;
                    let all: u64 = counts.values().sum();
                    let of = |count: u64| count as f64 / args.calls as f64;
                    let mut counts: Vec<_> = counts.into_iter().collect();
                    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                    let most: Vec<_> = counts
                        .iter()
                        .filter(|(_, count)| of(*count) >= 0.05)
                        .map(|(call, count)| format!("{call} {:.1}", of(*count)))
                        .collect();
                    let (all, most) = (of(all), most.join(", "));
                    println!("| {name} | system calls | {all:.1}: {most} |");
                }
            }
        }
    }
    Ok(())
}

fn pick<T: Copy>(wanted: &[T], all: &[T]) -> Vec<T> {
    if wanted.is_empty() { all.to_vec() } else { wanted.to_vec() }
}

/// A client whose first calls are over.
async fn warm(endpoint: &Endpoint, args: &Args) -> anyhow::Result<Client> {
    let mut client = Client::connect(endpoint, args.bytes).await?;
    calls(&mut client, args.warm_up.max(1)).await?;
    Ok(client)
}

async fn calls(client: &mut Client, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        client.call().await?;
    }
    Ok(())
}

async fn instructions(
    prepared: &Prepared,
    endpoint: &Endpoint,
    profile: &Path,
    args: &Args,
    processes: &mut Processes,
) -> anyhow::Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--fair-sched=yes", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
    let pid = prepared.run_under(valgrind, PATIENCE, processes)?;
    let mut client = warm(endpoint, args).await?;
    control(pid, "--zero")?;
    calls(&mut client, args.calls).await?;
    control(pid, "--dump")?;
    let dump = dumped(profile);
    let text = fs::read_to_string(&dump).with_context(|| dump.display().to_string())?;
    // A file that was made on request has one part with one total.
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.with_context(|| format!("{} has no total", dump.display()))?;
    client.leave().await?;
    Ok(total.trim().parse()?)
}

/// File of the first dump on request.
fn dumped(profile: &Path) -> PathBuf {
    profile.with_extension("1")
}

fn control(pid: u32, what: &str) -> anyhow::Result<()> {
    let done = Command::new("callgrind_control")
        .args([what, &pid.to_string()])
        .output()
        .context("running callgrind_control")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

async fn system_calls(
    prepared: &Prepared,
    endpoint: &Endpoint,
    dir: &Path,
    args: &Args,
    processes: &mut Processes,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let pid = prepared.run(processes)?;
    let mut client = warm(endpoint, args).await?;
    let table = dir.join("strace");
    let (mut strace, attached) = trace(pid, &table, dir)?;
    if let Err(error) =
        wait(ATTACH_PATIENCE, || Ok(fs::read_to_string(&attached)?.contains("attached")))
    {
        let _ = strace.kill();
        return Err(error.context("strace does not attach"));
    }
    calls(&mut client, args.calls).await?;
    // strace writes its table when it is interrupted.
    kill(Pid::from_raw(i32::try_from(strace.id())?), Signal::SIGINT)?;
    wait(ATTACH_PATIENCE, || Ok(strace.try_wait()?.is_some())).context("strace does not end")?;
    client.leave().await?;
    let text = fs::read_to_string(&table)?;
    // % time, seconds, usecs/call, calls, errors (may be absent), name
    let rows = text.lines().filter_map(|line| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let (calls, name) = (parts.get(3)?.parse().ok()?, parts.last()?);
        (*name != "total").then(|| ((*name).to_owned(), calls))
    });
    let counts: BTreeMap<String, u64> = rows.collect();
    ensure!(!counts.is_empty(), "strace counted nothing:\n{text}");
    Ok(counts)
}

/// Attaches strace to all threads of a process; the file that says so.
fn trace(pid: u32, table: &Path, dir: &Path) -> anyhow::Result<(Child, PathBuf)> {
    let told = dir.join("attached");
    let child = Command::new("strace")
        .args(["-f", "-c", "-p", &pid.to_string(), "-o"])
        .arg(table)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&told)?)
        .spawn()
        .context("running strace")?;
    Ok((child, told))
}

fn wait(patience: Duration, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    while !done()? {
        if Instant::now() > end {
            bail!("not within {} s", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
