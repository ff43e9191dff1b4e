//! What an instance may call, each function in a file of its own. What is not granted is not
//! imported, or the plugin is not loaded; none of this asks again.

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

/// Log lines that one message may cause.
const LOG_LINES: u32 = 8;
/// Bytes of one log line.
const LOG_BYTES: usize = 256;
/// Counters of one plugin.
const COUNTERS: usize = 32;
/// Random bytes at once.
const RANDOM_BYTES: u32 = 4096;

/// What plugins need of the house around them.
pub trait HostServices: Send + Sync {
    /// Adds to a counter of a plugin. Names are few.
    fn count(&self, plugin: &str, name: &str, by: u64);

    /// Whether a plugin may speak to a host now.
    ///
    /// # Errors
    /// Why it may not, for the plugin.
    fn may_reach(&self, plugin: &str, host: &str, port: u16) -> Result<(), String>;

    /// Milliseconds since 1970.
    fn now(&self) -> u64 {
        u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
    }

    /// Fills unpredictable bytes, if the system has some.
    fn random(&self, bytes: &mut [u8]) -> bool {
        getrandom::fill(bytes).is_ok()
    }

    /// Writes a line of a plugin's, which is safe to print, to the operator's log.
    fn log(&self, plugin: &str, level: tracing::Level, line: &str) {
        match level {
            tracing::Level::DEBUG => tracing::debug!(interceptor = %plugin, "{line}"),
            tracing::Level::WARN => tracing::warn!(interceptor = %plugin, "{line}"),
            tracing::Level::ERROR => tracing::error!(interceptor = %plugin, "{line}"),
            _ => tracing::info!(interceptor = %plugin, "{line}"),
        }
    }

    /// What is answered in place of a host, where nobody is to be asked.
    fn answer(&self, _url: &str) -> Option<Result<StubResponse, String>> {
        None
    }

    /// A plugin sent these requests for a message, and came to no verdict on it: nobody waits for
    /// one any more.
    fn withdrawn(&self, plugin: &str, exchange: &str, requests: Vec<String>) {
        tracing::warn!(
            interceptor = %plugin, decision = %exchange, requests = %requests.join(", "),
            "a message was withdrawn that the plugin had sent requests for"
        );
    }

    /// The number of caller and server pairs for which a plugin's circuit is open; 0: it works.
    fn let_alone(&self, plugin: &str, between: usize) {
        let _ = (plugin, between);
    }
}

/// An HTTP answer of nobody's.
#[derive(Debug, Clone)]
pub struct StubResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Nobody counts, and nobody may go anywhere.
pub struct Nowhere;

impl HostServices for Nowhere {
    fn count(&self, _: &str, _: &str, _: u64) {}

    fn may_reach(&self, _: &str, _: &str, _: u16) -> Result<(), String> {
        Err("nothing is reached from here".into())
    }
}

/// What all instances of a plugin share, and what they are granted.
pub struct Shared {
    /// The name of the plugin's entry in the config.
    pub entry: Arc<str>,
    pub log: bool,
    pub metrics: bool,
    pub state: Option<Values>,
    pub http: Option<Client>,
    /// Whether requests are sent, and not only put on record.
    pub sends: bool,
    pub secrets: BTreeMap<String, Secret>,
    pub veil: SecretRedactor,
    pub around: Arc<dyn HostServices>,
    /// The names that it counts under.
    pub counters: Mutex<BTreeSet<Box<str>>>,
}

impl Shared {
    /// Without any grant: what `describe` sees.
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
        if self.lines > LOG_LINES {
            return;
        }
        // Before it is cut: half a secret is one too.
        self.shared.veil.cover(&mut line);
        // Control characters are escaped: a line cannot pass for another.
        let line = excerpt(&line, LOG_BYTES);
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
        if count > RANDOM_BYTES {
            wasmtime::bail!("it asked for more than {RANDOM_BYTES} random bytes at once");
        }
        let mut bytes = vec![0; count as usize];
        if !self.shared.around.random(&mut bytes) {
            wasmtime::bail!("the operating system gives no random bytes");
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
                if known.len() >= COUNTERS {
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
