//! A way out for servers that have no network: sockets of ours in their network namespace.
//!
//! A server's namespace has a loopback interface and nothing else: no other interface, no route, no
//! DNS. Listening sockets are put into it, which then are served from outside:
//!
//! - one for programs that go by `HTTP_PROXY` and its like;
//! - for the others, one for each listed name and port, on an address of its own to which the
//!   server's `/etc/hosts` leads the name.
//!
//! Whoever makes the sockets tries, from inside, that nothing else is to be reached. Both happens before
//! the server's program begins: in the sandbox by its launcher, which hands the sockets out; for a
//! container by a thread of ours in the namespace that its holder has.

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

/// Of a sink for DNS (AS112, RFC 7535), which nobody has a use for inside a server. It is one of the
/// whole Internet by IANA's registry: programs that look up a name and go to no private address
/// (mcp-server-fetch does) would refuse any other.
pub const NET: [u8; 3] = [192, 31, 196];
const PROXY: Ipv4Addr = Ipv4Addr::new(NET[0], NET[1], NET[2], 1);
const PORT: u16 = 3128;
/// For what must fail at once.
const PROBE: Duration = Duration::from_secs(1);
/// What nothing inside may get to: the Internet, private networks, and where clouds keep secrets.
const ELSEWHERE: [&str; 5] = [
    "1.1.1.1:443",
    "10.0.0.1:443",
    "172.17.0.1:80",
    "169.254.169.254:80",
    "[2606:4700:4700::1111]:443",
];

/// One start of a server that has a way out.
#[derive(Debug, Clone)]
pub struct EgressContext {
    /// What joins all that is told of it.
    pub launch: DecisionId,
    pub server: ServerName,
    /// The one client for which alone it runs. One that was started ahead has none until somebody
    /// needs it.
    pub principal: Arc<OnceLock<PrincipalKind>>,
}

/// Says who decides what servers reach.
pub trait EgressGates: Send + Sync {
    /// Who decides for one start of a server.
    fn gate(&self, reacher: EgressContext) -> Arc<dyn Gate>;
}

/// For whoever starts no servers.
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
        Verdict::Refuse("nobody is there to decide it".into())
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    fn still(&self, _: &Attempt) -> Verdict {
        Verdict::Refuse("nobody is there to decide it".into())
    }

    fn told(&self, _: Outcome) {}
}

/// The variables by which programs find the proxy, except those that the operator set.
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
    // Node takes the others for its own from version 24 on.
    let all = all.chain(near).chain([("NODE_USE_ENV_PROXY", "1")]);
    all.filter(|(name, _)| !set(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The listed names, with the addresses that they have inside.
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

/// Whether a destination has an address inside, so that programs get there that know of no proxy.
pub fn has_address(destinations: &[Destination], one: &Destination) -> bool {
    hosts(destinations)
        .iter()
        .any(|(name, _)| matches!(&one.host, Pattern::One(Host::Name(own)) if own == name))
}

/// How many names can have one.
pub const ADDRESSES: usize = 253;

/// Sockets in a server's network namespace.
#[derive(Debug)]
pub struct EgressSockets {
    proxy: TcpListener,
    direct: Vec<(Host, u16, TcpListener)>,
    stand_ins: Vec<(IpAddr, Host)>,
}

impl EgressSockets {
    /// Opens one in a namespace.
    ///
    /// # Errors
    /// Where that can't be entered, or anything else is to be reached from it.
    pub async fn open(
        namespace: File,
        destinations: &[Destination],
    ) -> Result<Self, LaunchFailure> {
        let places = places(destinations);
        let work = tokio::task::spawn_blocking(move || {
            // A thread of its own, which never leaves the namespace and ends with it.
            let thread = thread::Builder::new().name("door".to_owned());
            let thread = thread.spawn(move || enter(&namespace, &places));
            let done = thread.map_err(|error| failed("start a thread", &error))?.join();
            done.unwrap_or_else(|_| Err(failed("finish", &"it was interrupted")))
        });
        let sockets = work.await.map_err(|error| failed("finish", &error))??;
        Self::of(sockets, destinations)
    }

    /// One of sockets that are at its [`places`], in their order.
    ///
    /// # Errors
    /// Where they are fewer or more.
    pub fn of(
        sockets: Vec<TcpListener>,
        destinations: &[Destination],
    ) -> Result<Self, LaunchFailure> {
        let direct = direct(destinations);
        if sockets.len() != direct.len() + 1 {
            return Err(failed("be there", &format!("it has {} sockets", sockets.len())));
        }
        let mut sockets = sockets.into_iter();
        let proxy = sockets.next().ok_or_else(|| failed("be there", &"it has no socket"))?;
        let direct = direct.into_iter().zip(sockets);
        let direct = direct.map(|((host, at), socket)| (host, at.port(), socket)).collect();
        Ok(Self { proxy, direct, stand_ins: stand_ins(destinations) })
    }

    /// Serves it; the process's handle then ends it, too.
    ///
    /// # Errors
    /// Where the entries contradict each other.
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
        let egress = Arc::new(Egress::with_stand_ins(
            server.as_str(),
            destinations,
            limits,
            gate,
            Arc::new(System::default()),
            self.stand_ins,
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
        let way = EgressProcess { inner: handle, egress: egress.clone() };
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
        Ok(Box::new(way))
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> LaunchFailure {
    LaunchFailure { what: format!("its way out can't {what}: {error}"), remedy: None }
}

/// What the thread does.
fn enter(namespace: &File, places: &[SocketAddrV4]) -> Result<Vec<TcpListener>, LaunchFailure> {
    let inode = |file: io::Result<fs::Metadata>| file.map(|file| (file.dev(), file.ino())).ok();
    let (own, theirs) = (inode(fs::metadata("/proc/self/ns/net")), inode(namespace.metadata()));
    if own.is_none() || own == theirs {
        return Err(LaunchFailure {
            what: "it has the network of the proxy itself, where no list holds".into(),
            remedy: Some("remove `hardening.network`".into()),
        });
    }
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| LaunchFailure {
        what: format!("its network namespace can't be entered: {}", errno.desc()),
        remedy: Some(
            "for a container, `egress` takes a proxy that runs as root, or with CAP_SYS_ADMIN, on \
             the machine of the engine; in the sandbox (`runtime = \"sandbox\"`) it takes neither"
                .into(),
        ),
    })?;
    furnish(places)
}

/// Makes the sockets in the network namespace of the thread that calls, and tries that nothing else
/// is to be reached from there. Works in a process of one thread, too.
///
/// # Errors
/// Where the thread may not do that, or anything else is to be reached.
pub fn furnish(places: &[SocketAddrV4]) -> Result<Vec<TcpListener>, LaunchFailure> {
    add_address(PROXY).map_err(|error| failed("have addresses", &error))?;
    let bind = |place: &SocketAddrV4| {
        let socket = TcpListener::bind(place).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        socket.map_err(|error| failed(&format!("listen at port {}", place.port()), &error))
    };
    let sockets = places.iter().map(bind).collect::<Result<_, _>>()?;
    prove().map_err(|why| LaunchFailure {
        what: format!("more than its list is to be reached from inside: {why}"),
        remedy: Some("see what gives an interface or a route to a namespace that has none".into()),
    })?;
    Ok(sockets)
}

/// Whether this process may enter a container's network namespace, where that is on this machine. For the
/// sandbox it need not.
pub fn able() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Where the sockets of a way out are, inside: that of the proxy first.
pub fn places(destinations: &[Destination]) -> Vec<SocketAddrV4> {
    if destinations.is_empty() {
        return Vec::new();
    }
    let direct = direct(destinations).into_iter().map(|(_, place)| place);
    std::iter::once(SocketAddrV4::new(PROXY, PORT)).chain(direct).collect()
}

/// The sockets that stand for listed hosts.
fn direct(destinations: &[Destination]) -> Vec<(Host, SocketAddrV4)> {
    let mut places = Vec::new();
    for (name, address) in hosts(destinations) {
        let host = Host::Name(name);
        let mut ports: Vec<u16> =
            destinations.iter().filter(|one| one.host.holds(&host)).map(|one| one.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let all = ports.into_iter().map(|port| (host.clone(), SocketAddrV4::new(address, port)));
        places.extend(all);
    }
    places
}

fn stand_ins(destinations: &[Destination]) -> Vec<(IpAddr, Host)> {
    let hosts = hosts(destinations).into_iter();
    hosts.map(|(name, address)| (address.into(), Host::Name(name))).collect()
}

/// Tries, inside, to get elsewhere.
fn prove() -> Result<(), String> {
    // Not of the process, whose main thread is elsewhere.
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
    // There is none where the kernel has no IPv6.
    let v6 = fs::read_to_string(routes.join("ipv6_route")).unwrap_or_default();
    if let Some(why) = v6.lines().find_map(|line| foreign(line, line.split_whitespace().last())) {
        return Err(why);
    }
    for place in ELSEWHERE {
        let address: SocketAddr = place.parse().map_err(|_| "no address".to_owned())?;
        match TcpStream::connect_timeout(&address, PROBE) {
            Ok(_) => return Err(format!("{place} answers")),
            // Not even a question has left.
            Err(error) if unreachable(&error) => {}
            Err(error) => return Err(format!("{place} is tried: {error}")),
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

/// Gives the loopback interface of this thread's namespace a second address, and with it the net of
/// class C around that: of a loopback interface, all of a net is local.
fn add_address(address: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    #[expect(unsafe_code, reason = "a C structure of integers and arrays, for which zero is legal")]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo:1") {
        *to = *from as libc::c_char;
    }
    // A `sockaddr_in`, whose address stands behind family and port.
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

/// A process with a way out, which ends with it.
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
    fn names_have_an_address_each() {
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
    fn each_listed_name_and_port_has_a_socket_after_that_of_the_proxy() {
        let all = destinations(&["a:443", "*.x.y:443", "http://a:80", "tcp://b:5432"]);
        let at = |last, port| SocketAddrV4::new(Ipv4Addr::new(192, 31, 196, last), port);
        assert_eq!(places(&all), [at(1, 3128), at(2, 80), at(2, 443), at(3, 5432)]);
        assert_eq!(places(&[]), []);
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(EgressSockets::of(vec![socket(), socket()], &all).is_err());
        assert!(EgressSockets::of((0..4).map(|_| socket()).collect(), &all).is_ok());
        assert!(EgressSockets::of(Vec::new(), &all).is_err());
    }

    #[test]
    fn what_the_operator_set_stays() {
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
    async fn the_network_of_the_proxy_is_no_namespace() {
        let own = File::open("/proc/self/ns/net").unwrap();
        let refused = EgressSockets::open(own, &destinations(&["a:443"])).await.unwrap_err();
        assert!(refused.what.contains("network of the proxy itself"), "{}", refused.what);
    }
}
