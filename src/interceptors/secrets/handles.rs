//! Handles: marks of redacted secrets that become the secrets again in a call of the same principal
//! to the server that they came from.
//!
//! INVARIANTS: a value is in memory only, for a limited time, and reaches no server but its own. It
//! is put only where the scanner finds it, so that records redact it there, too.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::LazyLock,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use parking_lot::Mutex;
use regex::bytes::Regex;

use portcullis_protocol::{
    exchange::Exchange,
    identity::{Principal, PrincipalKind},
    names::ServerName,
};
use portcullis_vault::Secret;

/// Limit of the values of one principal and server, and of all.
pub(super) const MAX_OF_OWNER: usize = 256;
const MAX_VALUES: usize = 4_096;
/// Limit of a value in bytes.
const MAX_VALUE_BYTES: usize = 4 << 10;
/// Time after its last use after which a value is forgotten.
const LIFETIME: Duration = Duration::from_secs(3_600);
/// Numbers of hex digits of a handle: of an ordinary one, and of one whose short form is taken.
pub(super) const DIGITS: [usize; 2] = [8, 16];

/// Handle in a text: its rule and its digits.
static HANDLE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    Regex::new(r"(?-u)\[secret:[A-Za-z0-9:._-]{1,128}:([0-9a-f]{8,16})\]").ok()
});

/// Principal that received a value, and server from which the value came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    principal: PrincipalKind,
    /// Key of the principal: a later client of the same name has another.
    key: Option<String>,
    server: ServerName,
}

impl Owner {
    /// Owner of what an exchange transports. `None` without a server, and for callers without an
    /// identity, who are many.
    pub(super) fn of(exchange: &Exchange) -> Option<Self> {
        let Principal { kind, key, .. } = &*exchange.principal;
        if *kind == PrincipalKind::Anonymous {
            return None;
        }
        let server = exchange.server.clone()?;
        Some(Self { principal: kind.clone(), key: key.clone(), server })
    }
}

/// Values by their handles, in the order of their last use.
pub(super) struct Handles {
    /// Key of the digits: they disclose nothing about a value.
    keys: RandomState,
    values: Mutex<IndexMap<(Owner, String), (Secret, Instant)>>,
}

impl Handles {
    pub(super) fn new() -> Self {
        Self { keys: RandomState::new(), values: Mutex::default() }
    }

    /// Digits of the handle of a value, which is kept. The same value has the same digits. `None` if
    /// it cannot be kept.
    pub(super) fn keep(&self, owner: &Owner, value: &str) -> Option<String> {
        if value.len() > MAX_VALUE_BYTES {
            return None;
        }
        let digits = format!("{:016x}", self.keys.hash_one((owner, value)));
        let now = Instant::now();
        let mut values = self.values.lock();
        values.retain(|_, (_, used)| now.saturating_duration_since(*used) < LIFETIME);
        for length in DIGITS {
            let key = (owner.clone(), digits.get(..length)?.to_owned());
            if values.get(&key).is_some_and(|(other, _)| other.expose() != value) {
                continue;
            }
            values.shift_remove(&key);
            let of_owner = values.keys().filter(|(other, _)| other == owner).count();
            let oldest = match of_owner {
                MAX_OF_OWNER.. => values.keys().position(|(other, _)| other == owner),
                _ => (values.len() >= MAX_VALUES).then_some(0),
            };
            oldest.and_then(|oldest| values.shift_remove_index(oldest));
            let digits = key.1.clone();
            values.insert(key, (Secret::new(value.to_owned()), now));
            return Some(digits);
        }
        None
    }

    /// Value of a handle.
    fn value(&self, owner: &Owner, digits: &str) -> Option<Secret> {
        let key = (owner.clone(), digits.to_owned());
        let mut values = self.values.lock();
        let (value, used) = values.shift_remove(&key)?;
        if used.elapsed() >= LIFETIME {
            return None;
        }
        values.insert(key, (value.clone(), Instant::now()));
        Some(value)
    }

    /// Handles of an owner in a text, with their values.
    pub(super) fn in_text(
        &self,
        owner: &Owner,
        text: &[u8],
    ) -> Vec<(std::ops::Range<usize>, Secret)> {
        let all = HANDLE.iter().flat_map(|regex| regex.captures_iter(text));
        all.filter_map(|groups| {
            let digits = std::str::from_utf8(groups.get(1)?.as_bytes()).ok()?;
            Some((groups.get(0)?.range(), self.value(owner, digits)?))
        })
        .collect()
    }
}

/// Whether a text can have handles.
pub(super) fn may_have_handles(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"[secret:").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(principal: &str, server: &str) -> Owner {
        Owner {
            principal: PrincipalKind::Local { user: principal.into() },
            key: None,
            server: server.parse().unwrap(),
        }
    }

    fn values(handles: &Handles, owner: &Owner, text: &str) -> Vec<String> {
        let found = handles.in_text(owner, text.as_bytes());
        found.into_iter().map(|(_, value)| value.expose().to_owned()).collect()
    }

    #[test]
    fn value_belongs_to_its_principal_and_server() {
        let handles = Handles::new();
        let own = owner("a", "one");
        let digits = handles.keep(&own, "value").unwrap();
        assert_eq!(handles.keep(&own, "value").unwrap(), digits);
        let text = format!("x [secret:gitleaks:a-b:{digits}] [secret:y:0123abcd] [secret:z:12]");
        assert_eq!(values(&handles, &own, &text), ["value"]);
        for other in [owner("b", "one"), owner("a", "two")] {
            assert_eq!(values(&handles, &other, &text), Vec::<String>::new());
        }
    }

    #[test]
    fn values_are_bounded() {
        let handles = Handles::new();
        let own = owner("a", "one");
        assert_eq!(handles.keep(&own, &"x".repeat(MAX_VALUE_BYTES + 1)), None);
        let first = handles.keep(&own, "first").unwrap();
        for i in 0..MAX_OF_OWNER {
            handles.keep(&own, &format!("value {i}")).unwrap();
        }
        assert_eq!(handles.values.lock().len(), MAX_OF_OWNER);
        assert_eq!(values(&handles, &own, &format!("[secret:x:{first}]")), Vec::<String>::new());
        for i in 0..MAX_VALUES {
            handles.keep(&owner("b", &format!("s{i}")), "value").unwrap();
        }
        assert_eq!(handles.values.lock().len(), MAX_VALUES);
    }
}
