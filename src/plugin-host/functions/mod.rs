//! Host functions of plugins, their shared state, and the services of the proxy behind them.
//! Functions without a grant are not imported, or the plugin is not loaded; they are not checked
//! again here.

pub mod host_services;
pub mod http;
mod http_host;
pub mod shared;
mod state;

pub use state::{Broken, States, Values};

use super::{
    bindings::portcullis::interceptor::{
        clock::Host as Clock,
        log::{Host as Log, Level},
        metrics::Host as Metrics,
        random::Host as Random,
        secrets::Host as Secrets,
        state::{Error as StateError, Host as State},
    },
    guest::Guest,
    output::{excerpt, is_name},
};

/// Limit of the log lines for one message.
const MAX_LOG_LINES: u32 = 8;
/// Limit of one log line in bytes.
const MAX_LOG_BYTES: usize = 256;
/// Limit of the counters of one plugin.
const MAX_COUNTERS: usize = 32;
/// Limit of random bytes for one call.
const MAX_RANDOM_BYTES: u32 = 4096;

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
        self.shared.services.log(&self.shared.entry, level, &line);
    }
}

impl Clock for Guest {
    fn now(&mut self) -> u64 {
        self.shared.services.now()
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
        if !self.shared.services.random(&mut bytes) {
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
            let mut counters = shared.counters.lock();
            if !counters.contains(name.as_str()) {
                if counters.len() >= MAX_COUNTERS {
                    return;
                }
                counters.insert(name.as_str().into());
            }
        }
        shared.services.count(&shared.entry, &name, by);
    }
}

impl Secrets for Guest {
    fn get(&mut self, name: String) -> Option<String> {
        self.shared.secrets.get(&name).map(|secret| secret.expose().to_owned())
    }
}

impl Guest {
    fn values(&self) -> Result<Values, StateError> {
        self.shared.state.clone().ok_or(StateError::Unavailable)
    }
}

impl State for Guest {
    fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, StateError> {
        self.values()?.get(&key)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), StateError> {
        self.values()?.set(&key, Some(&value))
    }

    fn delete(&mut self, key: String) -> Result<(), StateError> {
        self.values()?.set(&key, None)
    }

    fn add(&mut self, key: String, delta: i64) -> Result<i64, StateError> {
        self.values()?.add(&key, delta)
    }

    fn swap(
        &mut self,
        key: String,
        old: Option<Vec<u8>>,
        new: Option<Vec<u8>>,
    ) -> Result<bool, StateError> {
        self.values()?.swap(&key, old.as_deref(), new.as_deref())
    }

    fn keys(&mut self, prefix: String, after: Option<String>) -> Result<Vec<String>, StateError> {
        self.values()?.keys(&prefix, after.as_deref())
    }
}
