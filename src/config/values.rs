//! Values with their own syntax.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An IP address or a network of addresses in CIDR notation (RFC 4632): `127.0.0.1`, `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyNetwork(IpNet);

impl ProxyNetwork {
    /// Whether the address is in the network. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

/// Error for text that is not the network of a trusted proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalProxyNetwork {
    #[error("write an address or a network, such as `127.0.0.1`, `10.0.0.0/8` or `fd00::/8`")]
    Form,
    #[error("a network must have no bits after its prefix")]
    HostBits,
    #[error("this trusts all addresses: set the addresses that your proxies connect from")]
    Everybody,
    #[error("write an IPv4-mapped address as IPv4")]
    Mapped,
}

impl FromStr for ProxyNetwork {
    type Err = IllegalProxyNetwork;

    fn from_str(text: &str) -> Result<Self, IllegalProxyNetwork> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>().map_err(|_| IllegalProxyNetwork::Form)?,
        };
        if network.trunc() != network {
            return Err(IllegalProxyNetwork::HostBits);
        }
        if network.prefix_len() == 0 {
            return Err(IllegalProxyNetwork::Everybody);
        }
        if network.addr().to_canonical() != network.addr() {
            return Err(IllegalProxyNetwork::Mapped);
        }
        Ok(Self(network))
    }
}

impl fmt::Display for ProxyNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

impl TryFrom<String> for ProxyNetwork {
    type Error = IllegalProxyNetwork;

    fn try_from(text: String) -> Result<Self, IllegalProxyNetwork> {
        text.parse()
    }
}

impl From<ProxyNetwork> for String {
    fn from(network: ProxyNetwork) -> String {
        network.to_string()
    }
}

impl JsonSchema for ProxyNetwork {
    fn schema_name() -> Cow<'static, str> {
        "ProxyNetwork".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "proxy-network",
            "description": "An address or a network: `127.0.0.1`, `10.0.0.0/8`, `fd00::/8`.",
        })
    }
}

/// Capabilities of Linux, for `cap-add` (capabilities(7)).
pub(super) const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];
