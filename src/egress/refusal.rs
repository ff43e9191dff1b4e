//! Why something is refused, for the program and for the record.

use std::net::IpAddr;

use http::StatusCode;

use super::{Host, Wire};

/// Why an attempt was refused, or came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Malformed(String),
    #[error("`{host}:{port}` is not in its list of hosts")]
    NotListed { host: Host, port: u16 },
    #[error("`{host}:{port}` is listed for {}, and is spoken to otherwise", words(*.wire))]
    OtherWire { host: Host, port: u16, wire: Wire },
    #[error("{0}")]
    Policy(String),
    /// With one of the addresses that the DNS gave. Only the operator's log has it: servers learn no
    /// addresses of the networks around the proxy.
    #[error("`{host}` has no address that everybody can reach")]
    Private { host: Host, port: u16, address: IpAddr },
    #[error("no address was found for `{0}`")]
    Unresolved(Host),
    #[error("`{0}` can't be connected to: {1}")]
    Unreachable(Host, String),
    #[error("it begins TLS without the name of the server (SNI), which must be `{0}`")]
    NoServerName(Host),
    #[error("it asks for the TLS server `{asked}`, and was let through to `{host}`")]
    OtherServerName { asked: String, host: Host },
    #[error(
        "it encrypts the name of the TLS server (ECH), so that nobody can tell whom it asks for"
    )]
    EncryptedServerName,
    #[error("it does not speak TLS, which `{0}` is listed for")]
    NotTls(Host),
    #[error("its TLS does not begin as it should: {0}")]
    BrokenHello(String),
    #[error("it has {0} connections already")]
    TooMany(usize),
    #[error("it tries too often")]
    TooFast,
    #[error("it took too long")]
    Slow,
    #[error("it has sent and received all that it may")]
    Spent,
    #[error("{0}")]
    Unsupported(&'static str),
}

/// An entry of `egress` that says at which address a host is. Port 80 is for HTTP in clear text.
fn pinned(host: &Host, port: u16, address: &str) -> String {
    let scheme = if port == 80 { "http://" } else { "" };
    format!("{scheme}{host}:{port}={address}")
}

fn words(wire: Wire) -> &'static str {
    match wire {
        Wire::Tls => "TLS",
        Wire::Http => "HTTP in clear text",
        Wire::Tcp => "other protocols",
    }
}

impl Refusal {
    /// The stable code.
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
            Self::Spent => "spent",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// What the operator of a server of that name can do about it, for the operator's eyes.
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

    /// What the operator of a server of that name can do about it, as the server's program reads it.
    pub fn advice(&self, server: &str) -> Option<String> {
        let under = format!("below `[servers.{server}]`");
        Some(match self {
            Self::NotListed { host, port } => {
                let scheme = if *port == 80 { "http://" } else { "" };
                format!("to allow it, write `egress = [\"{scheme}{host}:{port}\"]` {under}")
            }
            Self::OtherWire { host, port, wire: Wire::Tls } if *port != 443 => {
                format!(
                    "for HTTP in clear text, write `http://{host}:{port}` into `egress` {under}"
                )
            }
            Self::Private { host, port, .. } => format!(
                "to allow one of a private network, write its address behind the port, \
                 `{}`, in `egress` {under}",
                pinned(host, *port, "ADDRESS")
            ),
            Self::NotTls(host) => format!(
                "for other protocols than TLS, write `tcp://{host}:PORT` into `egress` {under}"
            ),
            Self::EncryptedServerName => "switch ECH off in the program".to_owned(),
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

    /// RFC 1928, section 6.
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
