//! Content and time of an exchange's records in the audit log.
//!
//! INVARIANT: bodies are kept only as far as policy requires, and without their secrets. A body
//! that cannot be searched for secrets is not kept.

mod audit_log;
pub(crate) mod client_events;
mod dropped_messages;
pub(crate) mod egress_events;
pub(crate) mod launch_events;
mod offline;
mod policy_revisions;
mod refusal_sampling;
mod retention;
pub(crate) mod startup_events;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use portcullis_audit::{
    Arrival, Audit, Conclusion, DecisionContext, Intent, Outcome, Refused, Unavailable,
    record::KeptBody,
};
use portcullis_chain::{ChainTrace, Party, Weight, in_turns, off_workers};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_interceptors::secrets::Scrubber;
use portcullis_policy::Revision;
use portcullis_protocol::{
    codec::{Frame, Id, Object},
    exchange::{Exchange, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
    obligations::Keep,
    refusal::Refusal,
};
use portcullis_telemetry::Metrics;

use dropped_messages::DropCounters;
use policy_revisions::RecordedRevisions;
use refusal_sampling::RefusalSampler;

pub(crate) use audit_log::open;
pub use launch_events::pull_outcome;
pub use offline::{
    record_client_offline, record_images_offline, record_offline, record_start_failure,
};
pub(crate) use retention::prune;
pub use retention::prune_offline;

/// Largest body that is searched for secrets in place; larger ones use a thread of their own.
const MAX_INLINE_BYTES: usize = 128 << 10;
/// Large bodies that are searched at once.
const SCANS: usize = 2;

/// Writes exchanges and events to the audit log.
pub struct Recorder {
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<portcullis_policy::Engine>,
    scrubber: Arc<Scrubber>,
    /// Limits the large bodies that are searched for secrets before they are kept.
    scans: FairSemaphore<PrincipalKind>,
    /// The policy revisions that are on record.
    revisions: RecordedRevisions,
    pub(crate) refusals: RefusalSampler,
    pub(crate) drops: DropCounters,
    /// Time limit of a record.
    deadline: Duration,
    closing: CancellationToken,
}

/// Data for the records of an exchange, besides the exchange itself.
#[derive(Default)]
pub(crate) struct ExchangeRecord {
    pub trail: ChainTrace,
    /// Generation of the policies that decided last; 0, which no policies have, without a decision.
    pub generation: u64,
    /// When a request was sent to a server.
    sent_at: Option<Instant>,
    /// Time spent in servers.
    in_server: Duration,
    /// Image digest of the server's instance.
    pub image: Option<String>,
}

impl ExchangeRecord {
    /// Notes the duration of a stage.
    pub fn stage(&mut self, name: &'static str, took: Duration) {
        self.trail.stages.push((name.into(), took));
    }

    /// Notes the duration of a stage that waited for servers.
    pub fn server_stage(&mut self, name: &'static str, took: Duration) {
        self.in_server += took;
        self.stage(name, took);
    }

    /// Notes that a request is being sent to a server.
    pub fn mark_sent(&mut self) {
        self.sent_at = Some(Instant::now());
    }

    /// Notes that the server, if a request was sent, has answered or is not waited for any more.
    pub fn answered(&mut self) {
        if let Some(sent_at) = self.sent_at {
            self.server_stage("server", sent_at.elapsed());
        }
    }

    /// The server's time, if a request was sent.
    pub fn served(&self) -> Option<Duration> {
        self.sent_at.map(|_| self.in_server)
    }
}

/// A [`DecisionContext`] that owns its text.
struct OwnedDecisionContext<'a> {
    record: &'a ExchangeRecord,
    revision: String,
}

impl OwnedDecisionContext<'_> {
    fn borrow(&self) -> DecisionContext<'_> {
        let ExchangeRecord { trail, image, .. } = self.record;
        DecisionContext {
            rules: &trail.rules,
            findings: &trail.findings,
            policy_revision: Some(&self.revision),
            image: image.as_deref(),
            stages: &trail.stages,
            labels: trail.labels.as_ref(),
        }
    }
}

impl Recorder {
    /// A recorder for a proxy that starts with policies of `revision`. `deadline` is the time limit
    /// of a record.
    pub(crate) fn new(
        audit: Audit,
        metrics: Arc<Metrics>,
        policies: Arc<portcullis_policy::Engine>,
        scrubber: Arc<Scrubber>,
        revision: Revision,
        deadline: Duration,
        closing: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            audit,
            metrics,
            policies,
            scrubber,
            scans: FairSemaphore::new(SCANS),
            revisions: RecordedRevisions::new(revision),
            refusals: RefusalSampler::new(),
            drops: DropCounters::default(),
            deadline,
            closing,
        })
    }

    /// Records the intent of an exchange. The exchange may leave only afterwards.
    pub(crate) async fn record_intent(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Unavailable> {
        let wanted = Keep::of(&record.trail.rules).arguments;
        let kept_body = self.kept_body(exchange, wanted.then(|| arguments(exchange))).await;
        let intent = Intent::of(exchange, self.decision_context(record).borrow(), self.audit.key());
        let began = Instant::now();
        let written = match self.revision_recorded(&self.decision_context(record).revision).await {
            Ok(()) => self.audit.intent(intent.keeping(kept_body)).await,
            unrecorded => unrecorded,
        };
        record.stage("intent", began.elapsed());
        written
    }

    /// Records the outcome of an exchange that has an intent.
    pub(crate) async fn record_outcome(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        conclusion: Conclusion<'_>,
    ) -> Result<(), Unavailable> {
        let refusing = match conclusion {
            Conclusion::Refused(refusal) | Conclusion::Failed(refusal) => &refusal.rules[..],
            Conclusion::Delivered | Conclusion::Cancelled => &[],
        };
        let wanted = Keep::of(record.trail.rules.iter().chain(refusing)).result;
        let result = exchange.response.as_ref().filter(|_| wanted);
        let kept_body =
            self.kept_body(exchange, result.map(|answer| answer.payload().raw().clone())).await;
        let (decision_context, served) = (self.decision_context(record), record.served());
        self.revision_recorded(&decision_context.revision).await?;
        let outcome =
            Outcome::of(exchange, decision_context.borrow(), conclusion, served, self.audit.key());
        self.audit.outcome(outcome.keeping(kept_body)).await
    }

    /// Records the refusal of an exchange that did not leave.
    pub(crate) async fn record_refusal(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        refusal: &Refusal,
    ) {
        tracing::info!(
            decision = %exchange.id,
            client = exchange.principal.name(),
            server = exchange.server.as_ref().map(|s| s.as_str()),
            method = self.shown(exchange.method.as_str()),
            code = %refusal.code,
            "refused"
        );
        let wanted = Keep::of(record.trail.rules.iter().chain(&refusal.rules)).arguments;
        let kept_body = self.kept_body(exchange, wanted.then(|| arguments(exchange))).await;
        let decision_context = self.decision_context(record);
        let refused = Refused::of(exchange, refusal, decision_context.borrow(), self.audit.key());
        if let Err(error) = self.audit.refused(refused.keeping(kept_body)).await {
            tracing::error!(decision = %exchange.id, %error, "a refusal could not be recorded");
        }
    }

    /// Records the refusal of a message that is not an exchange, and returns its response. Refusals
    /// of a flood share one record and one decision id.
    pub async fn reject(
        &self,
        refusal: &Refusal,
        transport: Transport,
        client_addr: Option<SocketAddr>,
        principal: Option<&Principal>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Bytes {
        self.metrics.refusal(refusal.code);
        self.metrics.error(refusal.code.rpc().into());
        let answer =
            |decision| Frame::error(id, refusal.to_rpc_error(decision).to_string().as_bytes());
        if let Some(summary) = self.refusals.on_arrival(refusal.code, principal, client_addr) {
            summary.on_record(&self.audit).await;
            tracing::debug!(decision = %summary.id, code = %refusal.code, "refused on arrival, one of many");
            return answer(summary.id);
        }
        let decision = DecisionId::next();
        let arrival = Arrival {
            id: decision,
            at: jiff::Timestamp::now(),
            transport,
            client_addr,
            principal,
            message,
        };
        tracing::info!(%decision, code = %refusal.code, detail = refusal.detail, "refused on arrival");
        let build = async { Refused::on_arrival(arrival, refusal, self.audit.key()) };
        let record = match principal {
            Some(principal) => {
                let party = Party::Client(principal.kind.clone());
                in_turns(party, message.map_or(Weight::NONE, Weight::of), build).await
            }
            None => build.await,
        };
        if let Err(error) = self.audit.refused(record).await {
            tracing::error!(%decision, %error, "a refusal could not be recorded");
        }
        answer(decision)
    }

    /// Whether the next refusal of this user with this code at the admin socket gets its own
    /// record. If not, it is counted.
    pub fn records_admin_refusal(&self, user: &str, code: &'static str) -> bool {
        self.refusals.of_admin(user, code)
    }

    /// A function that removes secrets from texts.
    pub(crate) fn scrub(&self) -> portcullis_audit::Scrub {
        let scrubber = self.scrubber.clone();
        Arc::new(move |text| scrubber.scrub(text))
    }

    /// A client's or server's text without secrets, for logs.
    pub fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.scrubber.scrub(&mut text);
        text
    }

    fn decision_context<'a>(&self, record: &'a ExchangeRecord) -> OwnedDecisionContext<'a> {
        // Without a decision, the present policies.
        let decided = record.trail.revision.clone();
        let revision = decided.unwrap_or_else(|| self.policies.revision().to_string());
        OwnedDecisionContext { record, revision }
    }

    /// A request's parameters as a person may see them.
    pub(crate) async fn shown_params(&self, exchange: &Exchange) -> Option<KeptBody> {
        self.kept_body(exchange, Some(exchange.request.raw().clone())).await
    }

    /// A body as it is kept: without its secrets and cut to size.
    async fn kept_body(&self, exchange: &Exchange, body: Option<Bytes>) -> Option<KeptBody> {
        let body = body?;
        let (scrubber, bytes) = (self.scrubber.clone(), body.len());
        let look = move || match scrubber.redact(&body) {
            Ok(redacted) => KeptBody::of(redacted.body, redacted.secrets),
            Err(why) => KeptBody::failed(why.to_string()),
        };
        if bytes <= MAX_INLINE_BYTES {
            return Some(look());
        }
        let Ok(turn) = self.scans.next(&exchange.principal.kind).await else {
            return Some(KeptBody::failed("the proxy is shutting down"));
        };
        let looked = off_workers(move || {
            // Held to the end of the work, even if the caller is gone.
            let _turn = turn;
            look()
        });
        Some(looked.await.unwrap_or_else(|_| KeptBody::failed("looking through it ended early")))
    }
}

/// The text of the arguments. Methods without arguments have their parameters without `_meta`
/// instead.
fn arguments(exchange: &Exchange) -> Bytes {
    let raw = exchange.request.raw();
    // Unreadable text is returned as it is; it will not be kept, because it cannot be read.
    let Ok(params) = Object::parse(raw.clone()) else { return raw.clone() };
    params.get("arguments").unwrap_or_else(|| params.with(&[("_meta", None)]))
}
