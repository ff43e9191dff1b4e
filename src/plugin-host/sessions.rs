//! Instances that live as long as a session, for plugins that ask for it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use super::{
    host::Host,
    quotas::{CallerQuota, Evictable},
    template::Prepared,
};

/// Instances that one plugin keeps, and that it keeps for one principal.
const KEPT: usize = 64;
const SHARE: usize = 16;
/// How long one is kept that nobody asks.
const IDLE: Duration = Duration::from_secs(600);

/// Whose messages meet the same instance: the session, by its whole id, and who has it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Party {
    pub principal: String,
    pub session: Option<String>,
}

/// How often that is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// A party's instance, while it is its turn. Nothing: it has to be made.
pub type Slot = OwnedMutexGuard<Option<Prepared>>;

struct Kept {
    slot: Arc<Turn<Option<Prepared>>>,
    /// Of its principal.
    part: Arc<CallerQuota>,
    used: Instant,
}

/// The kept instances of one plugin.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<Party, Kept>>);

/// All instances that may be kept are at work.
#[derive(Debug, PartialEq, Eq)]
pub struct Crowded;

impl Sessions {
    /// None yet; idle ones end as long as there is somebody who keeps some.
    pub fn swept(host: &'static Host) -> Arc<Self> {
        let sessions = Arc::new(Self::default());
        let weak = Arc::downgrade(&sessions);
        host.slow.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(sessions) = weak.upgrade() else { return };
                sessions.sweep(Instant::now());
            }
        });
        sessions
    }

    /// The party's instance, when those before it have done with it.
    pub async fn turn(&self, party: &Party, part: &Arc<CallerQuota>) -> Result<Slot, Crowded> {
        Ok(self.slot(party, part, Instant::now())?.lock_owned().await)
    }

    fn slot(
        &self,
        party: &Party,
        part: &Arc<CallerQuota>,
        now: Instant,
    ) -> Result<Arc<Turn<Option<Prepared>>>, Crowded> {
        // Behind the lock: to clear its memory away takes its time, for which nobody should wait.
        let _gone;
        let mut kept = self.0.lock();
        if let Some(kept) = kept.get_mut(party) {
            kept.used = now;
            return Ok(kept.slot.clone());
        }
        let own = |other: &Party, _: &Kept| other.principal == party.principal;
        if kept.iter().filter(|(party, kept)| own(party, kept)).count() >= SHARE {
            _gone = Self::let_go(&mut kept, own).ok_or(Crowded)?;
        } else if kept.len() >= KEPT {
            _gone = Self::let_go(&mut kept, |_, _| true).ok_or(Crowded)?;
        }
        let slot = Arc::new(Turn::new(None));
        kept.insert(party.clone(), Kept { slot: slot.clone(), part: part.clone(), used: now });
        Ok(slot)
    }

    /// Lets the one of these go that waits longest; one at work never, so that no two of a party are
    /// at work at once.
    fn let_go(kept: &mut HashMap<Party, Kept>, of: impl Fn(&Party, &Kept) -> bool) -> Option<Kept> {
        let idle = kept
            .iter()
            .filter(|(party, kept)| Arc::strong_count(&kept.slot) == 1 && of(party, kept))
            .min_by_key(|(_, kept)| kept.used)
            .map(|(party, _)| party.clone())?;
        kept.remove(&idle)
    }

    /// Lets those go that nobody asked for long.
    fn sweep(&self, now: Instant) {
        let mut all = self.0.lock();
        let old: Vec<Party> = all
            .iter()
            .filter(|(_, kept)| {
                Arc::strong_count(&kept.slot) == 1 && now.duration_since(kept.used) >= IDLE
            })
            .map(|(party, _)| party.clone())
            .collect();
        let gone: Vec<_> = old.iter().filter_map(|party| all.remove(party)).collect();
        drop(all);
        drop(gone);
    }
}

impl Evictable for Sessions {
    fn give(&self, of: Option<&Arc<CallerQuota>>) -> bool {
        let gone = {
            let mut all = self.0.lock();
            let idle = all.values().filter(|kept| Arc::strong_count(&kept.slot) == 1);
            // Of nobody in particular: of the one who has most, and not of those who have little.
            let most = idle.map(|kept| kept.part.memory().used()).max();
            Self::let_go(&mut all, |_, kept| match of {
                Some(of) => Arc::ptr_eq(of, &kept.part),
                None => Some(kept.part.memory().used()) == most,
            })
        };
        gone.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quotas::Quotas;

    fn party(principal: &str, session: usize) -> Party {
        Party { principal: principal.into(), session: Some(session.to_string()) }
    }

    fn part() -> Arc<CallerQuota> {
        Quotas::of(1 << 20).part("any")
    }

    #[tokio::test]
    async fn the_longest_idle_is_let_go_and_none_at_work() {
        let sessions = Sessions::default();
        let at_work = sessions.turn(&party("p0", 0), &part()).await.unwrap();
        for at in 1..KEPT {
            sessions.turn(&party(&format!("p{}", at % 8), at), &part()).await.unwrap();
        }
        sessions.turn(&party("new", 0), &part()).await.unwrap();
        let kept = sessions.0.lock();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.contains_key(&party("p0", 0)), "at work");
        assert!(!kept.contains_key(&party("p1", 1)), "idle longest");
        drop(at_work);
    }

    #[tokio::test]
    async fn one_principal_has_its_share() {
        let sessions = Sessions::default();
        let mut at_work = Vec::new();
        for at in 0..SHARE {
            at_work.push(sessions.turn(&party("greedy", at), &part()).await.unwrap());
        }
        assert_eq!(sessions.turn(&party("greedy", 99), &part()).await.err(), Some(Crowded));
        assert!(sessions.turn(&party("other", 0), &part()).await.is_ok());
        at_work.pop();
        assert!(sessions.turn(&party("greedy", 99), &part()).await.is_ok());
        assert_eq!(sessions.0.lock().len(), SHARE + 1);
    }

    #[tokio::test]
    async fn idle_ones_end() {
        let sessions = Sessions::default();
        sessions.turn(&party("a", 0), &part()).await.unwrap();
        let at_work = sessions.turn(&party("b", 0), &part()).await.unwrap();
        let after = |pause| {
            sessions.sweep(Instant::now() + pause);
            sessions.0.lock().len()
        };
        assert_eq!(after(Duration::ZERO), 2);
        assert_eq!(after(IDLE), 1, "one is at work");
        drop(at_work);
        assert_eq!(after(IDLE), 0);
        assert!(!sessions.give(None));
    }
}
