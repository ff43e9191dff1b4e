//! Service of the proxy: listeners, signals, and changes of the config, until it stops.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{RunOptions, StartedProxy};
use portcullis_config::{ConnectionBounds, Loaded};
use portcullis_gateway::{Files, Gateway, admin, front};

/// Name of the file in the state folder with the address of the HTTP front while the proxy runs.
const ADDRESS: &str = "address";

/// Serves messages until there is a reason to stop.
pub(super) async fn serve(
    started: StartedProxy,
    options: &RunOptions,
    loaded: &Loaded,
    listening: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    // First: a signal that came before this would end the proxy without its stop.
    let terminate = signal(SignalKind::terminate())?;
    let interrupt = signal(SignalKind::interrupt())?;
    let StartedProxy { proxy, watcher: _watcher, keyring, socket, listener } = started;
    let listener = listener.context("a dry run takes no messages")?;
    let address = listener.address();
    // Before the file is read again: changes since it was loaded are also recorded.
    tokio::spawn(proxy.clients.clone().follow_changes(keyring.clone(), keyring.changes()));
    let _key_watcher = keyring.watch().context("the file of clients cannot be watched")?;

    // By an operator, on the admin socket.
    let requested = CancellationToken::new();
    let stop = CancellationToken::new();
    // Every exit from this function stops these tasks.
    let _stopped = stop.clone().drop_guard();
    let routes =
        front::http::network(proxy.clone(), keyring.clone(), &loaded.config.listen, address);
    let bounds = connection_bounds(loaded);
    let tasks = proxy.fair_tasks.clone();
    let network = listener.serve(routes, &loaded.config.listen, bounds, tasks, stop.clone());
    let mut network = tokio::spawn(network);
    let local = admin::audit_routes(proxy.audit.clone(), stop.clone())
        .merge(admin::keeping_routes(proxy.clone()))
        .merge(admin::approval_routes(proxy.clone()))
        .merge(admin::proof_routes(proxy.audit.clone()))
        .merge(admin::proxy_routes(proxy.clone()))
        .merge(admin::client_routes(proxy.clone()))
        .merge(admin::image_routes(proxy.clone()))
        .merge(admin::leftover_routes(proxy.clone()))
        .merge(admin::stop_routes(requested.clone()))
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
        options.clone(),
        loaded.path.clone(),
        options.files(loaded),
        proxy.clone(),
        hangups,
    ));
    listening(address);
    tracing::info!(%address, state_dir = %loaded.config.state_dir.display(), "listening");

    let reason = wait(options.stdio, &proxy, &requested, terminate, interrupt).await;
    tracing::info!(reason, "stopping");
    drop(announced);
    stop.cancel();
    // Until then, requests that clients have already sent are still processed.
    let in_transit = tokio::time::timeout(2 * front::http::IN_TRANSIT, &mut network);
    let has_ended = in_transit.await.is_ok();
    // Clients in flight need the proxy, which lets their requests end.
    proxy.close(reason).await;
    if !has_ended {
        let _ = network.await;
    }
    let _ = local.await;
    Ok(())
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
    options: RunOptions,
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
    let mut requested = false;
    loop {
        let read = tokio::task::spawn_blocking({
            let (options, path) = (options.clone(), path.clone());
            move || options.read(&path)
        });
        match read.await {
            Ok(Ok(loaded)) => proxy.servers.apply_config(&loaded, requested).await,
            Ok(Err(wrong)) => {
                proxy.servers.reject_config(&path, wrong.to_string(), requested).await
            }
            Err(error) => proxy.servers.reject_config(&path, error.to_string(), requested).await,
        }
        if requested {
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
        requested = tokio::select! {
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
    requested: &CancellationToken,
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
        () = requested.cancelled() => "an operator stopped it",
        () = input_ended => "the input ended",
    }
}

/// File with the address of the proxy; removed when the proxy stops.
struct Announced(PathBuf);

impl Announced {
    fn at(loaded: &Loaded, address: SocketAddr) -> anyhow::Result<Self> {
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
