//! What a plugin adds to a message, beside an interceptor that does the same in native code, and how
//! long many plugins take to be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use portcullis_chain::{Chain, ChainEntry, ChainTrace, Fault, Hooks, Interceptor, Verdict};
use portcullis_config::Limits;
use portcullis_interceptors::{
    EntrySettings,
    plugin::{Config, Plugin},
};
use portcullis_plugin_host::{Cache, PluginHost};
use portcullis_protocol::{
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
};
use serde_json::json;

use bench::{
    median,
    proxy::{self, Prepared, Processes},
};

/// Bytes of the messages.
const SIZES: [usize; 2] = [1 << 10, 100 << 10];

/// What texts are made of: words, as heuristics meet them.
const WORDS: &str = "The committee met on Tuesday and agreed to look at the numbers again. ";
/// Without any given: one that does nothing, in Rust, and the examples of all languages.
const PLUGINS: [&str; 5] = ["noop", "redact-pii", "watermark", "refunds", "prompt-injection"];

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Components (`plugins/build` makes some). Default: the no-op of the tests and the examples
    plugins: Vec<PathBuf>,
    /// How many are loaded at once; 0: none
    #[arg(long, default_value_t = 50)]
    many: usize,
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// The proxy that many are loaded by. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Lets everything pass, as the plugin does.
struct Native(Hooks);

#[async_trait::async_trait]
impl Interceptor for Native {
    fn name(&self) -> &str {
        "native"
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.0.wants(method, phase)
    }

    async fn inspect(&self, _: &Exchange, _: Phase) -> Result<Verdict, Fault> {
        Ok(Verdict::pass())
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    let built = folder.join("../plugins").canonicalize().context("`plugins/build` first")?;
    let mut paths = args.plugins.clone();
    if paths.is_empty() {
        paths.extend(PLUGINS.map(|name| built.join(name).with_extension("wasm")));
    }
    let scratch = tempfile::Builder::new().prefix("plugin-").tempdir_in(folder)?;
    let cache = Arc::new(Cache::of(scratch.path()).context("no cache")?);
    let plugin_host = PluginHost { cache: Some(cache), ..PluginHost::bare() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;

    let mut rows: Vec<(String, Arc<dyn Interceptor>)> =
        vec![("native".into(), Arc::new(Native(Hooks::every(&[Phase::Request]))))];
    println!(
        "| component | KiB | compiled and loaded, ms | from the cache, ms |\n|---|---|---|---|"
    );
    for path in &paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let size = std::fs::metadata(path).with_context(|| path.display().to_string())?.len() >> 10;
        let mut took = Vec::new();
        for _ in 0..2 {
            let began = Instant::now();
            let plugin = load(path, &plugin_host)?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            if took.len() == 2 {
                rows.push((name.clone(), Arc::new(plugin)));
            }
        }
        println!("| {name} | {size} | {:.1} | {:.1} |", took[0], took[1]);
    }

    println!(
        "\nMedians of {} rounds of {} s; added: beside `native` in the same round (least to most).\n\n\
         | bytes | interceptor | p50 µs | p99 µs | added, p50 µs |\n|---|---|---|---|---|",
        args.rounds, args.seconds
    );
    let time = Duration::from_secs_f64(args.seconds);
    for bytes in SIZES {
        let mut all: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
        for round in 0..args.rounds {
            // Another row is first each time, so that none is always after the same one.
            for turn in 0..rows.len() {
                let at = (round + turn) % rows.len();
                let measured = runtime.block_on(measure(rows[at].1.clone(), bytes, time));
                let measured = measured.with_context(|| rows[at].0.clone())?;
                all.entry(at).or_default().push(measured);
            }
        }
        for (at, (name, _)) in rows.iter().enumerate() {
            let p50 = median(all[&at].iter().map(|one| one.0).collect());
            let p99 = median(all[&at].iter().map(|one| one.1).collect());
            let added: Vec<f64> =
                all[&at].iter().zip(&all[&0]).map(|(one, native)| one.0 - native.0).collect();
            let least = added.iter().copied().fold(f64::INFINITY, f64::min);
            let most = added.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "| {bytes} | {name} | {p50:.1} | {p99:.1} | {:.1} ({least:.1} to {most:.1}) |",
                median(added)
            );
        }
    }
    drop(rows);
    if args.many == 0 {
        return Ok(());
    }
    let binary = proxy::binary(args.binary.as_deref())?;
    many(args.many, &paths[0], scratch.path(), &binary)
}

fn load(path: &Path, plugin_host: &PluginHost) -> anyhow::Result<Plugin> {
    let grants =
        json!({ "log": true, "clock": true, "random": true, "metrics": true, "state": "1MiB" });
    let name = path.file_stem().unwrap_or_default();
    // The one example that does not begin without.
    let config = if name == "refunds" { json!({ "limits": { "EUR": 100 } }) } else { json!({}) };
    let entry = json!({ "path": path, "allow-unpinned": true, "grants": grants, "config": config });
    let config: Config = serde_json::from_value(entry)?;
    let settings = EntrySettings { deadline_ms: Some(10_000), ..EntrySettings::default() };
    Plugin::load(&config, &settings, Path::new("/"), BTreeMap::new(), plugin_host)
        .map_err(|error| anyhow!("{error}"))
}

/// The median and the 99th percentile of the time of one message, in µs: of a request where the
/// interceptor is asked about these, else of an answer.
async fn measure(
    interceptor: Arc<dyn Interceptor>,
    bytes: usize,
    time: Duration,
) -> anyhow::Result<(f64, f64)> {
    let caps = Limits::default().request_caps();
    let asked = interceptor.wants(&Method::new(Method::TOOLS_CALL), Phase::Request);
    let phase = if asked { Phase::Request } else { Phase::Response };
    let link = ChainEntry { deadline: Duration::from_secs(10), ..ChainEntry::strict(interceptor) };
    let chain = Arc::new(Chain::new(vec![link], caps, caps));
    // In a task, as messages are: the thread that waits for the whole is no worker.
    tokio::spawn(async move {
        let text: String = WORDS.chars().cycle().take(bytes).collect();
        let request = Payload::from(json!({ "name": "echo", "arguments": { "text": text } }));
        let result = json!({ "content": [{ "type": "text", "text": text }] });
        let answer = (phase == Phase::Response).then(|| Answer::Result(Payload::from(result)));
        let mut times = Vec::new();
        let began = Instant::now();
        // What comes first finds cold caches.
        let mut warm = 3;
        while began.elapsed() < time || times.is_empty() {
            let mut exchange = exchange(request.clone());
            exchange.response = answer.clone();
            let from = Instant::now();
            chain
                .pass(&mut exchange, phase, &mut ChainTrace::default())
                .await
                .map_err(|refusal| anyhow!("{refusal:?}"))?;
            let took = from.elapsed().as_secs_f64() * 1e6;
            match warm {
                0 => times.push(took),
                _ => warm -= 1,
            }
            // What comes after a message in earnest: others have their turn.
            tokio::task::yield_now().await;
        }
        times.sort_by(f64::total_cmp);
        Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
    })
    .await?
}

fn exchange(request: Payload) -> Exchange {
    Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        started: Instant::now(),
        principal: Arc::new(Principal {
            kind: PrincipalKind::Anonymous,
            groups: Vec::new(),
            verified: false,
            key: None,
        }),
        direction: Direction::ClientToServer,
        method: Method::new(Method::TOOLS_CALL),
        notification: false,
        transport: Transport::Http,
        client_addr: None,
        session: None,
        session_calls: 0,
        revision: Revision::LATEST_LEGACY,
        server: "echo".parse().ok(),
        target: Target::Tool { name: "echo".into(), tool: None },
        request,
        response: None,
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: None,
    }
}

/// How long a proxy takes to be ready: without plugins, with many (each with content of its own) that
/// it has to compile, and with the same from its cache.
fn many(count: usize, path: &Path, folder: &Path, binary: &Path) -> anyhow::Result<()> {
    let component = std::fs::read(path)?;
    let mut entries = String::new();
    for at in 0..count {
        // A custom section, which means nothing, but for the digest.
        let name = format!("{at:04}");
        let mut bytes = component.clone();
        bytes.extend([0, 5, 4]);
        bytes.extend(name.bytes());
        let path = folder.join(format!("{name}.wasm"));
        std::fs::write(&path, bytes)?;
        write!(
            entries,
            "\n[[interceptors]]\nuse = \"plugin\"\nname = \"n{name}\"\npath = {path:?}\n\
             allow-unpinned = true\n"
        )?;
    }
    println!("\n| start-up of the proxy, until it is ready | ms |\n|---|---|");
    let mut servers = Processes::default();
    let bare = Prepared::with_plugins(binary, &folder.join("bare"), "", &mut servers)?;
    let full = Prepared::with_plugins(binary, &folder.join("full"), &entries, &mut servers)?;
    for (what, prepared) in [
        ("a new state folder", &bare),
        ("again", &bare),
        ("compiled", &full),
        ("from the cache", &full),
        ("from the cache, again", &full),
    ] {
        let mut proxy = Processes::default();
        let began = Instant::now();
        prepared.run(&mut proxy)?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        let plugins = if std::ptr::eq(prepared, &full) { count } else { 0 };
        println!("| {plugins} plugins: {what} | {took:.0} |");
    }
    Ok(())
}
