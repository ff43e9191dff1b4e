//! Syslog: octet-counted over TCP and TLS, one datagram per message over UDP and local sockets.
//!
//! Syslog has no acknowledgements. Over TCP, a batch counts as delivered once the peer's system has
//! confirmed every byte and the connection is still open. Losses in the receiver's memory are
//! invisible. UDP confirms nothing.

use std::{io, os::fd::AsRawFd as _, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket, UnixDatagram},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{Format, Item, Origin, format},
    Sink, Undelivered, in_time,
};

fn failed(what: &str) -> impl Fn(io::Error) -> Undelivered {
    move |error| Undelivered::Failed(format!("{what}: {error}"))
}

/// Octet-counted messages over one connection.
pub(super) struct Stream {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    format: Format,
    origin: Origin,
    connection: Option<Connection>,
}

enum Connection {
    Open(TcpStream),
    Secured(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub fn new(
        host: String,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        format: Format,
        origin: Origin,
    ) -> Self {
        Self { host, port, tls, format, origin, connection: None }
    }

    async fn connect(&self) -> Result<Connection, Undelivered> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(failed("the receiver can't be reached"))?;
        let Some(tls) = &self.tls else { return Ok(Connection::Open(tcp)) };
        let name = ServerName::try_from(self.host.clone()).map_err(|_| {
            Undelivered::Failed("the receiver's name can't be in a certificate".into())
        })?;
        let connector = TlsConnector::from(tls.clone());
        let secured = connector.connect(name, tcp).await.map_err(failed("no TLS"))?;
        Ok(Connection::Secured(Box::new(secured)))
    }
}

impl Connection {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Open(tcp) => tcp,
            Self::Secured(tls) => tls.get_ref().0,
        }
    }

    /// Whether the connection is still open. The peer sends nothing in this protocol, so readable
    /// data is the end of the connection or a TLS record, which is ignored here.
    fn stands(&self) -> io::Result<()> {
        if let Some(error) = self.tcp().take_error()? {
            return Err(error);
        }
        let mut byte = [0];
        let peeked = nix::sys::socket::recv(
            self.tcp().as_raw_fd(),
            &mut byte,
            nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT,
        );
        match peeked {
            Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
            Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        async fn all(out: &mut (impl AsyncWrite + AsyncRead + Unpin), b: &[u8]) -> io::Result<()> {
            out.write_all(b).await?;
            out.flush().await
        }
        self.stands()?;
        match self {
            Self::Open(tcp) => all(tcp, bytes).await?,
            Self::Secured(tls) => all(tls, bytes).await?,
        }
        let mut wait = Duration::from_millis(1);
        while unconfirmed(self.tcp())? > 0 {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(50));
        }
        self.stands()
    }
}

nix::ioctl_read_bad!(siocoutq, nix::libc::TIOCOUTQ, nix::libc::c_int);

/// Written bytes that the peer's system has not confirmed (tcp(7), `SIOCOUTQ`).
fn unconfirmed(tcp: &TcpStream) -> io::Result<i32> {
    let mut bytes = 0;
    #[expect(unsafe_code, reason = "an ioctl that writes one integer, of a socket that is open")]
    // SAFETY: the descriptor belongs to `tcp`, which outlives the call, and `bytes` is the integer
    // that the request writes.
    unsafe {
        siocoutq(tcp.as_raw_fd(), &raw mut bytes)?;
    }
    Ok(bytes)
}

#[async_trait]
impl Sink for Stream {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let mut bytes = Vec::new();
        for item in items.iter() {
            let message = format::message(self.format, item, &self.origin)?;
            bytes.extend_from_slice(message.len().to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&message);
        }
        // Put back only after success: a connection with an incomplete frame must not be reused.
        let mut connection = match self.connection.take().filter(|c| c.stands().is_ok()) {
            Some(connection) => connection,
            None => in_time("the connection", self.connect()).await?,
        };
        let send = async {
            connection.send(&bytes).await.map_err(failed("the receiver closed the connection"))
        };
        in_time("the receiver's confirmation", send).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// One message per datagram over UDP.
pub(super) struct Udp {
    host: String,
    port: u16,
    format: Format,
    origin: Origin,
    socket: Option<UdpSocket>,
}

impl Udp {
    pub fn new(host: String, port: u16, format: Format, origin: Origin) -> Self {
        Self { host, port, format, origin, socket: None }
    }

    async fn connect(&self) -> Result<UdpSocket, Undelivered> {
        let unreachable = failed("the receiver can't be reached");
        let mut last = io::ErrorKind::NotFound.into();
        for address in
            tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(&unreachable)?
        {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).await.map_err(&unreachable)?;
            match socket.connect(address).await {
                Ok(()) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }
}

#[async_trait]
impl Sink for Udp {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => in_time("the name's resolution", self.connect()).await?,
        };
        for item in items.iter() {
            let message = format::message(self.format, item, &self.origin)?;
            let sent = async {
                socket.send(&message).await.map_err(failed("the receiver refuses datagrams"))
            };
            in_time("a datagram", sent).await?;
        }
        self.socket = Some(socket);
        Ok(())
    }
}

/// One message per datagram to a local socket.
pub(super) struct Unix {
    path: PathBuf,
    format: Format,
    origin: Origin,
    socket: Option<UnixDatagram>,
}

impl Unix {
    pub fn new(path: PathBuf, format: Format, origin: Origin) -> Self {
        Self { path, format, origin, socket: None }
    }
}

#[async_trait]
impl Sink for Unix {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let unreachable = failed("the local socket can't be written to");
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound().map_err(&unreachable)?;
                socket.connect(&self.path).map_err(&unreachable)?;
                socket
            }
        };
        for item in items.iter() {
            let message = format::message(self.format, item, &self.origin)?;
            let sent = async { socket.send(&message).await.map_err(&unreachable) };
            in_time("a datagram", sent).await?;
        }
        self.socket = Some(socket);
        Ok(())
    }
}
