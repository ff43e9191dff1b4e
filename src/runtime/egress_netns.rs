//! Egress sockets: listening sockets in the network namespace of a server that has no other
//! network.
//!
//! A server's namespace has only a loopback interface: no other interface, no route, no DNS. The
//! sockets are created in it and served from outside:
//!
//! - one for programs that use `HTTP_PROXY` and similar variables;
//! - for other programs, one for each listed name and port, on a separate address to which the
//!   server's `/etc/hosts` resolves the name.
//!
//! The code that creates the sockets tests from inside that nothing else is reachable. Both happen
//! before the server's program starts: in the sandbox by its launcher, which passes the sockets to
//! the proxy; for a container by a thread of the proxy in the namespace of the pause container.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use caps::{CapSet, Capability};
use futures_util::future::BoxFuture;
use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns},
};

use super::process::{Exit, Handle, LaunchFailure, Usage};
use portcullis_egress::{
    Attempt, Destination, Destinations, Egress, Gate, Host, Limits, Listener, Outcome, Pattern,
    System, Verdict,
};
use portcullis_protocol::{
    identity::PrincipalKind,
    names::{DecisionId, ServerName},
};

/// Network of the addresses inside: that of a DNS sink (AS112, RFC 7535), which a server does not
/// need. By IANA's registry it belongs to the public Internet: programs that resolve a name and
/// refuse private addresses (mcp-server-fetch does) would refuse any other.
pub const NET: [u8; 3] = [192, 31, 196];
const PROXY: Ipv4Addr = Ipv4Addr::new(NET[0], NET[1], NET[2], 1);
const PORT: u16 = 3128;
/// Time limit for connections that must fail immediately.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses that must be unreachable from inside: the Internet, private networks, and cloud
/// metadata services.
const UNREACHABLE: [&str; 5] = [
    "1.1.1.1:443",
    "10.0.0.1:443",
    "172.17.0.1:80",
    "169.254.169.254:80",
    "[2606:4700:4700::1111]:443",
];

/// One start of a server with egress.
#[derive(Debug, Clone)]
pub struct EgressContext {
    /// Decision id of the start, which all its records have.
    pub launch: DecisionId,
    pub server: ServerName,
    /// Principal of the only client that the server runs for. A warm process has none until a
    /// client needs it.
    pub principal: Arc<OnceLock<PrincipalKind>>,
}

/// Provides the gate that decides a server's egress.
pub trait EgressGates: Send + Sync {
    /// Gate for one start of a server.
    fn gate(&self, egress_context: EgressContext) -> Arc<dyn Gate>;
}

/// Refuses all egress, for programs that do not start servers.
#[derive(Debug, Clone, Copy)]
pub struct DenyAllEgress;

impl EgressGates for DenyAllEgress {
    fn gate(&self, _: EgressContext) -> Arc<dyn Gate> {
        Arc::new(Self)
    }
}

#[async_trait]
impl Gate for DenyAllEgress {
    async fn decide(&self, _: &Attempt) -> Verdict {
        Verdict::Refuse("no policies are loaded".into())
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    fn still(&self, _: &Attempt) -> Verdict {
        Verdict::Refuse("no policies are loaded".into())
    }

    fn report(&self, _: Outcome) {}
}

/// Environment variables that name the proxy, except those that the operator set.
pub fn environment(
    destinations: &[Destination],
    set: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    if destinations.is_empty() {
        return Vec::new();
    }
    let proxy = format!("http://{PROXY}:{PORT}");
    let all = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let all = all.map(|name| (name, proxy.as_str())).into_iter();
    let near = ["NO_PROXY", "no_proxy"].map(|name| (name, "localhost,127.0.0.1,::1"));
    // From version 24 on, Node uses the other variables only with this one.
    let all = all.chain(near).chain([("NODE_USE_ENV_PROXY", "1")]);
    all.filter(|(name, _)| !set(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Listed names with their addresses inside.
pub fn hosts(destinations: &[Destination]) -> Vec<(String, Ipv4Addr)> {
    let mut names: Vec<&String> = Vec::new();
    for one in destinations {
        if let Pattern::One(Host::Name(name)) = &one.host
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    let addresses = (2..=254).map(|last| Ipv4Addr::new(NET[0], NET[1], NET[2], last));
    names.into_iter().cloned().zip(addresses).collect()
}

/// Whether a destination has an address inside, so that programs without proxy support reach it.
pub fn has_address(destinations: &[Destination], one: &Destination) -> bool {
    hosts(destinations)
        .iter()
        .any(|(name, _)| matches!(&one.host, Pattern::One(Host::Name(own)) if own == name))
}

/// Limit of the names that can have an address.
pub const MAX_ADDRESSES: usize = 253;

/// Sockets in a server's network namespace.
#[derive(Debug)]
pub struct EgressSockets {
    proxy: TcpListener,
    direct: Vec<(Host, u16, TcpListener)>,
    synthetic_addresses: Vec<(IpAddr, Host)>,
}

impl EgressSockets {
    /// Opens egress sockets in a namespace.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or anything else is reachable from it.
    pub async fn open(
        namespace: File,
        destinations: &[Destination],
    ) -> Result<Self, LaunchFailure> {
        let listen_addresses = listen_addresses(destinations);
        let work = tokio::task::spawn_blocking(move || {
            // A separate thread, which never leaves the namespace and ends with it.
            let thread = thread::Builder::new().name("door".to_owned());
            let thread = thread.spawn(move || enter(&namespace, &listen_addresses));
            let done = thread.map_err(|error| failed("start a thread", &error))?.join();
            done.unwrap_or_else(|_| Err(failed("finish", &"it was interrupted")))
        });
        let sockets = work.await.map_err(|error| failed("finish", &error))??;
        Self::of(sockets, destinations)
    }

    /// Egress sockets from existing sockets that are at [`listen_addresses`], in that order.
    ///
    /// # Errors
    /// If there are fewer or more sockets than places.
    pub fn of(
        sockets: Vec<TcpListener>,
        destinations: &[Destination],
    ) -> Result<Self, LaunchFailure> {
        let direct = direct(destinations);
        if sockets.len() != direct.len() + 1 {
            return Err(failed("be used", &format!("there are {} sockets", sockets.len())));
        }
        let mut sockets = sockets.into_iter();
        let proxy = sockets.next().ok_or_else(|| failed("be used", &"there is no socket"))?;
        let direct = direct.into_iter().zip(sockets);
        let direct = direct.map(|((host, at), socket)| (host, at.port(), socket)).collect();
        Ok(Self { proxy, direct, synthetic_addresses: synthetic_addresses(destinations) })
    }

    /// Serves the sockets. The process's handle then also ends them.
    ///
    /// # Errors
    /// If the entries contradict each other.
    pub fn serve(
        self,
        server: &ServerName,
        destinations: Vec<Destination>,
        limits: Limits,
        gate: Arc<dyn Gate>,
        handle: Box<dyn Handle>,
    ) -> Result<Box<dyn Handle>, LaunchFailure> {
        let destinations = Destinations::new(destinations).map_err(|twice| LaunchFailure {
            what: twice.to_string(),
            remedy: Some("keep one of them in `egress`".into()),
        })?;
        let egress = Arc::new(Egress::with_synthetic_addresses(
            server.as_str(),
            destinations,
            limits,
            gate,
            Arc::new(System::default()),
            self.synthetic_addresses,
        ));
        let listener = |listener: TcpListener| {
            let listener = tokio::net::TcpListener::from_std(listener);
            listener.map(Listener::Tcp).map_err(|error| failed("be served", &error))
        };
        let proxy = listener(self.proxy)?;
        let mut direct = Vec::new();
        for (host, port, socket) in self.direct {
            direct.push((host, port, listener(socket)?));
        }
        let egress_process = EgressProcess { inner: handle, egress: egress.clone() };
        tokio::spawn({
            let egress = egress.clone();
            async move { egress.proxy(proxy).await }
        });
        tokio::spawn({
            let egress = egress.clone();
            async move { egress.review().await }
        });
        for (host, port, listener) in direct {
            let egress = egress.clone();
            tokio::spawn(async move { egress.direct(listener, host, port).await });
        }
        Ok(Box::new(egress_process))
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> LaunchFailure {
    LaunchFailure { what: format!("its egress sockets can't {what}: {error}"), remedy: None }
}

/// Work of the thread that enters the namespace.
fn enter(
    namespace: &File,
    listen_addresses: &[SocketAddrV4],
) -> Result<Vec<TcpListener>, LaunchFailure> {
    let inode = |file: io::Result<fs::Metadata>| file.map(|file| (file.dev(), file.ino())).ok();
    let (own, theirs) = (inode(fs::metadata("/proc/self/ns/net")), inode(namespace.metadata()));
    if own.is_none() || own == theirs {
        return Err(LaunchFailure {
            what: "it shares the proxy's network, where `egress` cannot be enforced".into(),
            remedy: Some("remove `hardening.network`".into()),
        });
    }
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| LaunchFailure {
        what: format!("its network namespace cannot be entered: {}", errno.desc()),
        remedy: Some(
            "for a container, `egress` requires a proxy that runs as root, or with CAP_SYS_ADMIN, \
            on \
             the machine of the engine; the sandbox (`runtime = \"sandbox\"`) requires neither"
                .into(),
        ),
    })?;
    bind_sockets(listen_addresses)
}

/// Creates the sockets in the network namespace of the calling thread, and tests that nothing else
/// is reachable from there. Works in a single-threaded process, too.
///
/// # Errors
/// If the thread lacks the permission, or anything else is reachable.
pub fn bind_sockets(listen_addresses: &[SocketAddrV4]) -> Result<Vec<TcpListener>, LaunchFailure> {
    add_address(PROXY).map_err(|error| failed("have addresses", &error))?;
    let bind = |socket_address: &SocketAddrV4| {
        let socket = TcpListener::bind(socket_address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        socket.map_err(|error| failed(&format!("listen at port {}", socket_address.port()), &error))
    };
    let sockets = listen_addresses.iter().map(bind).collect::<Result<_, _>>()?;
    prove().map_err(|why| LaunchFailure {
        what: format!("more than the `egress` list is reachable from inside: {why}"),
        remedy: Some("find what adds an interface or a route to an empty namespace".into()),
    })?;
    Ok(sockets)
}

/// Whether this process may enter a container's network namespace on this machine. The sandbox does
/// not need that.
pub fn able() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Addresses of the egress sockets inside, the one of the proxy first.
pub fn listen_addresses(destinations: &[Destination]) -> Vec<SocketAddrV4> {
    if destinations.is_empty() {
        return Vec::new();
    }
    let direct = direct(destinations).into_iter().map(|(_, socket_address)| socket_address);
    std::iter::once(SocketAddrV4::new(PROXY, PORT)).chain(direct).collect()
}

/// Hosts that have a socket inside, with the socket's address.
fn direct(destinations: &[Destination]) -> Vec<(Host, SocketAddrV4)> {
    let mut listen_addresses = Vec::new();
    for (name, address) in hosts(destinations) {
        let host = Host::Name(name);
        let mut ports: Vec<u16> =
            destinations.iter().filter(|one| one.host.holds(&host)).map(|one| one.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let all = ports.into_iter().map(|port| (host.clone(), SocketAddrV4::new(address, port)));
        listen_addresses.extend(all);
    }
    listen_addresses
}

fn synthetic_addresses(destinations: &[Destination]) -> Vec<(IpAddr, Host)> {
    let hosts = hosts(destinations).into_iter();
    hosts.map(|(name, address)| (address.into(), Host::Name(name))).collect()
}

/// Tests from inside that other addresses are unreachable.
fn prove() -> Result<(), String> {
    // Not that of the process, whose main thread is in another namespace.
    let routes = Path::new("/proc/thread-self/net");
    let v4 = fs::read_to_string(routes.join("route")).map_err(|error| error.to_string())?;
    let foreign = |line: &str, device: Option<&str>| {
        device
            .filter(|device| *device != "lo")
            .map(|_| format!("it has the route `{}`", line.trim()))
    };
    let mut v4 = v4.lines().skip(1);
    if let Some(why) = v4.find_map(|line| foreign(line, line.split_whitespace().next())) {
        return Err(why);
    }
    // Does not exist if the kernel has no IPv6.
    let v6 = fs::read_to_string(routes.join("ipv6_route")).unwrap_or_default();
    if let Some(why) = v6.lines().find_map(|line| foreign(line, line.split_whitespace().last())) {
        return Err(why);
    }
    for socket_address in UNREACHABLE {
        let address: SocketAddr = socket_address.parse().map_err(|_| "no address".to_owned())?;
        match TcpStream::connect_timeout(&address, PROBE_TIMEOUT) {
            Ok(_) => return Err(format!("{socket_address} answers")),
            // Not even a packet left.
            Err(error) if unreachable(&error) => {}
            Err(error) => return Err(format!("connecting to {socket_address}: {error}")),
        }
    }
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(&[0], "8.8.8.8:53"));
    match sent {
        Err(error) if unreachable(&error) => Ok(()),
        _ => Err("a datagram to 8.8.8.8:53 leaves".into()),
    }
}

fn unreachable(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    use Errno::{EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, ENETUNREACH};
    matches!(errno, Some(ENETUNREACH | EHOSTUNREACH | EADDRNOTAVAIL | EAFNOSUPPORT))
}

/// Adds an address to the loopback interface of this thread's namespace, together with its class C
/// network: a loopback interface treats all of a network as local.
fn add_address(address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    #[expect(unsafe_code, reason = "a C structure of integers and arrays, for which zero is legal")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo:1") {
        *to = *from as libc::c_char;
    }
    // A `sockaddr_in`: the address follows family and port.
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_addr =
        libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data };
    #[expect(unsafe_code, reason = "SIOCSIFADDR reads an ifreq, which outlives the call")]
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) };
    Errno::result(result)?;
    Ok(())
}

/// Process with egress sockets, which end with it.
struct EgressProcess {
    inner: Box<dyn Handle>,
    egress: Arc<Egress>,
}

impl Drop for EgressProcess {
    fn drop(&mut self) {
        self.egress.cancel();
    }
}

#[async_trait]
impl Handle for EgressProcess {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn wait(&self) -> BoxFuture<'static, Exit> {
        self.inner.wait()
    }

    async fn stop(&self, grace: Duration) {
        self.inner.stop(grace).await;
        self.egress.stop().await;
    }

    async fn usage(&self) -> Option<Usage> {
        self.inner.usage().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(all: &[&str]) -> Vec<Destination> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_name_has_its_own_address() {
        let all = destinations(&[
            "a.x.y:443",
            "*.x.y:443",
            "http://a.x.y:80",
            "10.0.0.1:443",
            "tcp://b:5432",
        ]);
        let at = |last| Ipv4Addr::new(192, 31, 196, last);
        assert_eq!(hosts(&all), [("a.x.y".to_owned(), at(2)), ("b".to_owned(), at(3))]);
    }

    #[test]
    fn listed_names_and_ports_have_sockets_after_that_of_the_proxy() {
        let all = destinations(&["a:443", "*.x.y:443", "http://a:80", "tcp://b:5432"]);
        let at = |last, port| SocketAddrV4::new(Ipv4Addr::new(192, 31, 196, last), port);
        assert_eq!(listen_addresses(&all), [at(1, 3128), at(2, 80), at(2, 443), at(3, 5432)]);
        assert_eq!(listen_addresses(&[]), []);
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(EgressSockets::of(vec![socket(), socket()], &all).is_err());
        assert!(EgressSockets::of((0..4).map(|_| socket()).collect(), &all).is_ok());
        assert!(EgressSockets::of(Vec::new(), &all).is_err());
    }

    #[test]
    fn variables_set_by_the_operator_stay() {
        let all = destinations(&["a:443"]);
        let names: Vec<_> = environment(&all, |name| name == "HTTP_PROXY")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(
            !names.contains(&"HTTP_PROXY".to_owned()) && names.contains(&"HTTPS_PROXY".to_owned())
        );
        assert_eq!(environment(&[], |_| false), []);
    }

    #[tokio::test]
    async fn network_of_the_proxy_is_refused() {
        let own = File::open("/proc/self/ns/net").unwrap();
        let refused = EgressSockets::open(own, &destinations(&["a:443"])).await.unwrap_err();
        assert!(refused.what.contains("shares the proxy's network"), "{}", refused.what);
    }
}
