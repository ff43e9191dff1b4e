//! Functions that an instance can call, one file each. Functions without a grant are not imported,
//! or the plugin is not loaded; they are not checked again here.

mod http;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

pub use http::{Client, DENIED, was_sent};
pub use state::{Broken, States, Values};

use super::{
    bindings::portcullis::interceptor::{
        clock::Host as Clock,
        log::{Host as Log, Level},
        metrics::Host as Metrics,
        random::Host as Random,
        secrets::Host as Secrets,
    },
    guest::Guest,
    output::{excerpt, is_name},
    secret_redactor::SecretRedactor,
};
use portcullis_vault::Secret;

/// Limit of the log lines for one message.
const MAX_LOG_LINES: u32 = 8;
/// Limit of one log line in bytes.
const MAX_LOG_BYTES: usize = 256;
/// Limit of the counters of one plugin.
const MAX_COUNTERS: usize = 32;
/// Limit of random bytes for one call.
const MAX_RANDOM_BYTES: u32 = 4096;

/// Services of the proxy for plugins.
pub trait HostServices: Send + Sync {
    /// Adds to a counter of a plugin. The number of names is limited.
    fn count(&self, plugin: &str, name: &str, by: u64);

    /// Whether a plugin may reach a host now.
    ///
    /// # Errors
    /// Reason for the plugin.
    fn may_reach(&self, plugin: &str, host: &str, port: u16) -> Result<(), String>;

    /// Milliseconds since 1970.
    fn now(&self) -> u64 {
        u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
    }

    /// Fills random bytes, if the system has some.
    fn random(&self, bytes: &mut [u8]) -> bool {
        getrandom::fill(bytes).is_ok()
    }

    /// Writes a printable line of a plugin to the operator's log.
    fn log(&self, plugin: &str, level: tracing::Level, line: &str) {
        match level {
            tracing::Level::DEBUG => tracing::debug!(interceptor = %plugin, "{line}"),
            tracing::Level::WARN => tracing::warn!(interceptor = %plugin, "{line}"),
            tracing::Level::ERROR => tracing::error!(interceptor = %plugin, "{line}"),
            _ => tracing::info!(interceptor = %plugin, "{line}"),
        }
    }

    /// Replacement for a host's response, in tests.
    fn answer(&self, _url: &str) -> Option<Result<StubResponse, String>> {
        None
    }

    /// Reports requests that a plugin sent for a message without reaching a verdict, because its
    /// caller stopped waiting.
    fn withdrawn(&self, plugin: &str, exchange: &str, requests: Vec<String>) {
        tracing::warn!(
            interceptor = %plugin, decision = %exchange, requests = %requests.join(", "),
            "a message was cancelled after the plugin had sent requests for it"
        );
    }

    /// Number of caller and server pairs for which a plugin's circuit is open; 0 if none.
    fn let_alone(&self, plugin: &str, between: usize) {
        let _ = (plugin, between);
    }
}

/// HTTP response without a host.
#[derive(Debug, Clone)]
pub struct StubResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Services that count nothing and permit no host.
pub struct Nowhere;

impl HostServices for Nowhere {
    fn count(&self, _: &str, _: &str, _: u64) {}

    fn may_reach(&self, _: &str, _: &str, _: u16) -> Result<(), String> {
        Err("no host is reachable here".into())
    }
}

/// State and grants that all instances of a plugin share.
pub struct Shared {
    /// Name of the plugin's entry in the config.
    pub entry: Arc<str>,
    pub log: bool,
    pub metrics: bool,
    pub state: Option<Values>,
    pub http: Option<Client>,
    /// Whether requests are sent, or only recorded.
    pub sends: bool,
    pub secrets: BTreeMap<String, Secret>,
    pub veil: SecretRedactor,
    pub around: Arc<dyn HostServices>,
    /// Names of its counters.
    pub counters: Mutex<BTreeSet<Box<str>>>,
}

impl Shared {
    /// Without grants, for `describe`.
    pub fn bare(entry: &str, around: Arc<dyn HostServices>) -> Self {
        Self {
            entry: entry.into(),
            log: false,
            metrics: false,
            state: None,
            http: None,
            sends: true,
            secrets: BTreeMap::new(),
            veil: SecretRedactor::default(),
            around,
            counters: Mutex::default(),
        }
    }
}

impl Log for Guest {
    fn log(&mut self, level: Level, mut line: String) {
        if !self.shared.log {
            return;
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > MAX_LOG_LINES {
            return;
        }
        // Before truncation, because half a secret is one too.
        self.shared.veil.cover(&mut line);
        // Control characters are escaped, so that a line cannot forge another.
        let line = excerpt(&line, MAX_LOG_BYTES);
        let level = match level {
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        self.shared.around.log(&self.shared.entry, level, &line);
    }
}

impl Clock for Guest {
    fn now(&mut self) -> u64 {
        self.shared.around.now()
    }

    fn monotonic(&mut self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Random for Guest {
    fn bytes(&mut self, count: u32) -> wasmtime::Result<Vec<u8>> {
        if count > MAX_RANDOM_BYTES {
            wasmtime::bail!("it requested more than {MAX_RANDOM_BYTES} random bytes at once");
        }
        let mut bytes = vec![0; count as usize];
        if !self.shared.around.random(&mut bytes) {
            wasmtime::bail!("the operating system provides no random bytes");
        }
        Ok(bytes)
    }
}

impl Metrics for Guest {
    fn count(&mut self, name: String, by: u64) {
        let shared = &self.shared;
        if !shared.metrics || !is_name(&name) || shared.veil.hides(&name) {
            return;
        }
        {
            let mut known = shared.counters.lock();
            if !known.contains(name.as_str()) {
                if known.len() >= MAX_COUNTERS {
                    return;
                }
                known.insert(name.as_str().into());
            }
        }
        shared.around.count(&shared.entry, &name, by);
    }
}

impl Secrets for Guest {
    fn get(&mut self, name: String) -> Option<String> {
        self.shared.secrets.get(&name).map(|secret| secret.expose().to_owned())
    }
}
