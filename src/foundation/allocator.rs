//! Returns the memory of large messages to the system.
//!
//! With each freed allocation that had its own mapping, glibc raises the size from which it creates
//! such mappings, up to 32 MiB. From then on large buffers lie among small ones, and memory freed
//! between them stays with the process. So the size is fixed here, and after much memory was freed
//! the allocator is asked to return its free pages (`mallopt(3)`, `malloc_trim(3)`).

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Minimum size in bytes of an allocation with its own mapping, which is returned when it is freed.
#[cfg(target_env = "gnu")]
const MIN_MAPPED_BYTES: i32 = 1 << 20;
/// Minimum of freed bytes for which free pages are returned.
const MIN_FREED_BYTES: usize = 1 << 20;
/// Interval between returns of free pages while large messages keep arriving.
const BUSY_INTERVAL: Duration = Duration::from_secs(30);

/// Bytes of large messages that were freed since the start of the process.
static FREED: AtomicUsize = AtomicUsize::new(0);

/// Configures the allocator. Must be called while the process is single-threaded.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt(3) sets two integers before there are threads")
)]
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes only integers, and no other thread allocates yet.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MIN_MAPPED_BYTES);
        // Fixing the mapping size would otherwise set this to 128 KiB, and every larger free would
        // be a system call.
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, 4 * MIN_MAPPED_BYTES);
    }
}

/// Counts freed memory of a large message. An upper bound suffices: a count that is too large
/// returns free pages earlier.
pub fn freed(bytes: usize) {
    FREED.fetch_add(bytes, Ordering::Relaxed);
}

/// Decides when free pages are returned: when no more large messages are freed, or, while they keep
/// arriving, every half a minute.
pub struct PageReturner(Mutex<ReturnState>);

struct ReturnState {
    /// [`FREED`] at the last return.
    returned: usize,
    /// [`FREED`] at the last check.
    looked: usize,
    last: Instant,
}

impl Default for PageReturner {
    fn default() -> Self {
        let freed = FREED.load(Ordering::Relaxed);
        Self(Mutex::new(ReturnState { returned: freed, looked: freed, last: Instant::now() }))
    }
}

impl PageReturner {
    /// Returns free pages if it is time. Must be called regularly.
    pub fn look(&self) {
        if self.is_time(FREED.load(Ordering::Relaxed), Instant::now()) {
            tokio::task::spawn_blocking(trim);
        }
    }

    fn is_time(&self, freed: usize, now: Instant) -> bool {
        let mut seen = self.0.lock();
        let is_quiet = std::mem::replace(&mut seen.looked, freed) == freed;
        let is_due = now.saturating_duration_since(seen.last) >= BUSY_INTERVAL;
        let is_worth_it = freed.wrapping_sub(seen.returned) >= MIN_FREED_BYTES;
        let is_time = is_worth_it && (is_quiet || is_due);
        if is_time {
            (seen.returned, seen.last) = (freed, now);
        }
        is_time
    }
}

#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "malloc_trim(3) may be called anywhere")
)]
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes only an integer and is safe to call from any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_returned_when_quiet_or_every_half_a_minute() {
        let began = Instant::now();
        let seen = ReturnState { returned: 0, looked: 0, last: began };
        let returning = PageReturner(Mutex::new(seen));
        let mib = 1 << 20;
        for (freed, seconds, is_time) in [
            (0, 2, false),
            (mib / 2, 4, false),
            // Too little.
            (mib / 2, 6, false),
            (5 * mib, 8, false),
            (5 * mib, 10, true),
            (5 * mib, 12, false),
            (9 * mib, 14, false),
            (15 * mib, 38, false),
            // More messages keep arriving.
            (20 * mib, 40, true),
            (25 * mib, 42, false),
        ] {
            let now = began + Duration::from_secs(seconds);
            assert_eq!(returning.is_time(freed, now), is_time, "{freed} bytes at {seconds} s");
        }
    }
}
