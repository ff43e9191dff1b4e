//! `portcullis guard`: a filter in front of a container engine's socket, for a proxy that must not
//! have that socket.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Context, Exit, Usage};
use portcullis_guard::{Allow, Guard, MountRule};
use portcullis_runtime::container;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Listen on this socket for the proxy: `unix:PATH`
    #[arg(long, value_name = "ADDRESS", value_parser = socket)]
    listen: PathBuf,
    /// The engine's socket: `unix:PATH`
    #[arg(long, value_name = "ADDRESS", value_parser = socket, default_value = "unix:/var/run/docker.sock")]
    engine: PathBuf,
    /// File mode of the socket, in octal
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "600")]
    mode: u32,
    /// Label for this guard's containers; separates guards that share an engine
    #[arg(long, value_name = "NAME", value_parser = name, default_value = "default")]
    owner: String,
    /// Allow a relaxation of the hardened defaults, or a request other than a launch; repeatable
    #[arg(long, value_parser = allow(), value_name = "WHAT", value_delimiter = ',')]
    allow: Vec<Allow>,
    /// Allow this Linux capability; repeatable
    #[arg(long = "cap-add", value_name = "CAPABILITY", value_delimiter = ',')]
    capabilities: Vec<String>,
    /// Allow mounts of this host folder and its subfolders: `PATH`, or `PATH:rw`; repeatable
    #[arg(long = "mount", value_name = "PATH[:rw]", value_parser = mount)]
    mounts: Vec<MountRule>,
    /// Allow this OCI runtime, in addition to the engine's default; repeatable
    #[arg(long = "runtime", value_name = "NAME", value_delimiter = ',')]
    runtimes: Vec<String>,
    /// Maximum memory of a container
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(6..=1 << 20))]
    memory_mib: u64,
    /// Maximum CPUs of a container
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    cpus: u64,
    /// Maximum processes of a container
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(2..=65536))]
    pids: u64,
    /// Maximum number of concurrent containers
    #[arg(long, value_name = "NUMBER", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65536))]
    containers: u32,
    /// Maximum size of an image loaded with `--allow pack`
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    image_mib: u64,
    /// Request the engine's version from a running guard at `--listen`, and exit
    #[arg(long)]
    check: bool,
}

/// Parser for the values of `--allow`.
fn allow() -> impl TypedValueParser<Value = Allow> {
    let value = |allow: Allow| PossibleValue::new(allow.as_str()).help(allow.about());
    PossibleValuesParser::new(Allow::ALL.map(value)).try_map(|word| {
        Allow::ALL.into_iter().find(|allow| allow.as_str() == word).ok_or("unknown word")
    })
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    if args.check {
        let version = portcullis_guard::version(&args.listen).await;
        let version =
            version.with_context(|| format!("no guard serves {}", args.listen.display()))?;
        ctx.line(format_args!("engine {version}"))?;
        return Ok(Exit::Ok);
    }
    portcullis_telemetry::init(&Default::default())?;
    let mut rules = container::guard_rules(&args.owner);
    rules.allow = args.allow.into_iter().collect();
    rules.capabilities = capabilities(&args.capabilities)?;
    rules.mounts = args.mounts;
    rules.runtimes = args.runtimes.into_iter().collect();
    rules.memory = args.memory_mib << 20;
    rules.nano_cpus = args.cpus * 1_000_000_000;
    rules.pids = args.pids;
    rules.containers = args.containers;
    rules.image = args.image_mib << 20;
    rules.fit(open_files().context("the limit of open files cannot be raised")?);
    let end = CancellationToken::new();
    let (mut interrupted, mut ended) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let guard = Guard::listen(rules, args.engine, &args.listen, args.mode)
        .await
        .context("the guard did not start")?;
    tracing::info!(socket = %args.listen.display(), "the guard listens");
    let stop = end.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = ended.recv() => {}
        }
        stop.cancel();
    });
    guard.serve(end).await;
    let _ = std::fs::remove_file(&args.listen);
    Ok(Exit::Ok)
}

/// Raises the limit of open files to its maximum. The usual limit is too low for all connections.
fn open_files() -> nix::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

fn capabilities(given: &[String]) -> Result<BTreeSet<String>, Usage> {
    given
        .iter()
        .map(|given| {
            let upper = given.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if name == "ALL" || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
                return Err(Usage(format!("`{given}` is not a single capability")));
            }
            Ok(format!("CAP_{name}"))
        })
        .collect()
}

fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"));
    match path.map(Path::new) {
        Some(path) if path.is_absolute() => Ok(path.to_owned()),
        _ => Err("write unix:PATH, with the whole path".to_owned()),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        // A socket for everybody would give everybody the engine.
        Ok(mode) if mode & !0o660 == 0 => Ok(mode),
        _ => Err("write 600, or 660 for a group".to_owned()),
    }
}

fn name(text: &str) -> Result<String, String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(word) {
        return Err("a name is 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`".to_owned());
    }
    Ok(text.to_owned())
}

fn mount(text: &str) -> Result<MountRule, String> {
    let (path, writable) = match text.strip_suffix(":rw") {
        Some(path) => (path, true),
        None => (text.strip_suffix(":ro").unwrap_or(text), false),
    };
    let path = Path::new(path);
    let plain = |c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || path.components().count() < 2 {
        return Err("write the whole path of a folder, other than the root".to_owned());
    }
    Ok(MountRule { path: path.components().collect(), writable })
}
