//! Instructions and system calls of one `tools/call` through the proxy with the full chain. Both
//! are counts, so a busy machine changes them little, unlike times.
//!
//! Each is a slope: the difference between two moments of a running proxy, divided by the calls
//! between them. Start, handshake and first calls are before the first moment.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bench::{
    load::{Client, Endpoint},
    median,
    proxy::{self, Prepared, Processes, Setup, full_chain},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// How long the proxy may take to start under valgrind.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long strace may take to attach, or to write its table.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a refused call or handshake.
const STALL: Duration = Duration::from_secs(1);
/// Instructions of a call that the tests accept.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.json");

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Calls between the two moments. The audit log packs a block after 2,048 calls, so use a
    /// multiple of that
    #[arg(long, default_value_t = 8_192)]
    calls: usize,
    /// Calls before the first moment
    #[arg(long, default_value_t = 2_048)]
    warm_up: usize,
    /// Bytes of the argument
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// How often everything is counted, each time on a new state folder
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// Ways; repeatable. Default: all
    #[arg(long = "way", value_enum)]
    ways: Vec<Way>,
    /// What is counted. Default: both
    #[arg(long = "count", value_enum)]
    what: Vec<What>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Keep the profiles in this folder, for `callgrind_annotate --inclusive=yes FILE`
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Compare the instructions with tests/bench/baseline.json, by its number of calls and on the
    /// ways that it has; fail above its tolerance
    #[arg(long, conflicts_with_all = ["update", "what", "ways"])]
    check: bool,
    /// Count like `--check`, and write tests/bench/baseline.json
    #[arg(long, conflicts_with_all = ["what", "ways"])]
    update: bool,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Deserialize, Serialize,
)]
#[serde(rename_all = "kebab-case")]
enum Way {
    Floor,
    FloorStdio,
    Full,
    FullStdio,
}

impl Way {
    const ALL: [Self; 4] = [Self::Floor, Self::FloorStdio, Self::Full, Self::FullStdio];

    fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::FloorStdio => "floor, stdio",
            Self::Full => "full chain",
            Self::FullStdio => "full chain, stdio",
        }
    }

    fn floor(self) -> Self {
        match self {
            Self::Floor | Self::Full => Self::Floor,
            Self::FloorStdio | Self::FullStdio => Self::FloorStdio,
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

/// The file that instructions are compared with.
#[derive(Deserialize, Serialize)]
struct Baseline {
    tolerance_percent: f64,
    calls: usize,
    warm_up: usize,
    instructions: BTreeMap<Way, u64>,
}

/// Counts and returns a table in Markdown.
///
/// # Errors
/// If a tool is missing, a call fails, or a count is above its baseline.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    if args.check || args.update {
        return compare(args).await;
    }
    ensure!(args.calls > 0, "--calls must be at least 1");
    let ways = if args.ways.is_empty() { &Way::ALL[..] } else { &args.ways };
    let wants = |what| args.what.is_empty() || args.what.contains(&what);
    let binary = proxy::binary(args.binary.as_deref())?;
    let mut text = format!(
        "A call with an argument of {} bytes by one client, over {} calls on a new state folder.\n\n\
         | way | instructions | ÷ floor | system calls | |\n|---|---|---|---|---|\n",
        args.bytes, args.calls
    );
    let mut floors = BTreeMap::new();
    for &way in ways {
        let mut cells = [const { String::new() }; 4];
        if wants(What::Instructions) {
            let counts = repeated(args, &binary, way).await?;
            let count = median(counts.clone());
            floors.insert(way, count);
            cells[0] = format!("{count:.0}");
            if let [_, _, ..] = counts[..] {
                let _ = write!(cells[0], " (spread {:.1} %)", spread(&counts));
            }
            if let Some(floor) = floors.get(&way.floor()) {
                cells[1] = format!("{:.1}", count / floor);
            }
        }
        if wants(What::SystemCalls) {
            let counts = system_calls(args, &binary, way).await?;
            let of = |count: u64| count as f64 / args.calls as f64;
            cells[2] = format!("{:.1}", of(counts.values().sum()));
            let mut counts: Vec<_> = counts.into_iter().collect();
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let most = counts.iter().filter(|(_, count)| of(*count) >= 0.05);
            let most = most.map(|(call, count)| format!("{call} {:.1}", of(*count)));
            cells[3] = most.collect::<Vec<_>>().join(", ");
        }
        let _ = writeln!(text, "| {} | {} |", way.name(), cells.join(" | "));
    }
    Ok(text)
}

async fn compare(args: &Args) -> anyhow::Result<String> {
    let text = fs::read_to_string(BASELINE).context(BASELINE)?;
    let mut baseline: Baseline = serde_json::from_str(&text).context(BASELINE)?;
    let binary = proxy::binary(args.binary.as_deref())?;
    let args = Args { calls: baseline.calls, warm_up: baseline.warm_up, ..args.clone() };
    let mut text = String::new();
    let mut above = false;
    for (&way, expected) in &mut baseline.instructions {
        let count = median(repeated(&args, &binary, way).await?);
        let change = (count / *expected as f64 - 1.0) * 100.0;
        let name = way.name();
        let _ = writeln!(text, "{name}: {count:.0} instructions, {change:+.1} % of {expected}");
        if args.update {
            *expected = count.round() as u64;
        } else if change > baseline.tolerance_percent {
            above = true;
        } else if change < -baseline.tolerance_percent {
            text.push_str(
                "A call needs fewer instructions than before. Run `cargo run -p bench -- counts \
                 --update`, and commit tests/bench/baseline.json, so that the gain is kept.\n",
            );
        }
    }
    if args.update {
        fs::write(BASELINE, serde_json::to_string_pretty(&baseline)? + "\n")?;
    }
    ensure!(
        !above,
        "{text}A call needs over {} % more instructions than tests/bench/baseline.json allows. \
         `cargo run -p bench -- counts --way full --count instructions --keep DIR` keeps a profile. \
         If the change is worth it, run `cargo run -p bench -- counts --update`.",
        baseline.tolerance_percent
    );
    Ok(text)
}

/// Difference of the largest and the smallest, in percent of the smallest.
fn spread(counts: &[f64]) -> f64 {
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = counts.iter().copied().fold(0.0, f64::max);
    (most / least - 1.0) * 100.0
}

async fn repeated(args: &Args, binary: &Path, way: Way) -> anyhow::Result<Vec<f64>> {
    let mut counts = Vec::new();
    for _ in 0..args.runs.max(1) {
        let count = instructions(args, binary, way).await? / args.calls as f64;
        eprintln!("{}: {count:.0} instructions", way.name());
        counts.push(count);
    }
    Ok(counts)
}

/// A process whose calls are counted.
struct Subject {
    pid: u32,
    endpoint: Endpoint,
    /// What the proxy has logged is of use if a call fails.
    prepared: Option<Prepared>,
    /// The echo server, and the process itself.
    _processes: Processes,
}

impl Subject {
    /// Starts it, under a tool if there is one.
    fn start(binary: &Path, way: Way, dir: &Path, tool: Option<Command>) -> anyhow::Result<Self> {
        let mut processes = Processes::default();
        let port = match way {
            Way::Floor | Way::Full => Some(proxy::server(&mut processes)?.1),
            Way::FloorStdio | Way::FullStdio => None,
        };
        match way {
            Way::Floor | Way::FloorStdio => {
                let this = std::env::current_exe()?;
                let mut command = tool.unwrap_or_else(|| Command::new("env"));
                command.arg(this).arg("floor");
                if let Some(port) = port {
                    command.arg("--upstream").arg(port.to_string());
                }
                let (pid, port) = proxy::listening(command, &mut processes)?;
                let endpoint = Endpoint { port, path: "/mcp".into(), key: None };
                Ok(Self { pid, endpoint, prepared: None, _processes: processes })
            }
            Way::Full | Way::FullStdio => {
                let servers = match port {
                    Some(port) => proxy::remote("echo", port),
                    None => proxy::local("echo")?,
                };
                let setup = Setup { servers, chain: full_chain(), ..Setup::default() };
                let mut prepared = Prepared::new(binary, &dir.join("proxy"), &setup)?;
                let endpoint = prepared.client("bench")?;
                let pid = match tool {
                    Some(tool) => prepared.run_under(tool, PATIENCE, &mut processes)?,
                    None => prepared.run(&mut processes)?,
                };
                Ok(Self { pid, endpoint, prepared: Some(prepared), _processes: processes })
            }
        }
    }

    async fn warm(&self, args: &Args) -> anyhow::Result<Client> {
        let warm = async {
            let mut client = Client::connect(&self.endpoint, args.bytes).await;
            for _ in 0..3 {
                if client.is_err() {
                    tokio::time::sleep(STALL).await;
                    client = Client::connect(&self.endpoint, args.bytes).await;
                }
            }
            let mut client = client?;
            calls(&mut client, args.warm_up.max(1)).await?;
            anyhow::Ok(client)
        };
        warm.await.with_context(|| self.prepared.as_ref().map(Prepared::log).unwrap_or_default())
    }
}

/// Makes so many calls that are answered. A disk that stalls for seconds has a call refused, because
/// it could not be recorded in time.
async fn calls(client: &mut Client, count: usize) -> anyhow::Result<()> {
    let mut refused = 0;
    for _ in 0..count {
        while !client.try_call().await? {
            refused += 1;
            ensure!(refused <= 1 + count / 100, "{refused} of {count} calls are refused");
            tokio::time::sleep(STALL).await;
        }
    }
    Ok(())
}

async fn instructions(args: &Args, binary: &Path, way: Way) -> anyhow::Result<f64> {
    let scratch = proxy::scratch()?;
    let dir = scratch.path();
    let profile = dir.join("callgrind");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--fair-sched=yes", "--quiet"]);
    valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
    if way == Way::FullStdio {
        valgrind.env("LD_PRELOAD", own_program(dir)?).env("BENCH_PROGRAM", binary);
    }
    let subject = Subject::start(binary, way, dir, Some(valgrind))?;
    let mut client = subject.warm(args).await?;
    control(subject.pid, "--zero")?;
    calls(&mut client, args.calls).await?;
    control(subject.pid, "--dump")?;
    // File of the first dump on request: one part with one total.
    let dump = profile.with_extension("1");
    let text = fs::read_to_string(&dump).with_context(|| dump.display().to_string())?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.with_context(|| format!("{} has no total", dump.display()))?;
    client.leave().await?;
    if let Some(keep) = &args.keep {
        fs::create_dir_all(keep)?;
        fs::copy(&dump, keep.join(format!("callgrind.{way:?}").to_lowercase()))?;
    }
    Ok(total.trim().parse()?)
}

/// A library that has a process under valgrind start its own program again. The launcher of the
/// sandbox runs `/proc/self/exe`, which is the tool in a process under valgrind 3.19.
fn own_program(dir: &Path) -> anyhow::Result<PathBuf> {
    let library = dir.join("own_program.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/own_program.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([library.as_os_str(), OsStr::new(source), OsStr::new("-ldl")])
        .output()
        .context("running cc")?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(library)
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
    args: &Args,
    binary: &Path,
    way: Way,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let scratch = proxy::scratch()?;
    let dir = scratch.path();
    let subject = Subject::start(binary, way, dir, None)?;
    let mut client = subject.warm(args).await?;
    let table = dir.join("strace");
    let (mut strace, attached) = trace(subject.pid, &table, dir)?;
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
