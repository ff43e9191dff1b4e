//! The open sessions, with an index for the one that ends when there are too many.
//!
//! Sessions note no use in the index. Each has the last known time since which it was idle, which
//! is never later than the actual one, and a search corrects the times that it looks at. A search
//! that looked at too many sessions in use ends with a look at all sessions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Holder, Session, budget::Budget};
use portcullis_protocol::{
    identity::{Principal, PrincipalKind},
    names::SessionId,
};

/// Sessions that a search looks at in the index. Only then it looks at all.
pub(super) const LOOKS: usize = 256;
/// Later than all times of the index.
const LATER: Duration = Duration::from_secs(60 * 60);

/// A session's last known time since which it was idle, and its number.
type Key = (Instant, u64);
/// The sessions of one holder, the longest-idle one first.
type Held = BTreeMap<Key, Arc<Session>>;
/// Order in which holders lose a session, the first one last: callers without a key, then those with
/// the most sessions, then the longest-idle session.
type Rank = (bool, usize, Reverse<Key>);

/// All sessions.
#[derive(Default)]
pub(super) struct Table {
    sessions: HashMap<SessionId, (Arc<Session>, Instant)>,
    held: HashMap<Holder, Held>,
    ranks: BTreeMap<Rank, Holder>,
    /// The budget of each principal's streams, and the number of its sessions.
    budgets: HashMap<PrincipalKind, (Arc<Budget>, usize)>,
}

fn rank(held: &Held) -> Option<Rank> {
    let (key, first) = held.first_key_value()?;
    Some((!first.owner.verified, held.len(), Reverse(*key)))
}

/// An idle session, and the time since which it is idle.
fn idle(session: &Arc<Session>) -> Option<(Instant, &Arc<Session>)> {
    Some((session.idle_since()?, session))
}

impl Table {
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn get(&self, id: &SessionId) -> Option<&Arc<Session>> {
        self.sessions.get(id).map(|(session, _)| session)
    }

    /// Every session.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values().map(|(session, _)| session)
    }

    /// Number of sessions of a holder.
    pub fn held_by(&self, holder: &Holder) -> usize {
        self.held.get(holder).map_or(0, Held::len)
    }

    /// Number of sessions of a kind of principal.
    pub fn of(&self, kind: &PrincipalKind) -> usize {
        self.budgets.get(kind).map_or(0, |(_, count)| *count)
    }

    /// The budget of a principal's streams, which all its sessions share.
    pub fn budget(&self, kind: &PrincipalKind) -> Option<Arc<Budget>> {
        self.budgets.get(kind).map(|(budget, _)| budget.clone())
    }

    pub fn insert(&mut self, session: Arc<Session>) {
        let since = session.idle_since().unwrap_or_else(Instant::now);
        let budget = || (session.streams.budget().clone(), 0);
        self.budgets.entry(session.owner.kind.clone()).or_insert_with(budget).1 += 1;
        self.sessions.insert(session.id.clone(), (session.clone(), since));
        let holder = session.holder.clone();
        self.change(&holder, |held| drop(held.insert((since, session.number), session)));
    }

    pub fn remove(&mut self, id: &SessionId) -> Option<Arc<Session>> {
        let (session, since) = self.sessions.remove(id)?;
        let kind = &session.owner.kind;
        if let Some((_, count)) = self.budgets.get_mut(kind) {
            *count -= 1;
            if *count == 0 {
                self.budgets.remove(kind);
            }
        }
        self.change(&session.holder, |held| drop(held.remove(&(since, session.number))));
        Some(session)
    }

    /// Changes the sessions of a holder, and so its rank.
    fn change(&mut self, holder: &Holder, change: impl FnOnce(&mut Held)) {
        let held = self.held.entry(holder.clone()).or_default();
        let before = rank(held);
        change(held);
        let after = rank(held);
        if held.is_empty() {
            self.held.remove(holder);
        }
        before.map(|rank| self.ranks.remove(&rank));
        after.map(|rank| self.ranks.insert(rank, holder.clone()));
    }

    /// The longest-idle session of a holder.
    pub fn idlest_of(&mut self, holder: &Holder) -> Option<SessionId> {
        let began = Instant::now();
        for _ in 0..LOOKS {
            let ((since, _), session) = self.held.get(holder)?.first_key_value()?;
            if *since > began {
                return None;
            }
            let (since, session) = (*since, session.clone());
            if self.is_idle_since(&session, since, began) {
                return Some(session.id.clone());
            }
        }
        let idle = self.held.get(holder)?.values().filter_map(idle);
        idle.min_by_key(|(since, _)| *since).map(|(_, session)| session.id.clone())
    }

    /// The session that ends for another of this principal when all places are taken: of callers
    /// without a key first, then of the holder with the most sessions, the longest-idle one. A
    /// caller without a key never displaces one with a key.
    pub fn idlest_for(&mut self, owner: &Principal) -> Option<SessionId> {
        let began = Instant::now();
        let mut below = None;
        for _ in 0..LOOKS {
            let highest = match &below {
                None => self.ranks.last_key_value(),
                Some(below) => self.ranks.range(..*below).next_back(),
            };
            let (&(anonymous, count, Reverse((since, _))), holder) = highest?;
            if !owner.verified && !anonymous {
                return None;
            }
            if since > began {
                // All sessions of the holders of this kind with so many are in use.
                below = Some((anonymous, count, Reverse((began + LATER, u64::MAX))));
                continue;
            }
            let (_, session) = self.held.get(holder)?.first_key_value()?;
            let session = session.clone();
            if self.is_idle_since(&session, since, began) {
                return Some(session.id.clone());
            }
        }
        let displaceable = self.all().filter(|session| owner.verified || !session.owner.verified);
        let idle = displaceable.filter_map(idle).max_by_key(|(since, session)| {
            (!session.owner.verified, self.held_by(&session.holder), Reverse(*since))
        });
        idle.map(|(_, session)| session.id.clone())
    }

    /// Whether the time of a session in the index is the actual one. Otherwise, corrects it: a
    /// session in use is later than this search.
    fn is_idle_since(&mut self, session: &Arc<Session>, known: Instant, began: Instant) -> bool {
        let idle = session.idle_since();
        if idle.is_some_and(|since| since <= known) {
            return true;
        }
        let since = idle.unwrap_or(began + Duration::from_nanos(1));
        if let Some((_, indexed)) = self.sessions.get_mut(&session.id) {
            *indexed = since;
        }
        self.change(&session.holder, |held| {
            held.remove(&(known, session.number));
            held.insert((since, session.number), session.clone());
        });
        false
    }

    #[cfg(test)]
    pub fn check(&self) {
        let held: usize = self.held.values().map(Held::len).sum();
        let counted: usize = self.budgets.values().map(|(_, count)| count).sum();
        assert_eq!((held, counted), (self.len(), self.len()));
        let mut ranks: Vec<_> = self.held.values().filter_map(rank).collect();
        ranks.sort();
        assert!(ranks.iter().eq(self.ranks.keys()));
    }
}
