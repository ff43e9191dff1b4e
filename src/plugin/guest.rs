//! What the host keeps for one instance: its bounds, and what it may call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::{
    functions::Shared,
    host::{Running, TABLE_ELEMENTS},
};

/// The guest's time is over.
#[derive(Debug, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Overtime;

/// What the instances of one plugin have of memory, and may have together.
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why an instance did not get the memory that it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starved {
    /// Its own share is spent.
    Alone,
    /// The plugin's instances have all that they may have together.
    Together,
}

/// What an instance is asked at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What it is, or to begin.
    Starting,
    /// Its verdict.
    Inspecting,
}

/// The state of one instance.
pub struct Guest {
    /// What it has in common with the plugin's other instances.
    pub shared: Arc<Shared>,
    pub stage: Stage,
    /// Log lines of this message.
    pub lines: u32,
    /// HTTP requests of this message, for the record.
    pub requests: Vec<String>,
    /// Before everything that it does.
    pub born: Instant,
    /// Bytes of memory that it has, and that it may have.
    pub memory: usize,
    memory_max: usize,
    budget: Arc<Budget>,
    /// Elements of its tables.
    tables: usize,
    /// It asked for more memory than it may have.
    pub starved: Option<Starved>,
    /// When it has to be done.
    pub until: Instant,
    /// Keeps the clock going that ends it.
    pub running: Option<Running>,
}

impl Guest {
    pub fn new(
        shared: Arc<Shared>,
        memory_max: usize,
        budget: Arc<Budget>,
        until: Instant,
        running: Running,
    ) -> Self {
        Self {
            shared,
            stage: Stage::Starting,
            lines: 0,
            requests: Vec::new(),
            born: Instant::now(),
            memory: 0,
            memory_max,
            budget,
            tables: 0,
            starved: None,
            until,
            running: Some(running),
        }
    }

    /// What happens at a tick of the clock: an end, or a chance for others.
    pub fn tick(&self, go_on: UpdateDeadline) -> wasmtime::Result<UpdateDeadline> {
        if Instant::now() >= self.until { Err(Overtime.into()) } else { Ok(go_on) }
    }

    /// A text without the secrets that the plugin was handed.
    pub fn covered(&self, mut text: String) -> String {
        self.shared.veil.cover(&mut text);
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.budget.give_back(self.memory);
        // Taken by the verdict, whatever it is: here no verdict came, since nobody waits any more.
        if !self.requests.is_empty() {
            tracing::warn!(
                interceptor = %self.shared.entry, requests = %self.requests.join(", "),
                "a message was withdrawn that the plugin had sent requests for"
            );
        }
    }
}

impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let all = self.memory.saturating_add(more);
        if all > self.memory_max {
            self.starved = Some(Starved::Alone);
            return Ok(false);
        }
        if !self.budget.take(more) {
            self.starved = Some(Starved::Together);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{functions::Nowhere, host::Host};

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::bare("probe", Arc::new(Nowhere)))
    }

    #[test]
    fn instances_share_what_the_plugin_may_have() {
        const PAGE: usize = 64 << 10;
        let budget = Budget::new(6 * PAGE);
        let guest = || {
            let running = Host::shared().unwrap().running();
            Guest::new(shared(), 4 * PAGE, budget.clone(), Instant::now(), running)
        };
        let (mut one, mut two) = (guest(), guest());

        assert!(one.memory_growing(0, 3 * PAGE, None).unwrap());
        assert!(!one.memory_growing(3 * PAGE, 5 * PAGE, None).unwrap());
        assert_eq!(one.starved, Some(Starved::Alone));

        assert!(two.memory_growing(0, 3 * PAGE, None).unwrap());
        assert!(!two.memory_growing(3 * PAGE, 4 * PAGE, None).unwrap());
        assert_eq!(two.starved, Some(Starved::Together));

        drop(one);
        assert!(two.memory_growing(3 * PAGE, 4 * PAGE, None).unwrap());
        drop(two);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn tables_are_bounded_together() {
        let running = Host::shared().unwrap().running();
        let mut guest = Guest::new(shared(), 0, Budget::new(0), Instant::now(), running);
        assert!(guest.table_growing(0, TABLE_ELEMENTS - 1, None).unwrap());
        assert!(guest.table_growing(0, 1, None).unwrap());
        assert!(!guest.table_growing(1, 2, None).unwrap());
    }
}
