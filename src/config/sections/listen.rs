//! Section `[listen]`: the HTTP front end and its trusted reverse proxies.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ProxyNetwork;

/// HTTP front, where clients connect.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listen {
    /// Address and port of the HTTP front. Put it behind TLS unless the address is a loopback
    /// address.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub http: SocketAddr,
    /// Accept calls without a key. Their principal in policies is
    /// `Portcullis::Anonymous::"anonymous"`.
    pub anonymous: bool,
    /// Accept calls without a key also from other machines. If false, such a call must come from a
    /// loopback address and have no header of a reverse proxy (`Forwarded`, `X-Forwarded-For`,
    /// `Via` …). A local reverse proxy that adds none of these headers is not detected: give every
    /// client behind it a key.
    pub anonymous_beyond_loopback: bool,
    /// Accepted `Host` values, in addition to the address itself and, on loopback, `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Accepted `Origin` values, for clients in a browser. Default: none.
    pub allowed_origins: Vec<String>,
    /// Serve the REST interface: `/tools`, `/invoke`, `/batch` and `/openapi.json`, for the same
    /// clients and under the same policies as `/mcp`.
    pub rest: bool,
    /// Addresses and networks of reverse proxies (`127.0.0.1`, `10.0.0.0/8`) that report the
    /// address of their client, in the form of `client-address`. Reports from other addresses are
    /// ignored.
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// Form in which trusted proxies report the address of their client. Limits, records and
    /// policies (`context.source_ip`) use that address. Requests of a trusted proxy without an
    /// address in this form are refused.
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

/// Form in which a trusted proxy reports the address of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddressSource {
    /// Header `Forwarded` (RFC 7239): the last `for` that is not a trusted proxy.
    Forwarded,
    /// Header `X-Forwarded-For`: the last address that is not a trusted proxy.
    XForwardedFor,
    /// PROXY protocol, version 1 or 2, at the start of each connection.
    ProxyProtocol,
}

/// Limits of connections to the HTTP front. A connection is authenticated from its first request
/// with a valid key. Before that, a newer connection can replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConnectionLimits {
    /// Maximum number of connections. Lower if the system's limit of open files (`ulimit -Hn`)
    /// requires it.
    #[schemars(range(min = 8))]
    pub total: usize,
    /// Maximum number of unauthenticated connections, over all networks. Default: a quarter of
    /// `total`. A further connection replaces the oldest one of the network with the most
    /// connections. The rest of `total` is reserved for authenticated connections and trusted
    /// proxies.
    #[schemars(range(min = 1))]
    pub unauthenticated: Option<usize>,
    /// Maximum number of unauthenticated connections of one network (an IPv4 address or an IPv6
    /// /64). Default: half of `unauthenticated`. A further connection replaces the oldest one of
    /// the network. The same number limits concurrent calls without a key that a trusted proxy
    /// forwards over HTTP for one network.
    #[schemars(range(min = 1))]
    pub unauthenticated_per_network: Option<usize>,
    /// Maximum number of authenticated connections of one client, over all networks. Default: an
    /// eighth of `total`. A request on a further connection is refused.
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
    /// Limits with all defaults filled in, if at most `most` connections are possible.
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

/// Minimum of `limits.connections.total`.
const MIN_CONNECTIONS: usize = 8;

/// [`ConnectionLimits`] as numbers of connections, each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Unauthenticated connections.
    pub unauthenticated: usize,
    /// Unauthenticated connections of one network; at most `unauthenticated`.
    pub unauthenticated_per_network: usize,
    /// Authenticated connections and those of trusted proxies, together.
    pub authenticated: usize,
    /// Authenticated connections of one client; at most `authenticated`.
    pub per_client: usize,
}

impl ConnectionBounds {
    /// All connections.
    pub fn total(&self) -> usize {
        self.unauthenticated + self.authenticated
    }
}
