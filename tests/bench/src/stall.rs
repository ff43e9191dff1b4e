//! What one client notices of heavy messages that another sends to another server, again and again,
//! against its calls without them, in one run.

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use bench::{
    load::{self, Client, Endpoint, Load, Pace},
    proxy::{self, Prepared, Processes},
};
use futures_util::future::try_join_all;
use rustix::process::setpriority_process;
use serde_json::Value;

/// Niceness of the attackers.
const NICENESS: i32 = 19;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Large messages at once
    #[arg(long, value_delimiter = ',', default_values_t = [4, 8, 64])]
    at_once: Vec<usize>,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The large messages. Default: each of them
    #[arg(long = "message", value_enum)]
    messages: Vec<Message>,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Message {
    /// 250,000 keys in one object: beyond the limits
    Keys,
    /// 45,000 keys in five objects: within the limits
    Objects,
    /// 900,000 elements of an array: within the limits
    Elements,
    /// 2,900 keys in 28 KiB: within the limits
    Small,
}

impl Message {
    const ALL: [Self; 4] = [Self::Keys, Self::Objects, Self::Elements, Self::Small];

    /// A call of a tool that does not exist.
    fn text(self) -> String {
        let object = |keys: usize| {
            let members: Vec<_> = (0..keys).map(|i| format!("\"k{i:07}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        let arguments = match self {
            Self::Keys => object(250_000),
            Self::Objects => format!("{{\"a\":[{}]}}", vec![object(9_000); 5].join(",")),
            Self::Small => object(2_900),
            Self::Elements => format!("{{\"a\":[{}0]}}", "0,".repeat(900_000)),
        };
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\
             \"params\":{{\"name\":\"none\",\"arguments\":{arguments}}}}}"
        )
    }
}

/// Measures and returns a table in Markdown.
///
/// # Errors
/// If a call fails.
pub async fn run(args: &Args) -> anyhow::Result<String> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let scratch = proxy::scratch()?;
    let servers = ["one", "two"].map(|name| Ok(proxy::local(name)? + "era = \"legacy\"\n"));
    let servers = servers.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
    let mut prepared = Prepared::open(&binary, &scratch.path().join("proxy"), &servers)?;
    let at = |endpoint: Endpoint, server: &str| Endpoint {
        path: format!("/servers/{server}/mcp").into(),
        ..endpoint
    };
    let victim = at(prepared.client("victim")?, "two");
    let attacker = at(prepared.client("attacker")?, "one");
    let mut processes = Processes::default();
    prepared.run(&mut processes)?;
    let mut clients = load::connect(&victim, 1, 100).await?;
    let time = Duration::from_secs_f64(args.seconds);
    clients[0].run(Duration::from_secs(1)).await?;

    let mut text = "Times of the other client's calls in ms, and the ratio of p99 to that without \
                    heavy messages.\n\n| heavy messages | at once | p50 | p99 | most | ratio | calls \
                    | sent |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    let mut row = |what: &str, at_once: usize, load: &Load, quiet: Option<f64>, sent: usize| {
        let p99 = load.micros(0.99) / 1e3;
        let _ = writeln!(
            text,
            "| {what} | {at_once} | {:.1} | {p99:.1} | {:.1} | {:.1} | {} | {sent} |",
            load.micros(0.5) / 1e3,
            load.micros(1.0) / 1e3,
            p99 / quiet.unwrap_or(p99),
            load.times.len()
        );
        p99
    };
    // The same messages directly to a server: what sending them costs the machine.
    let (_, port) = proxy::server(&mut processes)?;
    let direct = Endpoint { port, path: "/mcp".into(), key: None };
    let messages = if args.messages.is_empty() { &Message::ALL[..] } else { &args.messages };
    for message in messages {
        let load = load::load(&mut clients, Pace::Closed, time, false).await?;
        let quiet = row("none", 0, &load, None, 0);
        let heavy = message.text();
        for &count in &args.at_once {
            for (to, target) in [("directly", &direct), ("through the proxy", &attacker)] {
                let end = Instant::now() + time;
                // On a thread of their own, so that they do not block the other client's runtime.
                let attacks = {
                    let (target, heavy) = (target.clone(), heavy.clone());
                    std::thread::spawn(move || attack_all(&target, &heavy, count, end))
                };
                let load = load::load(&mut clients, Pace::Closed, time, false).await?;
                let sent =
                    attacks.join().map_err(|_| anyhow::anyhow!("the attackers panicked"))??;
                row(&format!("{message:?}, {to}"), count, &load, Some(quiet), sent);
            }
        }
    }
    Ok(text)
}

fn attack_all(at: &Endpoint, text: &str, count: usize, end: Instant) -> anyhow::Result<usize> {
    // Attackers run on machines of their own. Here they share the processors, so they yield to the
    // proxy and to the other client.
    setpriority_process(None, NICENESS)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let attacks = try_join_all((0..count).map(|_| attack(at, text, end)));
    Ok(runtime.block_on(attacks)?.into_iter().sum())
}

/// Sends large messages one after the other; how many.
async fn attack(endpoint: &Endpoint, text: &str, end: Instant) -> anyhow::Result<usize> {
    let mut client = Client::connect(endpoint, 100).await?;
    let mut sent = 0;
    while Instant::now() < end {
        let Ok(answer) = client.post(text.to_owned()).await else {
            // The proxy refused the message before it had read all of it, and closed the connection.
            client = Client::connect(endpoint, 100).await?;
            sent += 1;
            continue;
        };
        let answer: Value = serde_json::from_slice(&answer)?;
        anyhow::ensure!(answer["error"].is_object(), "not refused: {answer}");
        sent += 1;
    }
    Ok(sent)
}
