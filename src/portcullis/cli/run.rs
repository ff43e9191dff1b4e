//! `portcullis run`: runs the proxy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Context, Exit, Reports, adding, profile};
use portcullis_catalog::{lock, profile_file::Profile};
use portcullis_config::{Code, ConnectionBounds, Diagnostics, Loaded};
use portcullis_gateway::{
    Caller, Files, Gateway, GatewayBuilder, Purpose, StartFailure, admin, front,
    record_start_failure,
};
use portcullis_policy::Watcher;
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, era},
    exchange::{Revision, Transport},
    identity::{Keyring, Principal},
};
use portcullis_runtime::sandbox;
use portcullis_upstream::{Launcher, ListKind};

/// Name of the file in the state folder with the address of the HTTP front while the proxy runs.
pub(super) const ADDRESS: &str = "address";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Check everything, start the servers, list the tools that the local user may see, and exit
    #[arg(long)]
    dry_run: bool,
    /// Serve one client over stdio in addition to HTTP; exit at the end of its input
    #[arg(long)]
    stdio: bool,
    /// Refuse images with a tag that portcullis.lock does not have
    #[arg(long)]
    locked: bool,
    /// Run only the servers of this profile
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

impl Args {
    /// Reads the config with the servers of this run.
    fn read(&self, path: &Path) -> Result<Loaded, Diagnostics> {
        let mut loaded = portcullis_config::load(path)?;
        let conflict = |loaded: &Loaded, wrong: Vec<(String, String)>| {
            let findings = wrong.into_iter();
            let findings = findings.map(|(at, text)| loaded.finding(&at, Code::Conflict, text));
            Diagnostics(findings.collect())
        };
        adding::held(&loaded).map_err(|wrong| conflict(&loaded, wrong))?;
        if let Some(profile) = &self.profile
            && let Err(error) = profile::narrow(&mut loaded, profile)
        {
            return Err(conflict(&loaded, vec![("/servers".to_owned(), format!("{error:#}"))]));
        }
        if self.locked
            && let Err(wrong) = adding::settle(&mut loaded)
        {
            return Err(conflict(&loaded, wrong));
        }
        Ok(loaded)
    }

    /// Files that the config of this run is made of.
    fn files(&self, loaded: &Loaded) -> Vec<PathBuf> {
        let profile = self.profile.as_ref().and_then(|name| Profile::path(&loaded.base, name).ok());
        [Some(loaded.path.clone()), Some(loaded.base.join(lock::FILE)), profile]
            .into_iter()
            .flatten()
            .filter_map(|path| std::path::absolute(path).ok())
            .collect()
    }
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    sandbox::settle();
    let loaded = args.read(&ctx.config).map_err(|Diagnostics(findings)| {
        Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
    })?;
    for warning in &loaded.warnings {
        ctx.report(warning);
    }
    let begun = match begin(&args, ctx, &loaded).await {
        Ok(begun) => begun,
        Err(NotBegun::Assembly(failure)) => {
            failure.record(&loaded).await;
            return Err(reported(failure));
        }
        Err(NotBegun::Other(error)) => {
            record_start_failure(&loaded, Vec::new(), format!("{error:#}")).await;
            return Err(error);
        }
    };
    let proxy = begun.proxy.clone();
    let ran = match &begun.listener {
        None => {
            let listed = dry_run(ctx, &loaded, &proxy).await;
            if listed.is_ok() {
                proxy.close("the dry run is over").await;
            }
            listed
        }
        Some(_) => serve(&args, ctx, &loaded, begun).await,
    };
    if let Err(error) = &ran {
        proxy.close(&format!("{error:#}")).await;
    }
    ran
}

/// Started proxy with its listeners and watchers.
struct Begun {
    proxy: Arc<Gateway>,
    watcher: Watcher,
    keyring: Arc<Keyring>,
    socket: admin::Server,
    /// HTTP listener; `None` for a dry run.
    listener: Option<front::http::Listener>,
}

/// Reason why the proxy did not start.
enum NotBegun {
    Assembly(StartFailure),
    Other(anyhow::Error),
}

impl From<StartFailure> for NotBegun {
    fn from(failure: StartFailure) -> Self {
        Self::Assembly(failure)
    }
}

impl From<anyhow::Error> for NotBegun {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Checks everything and starts the proxy. The caller records every failure as a failed start.
async fn begin(args: &Args, ctx: &Context, loaded: &Loaded) -> Result<Begun, NotBegun> {
    portcullis_telemetry::init(&loaded.config.telemetry).map_err(anyhow::Error::new)?;
    let assembly = {
        let _progress =
            ctx.progress("loading policies and plugins, looking for a container engine");
        GatewayBuilder::of(loaded).await?
    };
    if args.stdio && assembly.writes_to_stdout() {
        return Err(NotBegun::Other(anyhow::anyhow!(
            "with --stdio, standard output is the client's: give the audit export \
             `to = \"stdout\"` a file, or leave out --stdio"
        )));
    }
    let keyring = Arc::new(
        Keyring::load(&loaded.config.clients, &loaded.config.state_dir)
            .map_err(anyhow::Error::new)?,
    );
    // Addresses that another process could take are bound before anything starts.
    let settings = &loaded.config.admin;
    let socket = admin::Server::bind_with(
        &loaded.config.state_dir,
        settings.socket.as_deref(),
        settings.roles.clone(),
    )
    .map_err(anyhow::Error::new)?;
    let (listener, purpose) = if args.dry_run {
        (None, Purpose::DryRun)
    } else {
        let http = loaded.config.listen.http;
        let listener = front::http::Listener::bind(http).await;
        let taken = || format!("cannot listen on {http}: choose another `listen.http`");
        (Some(listener.with_context(taken)?), Purpose::Serve)
    };
    let (proxy, watcher) = assembly.start(loaded, purpose).await?;
    super::server::show_pulls(&proxy.launcher.images);
    Ok(Begun { proxy, watcher, keyring, socket, listener })
}

/// Serves messages until there is a reason to stop.
async fn serve(args: &Args, ctx: &Context, loaded: &Loaded, begun: Begun) -> anyhow::Result<Exit> {
    // First: a signal that came before this would end the proxy without its stop.
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let Begun { proxy, watcher: _watcher, keyring, socket, listener } = begun;
    let listener = listener.context("a dry run takes no messages")?;
    let address = listener.address();
    // Before the file is read again: changes since it was loaded are also recorded.
    tokio::spawn(proxy.clients.clone().follow_changes(keyring.clone(), keyring.changes()));
    let _key_watcher = keyring.watch().context("the file of clients cannot be watched")?;

    let stop = CancellationToken::new();
    // Every exit from this function stops these tasks.
    let _stopped = stop.clone().drop_guard();
    let routes =
        front::http::network(proxy.clone(), keyring.clone(), &loaded.config.listen, address);
    let bounds = connection_bounds(loaded);
    let network = listener.serve(routes, &loaded.config.listen, bounds, stop.clone());
    let network = tokio::spawn(network);
    let local = admin::audit_routes(proxy.audit.clone(), stop.clone())
        .merge(admin::keeping_routes(proxy.clone()))
        .merge(admin::approval_routes(proxy.clone()))
        .merge(admin::proof_routes(proxy.audit.clone()))
        .merge(admin::proxy_routes(proxy.clone()))
        .merge(admin::client_routes(proxy.clone()))
        .merge(admin::image_routes(proxy.clone()))
        .merge(admin::leftover_routes(proxy.clone()))
        .merge(front::http::local(proxy.clone(), keyring));
    let recorder = admin::Recorder {
        audit: proxy.audit.clone(),
        refusal: Arc::new({
            let proxy = proxy.clone();
            move |user: &str, code| proxy.recorder.records_admin_refusal(user, code)
        }),
    };
    let local = tokio::spawn(socket.recorded(recorder).serve(local, stop.clone()));
    let announced = Announced::at(loaded, address)?;
    let hangups = signal(SignalKind::hangup())?;
    tokio::spawn(follow(
        args.clone(),
        ctx.config.clone(),
        args.files(loaded),
        proxy.clone(),
        hangups,
    ));
    ctx.note(format_args!("portcullis listens on http://{address}/mcp"));
    announce(ctx, &proxy.launcher, loaded);
    tracing::info!(%address, state_dir = %loaded.config.state_dir.display(), "listening");

    let reason = wait(args.stdio, &proxy, terminate, interrupt).await;
    tracing::info!(reason, "stopping");
    drop(announced);
    stop.cancel();
    // Clients in flight need the proxy, which lets their requests end.
    proxy.close(reason).await;
    let _ = network.await;
    let _ = local.await;
    Ok(Exit::Ok)
}

/// Limits of connections to the HTTP front. Raises the limit of open files to its maximum: with the
/// usual 1,024, connections could take every file that servers and records need.
fn connection_bounds(loaded: &Loaded) -> ConnectionBounds {
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard)
    });
    let limits = &loaded.config.limits.connections;
    let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
    let bounds = front::http::Listener::bounds(limits, open_files);
    if bounds.total() < limits.total {
        let (total, wanted) = (bounds.total(), limits.total);
        tracing::warn!(
            total,
            wanted,
            open_files,
            "the limit of open files leaves fewer connections than limits.connections.total"
        );
    }
    bounds
}

/// Applies the config file to the servers when it changes and on SIGHUP, until the proxy stops.
/// SIGHUP also reads secrets again.
async fn follow(
    args: Args,
    path: PathBuf,
    files: Vec<PathBuf>,
    proxy: Arc<Gateway>,
    mut hangups: Signal,
) {
    let mut files = match Files::watch(files) {
        Ok(files) => Some(files),
        Err(error) => {
            tracing::warn!(%error, "the config can't be watched: after a change, send SIGHUP");
            None
        }
    };
    // The first pass applies changes between the first read and the start of the watch.
    let mut asked = false;
    loop {
        let read = tokio::task::spawn_blocking({
            let (args, path) = (args.clone(), path.clone());
            move || args.read(&path)
        });
        match read.await {
            Ok(Ok(loaded)) => proxy.servers.apply_config(&loaded, asked).await,
            Ok(Err(wrong)) => proxy.servers.reject_config(&path, wrong.to_string(), asked).await,
            Err(error) => proxy.servers.reject_config(&path, error.to_string(), asked).await,
        }
        if asked {
            proxy.servers.reread_secrets();
        }
        let changed = async {
            let more = match &mut files {
                Some(files) => files.changed().await,
                None => false,
            };
            if !more {
                std::future::pending::<()>().await;
            }
        };
        asked = tokio::select! {
            () = changed => false,
            Some(()) = hangups.recv() => true,
            () = proxy.closing().cancelled() => return,
        };
    }
}

/// Waits for a reason to stop.
async fn wait(
    stdio: bool,
    proxy: &Arc<Gateway>,
    mut terminate: Signal,
    mut interrupt: Signal,
) -> &'static str {
    let input_ended = async {
        if stdio {
            let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
            front::stdio::serve(proxy.clone(), Box::new(input), Box::new(output)).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = input_ended => "the input ended",
    }
}

/// File with the address of the proxy; removed when the proxy stops.
struct Announced(PathBuf);

impl Announced {
    fn at(loaded: &Loaded, address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let path = loaded.config.state_dir.join(ADDRESS);
        std::fs::write(&path, format!("{address}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Prints where each server will run, and why.
fn announce(ctx: &Context, launcher: &Launcher, loaded: &Loaded) {
    for (name, settings) in &loaded.config.servers {
        let place = launcher.place(settings);
        ctx.note(format_args!("server `{name}`: {} ({})", place.kind(), place.why()));
    }
}

async fn dry_run(ctx: &Context, loaded: &Loaded, proxy: &Arc<Gateway>) -> anyhow::Result<Exit> {
    announce(ctx, &proxy.launcher, loaded);
    let _progress = ctx.progress("starting the servers");
    // Lists start only servers with something that the local user could use.
    let servers = proxy.router.servers(&View::All);
    futures_util::future::join_all(servers.iter().map(|server| server.shared().running())).await;
    let caller = Caller {
        principal: Principal::local(),
        transport: Transport::Cli,
        client_addr: None,
        view: View::All,
        session: None,
        calls: None,
        revision: Revision::LATEST_MODERN,
        headers: None,
    };
    let mut shown = serde_json::Map::new();
    for offer in ListKind::ALL {
        let params = serde_json::json!({ "_meta": era::own_meta() }).to_string();
        let text = Frame::request(1, offer.method(), params.as_bytes());
        let frame = Frame::parse(text, proxy.request_caps())?;
        let place = proxy.admission.acquire(&caller.principal)?;
        let mut handle = proxy.start(caller.clone(), frame, place);
        while handle.notices.recv().await.is_some() {}
        let answered = handle.response.await?;
        let answer: serde_json::Value = answered
            .text
            .map(|text| serde_json::from_slice(&text))
            .transpose()?
            .unwrap_or_default();
        if let Some(error) = answer.get("error") {
            ctx.note(format_args!(
                "{}: {}",
                offer.method(),
                error["message"].as_str().unwrap_or("")
            ));
            continue;
        }
        let names: Vec<_> = answer["result"][offer.member()]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item[offer.key()].as_str().map(str::to_owned))
            .collect();
        shown.insert(offer.member().to_owned(), names.into());
    }
    let failed: Vec<_> = proxy
        .servers
        .states()
        .await
        .into_iter()
        .filter_map(|state| {
            let failure = state["failure"].as_str()?.to_owned();
            Some(format!("server `{}`: {failure}", state["name"].as_str().unwrap_or("")))
        })
        .collect();
    if ctx.is_json() {
        ctx.json(&shown)?;
    } else {
        for (kind, names) in &shown {
            for name in names.as_array().into_iter().flatten() {
                ctx.line(format_args!("{kind}: {}", name.as_str().unwrap_or("")))?;
            }
        }
    }
    for failure in &failed {
        ctx.note(failure);
    }
    Ok(if failed.is_empty() { Exit::Ok } else { Exit::Failure })
}

/// Start failure as an error for people.
pub(super) fn reported(failure: StartFailure) -> anyhow::Error {
    match failure {
        StartFailure::Config(found, _) => Reports(found).into(),
        StartFailure::Policies(diagnostics) => {
            Reports(boxed(diagnostics.findings().to_vec())).into()
        }
        StartFailure::Audit(unavailable) => {
            let remedy = unavailable.remedy();
            anyhow::anyhow!("{unavailable}; {remedy}")
        }
        failure @ (StartFailure::Seal(_)
        | StartFailure::Export(_)
        | StartFailure::PluginState(_)
        | StartFailure::Watch(_)
        | StartFailure::WatchPlugins(_)
        | StartFailure::Task(_)) => failure.into(),
    }
}

fn boxed<D: miette::Diagnostic + Send + Sync + 'static>(
    findings: Vec<D>,
) -> Vec<Box<dyn miette::Diagnostic + Send + Sync>> {
    findings.into_iter().map(|finding| Box::new(finding) as _).collect()
}
