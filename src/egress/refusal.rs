//! Refusals of egress, for the program and for the record.

use std::net::IpAddr;

use http::StatusCode;

use super::{Host, Wire};

/// Reason why an attempt was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Malformed(String),
    #[error("`{host}:{port}` is not in its list of hosts")]
    NotListed { host: Host, port: u16 },
    #[error("`{host}:{port}` is listed for {}, but the connection uses another \
        protocol", words(*.wire))]
    OtherWire { host: Host, port: u16, wire: Wire },
    #[error("{0}")]
    Policy(String),
    /// With one of the addresses from DNS. Only the operator's log contains it: servers must not
    /// learn addresses of the networks around the proxy.
    #[error("`{host}` has no public address")]
    Private { host: Host, port: u16, address: IpAddr },
    #[error("no address was found for `{0}`")]
    Unresolved(Host),
    #[error("`{0}` cannot be reached: {1}")]
    Unreachable(Host, String),
    #[error("its ClientHello has no server name (SNI); it must be `{0}`")]
    NoServerName(Host),
    #[error("it requests the TLS server `{requested}`, but is allowed to reach `{host}`")]
    OtherServerName { requested: String, host: Host },
    #[error("it encrypts the name of the TLS server (ECH), so the name cannot be checked")]
    EncryptedServerName,
    #[error("it does not use TLS, but `{0}` is listed for TLS")]
    NotTls(Host),
    #[error("its ClientHello is invalid: {0}")]
    BrokenHello(String),
    #[error("it already has {0} connections")]
    TooMany(usize),
    #[error("it made too many attempts")]
    TooFast,
    #[error("it took too long")]
    Slow,
    #[error("its total limit of bytes is used up")]
    LimitExhausted,
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Entry of `egress` with the address of a host. Port 80 is for plain HTTP.
fn pinned(host: &Host, port: u16, address: &str) -> String {
    let scheme = if port == 80 { "http://" } else { "" };
    format!("{scheme}{host}:{port}={address}")
}

fn words(wire: Wire) -> &'static str {
    match wire {
        Wire::Tls => "TLS",
        Wire::Http => "plain HTTP",
        Wire::Tcp => "other protocols",
    }
}

impl Refusal {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NotListed { .. } => "not-listed",
            Self::OtherWire { .. } => "other-wire",
            Self::Policy(_) => "policy",
            Self::Private { .. } => "private-address",
            Self::Unresolved(_) => "unresolved",
            Self::Unreachable(..) => "unreachable",
            Self::NoServerName(_) => "no-server-name",
            Self::OtherServerName { .. } => "other-server-name",
            Self::EncryptedServerName => "encrypted-server-name",
            Self::NotTls(_) => "not-tls",
            Self::BrokenHello(_) => "broken-hello",
            Self::TooMany(_) => "too-many",
            Self::TooFast => "too-fast",
            Self::Slow => "slow",
            Self::LimitExhausted => "spent",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// Remedy for the operator of the server, for the operator's log.
    pub fn operator_advice(&self, server: &str) -> Option<String> {
        match self {
            Self::Private { host, port, address } => Some(format!(
                "`{host}` resolves to {address}; if that is the right host, write \
                 `egress = [\"{}\"]` below `[servers.{server}]`",
                pinned(host, *port, &address.to_string())
            )),
            _ => self.advice(server),
        }
    }

    /// Remedy for the operator of the server, in the answer to the server's program.
    pub fn advice(&self, server: &str) -> Option<String> {
        let under = format!("below `[servers.{server}]`");
        Some(match self {
            Self::NotListed { host, port } => {
                let scheme = if *port == 80 { "http://" } else { "" };
                format!("to allow it, write `egress = [\"{scheme}{host}:{port}\"]` {under}")
            }
            Self::OtherWire { host, port, wire: Wire::Tls } if *port != 443 => {
                format!("for plain HTTP, write `http://{host}:{port}` into `egress` {under}")
            }
            Self::Private { host, port, .. } => format!(
                "to allow a host of a private network, append its address to the port, \
                 `{}`, in `egress` {under}",
                pinned(host, *port, "ADDRESS")
            ),
            Self::NotTls(host) => format!(
                "for a protocol other than TLS, write `tcp://{host}:PORT` into `egress` {under}"
            ),
            Self::EncryptedServerName => "disable ECH in the program".to_owned(),
            _ => return None,
        })
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unresolved(_) | Self::Unreachable(..) => StatusCode::BAD_GATEWAY,
            Self::TooMany(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooFast => StatusCode::TOO_MANY_REQUESTS,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::FORBIDDEN,
        }
    }

    /// Reply code of RFC 1928, section 6.
    pub(crate) fn reply(&self) -> u8 {
        match self {
            Self::Unresolved(_) => 4,
            Self::Unreachable(..) => 5,
            Self::Slow => 6,
            Self::Malformed(_) | Self::TooMany(_) | Self::TooFast => 1,
            Self::Unsupported(_) => 7,
            _ => 2,
        }
    }
}
