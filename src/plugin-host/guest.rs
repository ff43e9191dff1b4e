//! What the host keeps for one instance: its bounds, and what it may call.

use std::{sync::Arc, time::Instant};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::{
    functions::{Shared, was_sent},
    host::{Running, TABLE_ELEMENTS},
    quotas::{CallerQuota, Exhausted, Quotas},
};

/// The guest's time is over.
#[derive(Debug, thiserror::Error)]
#[error("the deadline has passed")]
pub struct DeadlineExceeded;

/// Why an instance did not get the memory that it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// It has all that one may have.
    Alone,
    /// It has not, but something larger is spent.
    Together(Exhausted),
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
    /// HTTP requests of this message, for the record, and the message's exchange.
    pub requests: Vec<String>,
    pub exchange: String,
    /// Before everything that it does.
    pub born: Instant,
    /// Bytes of memory that it has, and that it may have.
    pub memory: usize,
    memory_max: usize,
    shares: Arc<Quotas>,
    /// Of the caller that it works for. Nothing: it is only ready.
    part: Option<Arc<CallerQuota>>,
    /// Elements of its tables.
    tables: usize,
    /// It asked for more memory than it may have.
    pub starved: Option<OutOfMemory>,
    /// When it has to be done.
    pub until: Instant,
    /// Keeps the clock going that ends it.
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

    /// What happens at a tick of the clock: an end, or a chance for others.
    pub fn tick(&self, go_on: UpdateDeadline) -> wasmtime::Result<UpdateDeadline> {
        if Instant::now() >= self.until { Err(DeadlineExceeded.into()) } else { Ok(go_on) }
    }

    /// From now on it works for that caller.
    pub fn join(&mut self, part: &Arc<CallerQuota>) -> Result<(), Exhausted> {
        self.leave();
        self.shares.join(part, self.memory)?;
        self.part = Some(part.clone());
        Ok(())
    }

    /// It works for nobody any more.
    pub fn leave(&mut self) {
        if let Some(part) = self.part.take() {
            self.shares.leave(&part, self.memory);
        }
    }

    /// A text without the secrets that the plugin was handed.
    pub fn covered(&self, mut text: String) -> String {
        self.shared.veil.cover(&mut text);
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shares.give_back(self.part.as_ref(), self.memory);
        // Taken by the verdict, whatever it is: here no verdict came, since nobody waits any more.
        if self.requests.iter().any(|request| was_sent(request)) {
            let requests = std::mem::take(&mut self.requests);
            self.shared.around.withdrawn(&self.shared.entry, &self.exchange, requests);
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
        // What it lacked before it does not lack any more.
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
    use crate::{functions::Nowhere, host::Host};

    fn shared() -> Arc<Shared> {
        Arc::new(Shared::bare("probe", Arc::new(Nowhere)))
    }

    #[test]
    fn instances_share_what_the_plugin_may_have() {
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
        // One that has more than a part has none for that caller.
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
    fn tables_are_bounded_together() {
        let running = Host::shared().unwrap().running();
        let mut guest = Guest::new(shared(), 0, Quotas::of(0), None, Instant::now(), running);
        assert!(guest.table_growing(0, TABLE_ELEMENTS - 1, None).unwrap());
        assert!(guest.table_growing(0, 1, None).unwrap());
        assert!(!guest.table_growing(1, 2, None).unwrap());
    }
}
