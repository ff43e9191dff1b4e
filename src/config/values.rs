//! Values with a grammar of their own.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use bytesize::ByteSize;
use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::Server;
use crate::{
    names::ClientName,
    upstream::process::Mount,
    vault::{Source, Unresolved},
};

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretRef {
    /// `env:NAME`: a variable of the proxy's own environment. `file:PATH`: the content of a file,
    /// without the line break at its end. `dotenv:PATH#NAME`: a variable of a `.env` file.
    /// `keyring:SERVICE/ACCOUNT`: an item of the desktop's keyring. `keyctl:DESCRIPTION`: a key that
    /// the kernel keeps. `docker-pass:NAME`: a secret of `docker pass`.
    /// `docker-credential:HELPER/URL`: what a credential helper has for a server.
    /// `vault:PATH#FIELD`: a field of a secret in HashiCorp Vault. `age:PATH#NAME`: a secret of an
    /// encrypted store, which `portcullis secret` keeps.
    pub from: String,
}

/// Where a secret of a server comes from, and how the server gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerSecret {
    /// A reference, as for every secret. With `by-client`: what the clients have that are not named
    /// there, and the instance that tells what the server offers. Without it, those have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by their names; the user who runs the proxy is `local:USER`.
    /// Each client then has an instance of its own, and where neither this nor `from` has a value for
    /// one, its calls are refused (`secret-missing`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
    /// How the server gets it.
    #[serde(rename = "as", default)]
    pub hand_over: HandOver,
}

/// Where a secret header comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerHeader {
    /// A reference, as for every secret. With `by-client`: what is sent for the clients that are not
    /// named there, and to learn what the server offers. Without it, nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by their names, as in `[servers.NAME.secrets.NAME]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
}

/// A secret of a server, whichever way it is handed over.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The name under which the server gets it.
    pub name: &'a str,
    /// What everybody has who is not named.
    pub from: Option<&'a str>,
    /// By the names of clients.
    pub by_client: &'a BTreeMap<String, String>,
    /// None for a header.
    pub hand_over: Option<HandOver>,
}

impl<'a> Given<'a> {
    /// The key of the server's table in which it stands.
    pub fn table(&self) -> &'static str {
        if self.hand_over.is_some() { "secrets" } else { "headers" }
    }

    /// Every reference, with the client whose own it is.
    pub fn references(self) -> impl Iterator<Item = (Option<&'a str>, &'a str)> {
        let own = self.by_client.iter().map(|(client, from)| (Some(&**client), &**from));
        self.from.map(|from| (None, from)).into_iter().chain(own)
    }
}

impl Server {
    /// The secrets that it is handed, those that are sent as headers among them.
    pub fn given(&self) -> impl Iterator<Item = Given<'_>> {
        let secrets = self.secrets.iter().map(|(name, secret)| Given {
            name,
            from: secret.from.as_deref(),
            by_client: &secret.by_client,
            hand_over: Some(secret.hand_over),
        });
        let headers = self.headers.iter().map(|(name, header)| Given {
            name,
            from: header.from.as_deref(),
            by_client: &header.by_client,
            hand_over: None,
        });
        secrets.chain(headers)
    }

    /// Whether clients have secrets of their own there, so that they may not share an instance.
    pub fn has_secrets_by_client(&self) -> bool {
        self.given().any(|given| !given.by_client.is_empty())
    }

    /// Every reference that stands in it.
    pub(super) fn references_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let secrets = self.secrets.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        let headers = self.headers.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        secrets.chain(headers).flat_map(|(from, own)| from.iter_mut().chain(own.values_mut()))
    }
}

/// Whether that can be whose secret it is: the name of a client, or `local:USER`.
pub(super) fn is_client(name: &str) -> bool {
    match name.strip_prefix("local:") {
        Some(user) => !user.is_empty() && !user.contains(|c: char| c.is_control() || c == ':'),
        None => name.parse::<ClientName>().is_ok(),
    }
}

/// How a server gets a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HandOver {
    /// As a variable of its environment, by the secret's name. What runs beside it as its user, and
    /// whoever may ask the container engine, can read it there.
    #[default]
    Env,
    /// As the file `/run/secrets/NAME`, in memory, which only the server sees. The variable
    /// `NAME_FILE` of its environment says where it is.
    File,
}

impl TryFrom<&SecretRef> for Source {
    type Error = Unresolved;

    fn try_from(reference: &SecretRef) -> Result<Self, Unresolved> {
        reference.from.parse()
    }
}

/// Whether an environment can hold a variable of that name.
pub(super) fn is_env_name(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(at, b)| b == b'_' || b.is_ascii_alphabetic() || (at > 0 && b.is_ascii_digit()))
        && !name.is_empty()
}

/// A host folder or file that a server sees: `SOURCE:TARGET`, `SOURCE:TARGET:ro` (the same) or
/// `SOURCE:TARGET:rw`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountEntry {
    /// On the host: absolute once the config is loaded, symbolic links not yet resolved.
    pub source: PathBuf,
    /// Inside: absolute.
    pub target: PathBuf,
    pub writable: bool,
}

impl MountEntry {
    /// The mount as runtimes take it.
    pub fn as_mount(&self) -> Mount {
        let Self { source, target, writable } = self.clone();
        Mount { source, target, writable }
    }
}

/// A mount that is none, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalMount {
    #[error("a mount is `SOURCE:TARGET`, with `:rw` behind it to let the server write")]
    Form,
    #[error("a mount's target is an absolute path without `..`")]
    Target,
    #[error("nothing can be mounted on `/`, `/proc`, `/sys` or `/dev`")]
    Reserved,
}

impl FromStr for MountEntry {
    type Err = IllegalMount;

    fn from_str(text: &str) -> Result<Self, IllegalMount> {
        let (rest, writable) = match text.rsplit_once(':') {
            Some((rest, "rw")) => (rest, true),
            Some((rest, "ro")) => (rest, false),
            _ => (text, false),
        };
        // The last colon parts them: a source may hold colons, a target may not.
        let (source, target) = rest.rsplit_once(':').ok_or(IllegalMount::Form)?;
        if source.is_empty() || target.is_empty() || text.contains('\0') {
            return Err(IllegalMount::Form);
        }
        let path = Path::new(target);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(IllegalMount::Target);
        }
        let reserved = ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top));
        if reserved || path == Path::new("/") {
            return Err(IllegalMount::Reserved);
        }
        // Collected from its parts: without doubled and trailing slashes and `.`.
        Ok(Self { source: source.into(), target: path.components().collect(), writable })
    }
}

impl fmt::Display for MountEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, writable } = self;
        let mode = if *writable { "rw" } else { "ro" };
        write!(f, "{}:{}:{mode}", source.display(), target.display())
    }
}

impl TryFrom<String> for MountEntry {
    type Error = IllegalMount;

    fn try_from(text: String) -> Result<Self, IllegalMount> {
        text.parse()
    }
}

impl From<MountEntry> for String {
    fn from(mount: MountEntry) -> String {
        mount.to_string()
    }
}

impl JsonSchema for MountEntry {
    fn schema_name() -> Cow<'static, str> {
        "MountEntry".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "mount",
            "description": "`SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`.",
        })
    }
}

/// A while: `90d`, `12h`, `26w`. Days have 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Age(pub SignedDuration);

/// A text that is no age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write an age in weeks, days or hours, such as `90d`: months and years differ in length")]
pub struct IllegalAge;

impl FromStr for Age {
    type Err = IllegalAge;

    fn from_str(text: &str) -> Result<Self, IllegalAge> {
        let span: Span = text.parse().map_err(|_| IllegalAge)?;
        let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| IllegalAge)?;
        if age.is_positive() { Ok(Self(age)) } else { Err(IllegalAge) }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.0.as_hours();
        if hours > 0 && hours % 24 == 0 && self.0 == SignedDuration::from_hours(hours) {
            return write!(f, "{}d", hours / 24);
        }
        write!(f, "{:#}", self.0)
    }
}

impl TryFrom<String> for Age {
    type Error = IllegalAge;

    fn try_from(text: String) -> Result<Self, IllegalAge> {
        text.parse()
    }
}

impl From<Age> for String {
    fn from(age: Age) -> String {
        age.to_string()
    }
}

impl JsonSchema for Age {
    fn schema_name() -> Cow<'static, str> {
        "Age".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "age",
            "description": "A number of weeks, days or hours: `26w`, `90d`, `12h`.",
        })
    }
}

/// Bytes: `20GiB`, `500MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// A text that is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a size with its unit, such as `20GiB` or `500MB`")]
pub struct IllegalSize;

impl FromStr for Size {
    type Err = IllegalSize;

    fn from_str(text: &str) -> Result<Self, IllegalSize> {
        let bytes = text.parse::<ByteSize>().map_err(|_| IllegalSize)?.as_u64();
        let unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
        if unit && bytes > 0 { Ok(Self(bytes)) } else { Err(IllegalSize) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that says it exactly: what is shown is read again as the same.
        let units = ["TiB", "GiB", "MiB", "KiB"];
        let sizes = units.iter().zip([40u32, 30, 20, 10]);
        for (unit, shift) in sizes {
            if self.0 >> shift > 0 && (self.0 >> shift) << shift == self.0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl TryFrom<String> for Size {
    type Error = IllegalSize;

    fn try_from(text: String) -> Result<Self, IllegalSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "size",
            "description": "A number of bytes with its unit: `20GiB`, `500MB`.",
        })
    }
}

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

/// A text that is not the network of a trusted proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalProxyNetwork {
    #[error("write an address or a network, such as `127.0.0.1`, `10.0.0.0/8` or `fd00::/8`")]
    Form,
    #[error("a network has no bits behind its prefix")]
    HostBits,
    #[error("this trusts everybody: name the addresses that your proxies connect from")]
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

/// Linux's capabilities, for `cap-add` (capabilities(7)).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes() {
        for (text, hours, shown) in [
            ("90d", 90 * 24, "90d"),
            ("26w", 26 * 7 * 24, "182d"),
            ("12h", 12, "12h"),
            ("1d 6h", 30, "30h"),
            ("7 days", 7 * 24, "7d"),
        ] {
            let age: Age = text.parse().unwrap();
            assert_eq!(age.0, SignedDuration::from_hours(hours), "{text}");
            assert_eq!(age.to_string(), shown);
            assert_eq!(shown.parse::<Age>().unwrap(), age);
        }
        for text in ["", "90", "0d", "-1d", "3 months", "1y", "soon", "99999999999999w"] {
            assert_eq!(text.parse::<Age>(), Err(IllegalAge), "{text}");
        }
        for (text, bytes, shown) in [
            ("20GiB", 20 << 30, "20GiB"),
            ("500MB", 500_000_000, "500000000B"),
            ("1.5 GiB", 3 << 29, "1536MiB"),
            ("1B", 1, "1B"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
            assert_eq!(shown.parse::<Size>().unwrap(), size);
        }
        for text in ["", "20", "0GiB", "-1GiB", "GiB", "20 parsecs"] {
            assert_eq!(text.parse::<Size>(), Err(IllegalSize), "{text}");
        }
    }

    #[test]
    fn mounts() {
        for (text, read) in [
            ("./data:/data", Ok(("./data", "/data", false))),
            ("/a:/b:ro", Ok(("/a", "/b", false))),
            ("/a:/b:rw", Ok(("/a", "/b", true))),
            ("/a:b:/c//d/", Ok(("/a:b", "/c/d", false))),
            ("", Err(IllegalMount::Form)),
            ("/a", Err(IllegalMount::Form)),
            (":/b", Err(IllegalMount::Form)),
            ("/a:", Err(IllegalMount::Form)),
            ("/a:rw", Err(IllegalMount::Form)),
            ("/a:b", Err(IllegalMount::Target)),
            ("/a:/b/../etc", Err(IllegalMount::Target)),
            ("/a:/b:RW", Err(IllegalMount::Target)),
            ("/a:/", Err(IllegalMount::Reserved)),
            ("/a:/proc/self", Err(IllegalMount::Reserved)),
        ] {
            let parsed = text.parse::<MountEntry>();
            let read = read.map(|(source, target, writable)| MountEntry {
                source: source.into(),
                target: target.into(),
                writable,
            });
            assert_eq!(parsed, read, "{text}");
        }
    }
}
