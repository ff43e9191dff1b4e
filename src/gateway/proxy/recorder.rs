//! What goes into the audit log of an exchange, and when.
//!
//! INVARIANT: nothing is kept of a body but what policy says, and that without its secrets. Where
//! they cannot be looked for, nothing is kept.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use super::{Gateway, client::ClientContext, pipeline::RequestState};
use portcullis_audit::{Conclusion, Intent, Outcome, Refused, Ruling, Unavailable, record::Kept};
use portcullis_protocol::{codec::Object, exchange::Exchange, obligations::Keep, refusal::Refusal};
use portcullis_upstream::Server;

/// Bytes of a body up to which it is looked through in place, and not on a thread of its own.
const IN_PLACE: usize = 128 << 10;
/// Large bodies that are looked through at once.
pub(super) const AT_ONCE: usize = 2;

/// A [`Ruling`] that owns its text.
struct Grounds<'a> {
    passage: &'a RequestState,
    revision: String,
}

impl Grounds<'_> {
    fn borrow(&self) -> Ruling<'_> {
        let RequestState { trail, image, .. } = self.passage;
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

impl Gateway {
    /// Records that an exchange is about to leave. Only then it may.
    pub(super) async fn record_intent(
        &self,
        exchange: &Exchange,
        passage: &mut RequestState,
    ) -> Result<(), Unavailable> {
        let wanted = Keep::of(&passage.trail.rules).arguments;
        let kept = self.kept(exchange, wanted.then(|| arguments(exchange))).await;
        let intent = Intent::of(exchange, self.grounds(passage).borrow(), self.audit.key());
        let began = Instant::now();
        let written = match self.revision_recorded(&self.grounds(passage).revision).await {
            Ok(()) => self.audit.intent(intent.keeping(kept)).await,
            unrecorded => unrecorded,
        };
        passage.trail.stages.push(("intent".into(), began.elapsed()));
        written
    }

    /// Records how an exchange that had an intent ended.
    pub(super) async fn record_outcome(
        &self,
        exchange: &Exchange,
        passage: &RequestState,
        conclusion: Conclusion<'_>,
    ) -> Result<(), Unavailable> {
        let refusing = match conclusion {
            Conclusion::Refused(refusal) | Conclusion::Failed(refusal) => &refusal.rules[..],
            Conclusion::Delivered | Conclusion::Cancelled => &[],
        };
        let wanted = Keep::of(passage.trail.rules.iter().chain(refusing)).result;
        let result = exchange.response.as_ref().filter(|_| wanted);
        let kept = self.kept(exchange, result.map(|answer| answer.payload().raw().clone())).await;
        let (grounds, served) = (self.grounds(passage), passage.served());
        self.revision_recorded(&grounds.revision).await?;
        let outcome = Outcome::of(exchange, grounds.borrow(), conclusion, served, self.audit.key());
        self.audit.outcome(outcome.keeping(kept)).await
    }

    /// Records that an exchange was refused before it left.
    pub(super) async fn record_refusal(
        &self,
        exchange: &Exchange,
        passage: &RequestState,
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
        let wanted = Keep::of(passage.trail.rules.iter().chain(&refusal.rules)).arguments;
        let kept = self.kept(exchange, wanted.then(|| arguments(exchange))).await;
        let grounds = self.grounds(passage);
        let record = Refused::of(exchange, refusal, grounds.borrow(), self.audit.key());
        if let Err(error) = self.audit.refused(record.keeping(kept)).await {
            tracing::error!(decision = %exchange.id, %error, "a refusal could not be recorded");
        }
    }

    fn grounds<'a>(&self, passage: &'a RequestState) -> Grounds<'a> {
        // Where none decided, those that would have.
        let decided = passage.trail.revision.clone();
        let revision = decided.unwrap_or_else(|| self.policies.revision().to_string());
        Grounds { passage, revision }
    }

    /// The digest of the image in which a server runs for a client.
    pub(super) fn image(&self, guest: &ClientContext, server: &Arc<Server>) -> Option<String> {
        let own = guest.party_key(server).and_then(|key| server.owned(&key)?.peek());
        own.or_else(|| server.current())?.origin.image.clone()
    }

    /// All that a request holds, as a person may see it.
    pub(super) async fn shown_params(&self, exchange: &Exchange) -> Option<Kept> {
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
        let Ok(turn) = self.looking.next(&exchange.principal.kind).await else {
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
