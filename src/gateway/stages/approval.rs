//! Approvals: calls wait for a person if a policy requires it.

use std::sync::Arc;

use async_trait::async_trait;

use super::obligations::Obligations;
use crate::{
    approval::{ApprovalRecorder, ApprovalRule, PendingApproval, Resolution},
    recorder::{ExchangeRecord, Recorder},
};
use portcullis_audit::record::{ApprovalDecided, ApprovalRequested, ApprovalWebhookFailed};
use portcullis_protocol::{
    exchange::{Direction, Exchange, Target},
    refusal::{Code, Refusal, Rule},
};

/// Records the events of waiting calls.
struct Notes(Arc<Recorder>);

#[async_trait]
impl ApprovalRecorder for Notes {
    async fn record_resolution(
        &self,
        call: &PendingApproval,
        word: &Resolution,
    ) -> Result<(), String> {
        let shown = |text: &str| self.0.shown(text);
        let happening = ApprovalDecided {
            call: call.id,
            principal: call.principal.clone(),
            server: call.server.clone(),
            allowed: word.allowed,
            by: shown(&word.by),
            reason: word.reason.as_deref().map(shown),
        };
        self.0.audit.record_event(happening).await.map_err(|error| error.to_string())
    }

    async fn unreached(&self, call: &PendingApproval, why: &str) {
        let reason = self.0.shown(why);
        let happening = ApprovalWebhookFailed {
            call: call.id,
            principal: call.principal.clone(),
            server: call.server.clone(),
            reason,
        };
        self.0.audit.record_best_effort(happening).await;
    }
}

impl Obligations {
    /// Waits for a person's approval if the policies require one. The message that is sent is the
    /// one that the person saw.
    ///
    /// # Errors
    /// A [`Refusal`] if it is not approved.
    pub(crate) async fn approved(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        let asking: Vec<_> = record.trail.rules.iter().filter_map(asking).collect();
        if asking.is_empty() {
            return Ok(());
        }
        // A server request ends with its call, and a notification's sender would not see an answer.
        if exchange.notification || exchange.direction == Direction::ServerToClient {
            let words = "this message needs a person's approval, and messages of this kind cannot wait for it";
            let refusal = Refusal::new(Code::ApprovalTimeout, words);
            return Err(asking.into_iter().fold(refusal, |all, asking| all.rule(asking.rule)));
        }
        let began = std::time::Instant::now();
        let outcome = self.await_approval(exchange, record, asking).await;
        record.stage("approval", began.elapsed());
        outcome
    }

    async fn await_approval(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
        asking: Vec<ApprovalRule>,
    ) -> Result<(), Refusal> {
        let refuse = |code, words: &str, detail: String| {
            let refusal = Refusal::new(code, words).detail(detail);
            Err(asking.iter().fold(refusal, |refusal, asking| refusal.rule(asking.rule.clone())))
        };
        let Some(call) = self.waiting(exchange, asking.clone()).await else {
            let words = "this call needs a person's approval and is too long to be shown in full";
            return refuse(Code::ApprovalTimeout, words, "the call cannot be shown in full".into());
        };
        // The request for approval is recorded before a person sees it.
        self.on_record(ApprovalRequested {
            call: exchange.id,
            principal: exchange.principal.name(),
            server: call.server.clone(),
            rules: asking.iter().map(|asking| asking.rule.id.clone()).collect(),
            until: call.until,
            webhook: self.approvals.webhook_host(),
        })
        .await?;
        let notes = Notes(self.recorder.clone());
        let ticket = match self.approvals.ask(&exchange.principal.kind, call, Arc::new(notes)) {
            Ok(ticket) => ticket,
            Err(full) => {
                let words = "too many calls wait for approval";
                return refuse(Code::ApprovalTimeout, words, full.to_string());
            }
        };
        let word = tokio::select! {
            word = ticket.word() => word,
            () = self.closing.cancelled() => {
                return Err(Refusal::new(Code::ShuttingDown, "the proxy is shutting down"));
            }
        };
        let Some(Resolution { allowed, by, reason }) = word else {
            let words = "the call was not approved in time";
            return refuse(Code::ApprovalTimeout, words, "no decision in time".into());
        };
        let (by, reason) =
            (self.recorder.shown(&by), reason.map(|reason| self.recorder.shown(&reason)));
        if !allowed {
            let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let words = "a person denied the call";
            return refuse(Code::ApprovalDenied, words, format!("denied by {by}{why}"));
        }
        // The policies may have changed while the call waited.
        self.decide_again(exchange, record).await
    }

    /// The call as a person sees it; `None` if it cannot be shown in full.
    async fn waiting(
        &self,
        exchange: &Exchange,
        rules: Vec<ApprovalRule>,
    ) -> Option<PendingApproval> {
        let shown = self.recorder.shown_params(exchange).await;
        let params = shown.filter(|shown| !shown.cut && shown.failure.is_none())?;
        let (asked, until) = self.approvals.times();
        let target = match &exchange.target {
            Target::Tool { name, .. } | Target::Prompt { name, .. } => Some(name.clone()),
            Target::Resource { uri } => Some(uri.clone()),
            _ => None,
        };
        Some(PendingApproval {
            id: exchange.id,
            principal: exchange.principal.name(),
            method: self.recorder.shown(exchange.method.as_str()),
            server: exchange.server.as_ref().map(ToString::to_string),
            target: target.map(|target| self.recorder.shown(&target)),
            params,
            rules,
            asked,
            until,
        })
    }

    async fn on_record(&self, happening: ApprovalRequested) -> Result<(), Refusal> {
        self.recorder.audit.record_event(happening).await.map_err(|error| {
            let words = "the approval request could not be recorded, so the call was not made";
            Refusal::new(Code::AuditUnavailable, words).detail(error.to_string())
        })
    }
}

fn asking(rule: &Rule) -> Option<ApprovalRule> {
    let why = rule.obligations.approve.clone()?;
    Some(ApprovalRule { rule: rule.clone(), why })
}
