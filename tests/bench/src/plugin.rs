//! What a plugin adds to a message, beside an interceptor that does the same in native code, and how
//! long many plugins take to be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use portcullis::{
    chain::{Chain, Fault, Hooks, Interceptor, Link, Trail, Verdict},
    codec::Caps,
    config::{EntrySettings, Limits},
    exchange::{Direction, Exchange, Method, Payload, Phase, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    interceptors::plugin::{Config, Plugin},
    names::DecisionId,
    plugin::{Cache, House},
};
use serde_json::json;

/// Bytes of the messages.
const SIZES: [usize; 2] = [1 << 10, 100 << 10];
/// How long one of them is measured.
const TIME: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Components (`plugins/build` makes some). Default: the no-op of the tests
    plugins: Vec<PathBuf>,
    /// How many are loaded at once from the cache
    #[arg(long, default_value_t = 50)]
    many: usize,
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
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
    let built = this.parent().context("this program is in no folder")?.join("../plugins");
    let mut paths = args.plugins.clone();
    if paths.is_empty() {
        paths.push(built.join("noop.wasm").canonicalize().context("`plugins/build` first")?);
    }
    let scratch = tempfile::tempdir()?;
    let cache = Arc::new(Cache::of(scratch.path()).context("no cache")?);
    let house = House { cache: Some(cache), ..House::bare() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;

    let mut rows: Vec<(String, Arc<dyn Interceptor>)> =
        vec![("native".into(), Arc::new(Native(Hooks::every(&[Phase::Request]))))];
    for path in &paths {
        let began = Instant::now();
        let plugin = load(path, &house)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name}: compiled and loaded in {:.1?}", began.elapsed());
        rows.push((name, Arc::new(plugin)));
    }
    println!("\n| bytes | interceptor | p50 µs | p99 µs | added, p50 µs |\n|---|---|---|---|---|");
    for bytes in SIZES {
        let mut all: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
        for _ in 0..args.rounds {
            for (at, (_, interceptor)) in rows.iter().enumerate() {
                let measured = runtime.block_on(measure(interceptor.clone(), bytes))?;
                all.entry(at).or_default().push(measured);
            }
        }
        let median = |at: usize, pick: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = all[&at].iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let native = median(0, |one| one.0);
        for (at, (name, _)) in rows.iter().enumerate() {
            let (p50, p99) = (median(at, |one| one.0), median(at, |one| one.1));
            println!("| {bytes} | {name} | {p50:.1} | {p99:.1} | {:.1} |", p50 - native);
        }
    }
    many(args.many, &paths[0], scratch.path(), &house)
}

fn load(path: &Path, house: &House) -> anyhow::Result<Plugin> {
    let grants = json!({ "log": true, "clock": true, "random": true, "metrics": true });
    let entry = json!({ "path": path, "allow-unpinned": true, "grants": grants });
    let config: Config = serde_json::from_value(entry)?;
    let settings = EntrySettings { deadline_ms: Some(10_000), ..EntrySettings::default() };
    Plugin::load(&config, &settings, Path::new("/"), BTreeMap::new(), house)
        .map_err(|error| anyhow!("{error}"))
}

/// The median and the 99th percentile of the time of one message, in µs.
async fn measure(interceptor: Arc<dyn Interceptor>, bytes: usize) -> anyhow::Result<(f64, f64)> {
    let caps = Caps::request(&Limits::default());
    let chain = Arc::new(Chain::new(vec![Link::strict(interceptor)], caps, caps));
    // In a task, as messages are: the thread that waits for the whole is no worker.
    tokio::spawn(async move {
        let params = json!({ "name": "echo", "arguments": { "text": "x".repeat(bytes) } });
        let request = Payload::from(params);
        let mut times = Vec::new();
        let began = Instant::now();
        while began.elapsed() < TIME {
            let mut exchange = exchange(request.clone());
            let from = Instant::now();
            chain
                .pass(&mut exchange, Phase::Request, &mut Trail::default())
                .await
                .map_err(|refusal| anyhow!("{refusal:?}"))?;
            times.push(from.elapsed().as_secs_f64() * 1e6);
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

/// Loads many plugins, each with content of its own: once to compile them, once from the cache.
fn many(count: usize, path: &Path, folder: &Path, house: &House) -> anyhow::Result<()> {
    let component = std::fs::read(path)?;
    let mut paths = Vec::new();
    for at in 0..count {
        // A custom section, which means nothing, but for the digest.
        let name = format!("{at:04}");
        let mut bytes = component.clone();
        bytes.extend([0, 5, 4]);
        bytes.extend(name.bytes());
        let path = folder.join(format!("{name}.wasm"));
        std::fs::write(&path, bytes)?;
        paths.push(path);
    }
    for what in ["compiled", "from the cache"] {
        let began = Instant::now();
        let plugins = paths.iter().map(|path| load(path, house)).collect::<Result<Vec<_>, _>>()?;
        println!(
            "\n{} plugins loaded {what}, one after the other: {:.2?}",
            plugins.len(),
            began.elapsed()
        );
    }
    Ok(())
}
