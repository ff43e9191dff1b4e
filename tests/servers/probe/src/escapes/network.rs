//! Ways to whatever is not this server's own.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixStream},
    },
    time::Duration,
};

use super::{Attempt, Given, given, past, refused};

const PATIENCE: Duration = Duration::from_secs(2);

pub(super) const ALL: &[Attempt] = &[
    ("metadata-address", |_| answers(Ipv4Addr::new(169, 254, 169, 254), 80)),
    ("host-gateway", |told| reach(given(told, "gateway")?)),
    ("host-gateway-udp", |told| ask(given(told, "gateway-udp")?)),
    ("host-loopback", |told| reach(&format!("127.0.0.1:{}", given(told, "loopback")?))),
    ("abstract-socket", abstract_socket),
    // An address that is nobody's: that it can be sent there is all.
    ("dns-anywhere", |_| {
        UdpSocket::bind("0.0.0.0:0")?.send_to(&question(), "192.0.2.53:53").map(drop)
    }),
    ("dns-of-engine", |_| ask("127.0.0.11:53")),
    ("dns-resolvers", |_| {
        let config = fs::read_to_string("/etc/resolv.conf")?;
        let servers = config.lines().filter_map(|line| line.strip_prefix("nameserver "));
        let mut last = refused("none there");
        for server in servers {
            last = ask(&format!("{}:53", server.trim()));
            if last.is_ok() {
                break;
            }
        }
        last
    }),
];

fn reach(address: &str) -> io::Result<()> {
    let address = address.parse().map_err(io::Error::other)?;
    TcpStream::connect_timeout(&address, PATIENCE).map(drop)
}

/// Whether anybody is there: who refuses is.
fn answers(address: Ipv4Addr, port: u16) -> io::Result<()> {
    match TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => refused("no answer"),
        other => past(other, libc::ECONNREFUSED),
    }
}

/// Whether anything comes back.
fn ask(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address)?;
    socket.send(&question())?;
    socket.recv(&mut [0; 512]).map(drop)
}

/// For the address of `leaked.example.com`: a name may carry what it likes.
fn question() -> Vec<u8> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["leaked", "example", "com"] {
        question.push(label.len() as u8);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

fn abstract_socket(told: &Given) -> io::Result<()> {
    let address = UnixAddr::from_abstract_name(given(told, "abstract")?)?;
    UnixStream::connect_addr(&address).map(drop)
}
