//! The TCP listener, with time limits and bounds of connections.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::http1,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tower::{Service, ServiceExt};

use super::{
    client_address::{ByTrustedProxy, ForwardingFault, TrustedProxies, refuse_foreign_loopback},
    connections::{ConnectionPermit, ConnectionTable, RequestGuard},
    proxy_protocol::{self, ProxyProtocolFault},
};
use portcullis_chain::Party;
use portcullis_config::{ClientAddressSource, ConnectionBounds, ConnectionLimits, Listen};
use portcullis_foundation::fair_tasks::FairTasks;

/// Time limit of a request's headers, from the start of the connection.
const HEADERS: Duration = Duration::from_secs(10);
/// Time for which a client may leave written data unread.
const WRITE: Duration = Duration::from_secs(30);
/// Time for connections to end when the proxy stops.
const GRACE: Duration = Duration::from_secs(2);
/// Time for requests that are in transit when the proxy stops.
pub const IN_TRANSIT: Duration = Duration::from_millis(500);
/// Connections that the system holds until they are accepted. Linux limits them to
/// `net.core.somaxconn`, 4096 by default. If they are too few, a flood makes a client wait a second
/// for its system's retry.
const BACKLOG: u32 = 4_096;
/// Connections that may be open beyond the bound while displaced ones are being closed.
const CLOSING: usize = 64;
/// Open files reserved for everything except connections.
const OTHER_FILES: usize = 512;
/// The response to a trusted proxy whose connection lacks the configured header.
const NO_PROXY_HEADER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain\r\nContent-Length: 59\r\n\r\n\
    this is for reverse proxies: begin with the PROXY protocol\n";

/// Time between two wake-ups of the runtime: less than the shortest timer of a request.
const WAKE_UPS: Duration = Duration::from_millis(900);

/// A bound address.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// State that all connections share.
struct Shared {
    routes: Router,
    proxies: Option<TrustedProxies>,
    closing: CancellationToken,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// If it is in use or not an address of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// Uses a listening socket of another process.
    ///
    /// # Errors
    /// If it has no address, or cannot become non-blocking.
    pub fn passed(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// The address, with the assigned port if the config left it open.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bounds of connections for a process with this limit of open files.
    pub fn bounds(limits: &ConnectionLimits, open_files: usize) -> ConnectionBounds {
        let most = open_files.saturating_sub(OTHER_FILES + CLOSING).max(open_files / 2);
        limits.bounds(most)
    }

    /// Serves until `closing`, then lets requests in flight end.
    ///
    /// The future is boxed so that this crate compiles it, with the optimization for messages.
    pub fn serve(
        self,
        routes: Router,
        listen: &Listen,
        bounds: ConnectionBounds,
        tasks: FairTasks<Party>,
        closing: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        Box::pin(self.accept_all(routes, TrustedProxies::of(listen), bounds, tasks, closing))
    }

    async fn accept_all(
        self,
        routes: Router,
        proxies: Option<TrustedProxies>,
        bounds: ConnectionBounds,
        tasks: FairTasks<Party>,
        closing: CancellationToken,
    ) {
        let open = Arc::new(Semaphore::new(bounds.total() + CLOSING));
        let table = Arc::new(ConnectionTable::new(bounds));
        let connections = TaskTracker::new();
        let shared = Arc::new(Shared { routes, proxies, closing: closing.clone() });
        let _wake_ups = AbortOnDropHandle::new(tokio::spawn(regular_wake_ups()));
        loop {
            let open_slot = tokio::select! {
                open_slot = open.clone().acquire_owned() => open_slot,
                () = closing.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = closing.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client disconnected at once.
                    tracing::warn!(%error, "connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let is_proxy = shared.proxies.as_ref().is_some_and(|all| all.contains(peer.ip()));
            let (permit, crowded) = if is_proxy {
                let Some(permit) = table.admit_proxy(peer.ip()) else { continue };
                (permit, false)
            } else {
                table.admit(peer.ip())
            };
            let _ = stream.set_nodelay(true);
            let (permit, shared) = (Arc::new(permit), shared.clone());
            let (counted, party) = (connections.token(), permit.party());
            let served = async move {
                let (_open_slot, _counted) = (open_slot, counted);
                let connection = shared.connection(stream, peer, is_proxy, permit.clone());
                if until_displaced(connection, &permit).await == Ended::Displaced {
                    tracing::debug!(%peer, "connection without a key closed in favor of another");
                }
            };
            tasks.spawn(move || party.lock().clone(), served);
            if crowded {
                // Reads requests with keys before further connections can displace theirs.
                tokio::task::yield_now().await;
            }
        }
        connections.close();
        let _ = tokio::time::timeout(GRACE + super::super::DRAIN, connections.wait()).await;
    }
}

/// Wakes the runtime regularly. Each request has timers of a second and more. The runtime needs a
/// system call for a timer that is due before it would wake by itself, so none of these is.
async fn regular_wake_ups() {
    loop {
        tokio::time::sleep(WAKE_UPS).await;
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    OfItself,
    /// It was closed for another.
    Displaced,
}

/// Serves a connection to its end, or until it is displaced.
///
/// A request may authenticate just when its connection is chosen. Its message is in the pipeline
/// then, so the connection stays. The connection is polled first, and keys are checked only there,
/// so the permit is checked after everything that has arrived was read.
async fn until_displaced(connection: impl Future<Output = ()>, permit: &ConnectionPermit) -> Ended {
    tokio::select! {
        biased;
        () = connection => Ended::OfItself,
        () = permit.displaced(), if !permit.is_proxy() => Ended::Displaced,
    }
}

impl Shared {
    /// Serves one connection to its end.
    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        peer: SocketAddr,
        is_proxy: bool,
        permit: Arc<ConnectionPermit>,
    ) {
        let mut client = peer;
        let mut fault = None;
        let source = self.proxies.as_ref().filter(|_| is_proxy).map(|proxies| proxies.source);
        if source == Some(ClientAddressSource::ProxyProtocol) {
            match tokio::time::timeout(HEADERS, proxy_protocol::read(&mut stream)).await {
                Ok(Ok(Some(named))) => match refuse_foreign_loopback(peer, named) {
                    Ok(named) => client = named,
                    Err(wrong) => fault = Some(wrong),
                },
                // The proxy's own address is not the client's. Its health checks need no address.
                Ok(Ok(None)) => fault = Some(ForwardingFault::Unnamed),
                Ok(Err(ProxyProtocolFault::Io(error))) => {
                    // As with a health check that only connects.
                    tracing::debug!(%peer, %error, "connection of a trusted proxy ended early");
                    return;
                }
                Ok(Err(fault)) => {
                    tracing::warn!(%peer, %fault, "connection of a trusted proxy refused");
                    let refused = stream.write_all(NO_PROXY_HEADER);
                    let _ = tokio::time::timeout(GRACE, refused).await;
                    return;
                }
                Err(_) => {
                    tracing::debug!(%peer, "trusted proxy sent no PROXY protocol header");
                    return;
                }
            }
            permit.dedicate(client.ip());
        }
        let (shared, own) = (self.clone(), permit.clone());
        let is_used = Arc::new(AtomicBool::new(false));
        let used = is_used.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            used.store(true, Ordering::Relaxed);
            if let Some(fault) = fault {
                request.extensions_mut().insert(fault);
            }
            shared.clone().request(request, client, is_proxy, own.clone())
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE));
        // HTTP/1 only: MCP clients need no more, and silent connections time out from the start,
        // which detecting HTTP/2 by its first bytes would prevent.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.closing.cancelled() => {
                // The client of a new connection has sent its request, or is about to.
                let mut wait = pin!(tokio::time::sleep(IN_TRANSIT));
                let ended = poll_fn(|context| {
                    if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                        return Poll::Ready(Some(ended));
                    }
                    if is_used.load(Ordering::Relaxed) {
                        return Poll::Ready(None);
                    }
                    wait.as_mut().poll(context).map(|()| None)
                });
                match ended.await {
                    Some(ended) => ended,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
            // Its last response or its next request may still be in transit.
            () = permit.displaced(), if permit.is_proxy() => {
                tracing::debug!(%client, "idle connection of a trusted proxy closed in favor of another");
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%client, %error, "connection ended early");
        }
    }

    /// Answers one request of a client at this address; or, if a trusted proxy forwards requests of
    /// many clients, of the client in its headers.
    async fn request(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        mut client: SocketAddr,
        is_proxy: bool,
        permit: Arc<ConnectionPermit>,
    ) -> Result<Response, std::convert::Infallible> {
        let mut guard = None;
        if is_proxy {
            request.extensions_mut().insert(ByTrustedProxy);
        }
        let names_client = |proxies: &&TrustedProxies| {
            is_proxy && proxies.source != ClientAddressSource::ProxyProtocol
        };
        if let Some(proxies) = self.proxies.as_ref().filter(names_client) {
            guard = Some(RequestGuard::new(permit.clone()));
            match proxies.client(client, request.headers()) {
                Ok(named) => client = named,
                Err(fault) => {
                    request.extensions_mut().insert(fault);
                }
            }
        }
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(permit);
        let mut routes = self.routes.clone();
        let response = routes.as_service().ready().await?.call(request).await?;
        Ok(match guard {
            Some(guard) => response.map(|body| Body::new(GuardedBody { body, _guard: guard })),
            None => response,
        })
    }
}

/// Body of a response. Its request counts until the end of the body.
struct GuardedBody {
    body: Body,
    _guard: RequestGuard,
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::identity::PrincipalKind;

    /// Three connections of a network with two slots. The first one is displaced.
    fn displaced() -> [ConnectionPermit; 3] {
        let bounds = ConnectionBounds {
            unauthenticated: 4,
            unauthenticated_per_network: 2,
            authenticated: 4,
            per_client: 2,
        };
        let table = Arc::new(ConnectionTable::new(bounds));
        [0; 3].map(|_| table.admit("192.0.2.1".parse().unwrap()).0)
    }

    #[tokio::test]
    async fn connection_that_authenticates_during_displacement_stays() {
        for _ in 0..50 {
            let permits = displaced();
            let connection = async {
                let ann = PrincipalKind::Client("ann".parse().unwrap());
                permits[0].authenticate(&ann).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            assert_eq!(until_displaced(connection, &permits[0]).await, Ended::OfItself);
        }
    }

    #[tokio::test]
    async fn unauthenticated_connection_is_displaced() {
        let permits = displaced();
        let ended = until_displaced(std::future::pending(), &permits[0]).await;
        assert_eq!(ended, Ended::Displaced);
    }
}
