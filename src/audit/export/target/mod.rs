//! Targets of streams: `Target` is the configured address, `Sink` delivers to it.

mod file;
mod http;
mod postgres;
mod syslog;
mod tls;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use reqwest::Url;

use super::{Format, Item, Origin};
use portcullis_vault::Secret;
#[cfg(test)]
pub(super) use postgres::table;

/// Timeout of one step of a delivery: a connection, a request, a statement.
const PATIENCE: Duration = Duration::from_secs(30);

/// Target of a stream.
#[derive(Clone)]
pub enum Target {
    /// File to append to.
    File(PathBuf),
    /// The proxy's own standard output.
    Stdout,
    /// HTTP endpoint that accepts `POST`.
    Http(Url),
    /// OTLP endpoint over HTTP.
    Otlp(Url),
    /// Octet-counted messages (RFC 6587, section 3.4.1), in plain text or over TLS (RFC 5425).
    Stream { host: String, port: u16, tls: bool },
    /// One message per datagram (RFC 5426).
    Udp { host: String, port: u16 },
    /// One message per datagram, to a local socket such as `/dev/log`.
    Unix(PathBuf),
    /// Table of a PostgreSQL database.
    Postgres(Arc<postgres::Settings>),
}

/// Text that is not a target. The message omits the text: it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(pub String);

const FORMS: &str = "write `file:PATH`, `stdout`, `https://…`, `otlp+https://…`, \
                     `syslog+tls://HOST:PORT`, `syslog+tcp://HOST:PORT`, `syslog+udp://HOST:PORT`, \
                     `unix:PATH` or `postgres://…`";

impl Target {
    /// Parses a target. Relative paths are resolved against `base`.
    ///
    /// # Errors
    /// [`Illegal`], which does not contain the text.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Illegal> {
        let illegal = |why: &str| Illegal(why.to_owned());
        if text == "stdout" {
            return Ok(Self::Stdout);
        }
        let path = |path: &str| match path {
            "" => Err(illegal("this names no file")),
            path if path.contains('\0') => Err(illegal("a path holds no NUL")),
            path => Ok(base.join(path)),
        };
        if let Some(rest) = text.strip_prefix("file:") {
            return path(rest.strip_prefix("//").unwrap_or(rest)).map(Self::File);
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            return path(rest.strip_prefix("//").unwrap_or(rest)).map(Self::Unix);
        }
        if text.starts_with("postgres:") || text.starts_with("postgresql:") {
            return postgres::Settings::parse(text).map(|s| Self::Postgres(Arc::new(s)));
        }
        let (otlp, rest) = match text.strip_prefix("otlp+") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let url =
            Url::parse(rest).map_err(|_| illegal(&format!("this is not a target: {FORMS}")))?;
        if url.fragment().is_some() {
            return Err(illegal("a target has no fragment: remove `#` and what follows"));
        }
        match (url.scheme(), otlp) {
            ("http" | "https", false) => Ok(Self::Http(url)),
            ("http" | "https", true) => Ok(Self::Otlp(with_path(url))),
            (scheme @ ("syslog+tcp" | "syslog+tls" | "syslog+udp"), false) => {
                let host = url.host_str().filter(|host| !host.is_empty());
                let host = host.ok_or_else(|| illegal("this names no host"))?;
                let host = host.trim_matches(['[', ']']).to_owned();
                if !matches!(url.path(), "" | "/") || url.query().is_some() || has_user(&url) {
                    return Err(illegal("syslog takes a host and a port, and nothing else"));
                }
                Ok(match scheme {
                    "syslog+udp" => Self::Udp { host, port: url.port().unwrap_or(514) },
                    "syslog+tls" => {
                        Self::Stream { host, port: url.port().unwrap_or(6514), tls: true }
                    }
                    _ => Self::Stream { host, port: url.port().unwrap_or(514), tls: false },
                })
            }
            _ => Err(illegal(&format!("this is not a target: {FORMS}"))),
        }
    }

    /// Formats that the target accepts; the first is its default.
    pub fn formats(&self) -> &'static [Format] {
        match self {
            Self::File(_) | Self::Stdout => &[
                Format::Jsonl,
                Format::Csv,
                Format::Ocsf,
                Format::Cef,
                Format::Syslog,
                Format::Otlp,
            ],
            Self::Http(_) => &[Format::Jsonl, Format::Csv, Format::Ocsf, Format::Cef, Format::Otlp],
            Self::Otlp(_) => &[Format::Otlp],
            Self::Stream { .. } | Self::Udp { .. } | Self::Unix(_) => {
                &[Format::Syslog, Format::Cef, Format::Ocsf]
            }
            // Always columns.
            Self::Postgres(_) => &[],
        }
    }

    /// Whether records cross a network without encryption.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Http(url) | Self::Otlp(url) => {
                url.scheme() == "http" && !url.host_str().is_some_and(is_loopback)
            }
            Self::Stream { host, tls: false, .. } | Self::Udp { host, .. } => !is_loopback(host),
            Self::Postgres(settings) => settings.is_open(),
            _ => false,
        }
    }

    /// Whether the target contains credentials, which belong into a secret reference.
    pub fn has_credentials(&self) -> bool {
        match self {
            Self::Http(url) | Self::Otlp(url) => has_user(url),
            Self::Postgres(settings) => settings.has_password(),
            _ => false,
        }
    }

    /// Whether the target accepts headers.
    pub fn takes_headers(&self) -> bool {
        matches!(self, Self::Http(_) | Self::Otlp(_))
    }

    /// Whether the target accepts its own certificate authorities.
    pub fn takes_ca(&self) -> bool {
        match self {
            Self::Http(url) | Self::Otlp(url) => url.scheme() == "https",
            Self::Stream { tls, .. } => *tls,
            Self::Postgres(_) => true,
            _ => false,
        }
    }

    /// Sink for this target.
    ///
    /// # Errors
    /// If headers or certificates cannot be used. Does not connect yet.
    pub(super) fn sink(
        &self,
        format: Option<Format>,
        origin: Origin,
        headers: &[(String, Secret)],
        ca_file: Option<&Path>,
    ) -> Result<Box<dyn Sink>, Illegal> {
        let format = format.or(self.formats().first().copied()).unwrap_or(Format::Jsonl);
        Ok(match self {
            Self::File(path) => Box::new(file::Appended::new(path.clone(), format, origin)),
            Self::Stdout => Box::new(file::Stdout::new(format, origin)),
            Self::Http(url) | Self::Otlp(url) => {
                Box::new(http::Endpoint::new(url.clone(), format, origin, headers, ca_file)?)
            }
            Self::Stream { host, port, tls } => {
                let tls = if *tls { Some(tls::client(ca_file)?) } else { None };
                Box::new(syslog::Stream::new(host.clone(), *port, tls, format, origin))
            }
            Self::Udp { host, port } => {
                Box::new(syslog::Udp::new(host.clone(), *port, format, origin))
            }
            Self::Unix(path) => Box::new(syslog::Unix::new(path.clone(), format, origin)),
            Self::Postgres(settings) => {
                Box::new(postgres::Table::new(settings.clone(), tls::client(ca_file)?, origin))
            }
        })
    }
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Adds the default path of OTLP logs to a URL without a path.
fn with_path(mut url: Url) -> Url {
    if matches!(url.path(), "" | "/") {
        url.set_path("/v1/logs");
    }
    url
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Target for logs and messages: without user, password, path and query, which can be
/// credentials.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |f: &mut fmt::Formatter<'_>, prefix: &str, url: &Url| {
            write!(f, "{prefix}{}", url.origin().ascii_serialization())
        };
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Stdout => f.write_str("stdout"),
            Self::Http(to) => url(f, "", to),
            Self::Otlp(to) => url(f, "otlp+", to),
            Self::Stream { host, port, tls } => {
                let scheme = if *tls { "syslog+tls" } else { "syslog+tcp" };
                write!(f, "{scheme}://{}:{port}", bracketed(host))
            }
            Self::Udp { host, port } => write!(f, "syslog+udp://{}:{port}", bracketed(host)),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Postgres(settings) => write!(f, "postgres://{}", settings.destination()),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Reason why a batch was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Undelivered {
    /// A later attempt may succeed.
    #[error("{0}")]
    Failed(String),
    /// An attempt may succeed after `wait`.
    #[error("{what}")]
    Later { what: String, wait: Duration },
    /// An attempt with fewer records may succeed.
    #[error("{0}")]
    TooLarge(String),
}

impl From<super::Fault> for Undelivered {
    fn from(fault: super::Fault) -> Self {
        Self::Failed(fault.0)
    }
}

/// Delivers batches. Connects on first use, and again after a failure.
#[async_trait]
pub(super) trait Sink: Send {
    /// Delivers all items. `Ok` is the target's acknowledgement, or the closest equivalent that it
    /// has. After an error, any part of the batch may have arrived.
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered>;
}

/// Messages of an error and its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Applies the timeout to one step of a delivery.
async fn in_time<T>(
    what: &str,
    step: impl Future<Output = Result<T, Undelivered>>,
) -> Result<T, Undelivered> {
    tokio::time::timeout(PATIENCE, step)
        .await
        .unwrap_or_else(|_| Err(Undelivered::Failed(format!("{what} took more than {PATIENCE:?}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, Illegal> {
        Target::parse(text, Path::new("/base"))
    }

    #[test]
    fn displayed_targets_contain_no_credentials() {
        let password = ["hunter", "2"].concat();
        for (text, shown) in [
            ("stdout", "stdout"),
            ("file:log/a.jsonl", "file:/base/log/a.jsonl"),
            ("file:///var/a.jsonl", "file:/var/a.jsonl"),
            ("unix:/dev/log", "unix:/dev/log"),
            ("https://siem.example/in/PASSWORD?key=PASSWORD", "https://siem.example"),
            ("https://me:PASSWORD@siem.example:8443/", "https://siem.example:8443"),
            ("otlp+http://127.0.0.1:4318", "otlp+http://127.0.0.1:4318"),
            ("syslog+tcp://loghost", "syslog+tcp://loghost:514"),
            ("syslog+tls://loghost", "syslog+tls://loghost:6514"),
            ("syslog+udp://[::1]:5514", "syslog+udp://[::1]:5514"),
            ("postgres://me:PASSWORD@db.example/audit", "postgres://db.example:5432/audit"),
            (
                "postgres://me@/audit?host=/run/pg&password=PASSWORD",
                "postgres:///run/pg:5432/audit",
            ),
        ] {
            let target = parse(&text.replace("PASSWORD", &password)).unwrap();
            assert_eq!(target.to_string(), shown, "{text}");
            assert_eq!(format!("{target:?}"), format!("Target({shown})"));
        }
    }

    #[test]
    fn errors_do_not_repeat_invalid_targets() {
        let password = ["hunter", "2"].concat();
        for text in [
            "",
            "PASSWORD",
            "ftp://me:PASSWORD@x",
            "file:",
            "syslog+tcp://me:PASSWORD@host",
            "syslog+tcp://host/PASSWORD",
            "postgres://me:PASSWORD@host:port/x",
            "https://",
            "otlp+syslog+tcp://PASSWORD",
            "https://x/#PASSWORD",
            "unix:",
        ] {
            let error = parse(&text.replace("PASSWORD", &password)).unwrap_err();
            assert!(!error.to_string().contains(&password), "{text}: {error}");
        }
    }

    #[test]
    fn unencrypted_remote_targets_are_detected() {
        for (text, open) in [
            ("https://siem.example", false),
            ("http://siem.example", true),
            ("http://[::1]:80", false),
            ("otlp+http://localhost:4318", false),
            ("syslog+tcp://loghost", true),
            ("syslog+tcp://127.0.0.1", false),
            ("syslog+udp://loghost", true),
            ("syslog+tls://loghost", false),
            ("postgres://me@db.example/audit", false),
            ("postgres://me@db.example/audit?sslmode=disable", true),
            ("postgres://me@db.example/audit?sslmode=prefer", true),
            ("postgres://me@localhost/audit?sslmode=disable", false),
            ("postgres://me@%2Frun%2Fpg/audit", false),
        ] {
            assert_eq!(parse(text).unwrap().is_open(), open, "{text}");
        }
    }
}
