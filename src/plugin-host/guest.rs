//! State of one instance: its limits and its functions.

use std::{sync::Arc, time::Instant};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::{
    functions::{http::was_sent, shared::Shared},
    host::{MAX_TABLE_ELEMENTS, Running},
    quotas::{CallerQuota, Exhausted, Quotas},
};

/// Error: the guest's deadline has passed.
#[derive(Debug, thiserror::Error)]
#[error("the deadline has passed")]
pub struct DeadlineExceeded;

/// Reason why an instance got no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// The instance has its maximum.
    Alone,
    /// A shared limit is used up.
    Together(Exhausted),
}

/// Present call of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `describe` or `start`.
    Starting,
    /// `inspect`.
    Inspecting,
}

/// State of one instance.
pub struct Guest {
    /// State shared with the plugin's other instances.
    pub shared: Arc<Shared>,
    pub stage: Stage,
    /// Number of log lines of this message.
    pub lines: u32,
    /// HTTP requests of this message, for the record, and the message's exchange.
    pub requests: Vec<String>,
    pub exchange: String,
    /// Creation time.
    pub born: Instant,
    /// Used memory in bytes, and its limit.
    pub memory: usize,
    memory_max: usize,
    shares: Arc<Quotas>,
    /// Quota of the caller that it works for. `None` while idle.
    part: Option<Arc<CallerQuota>>,
    /// Number of table elements.
    tables: usize,
    /// Set when it requested more memory than allowed.
    pub starved: Option<OutOfMemory>,
    /// Deadline.
    pub until: Instant,
    /// Keeps the clock running that ends it.
    pub running: Option<Running>,
}

impl Guest {
    pub fn new(
        shared: Arc<Shared>,
        memory_max: usize,
        shares: Arc<Quotas>,
        part: Option<Arc<CallerQuota>>,
        until: Instant,
        running: Running,
    ) -> Self {
        Self {
            shared,
            stage: Stage::Starting,
            lines: 0,
            requests: Vec::new(),
            exchange: String::new(),
            born: Instant::now(),
            memory: 0,
            memory_max,
            shares,
            part,
            tables: 0,
            starved: None,
            until,
            running: Some(running),
        }
    }

    /// Handles a tick of the clock: ends the guest, or yields.
    pub fn tick(&self, go_on: UpdateDeadline) -> wasmtime::Result<UpdateDeadline> {
        if Instant::now() >= self.until { Err(DeadlineExceeded.into()) } else { Ok(go_on) }
    }

    /// Assigns the instance to a caller.
    pub fn join(&mut self, part: &Arc<CallerQuota>) -> Result<(), Exhausted> {
        self.leave();
        self.shares.join(part, self.memory)?;
        self.part = Some(part.clone());
        Ok(())
    }

    /// Releases the instance from its caller.
    pub fn leave(&mut self) {
        if let Some(part) = self.part.take() {
            self.shares.leave(&part, self.memory);
        }
    }

    /// Text without the plugin's secrets.
    pub fn covered(&self, mut text: String) -> String {
        self.shared.veil.cover(&mut text);
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shares.release(self.part.as_ref(), self.memory);
        // A verdict takes the requests. Here there was none, because the caller stopped waiting.
        if self.requests.iter().any(|request| was_sent(request)) {
            let requests = std::mem::take(&mut self.requests);
            self.shared.services.withdrawn(&self.shared.entry, &self.exchange, requests);
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
            self.starved = Some(OutOfMemory::Alone);
            return Ok(false);
        }
        if let Err(spent) = self.shares.take(self.part.as_ref(), more) {
            self.starved = Some(OutOfMemory::Together(spent));
            return Ok(false);
        }
        self.memory = all;
        // An earlier lack of memory has ended.
        self.starved = None;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.tables.saturating_add(desired.saturating_sub(current));
        if all > MAX_TABLE_ELEMENTS {
            return Ok(false);
        }
        self.tables = all;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{functions::host_services::NoServices, host::Host};

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::bare("probe", Arc::new(NoServices)))
    }

    #[test]
    fn instances_share_the_memory_of_the_plugin() {
        const PAGE: usize = 64 << 10;
        // Eight for all, two for one caller.
        let shares = Quotas::of(PAGE);
        let guest = |part| {
            let running = Host::shared().unwrap().running();
            Guest::new(shared(), 4 * PAGE, shares.clone(), part, Instant::now(), running)
        };
        let part = shares.part("a");
        let (mut one, mut two) = (guest(None), guest(Some(part.clone())));

        assert!(one.memory_growing(0, 3 * PAGE, None).unwrap());
        assert!(!one.memory_growing(3 * PAGE, 5 * PAGE, None).unwrap());
        assert_eq!(one.starved, Some(OutOfMemory::Alone));

        assert!(two.memory_growing(0, 2 * PAGE, None).unwrap());
        assert!(!two.memory_growing(2 * PAGE, 3 * PAGE, None).unwrap());
        assert_eq!(two.starved, Some(OutOfMemory::Together(Exhausted::Part)));
        // An instance larger than a caller's quota cannot work for it.
        assert_eq!(one.join(&part), Err(Exhausted::Part));

        let mut three = guest(Some(shares.part("b")));
        assert!(one.memory_growing(3 * PAGE, 4 * PAGE, None).unwrap());
        assert!(three.memory_growing(0, 2 * PAGE, None).unwrap());
        let mut four = guest(Some(shares.part("c")));
        assert!(!four.memory_growing(0, PAGE, None).unwrap());
        assert_eq!(four.starved, Some(OutOfMemory::Together(Exhausted::All)));
        two.leave();
        assert_eq!(part.memory().used(), 0);
        drop((one, two, three, four));
        assert_eq!(shares.memory().used(), 0);
    }

    #[test]
    fn total_of_tables_is_limited() {
        let running = Host::shared().unwrap().running();
        let mut guest = Guest::new(shared(), 0, Quotas::of(0), None, Instant::now(), running);
        assert!(guest.table_growing(0, MAX_TABLE_ELEMENTS - 1, None).unwrap());
        assert!(guest.table_growing(0, 1, None).unwrap());
        assert!(!guest.table_growing(1, 2, None).unwrap());
    }
}
