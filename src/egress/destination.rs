//! Destinations in the config: hosts, ports and protocols.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Host: a name in lower case without the root's dot, or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

/// Text that is not a valid host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is neither the name of a host nor an address")]
pub struct IllegalHost;

impl FromStr for Host {
    type Err = IllegalHost;

    /// Parses names by the rules of DNS, and addresses in their usual notation. `127.1`, `0x7f.1`
    /// and `2130706433`, which programs read differently, are refused.
    fn from_str(text: &str) -> Result<Self, IllegalHost> {
        if let Some(inner) = text.strip_prefix('[') {
            let v6 = inner.strip_suffix(']').and_then(|v6| v6.parse::<Ipv6Addr>().ok());
            return v6.map(|v6| v6.into()).map(Self::of).ok_or(IllegalHost);
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::of(address));
        }
        let legal = |label: &str| {
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len())
                && label.bytes().all(is_legal)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = text.rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.get(..2).is_some_and(|head| head.eq_ignore_ascii_case("0x"));
        if text.len() > 253 || number || !text.split('.').all(legal) {
            return Err(IllegalHost);
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl Host {
    /// An address; an IPv4-mapped IPv6 address becomes its IPv4 address.
    pub fn of(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }

    /// Notation of policies: an address without brackets.
    pub fn plain(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Address(address) => address.to_string(),
        }
    }
}

/// Notation of URLs: an IPv6 address in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(v4)) => v4.fmt(f),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
        }
    }
}

/// Hosts that an entry matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pattern {
    /// Exactly this host.
    One(Host),
    /// `*.example.com`: all names below this one, not the name itself.
    Below(String),
}

impl Pattern {
    /// Whether a host matches.
    pub fn holds(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::One(one), host) => one == host,
            (Self::Below(top), Host::Name(name)) => name
                .strip_suffix(top.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(host) => host.fmt(f),
            Self::Below(top) => write!(f, "*.{top}"),
        }
    }
}

/// Protocol of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// TLS from the first byte, with the name of the host.
    Tls,
    /// HTTP in clear text.
    Http,
    /// Any protocol. A connection that begins like TLS is checked as TLS.
    Tcp,
}

/// Destination that a program may reach: `api.example.com:443`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    pub host: Pattern,
    pub port: u16,
    pub wire: Wire,
    /// Address set by the operator. May be in a private network.
    pub address: Option<IpAddr>,
}

/// Text that is not a valid destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalDestination {
    #[error(
        "write a host and a port, such as `api.example.com:443` for TLS, `http://example.com:80` \
         for plain HTTP, `tcp://db.example.com:5432` for other protocols, or, with an address \
         of a private network `git.example.com:443=10.0.0.5`"
    )]
    Shape,
    #[error("`HOST:80` means TLS: write `http://HOST:80` for plain HTTP")]
    Port80,
    #[error("port 443 is for TLS: write `HOST:443`")]
    Port443,
    #[error("a `*.` must be followed by at least two labels, such as `*.example.com`")]
    Wildcard,
    #[error("`*.` cannot have an address, nor be used with `tcp://`, which names no host")]
    WildcardWith,
}

impl FromStr for Destination {
    type Err = IllegalDestination;

    fn from_str(text: &str) -> Result<Self, IllegalDestination> {
        use IllegalDestination as Illegal;
        let (place, address) = match text.split_once('=') {
            Some((place, address)) => {
                let address: IpAddr = address.parse().map_err(|_| Illegal::Shape)?;
                (place, Some(address.to_canonical()))
            }
            None => (text, None),
        };
        let (scheme, place) = match place.split_once("://") {
            Some((scheme, place)) => (Some(scheme), place),
            None => (None, place),
        };
        let (wire, usual) = match scheme {
            None | Some("tls") => (Wire::Tls, None),
            Some("https") => (Wire::Tls, Some(443)),
            Some("http") => (Wire::Http, Some(80)),
            Some("tcp") => (Wire::Tcp, None),
            Some(_) => return Err(Illegal::Shape),
        };
        let ported = place.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
        let (host, port) = match (ported, usual) {
            (Some((host, port)), _) => {
                let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|port| digits && *port > 0);
                (host, port.ok_or(Illegal::Shape)?)
            }
            (None, Some(usual)) => (place, usual),
            (None, None) => return Err(Illegal::Shape),
        };
        let host = match host.strip_prefix("*.") {
            Some(top) => match top.parse() {
                Ok(Host::Name(top)) if top.contains('.') => Pattern::Below(top),
                _ => return Err(Illegal::Wildcard),
            },
            None if host.contains('*') => return Err(Illegal::Wildcard),
            // A bare IPv6 address is ambiguous: its last group could be the port.
            None if host.contains(':') && !host.starts_with('[') => return Err(Illegal::Shape),
            None => Pattern::One(host.parse().map_err(|_| Illegal::Shape)?),
        };
        match (&host, wire, port) {
            (_, Wire::Tls, 80) => return Err(Illegal::Port80),
            (_, Wire::Http | Wire::Tcp, 443) => return Err(Illegal::Port443),
            (Pattern::Below(_), Wire::Tcp, _) => return Err(Illegal::WildcardWith),
            (Pattern::Below(_), ..) if address.is_some() => return Err(Illegal::WildcardWith),
            _ => {}
        }
        Ok(Self { host, port, wire, address })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.wire {
            Wire::Tls => "",
            Wire::Http => "http://",
            Wire::Tcp => "tcp://",
        };
        write!(f, "{scheme}{}:{}", self.host, self.port)?;
        self.address.map_or(Ok(()), |address| write!(f, "={address}"))
    }
}

impl TryFrom<String> for Destination {
    type Error = IllegalDestination;

    fn try_from(text: String) -> Result<Self, IllegalDestination> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl JsonSchema for Destination {
    fn schema_name() -> Cow<'static, str> {
        "EgressDestination".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "egress-destination",
            "description": "`api.example.com:443` for TLS, `http://example.com:80` for HTTP in clear \
                            text, `tcp://db.example.com:5432` for anything else; `*.example.com:443` \
                            for all hosts below a name; `git.example.com:443=10.0.0.5` with the \
                            address, which may then be one of a private network.",
        })
    }
}

/// All destinations of a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations(Vec<Destination>);

/// Error: two entries match the same hosts and port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` and `{1}` match the same host and port")]
pub struct DuplicateDestination(pub Destination, pub Destination);

impl Destinations {
    /// Destinations from these entries.
    ///
    /// # Errors
    /// If two of them match the same, because it would not be clear which one counts.
    pub fn new(all: Vec<Destination>) -> Result<Self, DuplicateDestination> {
        for (nth, one) in all.iter().enumerate() {
            let same = |other: &&Destination| one.host == other.host && one.port == other.port;
            if let Some(other) = all.iter().skip(nth + 1).find(same) {
                return Err(DuplicateDestination(one.clone(), other.clone()));
            }
        }
        Ok(Self(all))
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &Destination> {
        self.0.iter()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Entry for a host and port: the one with this host, or the narrowest pattern.
    pub fn find(&self, host: &Host, port: u16) -> Option<&Destination> {
        let breadth = |one: &&Destination| match &one.host {
            Pattern::One(_) => 0,
            Pattern::Below(top) => usize::MAX - top.len(),
        };
        self.0.iter().filter(|one| one.port == port && one.host.holds(host)).min_by_key(breadth)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_parsed_or_refused() {
        for (text, read) in [
            ("Api.GitHub.com", "api.github.com"),
            ("api.github.com.", "api.github.com"),
            ("db", "db"),
            ("a_b.x", "a_b.x"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]", "[::1]"),
            ("::1", "[::1]"),
            ("[::ffff:10.0.0.1]", "10.0.0.1"),
            ("1.2.3.4.example", "1.2.3.4.example"),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), read, "{text}");
        }
        let long = "a.".repeat(128);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a/b",
            "a%2eb",
            "a:1",
            "u@a",
            "127.1",
            "0x7f.1",
            "0177.0.0.1",
            "0x7f000001",
            "2130706433",
            "1.2.3.256",
            "[::1",
            "::1]",
            "[1.2.3.4]",
            "fe80::1%lo",
            "[fe80::1%25lo]",
            "ä.example",
            "a\0b",
            "a\r\nb",
            "*.a",
            &long,
        ] {
            assert_eq!(text.parse::<Host>(), Err(IllegalHost), "{text:?}");
        }
    }

    #[test]
    fn destinations_are_parsed_or_refused() {
        for (text, shown) in [
            ("api.github.com:443", "api.github.com:443"),
            ("https://api.github.com", "api.github.com:443"),
            ("tls://a.example:8443", "a.example:8443"),
            ("http://a.example", "http://a.example:80"),
            ("http://a.example:8080", "http://a.example:8080"),
            ("tcp://db:5432=10.0.0.5", "tcp://db:5432=10.0.0.5"),
            ("*.Example.com:443", "*.example.com:443"),
            ("[2001:4860::1]:443", "[2001:4860::1]:443"),
            ("https://[2001:4860::1]", "[2001:4860::1]:443"),
            ("a:443=fd00::1", "a:443=fd00::1"),
        ] {
            let read: Destination = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(read.to_string(), shown);
            assert_eq!(shown.parse(), Ok(read));
        }
        for text in [
            "",
            "a",
            ":443",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:443=",
            "a:443=b",
            "ftp://a:21",
            "a/b:1",
            "u@a:443",
            "::1:443",
            "a:80",
            "http://a:443",
            "tcp://a:443",
            "*:443",
            "*.com:443",
            "a.*.com:443",
            "*.1.2.3.4:443",
            "tcp://*.a.b:1",
            "*.a.b:443=10.0.0.1",
            "https://a/",
            "http://a?b",
            "a:443 ",
            "*.*.a.b:443",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn narrowest_entry_counts() {
        let all =
            ["*.b.example:443", "*.a.b.example:443", "a.b.example:443", "http://a.b.example:80"];
        let all: Vec<Destination> = all.iter().map(|text| text.parse().unwrap()).collect();
        let all = Destinations::new(all).unwrap();
        for (host, port, found) in [
            ("a.b.example", 443, Some("a.b.example:443")),
            ("x.a.b.example", 443, Some("*.a.b.example:443")),
            ("x.y.a.b.example", 443, Some("*.a.b.example:443")),
            ("c.b.example", 443, Some("*.b.example:443")),
            ("a.b.example", 80, Some("http://a.b.example:80")),
            ("b.example", 443, None),
            ("ab.example", 443, None),
            ("xb.example", 443, None),
            ("c.b.example", 80, None),
            ("1.1.1.1", 443, None),
        ] {
            let found_one = all.find(&host.parse().unwrap(), port).map(ToString::to_string);
            assert_eq!(found_one.as_deref(), found, "{host}:{port}");
        }
        let twice = ["a:8080", "http://a:8080"].map(|text| text.parse().unwrap());
        assert!(Destinations::new(twice.into()).is_err());
    }

    proptest! {
        #[test]
        fn destinations_round_trip(text in "[a-zA-Z0-9.:*/=_\\[\\]-]{0,40}") {
            if let Ok(read) = text.parse::<Destination>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
            if let Ok(read) = text.parse::<Host>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }

        #[test]
        fn arbitrary_text_causes_no_panic(text in any::<String>()) {
            let _ = text.parse::<Destination>();
            let _ = text.parse::<Host>();
        }
    }
}
