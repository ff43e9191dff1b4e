//! What goes into the audit log of an exchange, and when.
//!
//! INVARIANT: nothing is kept of a body but what policy says, and that without its secrets. Where
//! they cannot be looked for, nothing is kept.

mod dropped_messages;
pub(crate) mod egress_events;
pub(crate) mod launch_events;
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
    Arrival, Audit, Conclusion, Intent, Outcome, Refused, Ruling, Unavailable, record::Kept,
};
use portcullis_chain::{ChainTrace, Party, Weight, in_turns};
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

pub use launch_events::pull_outcome;
pub use retention::prune_offline;
pub use startup_events::{
    record_client_offline, record_images_offline, record_offline, record_start_failure,
};

/// Bytes of a body up to which it is looked through in place, and not on a thread of its own.
const IN_PLACE: usize = 128 << 10;
/// Large bodies that are looked through at once.
const SCANS: usize = 2;

/// Writes exchanges and what happens beside them to the audit log.
pub struct Recorder {
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<portcullis_policy::Engine>,
    scrubber: Arc<Scrubber>,
    /// Large bodies that are looked through for secrets, to be kept.
    scans: FairSemaphore<PrincipalKind>,
    /// The policies that are on record.
    revisions: RecordedRevisions,
    pub(crate) refusals: RefusalSampler,
    pub(crate) drops: DropCounters,
    /// How long a record may take.
    deadline: Duration,
    closing: CancellationToken,
}

/// What is recorded of an exchange beside the exchange itself.
#[derive(Default)]
pub(crate) struct ExchangeRecord {
    pub trail: ChainTrace,
    /// When a server was asked.
    asked: Option<Instant>,
    /// The time that servers took.
    in_server: Duration,
    /// The digest of the image that the server runs from.
    pub image: Option<String>,
}

impl ExchangeRecord {
    /// Notes that a stage took this long.
    pub fn stage(&mut self, name: &'static str, took: Duration) {
        self.trail.stages.push((name.into(), took));
    }

    /// Notes that a stage in which servers were waited for took this long.
    pub fn server_stage(&mut self, name: &'static str, took: Duration) {
        self.in_server += took;
        self.stage(name, took);
    }

    /// Notes that a server is asked now.
    pub fn asked(&mut self) {
        self.asked = Some(Instant::now());
    }

    /// Notes that the server, where it was asked, has answered or is not waited for any more.
    pub fn answered(&mut self) {
        if let Some(asked) = self.asked {
            self.server_stage("server", asked.elapsed());
        }
    }

    /// The time that the server took, where it was asked.
    pub fn served(&self) -> Option<Duration> {
        self.asked.map(|_| self.in_server)
    }
}

/// A [`Ruling`] that owns its text.
struct Grounds<'a> {
    record: &'a ExchangeRecord,
    revision: String,
}

impl Grounds<'_> {
    fn borrow(&self) -> Ruling<'_> {
        let ExchangeRecord { trail, image, .. } = self.record;
        Ruling {
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
    /// A recorder of a proxy that starts with policies of this revision. A record may take as long as
    /// `deadline`.
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

    /// Records that an exchange is about to leave. Only then it may.
    pub(crate) async fn record_intent(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Unavailable> {
        let wanted = Keep::of(&record.trail.rules).arguments;
        let kept = self.kept(exchange, wanted.then(|| arguments(exchange))).await;
        let intent = Intent::of(exchange, self.grounds(record).borrow(), self.audit.key());
        let began = Instant::now();
        let written = match self.revision_recorded(&self.grounds(record).revision).await {
            Ok(()) => self.audit.intent(intent.keeping(kept)).await,
            unrecorded => unrecorded,
        };
        record.stage("intent", began.elapsed());
        written
    }

    /// Records how an exchange that had an intent ended.
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
        let kept = self.kept(exchange, result.map(|answer| answer.payload().raw().clone())).await;
        let (grounds, served) = (self.grounds(record), record.served());
        self.revision_recorded(&grounds.revision).await?;
        let outcome = Outcome::of(exchange, grounds.borrow(), conclusion, served, self.audit.key());
        self.audit.outcome(outcome.keeping(kept)).await
    }

    /// Records that an exchange was refused before it left.
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
        let kept = self.kept(exchange, wanted.then(|| arguments(exchange))).await;
        let grounds = self.grounds(record);
        let refused = Refused::of(exchange, refusal, grounds.borrow(), self.audit.key());
        if let Err(error) = self.audit.refused(refused.keeping(kept)).await {
            tracing::error!(decision = %exchange.id, %error, "a refusal could not be recorded");
        }
    }

    /// Records a refusal of a message that did not become an exchange, and makes its answer. The
    /// refusals of a flood are recorded together, under the decision id that they share.
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
        let made = async { Refused::on_arrival(arrival, refusal, self.audit.key()) };
        let record = match principal {
            Some(principal) => {
                let party = Party::Client(principal.kind.clone());
                in_turns(party, message.map_or(Weight::NONE, Weight::of), made).await
            }
            None => made.await,
        };
        if let Err(error) = self.audit.refused(record).await {
            tracing::error!(%decision, %error, "a refusal could not be recorded");
        }
        answer(decision)
    }

    /// Whether one more refusal of this user, with this code, at the admin socket gets a record of
    /// its own; if not, it is counted.
    pub fn records_admin_refusal(&self, user: &str, code: &'static str) -> bool {
        self.refusals.of_admin(user, code)
    }

    /// What takes secrets out of texts.
    pub(crate) fn scrub(&self) -> portcullis_audit::Scrub {
        let scrubber = self.scrubber.clone();
        Arc::new(move |text| scrubber.scrub(text))
    }

    /// A text of a client's or a server's as a log may show it.
    pub fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.scrubber.scrub(&mut text);
        text
    }

    fn grounds<'a>(&self, record: &'a ExchangeRecord) -> Grounds<'a> {
        // Where none decided, those that would have.
        let decided = record.trail.revision.clone();
        let revision = decided.unwrap_or_else(|| self.policies.revision().to_string());
        Grounds { record, revision }
    }

    /// All that a request holds, as a person may see it.
    pub(crate) async fn shown_params(&self, exchange: &Exchange) -> Option<Kept> {
        self.kept(exchange, Some(exchange.request.raw().clone())).await
    }

    /// A body as it is kept: without its secrets, and cut to size.
    async fn kept(&self, exchange: &Exchange, body: Option<Bytes>) -> Option<Kept> {
        let body = body?;
        let (scrubber, bytes) = (self.scrubber.clone(), body.len());
        let look = move || match scrubber.redact(&body) {
            Ok(redacted) => Kept::of(redacted.body, redacted.secrets),
            Err(why) => Kept::failed(why.to_string()),
        };
        if bytes <= IN_PLACE {
            return Some(look());
        }
        let Ok(turn) = self.scans.next(&exchange.principal.kind).await else {
            return Some(Kept::failed("the proxy is shutting down"));
        };
        let looked = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also where nobody waits for it any more.
            let _turn = turn;
            look()
        });
        Some(looked.await.unwrap_or_else(|_| Kept::failed("looking through it ended early")))
    }
}

/// The text of the arguments; where the method has none by that name, of its parameters without
/// `_meta`.
fn arguments(exchange: &Exchange) -> Bytes {
    let raw = exchange.request.raw();
    // What can't be read is not kept, for that reason.
    let Ok(params) = Object::parse(raw.clone()) else { return raw.clone() };
    params.get("arguments").unwrap_or_else(|| params.with(&[("_meta", None)]))
}
