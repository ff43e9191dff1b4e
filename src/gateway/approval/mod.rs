//! Approvals of waiting calls. A policy's `@approve` makes a call wait here; `portcullis approve`
//! or the response of a webhook continues or ends it.
//!
//! # Invariants
//! - The person sees everything that will be sent, without its secrets.
//! - Only a waiting call can be approved, and only once. A call that is not approved in time is
//!   refused.
//! - A resolution is on record before it has an effect, whatever happens to the call meanwhile.
//! - One client cannot take the slots of the others, and the number of waiting calls is bounded.

mod webhook;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

pub use webhook::{Illegal, Webhook};

use portcullis_audit::record::KeptBody;
use portcullis_protocol::{identity::PrincipalKind, names::DecisionId, refusal::Rule};

/// Calls that may wait at once.
const MOST: usize = 1_000;
/// Time for which a call waits for the record of a timely resolution.
const RECORDING: Duration = Duration::from_secs(10);

/// A waiting call, as the approver sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingApproval {
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
    pub params: KeptBody,
    /// The policies that require approval, with their reasons.
    pub rules: Vec<ApprovalRule>,
    pub asked: Timestamp,
    /// Time at which it is refused without a resolution.
    pub until: Timestamp,
}

/// A policy that requires approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRule {
    #[serde(flatten)]
    pub rule: Rule,
    /// Its `@approve`.
    pub why: String,
}

/// Resolution of a waiting call by a person or the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub allowed: bool,
    /// Who resolved it: a user of this machine, or the webhook.
    pub by: String,
    /// Reason for the record. It is not sent to the agent.
    pub reason: Option<String>,
}

/// Why a call cannot wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    #[error("{0} calls of this client wait for approval already")]
    Client(usize),
    #[error("{MOST} calls wait for approval already")]
    All,
}

/// Effect of a resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolutionResult {
    /// The call continues or ends by it.
    Accepted,
    /// The call is not waiting (any more).
    Late,
    /// It could not be recorded, for this cause, so it has no effect: the call is refused.
    Unrecorded(String),
}

/// Records resolutions.
#[async_trait]
pub trait ApprovalRecorder: Send + Sync {
    /// Records the resolution of a call.
    async fn record_resolution(
        &self,
        call: &PendingApproval,
        word: &Resolution,
    ) -> Result<(), String>;
    /// Records that the webhook was unreachable or gave an invalid response.
    async fn unreached(&self, call: &PendingApproval, why: &str);
}

struct Slot {
    waiting: PendingApproval,
    client: PrincipalKind,
    until: Instant,
    answer: oneshot::Sender<Resolution>,
    approval_recorder: Arc<dyn ApprovalRecorder>,
    /// Whether a resolution was made, so that no other is possible. The slot is kept until it is on
    /// record; a client that is removed meanwhile loses it.
    resolved: bool,
}

/// All waiting calls.
pub struct Approvals {
    patience: Duration,
    per_client: usize,
    webhook: Option<Webhook>,
    slots: Mutex<BTreeMap<DecisionId, Slot>>,
}

/// A call's slot. When it is dropped, the call cannot be approved any more.
pub struct Ticket {
    approvals: Arc<Approvals>,
    id: DecisionId,
    until: Instant,
    answer: oneshot::Receiver<Resolution>,
    /// Ends with the call, so that a client that repeatedly gives up leaves no tasks behind.
    _webhook: Option<AbortOnDropHandle<()>>,
}

impl Approvals {
    /// Empty. Each call waits at most `patience`; `per_client` limits the calls of one client.
    pub fn new(patience: Duration, per_client: usize, webhook: Option<Webhook>) -> Self {
        Self { patience, per_client, webhook, slots: Mutex::default() }
    }

    /// Host of the webhook, if there is one.
    pub fn webhook_host(&self) -> Option<String> {
        self.webhook.as_ref().map(Webhook::host)
    }

    /// The times at which a call that arrives now starts to wait and is refused.
    pub fn times(&self) -> (Timestamp, Timestamp) {
        let now = Timestamp::now();
        let patience = SignedDuration::try_from(self.patience).unwrap_or(SignedDuration::MAX);
        (now, now.saturating_add(patience).unwrap_or(Timestamp::MAX))
    }

    /// Makes a call wait, and notifies the webhook.
    ///
    /// # Errors
    /// [`QueueFull`].
    pub fn ask(
        self: &Arc<Self>,
        client: &PrincipalKind,
        waiting: PendingApproval,
        approval_recorder: Arc<dyn ApprovalRecorder>,
    ) -> Result<Ticket, QueueFull> {
        let (answer, answered) = oneshot::channel();
        let (id, until) = (waiting.id, Instant::now() + self.patience);
        let mut slots = self.slots.lock();
        if slots.values().filter(|slot| slot.client == *client).count() >= self.per_client {
            return Err(QueueFull::Client(self.per_client));
        }
        if slots.len() >= MOST {
            return Err(QueueFull::All);
        }
        let notified = waiting.clone();
        let (client, recorder_of_slot) = (client.clone(), approval_recorder.clone());
        let slot = Slot {
            waiting,
            client,
            until,
            answer,
            approval_recorder: recorder_of_slot,
            resolved: false,
        };
        slots.insert(id, slot);
        drop(slots);
        let webhook = self.webhook.clone().map(|webhook| {
            let approvals = Arc::downgrade(self);
            AbortOnDropHandle::new(tokio::spawn(async move {
                match webhook.notify(&notified).await {
                    Ok(Some(word)) => {
                        if let Some(approvals) = approvals.upgrade() {
                            approvals.answer(id, word).await;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(decision = %id, %error, "approval webhook not reached");
                        approval_recorder.unreached(&notified, &error).await;
                    }
                }
            }))
        });
        Ok(Ticket { approvals: Arc::clone(self), id, until, answer: answered, _webhook: webhook })
    }

    /// The waiting calls, oldest first.
    pub fn waiting(&self) -> Vec<PendingApproval> {
        let slots = self.slots.lock();
        let open = slots.values().filter(|slot| !slot.resolved);
        open.map(|slot| slot.waiting.clone()).collect()
    }

    /// Removes the waiting calls of a client, so that they cannot be approved.
    pub fn forget(&self, client: &PrincipalKind) {
        self.slots.lock().retain(|_, slot| slot.client != *client);
    }

    /// Resolves a call. The record is completed even if the caller or the call stops waiting for
    /// it.
    pub async fn answer(self: &Arc<Self>, id: DecisionId, word: Resolution) -> ResolutionResult {
        let (waiting, approval_recorder) = match self.slots.lock().get_mut(&id) {
            // Late by a moment is late, since the call may have been refused already.
            Some(slot) if !slot.resolved && slot.until > Instant::now() => {
                slot.resolved = true;
                (slot.waiting.clone(), slot.approval_recorder.clone())
            }
            _ => return ResolutionResult::Late,
        };
        let approvals = self.clone();
        let taken = tokio::spawn(async move {
            let recorded = approval_recorder.record_resolution(&waiting, &word).await;
            let slot = approvals.slots.lock().remove(&id);
            if let Err(why) = recorded {
                return ResolutionResult::Unrecorded(why);
            }
            match slot.map(|slot| slot.answer.send(word)) {
                Some(Ok(())) => ResolutionResult::Accepted,
                _ => ResolutionResult::Late,
            }
        });
        taken.await.unwrap_or_else(|_| {
            ResolutionResult::Unrecorded("its record was broken off".to_owned())
        })
    }
}

impl Ticket {
    /// The resolution; `None` if there was none in time.
    pub async fn word(mut self) -> Option<Resolution> {
        match tokio::time::timeout_at(self.until.into(), &mut self.answer).await {
            Ok(word) => word.ok(),
            // Resolved in time, and being recorded.
            Err(_) if self.is_resolved() => {
                tokio::time::timeout(RECORDING, &mut self.answer).await.ok()?.ok()
            }
            Err(_) => None,
        }
    }

    fn is_resolved(&self) -> bool {
        // If the slot is gone, the resolution may have been sent since.
        self.approvals.slots.lock().get(&self.id).is_none_or(|slot| slot.resolved)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.approvals.slots.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(approvals: &Approvals) -> PendingApproval {
        let (asked, until) = approvals.times();
        PendingApproval {
            id: DecisionId::next(),
            principal: "ann".into(),
            method: "tools/call".into(),
            server: None,
            target: None,
            params: KeptBody::default(),
            rules: Vec::new(),
            asked,
            until,
        }
    }

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Client(name.parse().unwrap())
    }

    /// Keeps the decision ids of resolutions.
    #[derive(Default)]
    struct ApprovalQueue {
        resolutions: Mutex<Vec<(DecisionId, bool)>>,
        fails: bool,
    }

    #[async_trait]
    impl ApprovalRecorder for ApprovalQueue {
        async fn record_resolution(
            &self,
            call: &PendingApproval,
            word: &Resolution,
        ) -> Result<(), String> {
            if self.fails {
                return Err("full".to_owned());
            }
            tokio::task::yield_now().await;
            self.resolutions.lock().push((call.id, word.allowed));
            Ok(())
        }

        async fn unreached(&self, _: &PendingApproval, _: &str) {}
    }

    /// Records when it is released.
    struct Slow(Mutex<Option<oneshot::Receiver<()>>>);

    #[async_trait]
    impl ApprovalRecorder for Slow {
        async fn record_resolution(
            &self,
            _: &PendingApproval,
            _: &Resolution,
        ) -> Result<(), String> {
            let let_go = self.0.lock().take().unwrap();
            let_go.await.map_err(|error| error.to_string())
        }

        async fn unreached(&self, _: &PendingApproval, _: &str) {}
    }

    fn book() -> Arc<ApprovalQueue> {
        Arc::default()
    }

    fn yes() -> Resolution {
        Resolution { allowed: true, by: "root".into(), reason: None }
    }

    #[tokio::test]
    async fn call_is_approved_once_and_only_while_waiting() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let call = waiting(&approvals);
        let id = call.id;
        let book = book();
        let ticket = approvals.ask(&client("ann"), call.clone(), book.clone()).unwrap();
        assert_eq!(approvals.waiting(), [call]);
        assert_eq!(approvals.answer(DecisionId::next(), yes()).await, ResolutionResult::Late);
        assert_eq!(approvals.answer(id, yes()).await, ResolutionResult::Accepted);
        assert_eq!(approvals.answer(id, yes()).await, ResolutionResult::Late);
        assert_eq!(ticket.word().await, Some(yes()));

        // Its client is gone.
        let call = waiting(&approvals);
        let id = call.id;
        drop(approvals.ask(&client("ann"), call, book.clone()).unwrap());
        assert!(approvals.waiting().is_empty());
        assert_eq!(approvals.answer(id, yes()).await, ResolutionResult::Late);
        assert_eq!(book.resolutions.lock().len(), 1);
    }

    #[tokio::test]
    async fn resolution_is_recorded_after_both_sides_disconnect() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let (call, book) = (waiting(&approvals), book());
        let id = call.id;
        let ticket = approvals.ask(&client("ann"), call, book.clone()).unwrap();
        let mut answer = Box::pin(approvals.answer(id, yes()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        // The client and the approver disconnect between the resolution and its record.
        drop(ticket);
        drop(answer);
        while book.resolutions.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(*book.resolutions.lock(), [(id, true)]);
    }

    #[tokio::test]
    async fn removed_client_loses_a_resolution_being_recorded() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 1, None));
        let (call, book) = (waiting(&approvals), book());
        let id = call.id;
        let ticket = approvals.ask(&client("ann"), call, book.clone()).unwrap();
        let mut answer = Box::pin(approvals.answer(id, yes()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        // Its slot is still in use, and no other resolution is possible.
        assert!(approvals.waiting().is_empty());
        assert_eq!(approvals.answer(id, yes()).await, ResolutionResult::Late);
        let another = approvals.ask(&client("ann"), waiting(&approvals), book.clone());
        assert_eq!(another.err(), Some(QueueFull::Client(1)));
        approvals.forget(&client("ann"));
        assert_eq!(answer.await, ResolutionResult::Late);
        assert_eq!(*book.resolutions.lock(), [(id, true)]);
        assert_eq!(ticket.word().await, None);
    }

    #[tokio::test]
    async fn timely_resolution_counts_despite_a_slow_record() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 1, None));
        let call = waiting(&approvals);
        let id = call.id;
        let (slow, recorded) = oneshot::channel();
        let book = Slow(Mutex::new(Some(recorded)));
        let mut ticket = approvals.ask(&client("ann"), call, Arc::new(book)).unwrap();
        let mut answer = Box::pin(approvals.answer(id, yes()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        ticket.until = Instant::now();
        let mut word = Box::pin(ticket.word());
        assert!(futures_util::poll!(&mut word).is_pending());
        slow.send(()).unwrap();
        assert_eq!((answer.await, word.await), (ResolutionResult::Accepted, Some(yes())));
    }

    #[tokio::test]
    async fn unrecorded_resolution_does_not_count() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let (call, book) = (
            waiting(&approvals),
            Arc::new(ApprovalQueue { fails: true, ..ApprovalQueue::default() }),
        );
        let id = call.id;
        let ticket = approvals.ask(&client("ann"), call, book).unwrap();
        assert_eq!(
            approvals.answer(id, yes()).await,
            ResolutionResult::Unrecorded("full".to_owned())
        );
        assert_eq!(ticket.word().await, None);
    }

    #[tokio::test]
    async fn unanswered_call_times_out() {
        let approvals = Arc::new(Approvals::new(Duration::from_millis(1), 2, None));
        let call = waiting(&approvals);
        let id = call.id;
        let ticket = approvals.ask(&client("ann"), call, book()).unwrap();
        assert_eq!(ticket.word().await, None);
        assert_eq!(approvals.answer(id, yes()).await, ResolutionResult::Late);
    }

    #[tokio::test]
    async fn waiting_calls_are_limited_by_client() {
        let approvals = Arc::new(Approvals::new(Duration::from_secs(60), 2, None));
        let ask = |name| approvals.ask(&client(name), waiting(&approvals), book());
        let _held = [ask("ann").unwrap(), ask("ann").unwrap()];
        assert_eq!(ask("ann").err(), Some(QueueFull::Client(2)));
        assert!(ask("bob").is_ok());
    }
}
