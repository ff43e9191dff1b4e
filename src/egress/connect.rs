//! Turns a program's request into a connection: list, gate, address.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::SetOnce, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Attempt, Destination, Destinations, End, Gate, GateContext, Host, Limits, Outcome, Protocol,
    Refusal, Resolver, Verdict, Wire,
    address::{is_own, is_public},
    limits::Meter,
};

/// Limit of a host's addresses that are tried.
const MAX_ADDRESSES: usize = 4;
/// Time limit for a gate's decision, in case the gate has none.
const DECISION_TIMEOUT: Duration = Duration::from_secs(60);

/// State that all connections of a program share.
pub(crate) struct Shared {
    pub server: String,
    pub destinations: Destinations,
    /// Hosts behind the egress addresses inside.
    pub synthetic_addresses: HashMap<IpAddr, Host>,
    pub limits: Limits,
    pub meter: Meter,
    pub gate: Arc<dyn Gate>,
    pub resolver: Arc<dyn Resolver>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub attempts: AtomicU64,
    /// Attempts that have not ended, by number.
    pub live: Mutex<HashMap<u64, Arc<ActiveAttempt>>>,
}

/// Attempt that has not ended.
pub(crate) struct ActiveAttempt {
    attempt: Attempt,
    /// Reason why the attempt was revoked.
    revoked: SetOnce<String>,
    grounds: Mutex<Option<GateContext>>,
}

/// Attempt that is reported to the gate on drop.
pub(crate) struct AttemptGuard {
    shared: Arc<Shared>,
    live: Arc<ActiveAttempt>,
    allowed: AtomicBool,
    address: Mutex<Option<SocketAddr>>,
    since: Instant,
    pub up: AtomicU64,
    pub down: AtomicU64,
    end: Mutex<Option<End>>,
}

impl AttemptGuard {
    /// Sets how the attempt ended; the first call counts.
    pub fn ended(&self, end: End) {
        self.end.lock().get_or_insert(end);
    }

    pub fn refused(&self, refusal: &Refusal) {
        self.ended(End::Refused(refusal.clone()));
    }

    /// Waits until the attempt is revoked, and returns the reason.
    pub async fn revoked(&self) -> String {
        self.live.revoked.wait().await.clone()
    }
}

impl Drop for AttemptGuard {
    fn drop(&mut self) {
        let end = self.end.get_mut().take();
        let end = end.unwrap_or(match self.shared.stop.is_cancelled() {
            true => End::Stopped,
            false => End::Broken,
        });
        self.shared.live.lock().remove(&self.live.attempt.number);
        self.shared.gate.report(Outcome {
            attempt: Some(self.live.attempt.clone()),
            address: *self.address.get_mut(),
            up: *self.up.get_mut(),
            down: *self.down.get_mut(),
            duration: self.since.elapsed(),
            end,
            allowed: *self.allowed.get_mut(),
            grounds: self.live.grounds.lock().take(),
        });
    }
}

/// Connection to a requested host.
pub(crate) struct Connection {
    pub stream: TcpStream,
    pub host: Host,
    pub wire: Wire,
    pub ticket: AttemptGuard,
}

impl Shared {
    /// Reports a refusal before the requested host was known.
    pub fn unread(&self, refusal: Refusal) {
        self.gate.report(Outcome {
            attempt: None,
            address: None,
            up: 0,
            down: 0,
            duration: Duration::ZERO,
            end: End::Refused(refusal),
            allowed: false,
            grounds: None,
        });
    }

    /// Requested host: an egress address inside becomes its host.
    pub fn requested_host(&self, host: Host) -> Host {
        match &host {
            Host::Address(address) => {
                self.synthetic_addresses.get(address).cloned().unwrap_or(host)
            }
            Host::Name(_) => host,
        }
    }

    /// List entry for a host and port.
    pub fn listed(&self, host: &Host, port: u16) -> Result<&Destination, Refusal> {
        self.destinations
            .find(host, port)
            .ok_or_else(|| Refusal::NotListed { host: host.clone(), port })
    }

    fn ticket(self: &Arc<Self>, host: Host, port: u16, protocol: Protocol) -> AttemptGuard {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        let attempt = Attempt { number, host, port, protocol };
        let live = ActiveAttempt { attempt, revoked: SetOnce::new(), grounds: Mutex::default() };
        let live = Arc::new(live);
        // Before the decision, so that a later change of the policies includes this attempt.
        self.live.lock().insert(number, live.clone());
        AttemptGuard {
            shared: self.clone(),
            live,
            allowed: AtomicBool::new(false),
            address: Mutex::default(),
            since: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            end: Mutex::default(),
        }
    }

    /// Reports an attempt that was refused before it was tried.
    pub fn refuse(self: &Arc<Self>, host: Host, port: u16, protocol: Protocol, refusal: &Refusal) {
        self.ticket(host, port, protocol).refused(refusal);
    }

    /// Decides again about every attempt that has not ended.
    pub fn review(&self) {
        let live: Vec<_> = self.live.lock().values().cloned().collect();
        for one in live {
            if let Verdict::Refuse(forbidden) = self.gate.still(&one.attempt) {
                *one.grounds.lock() = forbidden.grounds;
                let _ = one.revoked.set(forbidden.why);
            }
        }
    }

    /// Connects to a requested host, if permitted.
    ///
    /// # Errors
    /// [`Refusal`], which has been reported to the gate.
    pub async fn open(
        self: &Arc<Self>,
        host: Host,
        port: u16,
        protocol: Protocol,
    ) -> Result<Connection, Refusal> {
        let ticket = self.ticket(host, port, protocol);
        let connected = tokio::select! {
            connected = self.connect(&ticket) => connected,
            why = ticket.revoked() => Err(Refusal::Policy(why)),
        };
        match connected {
            Ok((stream, wire)) => {
                let host = ticket.live.attempt.host.clone();
                Ok(Connection { stream, host, wire, ticket })
            }
            Err(refusal) => {
                ticket.refused(&refusal);
                Err(refusal)
            }
        }
    }

    async fn connect(&self, ticket: &AttemptGuard) -> Result<(TcpStream, Wire), Refusal> {
        if !self.meter.attempt() {
            return Err(Refusal::TooFast);
        }
        let Attempt { host, port, protocol, .. } = &ticket.live.attempt;
        let listed = self.listed(host, *port)?;
        if (*protocol == Protocol::Http) != (listed.wire == Wire::Http) {
            let host = host.clone();
            return Err(Refusal::OtherWire { host, port: *port, wire: listed.wire });
        }
        match timeout(DECISION_TIMEOUT, self.gate.decide(&ticket.live.attempt)).await {
            Ok(Verdict::Allow) => ticket.allowed.store(true, Ordering::Relaxed),
            Ok(Verdict::Refuse(forbidden)) => {
                *ticket.live.grounds.lock() = forbidden.grounds;
                return Err(Refusal::Policy(forbidden.why));
            }
            Err(_) => return Err(Refusal::Policy("the decision took too long".into())),
        }
        let mut last = None;
        for address in self.addresses(host, *port, listed).await?.into_iter().take(MAX_ADDRESSES) {
            let address = SocketAddr::new(address, *port);
            *ticket.address.lock() = Some(address);
            // To the checked address: the name is not resolved again.
            match timeout(self.limits.handshake, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // For small messages of two programs that wait for each other.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, listed.wire));
                }
                Ok(Err(error)) => {
                    last = Some(Refusal::Unreachable(host.clone(), error.kind().to_string()))
                }
                Err(_) => last = Some(Refusal::Slow),
            }
        }
        Err(last.unwrap_or_else(|| Refusal::Unresolved(host.clone())))
    }

    /// Permitted addresses of a host.
    async fn addresses(
        &self,
        host: &Host,
        port: u16,
        listed: &Destination,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let name = match (listed.address, host) {
            // Address from the config.
            (Some(address), _) => return Ok(vec![address]),
            (None, Host::Address(address)) => return Ok(vec![*address]),
            (None, Host::Name(name)) => name,
        };
        let found = match timeout(self.limits.handshake, self.resolver.addresses(name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Vec::new(),
            Err(_) => return Err(Refusal::Slow),
        };
        let found: Vec<_> = found.into_iter().map(|address| address.to_canonical()).collect();
        let Some(&address) = found.first() else {
            return Err(Refusal::Unresolved(host.clone()));
        };
        let public = |address: &IpAddr| is_public(*address) && !is_own(*address);
        let all: Vec<_> = found.into_iter().filter(public).collect();
        if all.is_empty() {
            return Err(Refusal::Private { host: host.clone(), port, address });
        }
        Ok(all)
    }
}
