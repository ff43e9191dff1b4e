//! Calls that wait for a person. A policy's `@approve` puts a call here; `portcullis approve` or the
//! answer of a webhook lets it go on or ends it.
//!
//! Invariants:
//! - Who is asked sees all that will be sent, without its secrets.
//! - Only what waits can be allowed, and once. What nobody allows in time is refused.
//! - One client cannot take the place of the others, and what waits is bounded.

mod webhook;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

pub use webhook::{Illegal, Webhook};

use crate::{audit::record::Kept, identity::PrincipalKind, names::DecisionId, refusal::Rule};

/// Calls that may wait at once.
const MOST: usize = 1_000;

/// A call that waits, as who is asked sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The decision's id, which the record and the agent share.
    pub id: DecisionId,
    pub principal: String,
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool, prompt or resource, by its name on its server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// All that will be sent (`params`), without its secrets.
    pub params: Kept,
    /// The policies that ask, each with what it says.
    pub rules: Vec<Asking>,
    pub asked: Timestamp,
    /// When it is refused, if nobody says anything.
    pub until: Timestamp,
}

/// A policy that asks for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    #[serde(flatten)]
    pub rule: Rule,
    /// Its `@approve`.
    pub why: String,
}

/// What a person, or the webhook, said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub allowed: bool,
    /// Who said it: a user of this machine, or the webhook.
    pub by: String,
    /// Why, in words for the record. The agent does not read them.
    pub reason: Option<String>,
}

/// Why a call cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("{0} calls of this client wait for approval already")]
    Client(usize),
    #[error("{MOST} calls wait for approval already")]
    All,
}

struct Place {
    waiting: Waiting,
    client: PrincipalKind,
    until: Instant,
    answer: oneshot::Sender<Word>,
}

/// All calls that wait.
pub struct Approvals {
    patience: Duration,
    per_client: usize,
    webhook: Option<Webhook>,
    places: Mutex<BTreeMap<DecisionId, Place>>,
}

/// A call's place. Given up, nobody can allow the call any more.
pub struct Ticket {
    approvals: Arc<Approvals>,
    id: DecisionId,
    until: Instant,
    answer: oneshot::Receiver<Word>,
    /// Ends with the call: a client that calls and gives up, again and again, leaves nothing behind.
    _webhook: Option<AbortOnDropHandle<()>>,
}

impl Approvals {
    /// No calls yet. Each waits as long as `patience`, and no more than `per_client` of one client.
    pub fn new(patience: Duration, per_client: usize, webhook: Option<Webhook>) -> Self {
        Self { patience, per_client, webhook, places: Mutex::default() }
    }

    /// The times at which a call that comes now was asked about and will be refused.
    pub fn times(&self) -> (Timestamp, Timestamp) {
        let now = Timestamp::now();
        let patience = SignedDuration::try_from(self.patience).unwrap_or(SignedDuration::MAX);
        (now, now.saturating_add(patience).unwrap_or(Timestamp::MAX))
    }

    /// Puts a call among those that wait, and tells the webhook.
    ///
    /// # Errors
    /// [`Full`].
    pub fn ask(self: &Arc<Self>, client: &PrincipalKind, waiting: Waiting) -> Result<Ticket, Full> {
        let (answer, answered) = oneshot::channel();
        let (id, until) = (waiting.id, Instant::now() + self.patience);
        let mut places = self.places.lock();
        if places.values().filter(|place| place.client == *client).count() >= self.per_client {
            return Err(Full::Client(self.per_client));
        }
        if places.len() >= MOST {
            return Err(Full::All);
        }
        let told = waiting.clone();
        places.insert(id, Place { waiting, client: client.clone(), until, answer });
        drop(places);
        let webhook = self.webhook.clone().map(|webhook| {
            let approvals = Arc::downgrade(self);
            AbortOnDropHandle::new(tokio::spawn(async move {
                let word = match webhook.tell(&told).await {
                    Ok(word) => word,
                    Err(error) => {
                        tracing::warn!(decision = %id, %error, "the webhook for approvals was not reached");
                        None
                    }
                };
                if let (Some(word), Some(approvals)) = (word, approvals.upgrade()) {
                    approvals.answer(id, word);
                }
            }))
        });
        Ok(Ticket { approvals: Arc::clone(self), id, until, answer: answered, _webhook: webhook })
    }

    /// The calls that wait, the oldest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.places.lock().values().map(|place| place.waiting.clone()).collect()
    }

    /// Has the calls of a client wait no longer: nobody can allow them.
    pub fn forget(&self, client: &PrincipalKind) {
        self.places.lock().retain(|_, place| place.client != *client);
    }

    /// Says a word on a call; false where it does not wait (any more).
    pub fn answer(&self, id: DecisionId, word: Word) -> bool {
        let mut places = self.places.lock();
        match places.remove(&id) {
            // Late by a moment is late: who waits may have been told so already.
            Some(place) if place.until > Instant::now() => place.answer.send(word).is_ok(),
            _ => false,
        }
    }
}

impl Ticket {
    /// What was said; nothing where nobody said anything in time.
    pub async fn word(mut self) -> Option<Word> {
        tokio::time::timeout_at(self.until.into(), &mut self.answer).await.ok()?.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.approvals.places.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(approvals: &Approvals) -> Waiting {
        let (asked, until) = approvals.times();
        Waiting {
            id: DecisionId::next(),
            principal: "ann".into(),
            method: "tools/call".into(),
            server: None,
            target: None,
            params: Kept::default(),
            rules: Vec::new(),
            asked,
            until,
        }
    }

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Client(name.parse().unwrap())
    }

    fn yes() -> Word {
        Word { allowed: true, by: "root".into(), reason: None }
    }

    #[tokio::test]
    async fn a_call_is_allowed_once_and_only_while_it_waits() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let call = waiting(&approvals);
        let id = call.id;
        let ticket = approvals.ask(&client("ann"), call.clone()).unwrap();
        assert_eq!(approvals.waiting(), [call]);
        assert!(!approvals.answer(DecisionId::next(), yes()));
        assert!(approvals.answer(id, yes()) && !approvals.answer(id, yes()));
        assert_eq!(ticket.word().await, Some(yes()));

        // Its client has gone.
        let call = waiting(&approvals);
        let id = call.id;
        drop(approvals.ask(&client("ann"), call).unwrap());
        assert!(approvals.waiting().is_empty() && !approvals.answer(id, yes()));
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let approvals = Arc::new(Approvals::new(Duration::from_millis(1), 2, None));
        let call = waiting(&approvals);
        let id = call.id;
        assert_eq!(approvals.ask(&client("ann"), call).unwrap().word().await, None);
        assert!(!approvals.answer(id, yes()));
    }

    #[tokio::test]
    async fn a_client_takes_no_more_than_its_places() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let ask = |name| approvals.ask(&client(name), waiting(&approvals));
        let _held = [ask("ann").unwrap(), ask("ann").unwrap()];
        assert_eq!(ask("ann").err(), Some(Full::Client(2)));
        assert!(ask("bob").is_ok());
    }
}
