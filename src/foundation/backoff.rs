//! Exponential backoff: pauses that double with each failure in a row.

use std::time::{Duration, Instant};

/// The shortest and the longest pause between two attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Pause before the next attempt, after this many earlier pauses.
    pub fn pause(&self, earlier: u32) -> Duration {
        self.first.saturating_mul(1 << earlier.min(31)).min(self.longest)
    }
}

/// Time during which nothing is attempted, because the last attempts failed.
#[derive(Debug, Clone, Copy)]
pub struct Cooldown {
    backoff: Backoff,
    failures: u32,
    until: Option<Instant>,
}

impl Cooldown {
    /// A cooldown without failures.
    pub const fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, until: None }
    }

    /// Records a failed attempt.
    pub fn fail(&mut self) {
        self.until = Some(Instant::now() + self.backoff.pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// Forgets all failures.
    pub fn reset(&mut self) {
        *self = Self::new(self.backoff);
    }

    /// Whether the pause after the last failure is not over.
    pub fn is_active(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether a pause is over. Returns true once for each failure.
    pub fn take_expired(&mut self) -> bool {
        let now = Instant::now();
        self.until.take_if(|until| now >= *until).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::new(SECOND, 5 * SECOND);
        let pauses = [0, 1, 2, 3, u32::MAX].map(|earlier| backoff.pause(earlier).as_secs());
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn failures_start_a_cooldown_and_a_reset_ends_it() {
        let mut cooldown = Cooldown::new(Backoff::new(Duration::ZERO, SECOND));
        assert!(!cooldown.is_active() && !cooldown.take_expired());
        cooldown.fail();
        assert!(!cooldown.is_active());
        assert!(cooldown.take_expired() && !cooldown.take_expired());

        let mut cooldown = Cooldown::new(Backoff::new(100 * SECOND, 1_000 * SECOND));
        cooldown.fail();
        cooldown.fail();
        assert_eq!(cooldown.failures, 2);
        assert!(cooldown.is_active() && !cooldown.take_expired());
        cooldown.reset();
        assert_eq!(cooldown.failures, 0);
        assert!(!cooldown.is_active());
    }
}
