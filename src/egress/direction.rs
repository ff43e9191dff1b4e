//! One direction of a tunnel.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};

use super::{
    Refusal,
    connect::Shared,
    limits::{self, CHUNK_BYTES},
};

/// Reason why forwarding stops.
pub(crate) enum Stop {
    Refused(Refusal),
    Broken,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl From<limits::LimitExhausted> for Stop {
    fn from(_: limits::LimitExhausted) -> Self {
        Self::Refused(Refusal::LimitExhausted)
    }
}

/// Time of the last data.
pub(crate) struct Activity {
    since: Instant,
    last: AtomicU64,
    half: AtomicBool,
}

impl Activity {
    pub fn new() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(0), half: AtomicBool::new(false) }
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(elapsed, Ordering::Relaxed);
    }

    /// Waits until no data came for too long.
    pub async fn idle(&self, shared: &Shared) {
        loop {
            let patience = match self.half.load(Ordering::Relaxed) {
                true => shared.limits.half_closed,
                false => shared.limits.idle,
            };
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let until = self.since + last + patience;
            if until <= Instant::now() {
                return;
            }
            // One side may finish before that, which shortens the wait.
            let look = Instant::now() + shared.limits.half_closed.min(patience);
            sleep_until(until.min(look)).await;
        }
    }
}

/// One direction.
pub(crate) struct Direction<'a, W> {
    pub to: W,
    pub direction: limits::FlowDirection,
    /// Bytes that it forwarded.
    pub count: &'a AtomicU64,
    pub activity: &'a Activity,
    pub shared: &'a Shared,
}

impl<W: AsyncWrite + Unpin> Direction<'_, W> {
    /// Forwards bytes.
    pub async fn deliver(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.activity.touch();
        self.shared.meter.take(self.direction, bytes.len()).await?;
        self.to.write_all(bytes).await?;
        self.to.flush().await?;
        self.count.fetch_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.activity.touch();
        Ok(())
    }

    /// Forwards all remaining bytes.
    pub async fn rest(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<(), Stop> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match from.read(&mut buffer).await? {
                0 => break,
                read => self.deliver(&buffer[..read]).await?,
            }
        }
        self.activity.half.store(true, Ordering::Relaxed);
        // The other side may have gone already.
        let _ = self.to.shutdown().await;
        Ok(())
    }
}
