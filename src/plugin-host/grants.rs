//! Grants of a plugin, and lines of the config for missing ones.

use std::{borrow::Cow, collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use portcullis_foundation::units::Size;
use portcullis_vault::SecretRef;

/// Host functions that a plugin may use. A plugin that requires another one is not loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Grants {
    /// Write to the proxy's log. A plugin sees whole messages and can log their contents.
    pub log: bool,
    /// Read the clock.
    pub clock: bool,
    /// Get random bytes.
    pub random: bool,
    /// Store values that persist across messages and restarts of the proxy. The value is the
    /// maximum size.
    pub state: Option<Size>,
    /// Publish metrics for monitoring.
    pub metrics: bool,
    /// Send HTTP requests to these hosts: `api.example.com:443`, or `http://HOST:PORT` without TLS.
    pub http: Option<Vec<Destination>>,
    /// Read these secrets, by the names that the plugin uses.
    pub secrets: Option<BTreeMap<String, SecretRef>>,
}

/// Host that a plugin may reach: `HOST:PORT` over TLS, `http://HOST:PORT` in clear text. A suffix
/// `=ADDRESS` sets the address without DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// Name in lower case, or an address.
    pub host: String,
    pub port: u16,
    /// Whether the connection is in clear text, without TLS.
    pub clear: bool,
    /// Address set by the operator.
    pub address: Option<IpAddr>,
}

/// Text that is not a valid destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a host and a port, such as `api.example.com:443`, or with its address \
     `api.example.com:443=10.0.0.5`; `http://HOST:PORT` means without TLS, on any port except 443"
)]
pub struct IllegalDestination;

impl FromStr for Destination {
    type Err = IllegalDestination;

    fn from_str(text: &str) -> Result<Self, IllegalDestination> {
        let (text, clear) = match text.strip_prefix("http://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (named, address) = match text.split_once('=') {
            Some((named, address)) => {
                (named, Some(address.parse().map_err(|_| IllegalDestination)?))
            }
            None => (text, None),
        };
        let (host, port) = named.rsplit_once(':').ok_or(IllegalDestination)?;
        let legal = |port: &u16| *port > 0 && !(clear && *port == 443);
        let port = port.parse().ok().filter(legal).ok_or(IllegalDestination)?;
        // In the spelling of a request's URL: a host in another spelling would never match.
        let url = url::Url::parse(&format!("http://{host}/")).map_err(|_| IllegalDestination)?;
        let plain = url.path() == "/" && url.username().is_empty() && url.port().is_none();
        let read = url.host_str().filter(|read| plain && read.eq_ignore_ascii_case(host));
        let host = read.ok_or(IllegalDestination)?.to_owned();
        Ok(Self { host, port, clear, address })
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

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.clear { "http://" } else { "" };
        write!(f, "{scheme}{}:{}", self.host, self.port)?;
        self.address.map_or(Ok(()), |address| write!(f, "={address}"))
    }
}

impl Destination {
    /// Host in the notation of policies: an address without brackets.
    pub fn name(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// Whether it is this host, port and protocol.
    pub fn is(&self, host: &str, port: u16, clear: bool) -> bool {
        self.host == host && self.port == port && self.clear == clear
    }

    /// Whether it is the same destination, ignoring the address.
    pub fn is_same(&self, other: &Self) -> bool {
        self.is(&other.host, other.port, other.clear)
    }
}

impl JsonSchema for Destination {
    fn schema_name() -> Cow<'static, str> {
        "Destination".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "destination",
            "description": "Host and port, `api.example.com:443`, or with an address, \
                            `api.example.com:443=10.0.0.5`. The connection uses TLS, or HTTP in \
                            clear text with the prefix `http://`. A name that resolves to a \
                            private network is refused unless the entry has its address.",
        })
    }
}

/// Host function: an interface of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    Log,
    Clock,
    Random,
    State,
    Metrics,
    Http,
    Secrets,
}

impl Function {
    const ALL: [Self; 7] = [
        Self::Log,
        Self::Clock,
        Self::Random,
        Self::State,
        Self::Metrics,
        Self::Http,
        Self::Secrets,
    ];

    /// Name of the interface, of the config's key and in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Clock => "clock",
            Self::Random => "random",
            Self::State => "state",
            Self::Metrics => "metrics",
            Self::Http => "http",
            Self::Secrets => "secrets",
        }
    }

    /// Function that a component imports with that name, in any supported version.
    pub fn imported(name: &str) -> Option<Self> {
        let (name, version) = name.strip_prefix("portcullis:interceptor/")?.split_once('@')?;
        let (minor, _) = version.rsplit_once('.')?;
        Self::ALL.into_iter().find(|function| minor == "0.1" && function.as_str() == name)
    }
}

impl Grants {
    /// All granted functions.
    pub fn functions(&self) -> Vec<Function> {
        Function::ALL.into_iter().filter(|function| self.has(*function)).collect()
    }

    fn has(&self, function: Function) -> bool {
        match function {
            Function::Log => self.log,
            Function::Clock => self.clock,
            Function::Random => self.random,
            Function::State => self.state.is_some(),
            Function::Metrics => self.metrics,
            Function::Http => self.http.is_some(),
            Function::Secrets => self.secrets.is_some(),
        }
    }

    /// All granted hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Destination> {
        self.http.iter().flatten()
    }

    /// Requested grants that are missing.
    pub fn missing(&self, requested: &RequestedGrants<'_>) -> Option<Missing> {
        let wanted = |function: &Function| requested.functions.contains(function);
        let functions = Function::ALL.into_iter().filter(|one| wanted(one) && !self.has(*one));
        let hosts = requested
            .hosts
            .iter()
            .filter(|host| !self.hosts().any(|granted| granted.is_same(host)));
        let secrets = requested.secrets.iter().filter(|name| {
            !self.secrets.as_ref().is_some_and(|granted| granted.contains_key(*name))
        });
        let missing = Missing {
            functions: functions.collect(),
            hosts: hosts.cloned().collect(),
            secrets: secrets.cloned().collect(),
            some_hosts: self.hosts().cloned().collect(),
            some_secrets: self.secrets.as_ref().is_some_and(|granted| !granted.is_empty()),
            table: *self != Self::default(),
        };
        let none =
            missing.functions.is_empty() && missing.hosts.is_empty() && missing.secrets.is_empty();
        (!none).then_some(missing)
    }
}

/// Requested grants of a plugin, from its imports and its manifest.
pub struct RequestedGrants<'a> {
    pub functions: &'a [Function],
    pub hosts: &'a [Destination],
    pub secrets: &'a [String],
}

/// Missing grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    functions: Vec<Function>,
    hosts: Vec<Destination>,
    secrets: Vec<String>,
    /// Granted hosts.
    some_hosts: Vec<Destination>,
    some_secrets: bool,
    table: bool,
}

impl Missing {
    /// Description for a sentence.
    pub fn what(&self) -> String {
        let functions = self.functions.iter().map(|function| format!("`{}`", function.as_str()));
        let hosts = self.hosts.iter().map(|host| format!("the host `{host}`"));
        let secrets = self.secrets.iter().map(|name| format!("the secret `{name}`"));
        functions.chain(hosts).chain(secrets).collect::<Vec<_>>().join(", ")
    }

    /// Lines of the config that would grant it.
    pub fn lines(&self) -> String {
        let mut lines = Vec::new();
        for function in &self.functions {
            match function {
                Function::State => lines.push("state = \"1MiB\"".to_owned()),
                // They have separate lines below, if the manifest names any.
                Function::Http if !self.hosts.is_empty() => {}
                Function::Secrets if !self.secrets.is_empty() => {}
                Function::Http => lines.push("http = []".to_owned()),
                Function::Secrets => lines.push("secrets = {}".to_owned()),
                other => lines.push(format!("{} = true", other.as_str())),
            }
        }
        if !self.hosts.is_empty() {
            let all = self.some_hosts.iter().chain(&self.hosts);
            let all: Vec<_> = all.map(|host| format!("\"{host}\"")).collect();
            lines.push(format!("http = [{}]", all.join(", ")));
        }
        if !self.secrets.is_empty() {
            // Existing grants are not repeated, because they could contain a value in place of a
            // reference.
            let all = self.secrets.iter();
            let all: Vec<_> = all
                .map(|name| format!("{name} = {{ from = \"env:{}\" }}", name.replace('-', "_")))
                .collect();
            lines.push(match self.some_secrets {
                true => format!("secrets = {{ …, {} }}", all.join(", ")),
                false => format!("secrets = {{ {} }}", all.join(", ")),
            });
        }
        lines.join("\n")
    }

    /// Where to write the lines.
    pub fn instruction(&self) -> &'static str {
        match self.table {
            true => "write into its `[interceptors.grants]`",
            false => "write under its entry\n[interceptors.grants]",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_normalized_like_request_urls() {
        for (text, host, port, clear) in [
            ("api.example.com:443", "api.example.com", 443, false),
            ("API.example.com:80", "api.example.com", 80, false),
            ("10.0.0.5:8080", "10.0.0.5", 8080, false),
            ("[::1]:1", "[::1]", 1, false),
            ("a:1=10.0.0.5", "a", 1, false),
            ("http://a:80", "a", 80, true),
            ("http://a:1=10.0.0.5", "a", 1, true),
        ] {
            let read: Destination = text.parse().unwrap();
            assert!(read.is(host, port, clear), "{text}: {read:?}");
            assert_eq!(read.to_string().parse(), Ok(read));
        }
        for text in [
            "",
            "a",
            "a:",
            "a:0",
            "a:70000",
            ":1",
            "a/b:1",
            "u@a:1",
            "a:1=b",
            "0x7f.1:1",
            "https://a:1",
            "http://a:443",
            "http://a",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn imports_of_the_contract_are_recognized() {
        assert_eq!(Function::imported("portcullis:interceptor/log@0.1.7"), Some(Function::Log));
        for name in [
            "portcullis:interceptor/log@0.2.0",
            "portcullis:interceptor/files@0.1.0",
            "portcullis:interceptor/log",
            "wasi:http/outgoing-handler@0.1.0",
            "log",
        ] {
            assert_eq!(Function::imported(name), None, "{name}");
        }
    }

    #[test]
    fn printed_lines_grant_what_is_missing() {
        let hosts = ["a.example:443".parse().unwrap(), "b.example:80".parse().unwrap()];
        let secrets = ["TOKEN".to_owned()];
        let requested =
            RequestedGrants { functions: &Function::ALL, hosts: &hosts, secrets: &secrets };
        let missing = Grants::default().missing(&requested).unwrap();
        let granted: Grants = toml::from_str(&missing.lines()).unwrap();
        assert_eq!(granted.missing(&requested), None);
        assert_eq!(granted.functions(), Function::ALL);

        let some = Grants { http: Some(vec![hosts[0].clone()]), ..granted.clone() };
        let missing = some.missing(&requested).unwrap();
        assert_eq!(missing.what(), "the host `b.example:80`");
        let more: Grants = toml::from_str(&missing.lines()).unwrap();
        assert_eq!(Grants { http: more.http, ..some }.missing(&requested), None);
    }
}
