//! Listening socket of the guard.

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
    body::Body,
    call::{Shared, filters},
    engine::{Engine, Fault},
    label,
    lease::{Leases, Removal, remove},
    peer::Peer,
    refusal::{Code, Refusal, shown},
    route::{self, Act, Call},
    rules::Rules,
};

const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A listening guard.
pub struct Guard {
    listener: UnixListener,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
}

impl Guard {
    /// Listens at `socket` with `mode`, and removes containers that an earlier guard of that name
    /// left.
    ///
    /// # Errors
    /// If the socket cannot be created, a folder of the mount rules contains it or the engine's
    /// socket, or the engine does not answer.
    pub async fn listen(
        rules: Rules,
        engine: PathBuf,
        socket: &Path,
        mode: u32,
    ) -> Result<Self, Fault> {
        apart(&rules, &[&engine, socket])?;
        // An accidental second guard fails here, before it removes the first one's containers.
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

    /// Serves until `end`, then removes all containers, which would otherwise outlive their
    /// proxies.
    pub async fn serve(self, end: CancellationToken) {
        end.run_until_cancelled(self.accept()).await;
        self.shared.leases.end_all().await;
    }

    async fn accept(&self) {
        loop {
            // Connections beyond the limit wait in the listener's queue.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: other connections will end and free some.
                    tracing::error!("a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let shared = self.shared.clone();
            tokio::spawn(async move {
                serve(stream, shared).await;
                drop(permit);
            });
        }
    }
}

async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!("a connection with an unknown peer was refused: {error}");
            return;
        }
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(respond(shared, peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        // One request per connection: no other request can follow in place of its body.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!("a connection was interrupted: {error}");
    }
}

async fn respond(shared: Arc<Shared>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let (method, target) = (request.method().clone(), request.uri().to_string());
    let outcome = match admit(&request) {
        Ok(api_request) => {
            let what = api_request.call.words();
            tracing::debug!(call = what, "request");
            shared.carry_out(api_request, peer, request).await
        }
        Err(refusal) => Err(refusal),
    };
    outcome.unwrap_or_else(|refusal| {
        let Refusal { code, why } = &refusal;
        let target = target.split('?').next().unwrap_or_default();
        let (method, target) = (shown(method.as_str()), shown(target));
        match code {
            // Frequent: requests for a container that has just ended.
            Code::Container => tracing::info!(%code, method, target, "refused: {why}"),
            _ => tracing::warn!(%code, method, target, "refused: {why}"),
        }
        refusal.response()
    })
}

fn admit(request: &Request<Incoming>) -> Result<route::ApiRequest, Refusal> {
    let malformed = |why: &str| Err(Refusal::new(Code::Malformed, why));
    if request.version() != http::Version::HTTP_11 {
        return malformed("only HTTP/1.1 is supported");
    }
    let headers = request.headers();
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return malformed("the body has two lengths");
    }
    if headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        return malformed("the body has two lengths");
    }
    let api_request = route::read(request.method(), request.uri())?;
    let attaches = matches!(api_request.call, Call::Container { act: Act::Attach { .. }, .. });
    if !attaches && (headers.contains_key(UPGRADE) || asks_upgrade(request)) {
        return malformed("only attaching may upgrade a connection");
    }
    let loads = matches!(api_request.call, Call::Load);
    if headers.contains_key(TRANSFER_ENCODING) && (!loads || request.method() != Method::POST) {
        return malformed("only an image may have a chunked body");
    }
    Ok(api_request)
}

fn asks_upgrade(request: &Request<Incoming>) -> bool {
    request.headers().get_all(CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|words| {
            words.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        })
    })
}

/// Refuses folders that contain a socket: with the engine's, a container would have root on the
/// machine; with the guard's, it could start others.
fn apart(rules: &Rules, sockets: &[&Path]) -> Result<(), Fault> {
    let both = |path: &Path| {
        // The parent folder of a socket that does not exist yet.
        let parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
        let real = path.canonicalize().ok().or_else(parent);
        [Some(path.to_owned()), real].into_iter().flatten()
    };
    for rule in &rules.mounts {
        for socket in sockets {
            if both(&rule.path).any(|folder| both(socket).any(|path| path.starts_with(&folder))) {
                return Err(Fault(format!(
                    "the folder {} of --mount contains the socket {}: use folders without it",
                    rule.path.display(),
                    socket.display()
                )));
            }
        }
    }
    Ok(())
}

/// Removes containers that an earlier guard of that name left, to which no client is attached.
async fn sweep(engine: &Engine, name: &str) -> Result<(), Fault> {
    let fault = |refusal: Refusal| Fault(refusal.why);
    let target = format!("/containers/json?all=true&{}", filters(name));
    let (status, list) = engine.ask(Method::GET, &target, Vec::new()).await.map_err(fault)?;
    if !status.is_success() {
        return Err(Fault(format!("the engine answered {status} to a request for its containers")));
    }
    // An image can bring the guard's label, but not the name that its container will have.
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

/// Creates a socket that only its owner can use until its mode is set.
fn bind(socket: &Path, mode: u32) -> io::Result<UnixListener> {
    // Socket of a killed guard. Other kinds of files belong to someone else.
    if fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(mode))?;
    Ok(listener)
}
