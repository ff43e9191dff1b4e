//! Where clients connect, and which reverse proxies may speak for them.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ProxyNetwork;

/// Where clients connect.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listen {
    /// Address and port of the HTTP front. Anything but loopback should stand behind TLS.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub http: SocketAddr,
    /// Take calls without a key. Policy sees them as `Portcullis::Anonymous::"anonymous"`.
    pub anonymous: bool,
    /// Take them from other machines, too. Without it, a call without a key needs a client address
    /// of loopback and no header of a reverse proxy (`Forwarded`, `X-Forwarded-For`, `Via` …). A
    /// reverse proxy on this machine that adds no such header is not noticed: give every client a
    /// key behind one.
    pub anonymous_beyond_loopback: bool,
    /// `Host` values taken beside the address itself and, on loopback, `localhost`.
    pub allowed_hosts: Vec<String>,
    /// `Origin` values taken, for clients in a browser. None are by default.
    pub allowed_origins: Vec<String>,
    /// Offer REST, too: `/tools`, `/invoke`, `/batch` and `/openapi.json`, for the same clients
    /// and under the same policies as `/mcp`.
    pub rest: bool,
    /// Addresses and networks of reverse proxies (`127.0.0.1`, `10.0.0.0/8`) that say for which
    /// client they forward. `client-address` says how. Nobody else is believed.
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// How trusted proxies say which address their client has. Limits, records and policies
    /// (`context.source_ip`) go by that address. A trusted proxy that does not say it in this form
    /// is refused.
    pub client_address: Option<ClientAddressSource>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 8811)),
            anonymous: false,
            anonymous_beyond_loopback: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            rest: true,
            trusted_proxies: Vec::new(),
            client_address: None,
        }
    }
}

/// Where a trusted proxy says which address its client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddressSource {
    /// The header `Forwarded` (RFC 7239): the last `for` that is not a trusted proxy.
    Forwarded,
    /// The header `X-Forwarded-For`: the last address that is not a trusted proxy.
    XForwardedFor,
    /// The PROXY protocol, version 1 or 2, at the start of each connection.
    ProxyProtocol,
}

/// Connections of the HTTP front. A connection counts as authenticated from its first request with
/// a valid key on; until then it may have to give way to a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConnectionLimits {
    /// Connections at once. Less where the system's limit of open files (`ulimit -Hn`) leaves less.
    #[schemars(range(min = 8))]
    pub total: usize,
    /// Connections that have not authenticated, of all networks. Default: a quarter of `total`. One
    /// more takes the place of the oldest one of the network that has most. The rest of `total` is
    /// kept for authenticated connections and for trusted proxies.
    #[schemars(range(min = 1))]
    pub unauthenticated: Option<usize>,
    /// Connections that have not authenticated, of one IPv4 address or IPv6 /64. Default: half of
    /// `unauthenticated`. One more takes the place of the oldest of them. Of calls without a key that
    /// a trusted proxy forwards by HTTP, as many of one network are taken at once.
    #[schemars(range(min = 1))]
    pub unauthenticated_per_network: Option<usize>,
    /// Authenticated connections of one client, of all networks. Default: an eighth of `total`. A
    /// request on one more is refused.
    #[schemars(range(min = 1))]
    pub per_client: Option<usize>,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 4_096,
            unauthenticated: None,
            unauthenticated_per_network: None,
            per_client: None,
        }
    }
}

impl ConnectionLimits {
    /// The bounds with every default filled in, where there can be no more than `most` connections.
    pub fn bounds(&self, most: usize) -> ConnectionBounds {
        let total = self.total.min(most).max(MIN_CONNECTIONS);
        let unauthenticated = self.unauthenticated.unwrap_or(total / 4).clamp(1, total - 1);
        let authenticated = total - unauthenticated;
        ConnectionBounds {
            unauthenticated,
            unauthenticated_per_network: self
                .unauthenticated_per_network
                .unwrap_or(unauthenticated / 2)
                .clamp(1, unauthenticated),
            authenticated,
            per_client: self.per_client.unwrap_or(total / 8).clamp(1, authenticated),
        }
    }
}

/// The least value of `limits.connections.total`.
const MIN_CONNECTIONS: usize = 8;

/// [`ConnectionLimits`] in numbers of connections, each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Connections that have not authenticated.
    pub unauthenticated: usize,
    /// Those of them of one network; at most `unauthenticated`.
    pub unauthenticated_per_network: usize,
    /// Authenticated connections and those of trusted proxies, together.
    pub authenticated: usize,
    /// Authenticated connections of one client; at most `authenticated`.
    pub per_client: usize,
}

impl ConnectionBounds {
    /// All connections at once.
    pub fn total(&self) -> usize {
        self.unauthenticated + self.authenticated
    }
}
