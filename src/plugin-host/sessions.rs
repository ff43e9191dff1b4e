//! Instances that live as long as a session, for plugins that request it.

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

/// Limits of one plugin's kept instances, and of those for one principal.
const MAX_KEPT: usize = 64;
const MAX_KEPT_PER_PRINCIPAL: usize = 16;
/// Time after which an idle instance is removed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Messages with the same instance: the session by its whole id, and its principal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Party {
    pub principal: String,
    pub session: Option<String>,
}

/// Interval between searches for idle instances.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Instance of a party during its turn. `None`: it must be created.
pub type Slot = OwnedMutexGuard<Option<Prepared>>;

struct SessionEntry {
    slot: Arc<Turn<Option<Prepared>>>,
    /// Quota of its principal.
    part: Arc<CallerQuota>,
    used: Instant,
}

/// Kept instances of one plugin.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<Party, SessionEntry>>);

/// Error: all kept instances are busy.
#[derive(Debug, PartialEq, Eq)]
pub struct AllBusy;

impl Sessions {
    /// Without instances; idle ones end while this exists.
    pub fn swept(host: &'static Host) -> Arc<Self> {
        let sessions = Arc::new(Self::default());
        let weak = Arc::downgrade(&sessions);
        host.slow.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let Some(sessions) = weak.upgrade() else { return };
                sessions.sweep(Instant::now());
            }
        });
        sessions
    }

    /// Instance of the party, when earlier messages have finished with it.
    pub async fn turn(&self, party: &Party, part: &Arc<CallerQuota>) -> Result<Slot, AllBusy> {
        Ok(self.slot(party, part, Instant::now())?.lock_owned().await)
    }

    fn slot(
        &self,
        party: &Party,
        part: &Arc<CallerQuota>,
        now: Instant,
    ) -> Result<Arc<Turn<Option<Prepared>>>, AllBusy> {
        // Dropped after the lock: removing its memory takes time, for which nobody should wait.
        let _gone;
        let mut entries = self.0.lock();
        if let Some(entry) = entries.get_mut(party) {
            entry.used = now;
            return Ok(entry.slot.clone());
        }
        let own = |other: &Party, _: &SessionEntry| other.principal == party.principal;
        if entries.iter().filter(|(party, entry)| own(party, entry)).count()
            >= MAX_KEPT_PER_PRINCIPAL
        {
            _gone = Self::evict_idle(&mut entries, own).ok_or(AllBusy)?;
        } else if entries.len() >= MAX_KEPT {
            _gone = Self::evict_idle(&mut entries, |_, _| true).ok_or(AllBusy)?;
        }
        let slot = Arc::new(Turn::new(None));
        entries.insert(
            party.clone(),
            SessionEntry { slot: slot.clone(), part: part.clone(), used: now },
        );
        Ok(slot)
    }

    /// Removes the longest idle of these. Never removes a busy one, so that a party never has two.
    fn evict_idle(
        entries: &mut HashMap<Party, SessionEntry>,
        of: impl Fn(&Party, &SessionEntry) -> bool,
    ) -> Option<SessionEntry> {
        let idle = entries
            .iter()
            .filter(|(party, entry)| Arc::strong_count(&entry.slot) == 1 && of(party, entry))
            .min_by_key(|(_, entry)| entry.used)
            .map(|(party, _)| party.clone())?;
        entries.remove(&idle)
    }

    /// Removes instances that were idle for too long.
    fn sweep(&self, now: Instant) {
        let mut all = self.0.lock();
        let old: Vec<Party> = all
            .iter()
            .filter(|(_, session)| {
                Arc::strong_count(&session.slot) == 1
                    && now.duration_since(session.used) >= IDLE_TIMEOUT
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
            let idle = all.values().filter(|session| Arc::strong_count(&session.slot) == 1);
            // Of the principal with the most memory, not of those with little.
            let most = idle.map(|session| session.part.memory().used()).max();
            Self::evict_idle(&mut all, |_, session| match of {
                Some(of) => Arc::ptr_eq(of, &session.part),
                None => Some(session.part.memory().used()) == most,
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
    async fn longest_idle_is_removed_and_never_a_busy_one() {
        let sessions = Sessions::default();
        let at_work = sessions.turn(&party("p0", 0), &part()).await.unwrap();
        for at in 1..MAX_KEPT {
            sessions.turn(&party(&format!("p{}", at % 8), at), &part()).await.unwrap();
        }
        sessions.turn(&party("new", 0), &part()).await.unwrap();
        let entries = sessions.0.lock();
        assert_eq!(entries.len(), MAX_KEPT);
        assert!(entries.contains_key(&party("p0", 0)), "at work");
        assert!(!entries.contains_key(&party("p1", 1)), "idle longest");
        drop(at_work);
    }

    #[tokio::test]
    async fn one_principal_gets_its_share() {
        let sessions = Sessions::default();
        let mut at_work = Vec::new();
        for at in 0..MAX_KEPT_PER_PRINCIPAL {
            at_work.push(sessions.turn(&party("greedy", at), &part()).await.unwrap());
        }
        assert_eq!(sessions.turn(&party("greedy", 99), &part()).await.err(), Some(AllBusy));
        assert!(sessions.turn(&party("other", 0), &part()).await.is_ok());
        at_work.pop();
        assert!(sessions.turn(&party("greedy", 99), &part()).await.is_ok());
        assert_eq!(sessions.0.lock().len(), MAX_KEPT_PER_PRINCIPAL + 1);
    }

    #[tokio::test]
    async fn idle_instances_end() {
        let sessions = Sessions::default();
        sessions.turn(&party("a", 0), &part()).await.unwrap();
        let at_work = sessions.turn(&party("b", 0), &part()).await.unwrap();
        let after = |pause| {
            sessions.sweep(Instant::now() + pause);
            sessions.0.lock().len()
        };
        assert_eq!(after(Duration::ZERO), 2);
        assert_eq!(after(IDLE_TIMEOUT), 1, "one is busy");
        drop(at_work);
        assert_eq!(after(IDLE_TIMEOUT), 0);
        assert!(!sessions.give(None));
    }
}
