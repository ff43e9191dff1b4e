//! Accepts connections and detects their protocol.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Destinations, Gate, Host, Limits, Protocol, Refusal, Resolver, Wire,
    client_hello::{self, HANDSHAKE},
    connect::Shared,
    http::{self, AssumedTarget, ConnectionToken},
    limits::Meter,
    socks::{self, Fault},
    tunnel::{carry, write_refusal},
};

/// Interval between attempts to accept when the machine is out of resources.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// First byte of SOCKS4.
const SOCKS4: u8 = 4;

/// Listening socket for the program's connections.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Egress proxy of one program.
pub struct Egress {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
}

impl Egress {
    /// Egress proxy for the server of that name.
    pub fn new(
        server: &str,
        destinations: Destinations,
        limits: Limits,
        gate: Arc<dyn Gate>,
        resolver: Arc<dyn Resolver>,
    ) -> Self {
        Self::with_synthetic_addresses(server, destinations, limits, gate, resolver, [])
    }

    /// Egress proxy for a program that has addresses inside for hosts.
    pub fn with_synthetic_addresses(
        server: &str,
        destinations: Destinations,
        limits: Limits,
        gate: Arc<dyn Gate>,
        resolver: Arc<dyn Resolver>,
        synthetic_addresses: impl IntoIterator<Item = (IpAddr, Host)>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections));
        let shared = Shared {
            server: server.to_owned(),
            destinations,
            synthetic_addresses: synthetic_addresses.into_iter().collect(),
            meter: Meter::new(&limits),
            limits,
            gate,
            resolver,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            attempts: AtomicU64::new(1),
            live: Mutex::default(),
        };
        Self { shared: Arc::new(shared), permits }
    }

    /// Serves programs with proxy support, until [`Egress::stop`].
    pub async fn proxy(&self, listener: Listener) {
        self.listen(listener, None).await;
    }

    /// Serves programs that connect to a host's address inside.
    pub async fn direct(&self, listener: Listener, host: Host, port: u16) {
        self.listen(listener, Some((host, port))).await;
    }

    /// Ends connections that the gate no longer allows, whenever it reports a change, until
    /// [`Egress::stop`].
    pub async fn review(&self) {
        loop {
            tokio::select! {
                () = self.shared.gate.changed() => self.shared.review(),
                () = self.shared.stop.cancelled() => return,
            }
        }
    }

    async fn listen(&self, listener: Listener, toward: Option<(Host, u16)>) {
        loop {
            let taken = tokio::select! {
                taken = async { match &listener {
                    Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                        let _ = stream.set_nodelay(true);
                        self.take(stream, toward.clone());
                    }),
                    Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                        self.take(stream, toward.clone());
                    }),
                } } => taken,
                () = self.shared.stop.cancelled() => return,
            };
            if let Err(error) = taken {
                tracing::warn!(server = self.shared.server, %error, "connections of a program \
                    cannot be accepted");
                sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }

    fn take<S>(&self, stream: S, toward: Option<(Host, u16)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            self.shared.unread(Refusal::TooMany(self.shared.limits.connections));
            return;
        };
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            converse(stream, toward, shared, Arc::new(permit)).await;
        });
    }

    /// Serves one accepted connection: to the proxy, or to a host's address inside.
    pub async fn converse<S>(&self, stream: S, toward: Option<(Host, u16)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        converse(stream, toward, self.shared.clone(), Arc::new(())).await;
    }

    /// Ends everything soon.
    pub fn cancel(&self) {
        self.shared.stop.cancel();
    }

    /// Ends everything, and returns after all outcomes were reported.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

async fn converse<S>(
    stream: S,
    toward: Option<(Host, u16)>,
    shared: Arc<Shared>,
    token: ConnectionToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stop = shared.stop.clone();
    let work = async {
        match toward {
            None => proxy(stream, shared, token).await,
            Some((host, port)) => direct(stream, host, port, shared, token).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn proxy<S>(mut stream: S, shared: Arc<Shared>, token: ConnectionToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(first) = first_byte(&mut stream, &shared).await else { return };
    match first {
        socks::VERSION => socks5(rewound(stream, first), shared, token).await,
        HANDSHAKE => {
            let refusal = Refusal::Unsupported(
                "the proxy does not use TLS: configure it as \
                `http://…`",
            );
            write_refusal(stream, &refusal).await;
            shared.unread(refusal);
        }
        SOCKS4 => shared.unread(Refusal::Unsupported("SOCKS4 cannot name hosts: use SOCKS5")),
        _ => http::serve(rewound(stream, first), AssumedTarget::Proxy, shared, token).await,
    }
}

async fn first_byte(stream: &mut (impl AsyncRead + Unpin), shared: &Shared) -> Option<u8> {
    match timeout(shared.limits.handshake, stream.read_u8()).await {
        Ok(Ok(first)) => Some(first),
        // A connection that was opened in advance.
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Stream with its first byte put back.
fn rewound<S>(stream: S, first: u8) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    tokio::io::join(io::Cursor::new([first]).chain(read), write)
}

async fn socks5<S>(mut stream: S, shared: Arc<Shared>, token: ConnectionToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (host, port) = match timeout(shared.limits.handshake, socks::question(&mut stream)).await {
        Ok(Ok((host, port))) => (shared.requested_host(host), port),
        Ok(Err(Fault::Refused(refusal))) => {
            let _ = socks::answer(&mut stream, refusal.reply()).await;
            shared.unread(refusal);
            return;
        }
        Ok(Err(Fault::Gone)) => {
            return shared.unread(Refusal::Malformed("it is not SOCKS5".into()));
        }
        Err(_) => return shared.unread(Refusal::Slow),
    };
    let listed = shared.listed(&host, port).map(|listed| listed.wire);
    let way = match listed {
        Ok(Wire::Http) => {
            if socks::answer(&mut stream, 0).await.is_ok() {
                http::serve(stream, AssumedTarget::Host(host, port), shared, token).await;
            }
            return;
        }
        Ok(_) => shared.open(host, port, Protocol::Socks5).await,
        Err(refusal) => {
            shared.refuse(host, port, Protocol::Socks5, &refusal);
            Err(refusal)
        }
    };
    match way {
        Ok(way) => {
            if socks::answer(&mut stream, 0).await.is_ok() {
                carry(stream, way, None, &shared).await;
            }
        }
        Err(refusal) => {
            let _ = socks::answer(&mut stream, refusal.reply()).await;
        }
    }
}

async fn direct<S>(
    mut stream: S,
    host: Host,
    port: u16,
    shared: Arc<Shared>,
    token: ConnectionToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = match shared.listed(&host, port).map(|listed| listed.wire) {
        Ok(Wire::Http) => {
            return http::serve(stream, AssumedTarget::Host(host, port), shared, token).await;
        }
        Ok(Wire::Tcp) => Ok(None),
        Ok(Wire::Tls) => {
            let read =
                timeout(shared.limits.handshake, client_hello::read(&mut stream, &[], &host));
            read.await.unwrap_or(Err(Refusal::Slow)).map(Some)
        }
        Err(refusal) => Err(refusal),
    };
    let refusal = match begun {
        Ok(begun) => match shared.open(host, port, Protocol::Direct).await {
            Ok(way) => return carry(stream, way, begun, &shared).await,
            Err(refusal) => refusal,
        },
        Err(refusal) => {
            shared.refuse(host, port, Protocol::Direct, &refusal);
            refusal
        }
    };
    write_refusal(stream, &refusal).await;
}
