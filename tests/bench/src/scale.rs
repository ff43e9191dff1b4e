//! The cost of a call with many tools, sessions, policies or servers, and on fewer cores.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bench::{
    load::{self, Client, Endpoint, Pace},
    median,
    process::{self, Held},
    proxy::{self, Prepared, Processes, Setup, full_chain},
};

/// Clients that call at once.
const CLIENTS: usize = 16;
/// How much more than the base row's the CPU time of a call may be.
const FLAT: f64 = 1.2;
/// Sessions of one client: a tenth of all, the default limit.
const SESSIONS_PER_CLIENT: usize = 1_000;
const SESSIONS: usize = 10_000;
const SESSIONS_MIB: f64 = 150.0;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Rounds. In each round every row is measured once, in turn
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rows beside the base, such as `tools`; repeatable. Default: all
    #[arg(long = "row", value_enum)]
    rows: Vec<Kind>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    #[value(skip)]
    Base,
    /// 10,000 tools of the server
    Tools,
    /// 10,000 idle sessions
    Sessions,
    /// 10,000 policies
    Policies,
    /// 200 servers, of which the clients call 16
    Servers,
    /// One core for the proxy
    OneCore,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::Tools, Self::Sessions, Self::Policies, Self::Servers, Self::OneCore];

    fn name(self) -> &'static str {
        match self {
            Self::Base => "1 tool, 10 policies, 1 server, all cores",
            Self::Tools => "10,000 tools",
            Self::Sessions => "10,000 idle sessions",
            Self::Policies => "10,000 policies",
            Self::Servers => "200 servers",
            Self::OneCore => "1 core for the proxy",
        }
    }
}

struct Row {
    kind: Kind,
    pid: u32,
    /// Where each client calls.
    endpoints: Vec<Endpoint>,
    ready: Duration,
    idle_kib: u64,
    /// CPU time per call in µs, calls a second.
    samples: Vec<(f64, f64)>,
}

/// Measures and returns a table in Markdown.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let scratch = proxy::scratch()?;
    let mut processes = Processes::default();
    let kinds = if args.rows.is_empty() { &Kind::ALL[..] } else { &args.rows };
    let mut rows = Vec::new();
    for &kind in [Kind::Base].iter().chain(kinds) {
        eprintln!("{}", kind.name());
        let row = start(kind, &binary, scratch.path(), &mut processes).await;
        rows.push(row.with_context(|| kind.name())?);
    }
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        for turn in 0..rows.len() {
            let at = (round + turn) % rows.len();
            let sample = sample(&rows[at], Duration::from_secs_f64(args.seconds)).await;
            let sample = sample.with_context(|| rows[at].kind.name())?;
            rows[at].samples.push(sample);
        }
    }
    let mut text = format!(
        "{CLIENTS} clients, 100 B, full chain; medians of {} rounds of {} s. Ratios are to the first \
         row of the same round (least to most). The goal for CPU is {FLAT}.\n\n| | calls/s | CPU µs a \
         call | CPU ratio | flat | ready after ms | memory idle, MiB |\n|---|---|---|---|---|---|---|\n",
        args.rounds, args.seconds
    );
    let base = rows[0].samples.clone();
    for row in &rows {
        let ratios: Vec<f64> =
            row.samples.iter().zip(&base).map(|((cpu, _), (base, _))| cpu / base).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let ratio = median(ratios);
        let mib = row.idle_kib as f64 / 1024.0;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {ratio:.2} ({least:.2} to {most:.2}) | {} | {:.0} | {mib:.0}{} |",
            row.kind.name(),
            median(row.samples.iter().map(|(_, rate)| *rate).collect()),
            median(row.samples.iter().map(|(cpu, _)| *cpu).collect()),
            if ratio <= FLAT { "yes" } else { "**no**" },
            row.ready.as_secs_f64() * 1e3,
            if row.kind == Kind::Sessions && mib > SESSIONS_MIB { " (**above 150**)" } else { "" },
        );
    }
    Ok(text)
}

async fn start(
    kind: Kind,
    binary: &Path,
    scratch: &Path,
    processes: &mut Processes,
) -> anyhow::Result<Row> {
    let tools = if kind == Kind::Tools { "10000" } else { "1" };
    let (_, port) = proxy::own(&["serve", "--tools", tools], processes)?;
    let mut setup =
        Setup { servers: proxy::remote("echo", port), chain: full_chain(), ..Setup::default() };
    match kind {
        Kind::Servers => {
            for at in 1..200 {
                setup.servers += &proxy::remote(&format!("echo-{at}"), port);
                writeln!(
                    setup.policies,
                    "permit (principal == Portcullis::Server::\"echo-{at}\", \
                     action in Portcullis::Action::\"from_proxy\", resource);"
                )?;
            }
        }
        Kind::Policies => {
            for at in 0..10_000 {
                writeln!(
                    setup.policies,
                    "@id(\"many-{at}\")\nforbid (principal, action == \
                     Portcullis::Action::\"call_tool\", resource in \
                     Portcullis::Server::\"server-{at}\")\nwhen {{ context.args.hasTag(\"/text\") }};"
                )?;
            }
        }
        Kind::Base | Kind::Tools | Kind::Sessions | Kind::OneCore => {}
    }
    let mut prepared = Prepared::new(binary, &scratch.join(format!("{kind:?}")), &setup)?;
    let endpoint = prepared.client("bench")?;
    let mut holders = Vec::new();
    if kind == Kind::Sessions {
        for at in 0..SESSIONS / SESSIONS_PER_CLIENT {
            holders.push(prepared.client(&format!("holder-{at}"))?);
        }
    }
    let began = Instant::now();
    let patience = 10 * proxy::PATIENCE;
    let tool = match kind {
        Kind::OneCore => ["taskset", "--cpu-list", "0"].as_slice(),
        _ => &["env"],
    };
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]);
    let pid = prepared.run_under(command, patience, processes)?;
    let ready = began.elapsed();
    let mut endpoints = Vec::new();
    if kind == Kind::Servers {
        for at in 1..200 {
            let path = format!("/servers/echo-{at}/mcp").into();
            let endpoint = Endpoint { path, ..endpoint.clone() };
            let mut client = Client::connect(&endpoint, 100).await?;
            client.call().await?;
            client.leave().await?;
            endpoints.push(endpoint);
        }
    }
    endpoints.resize(CLIENTS, endpoint.clone());
    for holder in holders {
        let mut client = Client::connect(&holder, 100).await?;
        for _ in 1..SESSIONS_PER_CLIENT {
            client.another_session().await?;
        }
    }
    let mut client = Client::connect(&endpoint, 100).await?;
    client.call().await?;
    client.leave().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle_kib = Held::by(pid)?.kib;
    Ok(Row { kind, pid, endpoints, ready, idle_kib, samples: Vec::new() })
}

async fn sample(row: &Row, time: Duration) -> anyhow::Result<(f64, f64)> {
    let mut clients = Vec::new();
    for endpoint in &row.endpoints {
        clients.push(Client::connect(endpoint, 100).await?);
    }
    load::load(&mut clients, Pace::Closed, Duration::from_millis(200), false).await?;
    let before = process::cpu(row.pid)?;
    let load = load::load(&mut clients, Pace::Closed, time, false).await?;
    let cpu = process::cpu(row.pid)? - before;
    for client in clients {
        client.leave().await?;
    }
    Ok((cpu.as_secs_f64() * 1e6 / load.times.len().max(1) as f64, load.rate()))
}
