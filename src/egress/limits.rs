//! Limits of the egress connections of one program, and their meter.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Size in bytes of forwarded chunks.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// Limits of the egress connections of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of concurrent connections.
    pub connections: usize,
    /// Maximum number of connection attempts per second, on average.
    pub attempts: NonZeroU32,
    /// Bytes per second from the program, over all its connections.
    pub up: Option<NonZeroU32>,
    /// Bytes per second to the program, over all its connections.
    pub down: Option<NonZeroU32>,
    /// Bytes in both directions, over the lifetime of the program.
    pub total: Option<u64>,
    /// Timeout of each step before the first byte is forwarded: request, name resolution,
    /// connection, start of TLS.
    pub handshake: Duration,
    /// Time without data in either direction after which a connection is closed.
    pub idle: Duration,
    /// The same time after one side has finished sending.
    pub half_closed: Duration,
    /// Maximum size in bytes of a request's head.
    pub head: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            attempts: const { NonZeroU32::new(20).unwrap() },
            up: None,
            down: None,
            total: None,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            half_closed: Duration::from_secs(30),
            head: 32 << 10,
        }
    }
}

/// The total limit is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitExhausted;

/// Counts the usage of all connections of a program.
pub(crate) struct Meter {
    attempts: DefaultDirectRateLimiter,
    up: Option<DefaultDirectRateLimiter>,
    down: Option<DefaultDirectRateLimiter>,
    total: Option<u64>,
    used: AtomicU64,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlowDirection {
    Up,
    Down,
}

impl Meter {
    pub fn new(limits: &Limits) -> Self {
        let rate = |rate: Option<NonZeroU32>| {
            let chunk = const { NonZeroU32::new(CHUNK_BYTES as u32).unwrap() };
            // A chunk that is larger than the burst would never pass.
            rate.map(|rate| {
                RateLimiter::direct(Quota::per_second(rate).allow_burst(rate.max(chunk)))
            })
        };
        let burst = limits.attempts.saturating_mul(const { NonZeroU32::new(4).unwrap() });
        Self {
            attempts: RateLimiter::direct(Quota::per_second(limits.attempts).allow_burst(burst)),
            up: rate(limits.up),
            down: rate(limits.down),
            total: limits.total,
            used: AtomicU64::new(0),
        }
    }

    /// Whether another attempt is allowed now.
    pub fn attempt(&self) -> bool {
        self.attempts.check().is_ok()
    }

    /// Waits until this number of bytes may be forwarded.
    pub async fn take(&self, direction: FlowDirection, bytes: usize) -> Result<(), LimitExhausted> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(total) = self.total {
            let before = self.used.fetch_add(bytes.into(), Ordering::Relaxed);
            if before.saturating_add(bytes.into()) > total {
                // Saturated, so that it never wraps.
                self.used.store(total, Ordering::Relaxed);
                return Err(LimitExhausted);
            }
        }
        let rate = match direction {
            FlowDirection::Up => &self.up,
            FlowDirection::Down => &self.down,
        };
        match (rate, NonZeroU32::new(bytes)) {
            (Some(rate), Some(bytes)) => {
                rate.until_n_ready(bytes).await.map_err(|_| LimitExhausted)
            }
            _ => Ok(()),
        }
    }
}
