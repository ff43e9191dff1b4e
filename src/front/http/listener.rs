//! The TCP listener: connections with limits on what they may take without saying anything.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt};

/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 4_096;
/// Connections of one network at once; one more is closed at once.
const OF_ONE: usize = CONNECTIONS / 4;
/// How long a request's headers may take to arrive, from the connection's first moment on.
const HEADERS: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written to it.
const WRITE: Duration = Duration::from_secs(30);
/// How long connections may take to end once the proxy stops.
const GRACE: Duration = Duration::from_secs(2);

/// A bound address.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// Where it is taken or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// The address with the port that was given, where the config left it open.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `closing`, then lets requests under way end.
    pub async fn serve(self, routes: Router, closing: CancellationToken) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let connections = TaskTracker::new();
        let crowd = Arc::new(Crowd::new(OF_ONE));
        loop {
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = closing.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = closing.cancelled() => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a connection that was gone at once.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(guest) = crowd.clone().admit(address.ip()) else {
                tracing::debug!(%address, "a connection too many of one address");
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (routes, closing) = (routes.clone(), closing.clone());
            connections.spawn(async move {
                let _held = (permit, guest);
                let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                    request.extensions_mut().insert(address);
                    let mut routes = routes.clone();
                    async move { routes.as_service().ready().await?.call(request).await }
                });
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(WRITE));
                // HTTP/1 alone: MCP's clients need no more, and whoever says nothing is timed
                // from the start, which a look at the first bytes for HTTP/2 would not do.
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS)
                    .serve_connection(TokioIo::new(Box::pin(stream)), service);
                tokio::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = closing.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%address, %error, "a connection broke off");
                }
            });
        }
        connections.close();
        let _ = tokio::time::timeout(GRACE + super::super::DRAIN, connections.wait()).await;
    }
}

/// How many connections each network has open.
struct Crowd {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Crowd {
    fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// A place for one connection; none where its network has no more.
    fn admit(self: Arc<Self>, address: IpAddr) -> Option<Guest> {
        let network = crate::proxy::network(address);
        {
            let mut open = self.open.lock();
            let count = open.entry(network).or_default();
            if *count >= self.most {
                return None;
            }
            *count += 1;
        }
        Some(Guest { crowd: self, network })
    }
}

/// One connection's place; given up when it is dropped.
struct Guest {
    crowd: Arc<Crowd>,
    network: IpAddr,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut open = self.crowd.open.lock();
        if let Some(count) = open.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_so_many_connections_and_no_more() {
        let crowd = Arc::new(Crowd::new(2));
        let admit = |address: &str| crowd.clone().admit(address.parse().unwrap());
        let first = admit("2001:db8::1").unwrap();
        let second = admit("2001:db8::ffff:2").unwrap();
        assert!(admit("2001:db8::3").is_none(), "a /64 is one network");
        assert!(admit("2001:db8:0:1::1").is_some());
        assert!(admit("192.0.2.1").is_some());
        drop(first);
        assert!(admit("2001:db8::3").is_some());
        drop(second);
        assert!(crowd.open.lock().is_empty());
    }
}
