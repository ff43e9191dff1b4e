//! What a decision costs, beside plain Cedar in the same run, and what it costs to filter a list.

mod plain;
mod set;

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::ensure;
use portcullis_interceptors::policy::{Listed, PolicyGate};
use portcullis_policy::{Action, Circumstances, Engine, Request, Resource, Subject};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    exchange::{Definition, Payload, Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::ServerName,
};
use serde_json::{Map, Value, json};

use self::plain::Plain;

/// Tools of the list that is filtered.
const TOOLS: usize = 200;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Policies of a set; ten of them concern what is asked
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000])]
    policies: Vec<usize>,
    /// Rounds, in each of which everything is measured in turns
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Decisions of a round
    #[arg(long, default_value_t = 500)]
    decisions: usize,
}

/// Times of one thing.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn take<R>(&mut self, what: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = std::hint::black_box(what());
        self.0.push(began.elapsed());
        result
    }

    /// In µs.
    fn at(&mut self, quantile: f64) -> f64 {
        self.0.sort_unstable();
        let place = (self.0.len() as f64 * quantile) as usize;
        self.0.get(place.min(self.0.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    }

    fn row(&mut self) -> String {
        format!("{:.1} | {:.1}", self.at(0.5), self.at(0.99))
    }
}

/// What one set of policies was measured with.
struct Bench {
    plain: Plain,
    gate: PolicyGate,
    engine: std::sync::Arc<Engine>,
    server: ServerName,
    principal: Principal,
    tools: Vec<Definition>,
    written: String,
    args: Map<String, Value>,
    labels: BTreeSet<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    println!(
        "| policies | what | p50 µs | p99 µs | plain / this, p50 | p99 |\n|---|---|---|---|---|---|"
    );
    for &policies in &args.policies {
        let scratch = tempfile::TempDir::new()?;
        let text = set::policies(policies);
        fs::write(scratch.path().join("p.cedar"), &text)?;
        let began = Instant::now();
        let engine = Engine::load(&["p.cedar".into()], scratch.path())
            .map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
        let loaded = began.elapsed();
        let began = Instant::now();
        let plain = Plain::new(&text)?;
        let parsed = began.elapsed();
        Bench::new(engine, plain)?.measure(policies, args)?;
        println!(
            "| {policies} | loading the set: all, and what Cedar takes to parse and validate it | {:.0} ms | {:.0} ms | | |",
            loaded.as_secs_f64() * 1e3,
            parsed.as_secs_f64() * 1e3
        );
    }
    Ok(())
}

fn client(name: &str) -> anyhow::Result<Principal> {
    let groups = ["bots".parse()?, "eu".parse()?].into();
    let kind = PrincipalKind::Client(name.parse()?);
    Ok(Principal { kind, groups, verified: true, key: None })
}

impl Bench {
    fn new(engine: Engine, plain: Plain) -> anyhow::Result<Self> {
        let server: ServerName = "git".parse()?;
        let tool = |at: usize| {
            let name = format!("tool_{at}");
            let hints = json!({"readOnlyHint": !at.is_multiple_of(3), "destructiveHint": at.is_multiple_of(7)});
            let definition = json!({"name": name, "annotations": hints});
            Definition::new(server.clone(), name, Payload::from(definition))
        };
        let tools = (0..TOOLS).map(tool).collect();
        let engine = std::sync::Arc::new(engine);
        let gate = PolicyGate::new(std::sync::Arc::clone(&engine), Default::default());
        let written = r#"{"repo": "acme/site", "branch": "main", "count": 3}"#.to_owned();
        let args = serde_json::from_str(&written)?;
        Ok(Self {
            plain,
            gate,
            engine,
            server,
            principal: client("ci")?,
            tools,
            written,
            args,
            labels: BTreeSet::new(),
        })
    }

    fn request<'a>(&'a self, principal: &'a Principal, name: &'a str, call: u64) -> Request<'a> {
        let claims = Claims { read_only: true, destructive: false, ..Claims::default() };
        Request {
            subject: Subject::Client(principal),
            action: Action::CallTool,
            resource: Resource::Tool { server: &self.server, name, claims },
            args: Some(&self.args),
            written: self.written.as_bytes(),
            circumstances: Circumstances {
                method: "tools/call",
                transport: Some(Transport::Http),
                revision: Some(Revision::LATEST_LEGACY),
                now: jiff::Timestamp::now(),
                source_ip: Some([10, 1, 2, (call % 200) as u8].into()),
                session_calls: call % 100,
                labels: &self.labels,
            },
        }
    }

    fn measure(&self, policies: usize, args: &Args) -> anyhow::Result<()> {
        let mut warm = Times::default();
        let mut unseen = Times::default();
        let mut asked = Times::default();
        let mut made = Times::default();
        let (mut cold, mut cached) = (Times::default(), Times::default());
        let mut call = 0;
        for round in 0..args.rounds {
            for _ in 0..args.decisions {
                call += 1;
                let request = self.request(&self.principal, "tool_7", call);
                let outcome = warm.take(|| self.engine.decide(&request));
                ensure!(outcome.allowed && outcome.errors.is_empty(), "{}", outcome.explain());
                let name = format!("other_{call}");
                let request = self.request(&self.principal, &name, call);
                unseen.take(|| self.engine.decide(&request));
            }
            // Plain Cedar needs no more of them to show its p99, and takes its time.
            for _ in 0..args.decisions.min(2_000_000 / policies / args.rounds + 1) {
                call += 1;
                let request = self.request(&self.principal, "tool_7", call);
                let began = Instant::now();
                let question = self.plain.question(&request)?;
                let making = began.elapsed();
                let allowed = asked.take(|| self.plain.decide(&question));
                ensure!(allowed, "plain Cedar says no");
                let asking = asked.0.last().copied().unwrap_or_default();
                made.0.push(making + asking);
            }
            let stranger = client(&format!("stranger-{round}"))?;
            let list = || {
                let sight = self.gate.sight(&stranger);
                self.tools.iter().filter(|tool| sight.visible(Listed::Tool(tool))).count()
            };
            let shown = cold.take(list);
            ensure!(shown > TOOLS / 2 && shown < TOOLS, "{shown} tools are shown");
            for _ in 0..args.decisions / 10 {
                ensure!(cached.take(list) == shown, "a list has changed");
            }
        }
        let ratio = |times: &mut Times, q: f64, base: &mut Times| {
            format!("{:.1}", base.at(q) / times.at(q))
        };
        for (what, times) in [
            ("a decision", &mut warm),
            ("… about a tool that was not asked for before", &mut unseen),
        ] {
            let ratios = [0.5, 0.99].map(|q| ratio(times, q, &mut asked)).join(" | ");
            println!("| {policies} | {what} | {} | {ratios} |", times.row());
        }
        println!("| {policies} | plain Cedar: `is_authorized` alone | {} | | |", asked.row());
        println!("| {policies} | … with making its question | {} | | |", made.row());
        println!("| {policies} | {TOOLS} tools filtered, client new | {} | | |", cold.row());
        println!("| {policies} | … again | {} | | |", cached.row());
        Ok(())
    }
}
