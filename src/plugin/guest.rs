//! What the host keeps for one instance: its bounds and the one function that it may call.

use std::{sync::Arc, time::Instant};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::{
    bindings::portcullis::interceptor::log::{Host as Log, Level},
    host::{Running, TABLE_ELEMENTS},
    output::excerpt,
};

/// Log lines that one message may cause.
const LOG_LINES: u32 = 8;
/// Bytes of one log line.
const LOG_BYTES: usize = 256;

/// The guest's time is over.
#[derive(Debug, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Overtime;

/// The state of one instance.
pub struct Guest {
    /// The plugin's name in log lines, where the operator lets it write some.
    pub log: Option<Arc<str>>,
    pub lines: u32,
    /// Bytes of memory that it has, and that it may have.
    pub memory: usize,
    pub memory_max: usize,
    pub tables: usize,
    /// It asked for more memory than it may have.
    pub starved: bool,
    /// When it has to be done.
    pub until: Instant,
    /// Keeps the clock going that ends it.
    pub running: Option<Running>,
}

impl Guest {
    pub fn new(log: Option<Arc<str>>, memory_max: usize, until: Instant, running: Running) -> Self {
        Self {
            log,
            lines: 0,
            memory: 0,
            memory_max,
            tables: 0,
            starved: false,
            until,
            running: Some(running),
        }
    }

    /// What happens at a tick of the clock: an end, or a chance for others.
    pub fn tick(&self, go_on: UpdateDeadline) -> wasmtime::Result<UpdateDeadline> {
        if Instant::now() >= self.until { Err(Overtime.into()) } else { Ok(go_on) }
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.memory.saturating_add(desired.saturating_sub(current));
        if all > self.memory_max {
            self.starved = true;
            return Ok(false);
        }
        self.memory = all;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.tables.saturating_add(desired.saturating_sub(current));
        if all > TABLE_ELEMENTS {
            return Ok(false);
        }
        self.tables = all;
        Ok(true)
    }
}

impl Log for Guest {
    fn log(&mut self, level: Level, line: String) {
        let Some(plugin) = &self.log else { return };
        self.lines = self.lines.saturating_add(1);
        if self.lines > LOG_LINES {
            return;
        }
        // Control characters are escaped: a line cannot pass for another.
        let line = excerpt(&line, LOG_BYTES);
        match level {
            Level::Debug => tracing::debug!(interceptor = %plugin, "{line}"),
            Level::Info => tracing::info!(interceptor = %plugin, "{line}"),
            Level::Warn => tracing::warn!(interceptor = %plugin, "{line}"),
            Level::Error => tracing::error!(interceptor = %plugin, "{line}"),
        }
    }
}
