//! Secrets that are divided between two messages of a session: the beginnings, in memory only.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use parking_lot::Mutex;

use super::handles::Owner;
use portcullis_protocol::{
    exchange::{Exchange, Phase},
    names::SessionId,
};
use portcullis_vault::Secret;

/// Limit of the beginnings of all sessions, and of one in bytes.
const MAX_BEGINNINGS: usize = 1_024;
pub(super) const MAX_BEGINNING_BYTES: usize = 4 << 10;
/// Time after which a beginning is forgotten.
const LIFETIME: Duration = Duration::from_secs(600);

/// Messages of which one can continue the one before: those of a principal, a session and a server,
/// in one direction.
pub(super) type Conversation = (Owner, Option<SessionId>, bool);

/// Conversation of a message.
pub(super) fn conversation(exchange: &Exchange, phase: Phase) -> Option<Conversation> {
    Some((Owner::of(exchange)?, exchange.session.clone(), exchange.from_server(phase)))
}

/// Ends of messages that may be beginnings of secrets, the oldest first.
#[derive(Default)]
pub(super) struct Beginnings {
    all: Mutex<IndexMap<Conversation, (Secret, Instant)>>,
    /// Whether there is any. Most messages need no lock.
    has_any: AtomicBool,
}

impl Beginnings {
    /// Takes the beginning that a message can continue.
    pub(super) fn take(&self, of: &Conversation) -> Option<Secret> {
        if !self.has_any.load(Ordering::Acquire) {
            return None;
        }
        let mut all = self.all.lock();
        let (text, at) = all.shift_remove(of)?;
        self.has_any.store(!all.is_empty(), Ordering::Release);
        (at.elapsed() < LIFETIME).then_some(text)
    }

    /// Stores the end of a message.
    pub(super) fn keep(&self, of: Conversation, text: String) {
        let mut all = self.all.lock();
        all.shift_remove(&of);
        if all.len() >= MAX_BEGINNINGS {
            all.shift_remove_index(0);
        }
        all.insert(of, (Secret::new(text), Instant::now()));
        self.has_any.store(true, Ordering::Release);
    }
}
