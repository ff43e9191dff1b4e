//! The guard's socket.

use std::{
    convert::Infallible,
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{
    Method, Request, Response,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::{
    NAME,
    call::{Shared, filters},
    engine::{Body, Engine, Fault},
    label,
    lease::{Leases, Removal, remove},
    peer::Peer,
    refusal::{Code, Refusal, shown},
    route::{self, Act, Call},
    rules::Rules,
};

const HEADERS: usize = 64;
const HEAD: usize = 32 << 10;
const HEAD_TIME: Duration = Duration::from_secs(10);

/// A guard that listens.
pub struct Guard {
    listener: UnixListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
}

impl Guard {
    /// Listens at `socket`, which gets `mode`, and removes what an earlier guard of that name left.
    ///
    /// # Errors
    /// Where the socket cannot be made, a folder that may be mounted holds it or the engine's, or the
    /// engine does not answer.
    pub async fn listen(
        rules: Rules,
        engine: PathBuf,
        socket: &Path,
        mode: u32,
    ) -> Result<Self, Fault> {
        apart(&rules, &[&engine, socket])?;
        // A second guard by mistake ends here, before it removes what the first one has.
        let listener = bind(socket, mode)
            .map_err(|error| Fault(format!("cannot listen at {}: {error}", socket.display())))?;
        let engine = Engine::new(engine);
        if let Err(fault) = sweep(&engine, &rules.name).await {
            let _ = fs::remove_file(socket);
            return Err(fault);
        }
        let leases = Leases::new(engine.clone(), rules.containers);
        let connections = Arc::new(Semaphore::new(rules.connections));
        Ok(Self { listener, shared: Arc::new(Shared { rules, engine, leases }), connections })
    }

    /// Serves until told to end, then removes all containers: they would outlive their proxies.
    pub async fn serve(self, end: CancellationToken) {
        end.run_until_cancelled(self.accept()).await;
        self.shared.leases.end_all().await;
    }

    async fn accept(&self) {
        loop {
            // Beyond the bound, whoever comes waits in the listener's queue.
            let Ok(place) = self.connections.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: others end, and there will be some.
                    tracing::error!("no connection was taken: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let shared = self.shared.clone();
            tokio::spawn(async move {
                serve(stream, shared).await;
                drop(place);
            });
        }
    }
}

async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!("a connection was not taken, whose other end is not known: {error}");
            return;
        }
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(respond(shared, peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS)
        .max_buf_size(HEAD)
        // One request each: nothing can follow another in its body's place.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!("a connection broke off: {error}");
    }
}

async fn respond(shared: Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let (method, target) = (request.method().clone(), request.uri().to_string());
    let outcome = match admit(&request) {
        Ok(asked) => {
            let what = asked.call.words();
            tracing::debug!(call = what, "asked");
            shared.carry_out(asked, peer, request).await
        }
        Err(refusal) => Err(refusal),
    };
    outcome.unwrap_or_else(|refusal| {
        let Refusal { code, why } = &refusal;
        let target = target.split('?').next().unwrap_or_default();
        let (method, target) = (shown(method.as_str()), shown(target));
        match code {
            // Asked of what has just ended by itself, many times a day.
            Code::Container => tracing::info!(%code, method, target, "refused: {why}"),
            _ => tracing::warn!(%code, method, target, "refused: {why}"),
        }
        refusal.response()
    })
}

fn admit(request: &Request<Incoming>) -> Result<route::Asked, Refusal> {
    let malformed = |why: &str| Err(Refusal::new(Code::Malformed, why));
    if request.version() != http::Version::HTTP_11 {
        return malformed("HTTP/1.1 is spoken here");
    }
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return malformed("the body has two lengths");
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return malformed("the body has two lengths");
    }
    let asked = route::read(request.method(), request.uri())?;
    let attaches = matches!(asked.call, Call::Container { act: Act::Attach { .. }, .. });
    if !attaches && (headers.contains_key(UPGRADE) || asks_upgrade(request)) {
        return malformed("only attaching upgrades a connection");
    }
    let loads = matches!(asked.call, Call::Load);
    if headers.contains_key(TRANSFER_ENCODING) && (!loads || request.method() != Method::POST) {
        return malformed("only an image comes in chunks");
    }
    Ok(asked)
}

fn asks_upgrade(request: &Request<Incoming>) -> bool {
    request.headers().get_all(CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|words| {
            words.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        })
    })
}

/// Refuses folders that hold a socket: with the engine's, a container would be root on the machine,
/// and with the guard's it would start others.
fn apart(rules: &Rules, sockets: &[&Path]) -> Result<(), Fault> {
    let both = |path: &Path| {
        // A socket that is not there yet is in a folder that is.
        let parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
        let real = path.canonicalize().ok().or_else(parent);
        [Some(path.to_owned()), real].into_iter().flatten()
    };
    for rule in &rules.mounts {
        for socket in sockets {
            if both(&rule.path).any(|folder| both(socket).any(|path| path.starts_with(&folder))) {
                return Err(Fault(format!(
                    "the folder {} of --mount holds the socket {}: name folders without it",
                    rule.path.display(),
                    socket.display()
                )));
            }
        }
    }
    Ok(())
}

/// Ends what an earlier guard of that name left: nobody is attached to that any more.
async fn sweep(engine: &Engine, name: &str) -> Result<(), Fault> {
    let fault = |refusal: Refusal| Fault(refusal.why);
    let target = format!("/containers/json?all=true&{}", filters(name));
    let (status, list) = engine.ask(Method::GET, &target, Vec::new()).await.map_err(fault)?;
    if !status.is_success() {
        return Err(Fault(format!("the engine answered {status} when asked for its containers")));
    }
    // An image can bring the label of the guard, but not the name that its container will have.
    let created = |container: &&Value| {
        let labelled = container.pointer("/Labels")?.get(label::CONTAINER)?.as_str()?;
        let name = container.pointer("/Names/0")?.as_str()?.strip_prefix('/')?;
        Some(name.starts_with(NAME) && name == labelled)
    };
    let created = list.as_array().into_iter().flatten().filter(|c| created(c) == Some(true));
    for id in created.filter_map(|container| container.get("Id").and_then(Value::as_str)) {
        if remove(engine, id).await.map_err(fault)? == Removal::Done {
            tracing::warn!(container = id.get(..12), "removed: an earlier guard left it");
        }
    }
    Ok(())
}

/// A socket that only its owner can use before it has its mode.
fn bind(socket: &Path, mode: u32) -> io::Result<UnixListener> {
    // What a guard left that was killed. Anything but a socket is somebody else's.
    if fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there"));
        }
        fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(mode))?;
    Ok(listener)
}
