//! The front door: takes connections and finds out what is spoken.

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
    http::{self, Held, Toward},
    limits::Meter,
    socks::{self, Fault},
    tunnel::{carry, turn_away},
};

/// Between two tries to take a connection where the machine has nothing left for it.
const PAUSE: Duration = Duration::from_millis(100);
/// What SOCKS4 begins with.
const SOCKS4: u8 = 4;

/// A socket that connections of the program come from.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The way out of one program.
pub struct Egress {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
}

impl Egress {
    /// For the server of that name.
    pub fn new(
        server: &str,
        destinations: Destinations,
        limits: Limits,
        gate: Arc<dyn Gate>,
        resolver: Arc<dyn Resolver>,
    ) -> Self {
        Self::with_stand_ins(server, destinations, limits, gate, resolver, [])
    }

    /// The same, where the program has been given addresses of our own making for hosts.
    pub fn with_stand_ins(
        server: &str,
        destinations: Destinations,
        limits: Limits,
        gate: Arc<dyn Gate>,
        resolver: Arc<dyn Resolver>,
        stand_ins: impl IntoIterator<Item = (IpAddr, Host)>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections));
        let shared = Shared {
            server: server.to_owned(),
            destinations,
            stand_ins: stand_ins.into_iter().collect(),
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

    /// Serves programs that know that they speak to a proxy, until [`Egress::stop`].
    pub async fn proxy(&self, listener: Listener) {
        self.listen(listener, None).await;
    }

    /// Serves programs that believe that they speak to a host itself.
    pub async fn direct(&self, listener: Listener, host: Host, port: u16) {
        self.listen(listener, Some((host, port))).await;
    }

    /// Ends what the gate no longer allows, whenever it says that something has changed, until
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
                tracing::warn!(server = self.shared.server, %error, "no connection of a program is taken");
                sleep(PAUSE).await;
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

    /// Serves one connection that is here already: one to the proxy, or to what seems to be a host.
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

    /// Ends everything, and returns once all of it was told.
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

async fn converse<S>(stream: S, toward: Option<(Host, u16)>, shared: Arc<Shared>, held: Held)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stop = shared.stop.clone();
    let work = async {
        match toward {
            None => proxy(stream, shared, held).await,
            Some((host, port)) => direct(stream, host, port, shared, held).await,
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn proxy<S>(mut stream: S, shared: Arc<Shared>, held: Held)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(first) = first_byte(&mut stream, &shared).await else { return };
    match first {
        socks::VERSION => socks5(rewound(stream, first), shared, held).await,
        HANDSHAKE => {
            let refusal = Refusal::Unsupported("the proxy is spoken to in clear text: `http://…`");
            turn_away(stream, &refusal).await;
            shared.unread(refusal);
        }
        SOCKS4 => shared.unread(Refusal::Unsupported("SOCKS4 can't name hosts: use SOCKS5")),
        _ => http::serve(rewound(stream, first), Toward::Proxy, shared, held).await,
    }
}

async fn first_byte(stream: &mut (impl AsyncRead + Unpin), shared: &Shared) -> Option<u8> {
    match timeout(shared.limits.handshake, stream.read_u8()).await {
        Ok(Ok(first)) => Some(first),
        // One that was opened ahead of need.
        Ok(Err(_)) | Err(_) => None,
    }
}

/// A stream with its first byte again.
fn rewound<S>(stream: S, first: u8) -> impl AsyncRead + AsyncWrite + Unpin + Send + 'static
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    tokio::io::join(io::Cursor::new([first]).chain(read), write)
}

async fn socks5<S>(mut stream: S, shared: Arc<Shared>, held: Held)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (host, port) = match timeout(shared.limits.handshake, socks::question(&mut stream)).await {
        Ok(Ok((host, port))) => (shared.meant(host), port),
        Ok(Err(Fault::Refused(refusal))) => {
            let _ = socks::answer(&mut stream, refusal.reply()).await;
            shared.unread(refusal);
            return;
        }
        Ok(Err(Fault::Gone)) => {
            return shared.unread(Refusal::Malformed("it speaks no SOCKS5".into()));
        }
        Err(_) => return shared.unread(Refusal::Slow),
    };
    let listed = shared.listed(&host, port).map(|listed| listed.wire);
    let way = match listed {
        Ok(Wire::Http) => {
            if socks::answer(&mut stream, 0).await.is_ok() {
                http::serve(stream, Toward::Host(host, port), shared, held).await;
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

async fn direct<S>(mut stream: S, host: Host, port: u16, shared: Arc<Shared>, held: Held)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = match shared.listed(&host, port).map(|listed| listed.wire) {
        Ok(Wire::Http) => return http::serve(stream, Toward::Host(host, port), shared, held).await,
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
    turn_away(stream, &refusal).await;
}
