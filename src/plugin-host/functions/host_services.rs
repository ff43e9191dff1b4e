//! Services of the proxy for plugins.

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
    fn circuits_open(&self, plugin: &str, between: usize) {
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
pub struct NoServices;

impl HostServices for NoServices {
    fn count(&self, _: &str, _: &str, _: u64) {}

    fn may_reach(&self, _: &str, _: &str, _: u16) -> Result<(), String> {
        Err("no host is reachable here".into())
    }
}
