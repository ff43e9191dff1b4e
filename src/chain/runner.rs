//! Runs the chain and executes verdicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use smol_str::SmolStr;

use super::{Decision, Fault, Interceptor, Mode, Verdict};
use portcullis_protocol::{
    codec::{self, Caps, Object, Text},
    exchange::{Answer, Effect, Exchange, Finding, Payload, Phase},
    refusal::{Code, Refusal, Rule},
};

/// Limit of the rounds of a message. If interceptors still change it then, that is a fault.
const MAX_ROUNDS: usize = 4;

/// Members of `params` that name the target. Policy decided on them and the router selected the
/// server by them, so no interceptor may change them.
const TARGET_MEMBERS: [&str; 6] = ["name", "uri", "ref", "cursor", "requestState", "taskId"];

/// Entry of the chain.
pub struct ChainEntry {
    pub interceptor: Arc<dyn Interceptor>,
    pub mode: Mode,
    pub fail_open: bool,
    pub deadline: Duration,
    /// Methods to which the operator restricted it.
    pub events: Option<Vec<String>>,
    /// Position of the entry in the config: file and line, from 1. It is the position of each of
    /// its rules that has none.
    pub place: Option<(PathBuf, u32)>,
}

impl ChainEntry {
    /// Entry that enforces, refuses on a fault, and inspects everything its interceptor wants.
    pub fn strict(interceptor: Arc<dyn Interceptor>) -> Self {
        Self {
            interceptor,
            mode: Mode::Enforce,
            fail_open: false,
            deadline: Duration::from_secs(1),
            events: None,
            place: None,
        }
    }

    fn wants(&self, exchange: &Exchange, phase: Phase) -> bool {
        let method = exchange.method.as_str();
        self.mode != Mode::Off
            && self.interceptor.wants(&exchange.method, phase)
            && self
                .events
                .as_ref()
                .is_none_or(|events| events.iter().any(|e| e == method || e == "*"))
    }

    async fn ask(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        let verdict = AssertUnwindSafe(self.interceptor.inspect(exchange, phase)).catch_unwind();
        match tokio::time::timeout(self.deadline, verdict).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(Fault("it panicked".into())),
            Err(_) => Err(Fault(format!("no verdict within {} ms", self.deadline.as_millis()))),
        }
    }

    fn finding(&self, phase: Phase, rule: Rule, message: String, effect: Effect) -> Finding {
        Finding { interceptor: self.interceptor.name().to_owned(), phase, rule, message, effect }
    }

    /// Rule that stands for this entry in findings of the chain itself.
    fn rule(&self) -> Rule {
        let mut rule = Rule::named(self.interceptor.name());
        self.put(&mut rule);
        rule
    }

    fn put(&self, rule: &mut Rule) {
        if let (None, Some((file, line))) = (&rule.file, &self.place) {
            rule.file = Some(file.clone());
            rule.line = Some(*line);
        }
    }

    /// Sets the position of every rule of a verdict. A refusal by a config entry has a rule even if
    /// its interceptor names none.
    fn placed(&self, mut verdict: Verdict) -> Verdict {
        if let Decision::Refuse(refusal) = &mut verdict.decision {
            if refusal.rules.is_empty() && self.place.is_some() {
                refusal.rules.push(self.rule());
            }
            refusal.rules.iter_mut().for_each(|rule| self.put(rule));
        }
        verdict.rules.iter_mut().for_each(|rule| self.put(rule));
        verdict.findings.iter_mut().for_each(|finding| self.put(&mut finding.rule));
        verdict
    }
}

/// What interceptors reported about a message.
#[derive(Debug, Clone, Default)]
pub struct ChainTrace {
    /// Rules that permitted it.
    pub rules: Vec<Rule>,
    pub findings: Vec<Finding>,
    /// Revision of the policies that decided last.
    pub revision: Option<String>,
    /// Labels at that decision.
    pub labels: Option<BTreeSet<String>>,
    /// Labels that interceptors gave to content of a server, which its client is to carry, and the
    /// rules that gave them.
    pub added_labels: BTreeMap<String, Rule>,
    /// Whether an interceptor replaced the payload.
    pub replaced: bool,
    /// Duration of each stage: `PHASE/NAME` of each interceptor in order, and stages that others
    /// add.
    pub stages: Vec<(SmolStr, Duration)>,
}

/// Entries in order.
pub struct Chain {
    links: Vec<ChainEntry>,
    request: Caps,
    response: Caps,
}

impl Chain {
    /// Chain of these entries, with limits for replacements.
    pub fn new(links: Vec<ChainEntry>, request: Caps, response: Caps) -> Self {
        Self { links, request, response }
    }

    /// Sends one half of an exchange through the chain. Afterwards the exchange holds what may be
    /// forwarded.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn pass(
        &self,
        exchange: &mut Exchange,
        phase: Phase,
        trail: &mut ChainTrace,
    ) -> Result<(), Refusal> {
        let mut version = 0_usize;
        let mut changer = None;
        // What each entry inspected: version of the payload, and number of labels.
        let mut seen: Vec<Option<(usize, usize)>> = vec![None; self.links.len()];
        for round in 0..MAX_ROUNDS {
            let mut settled = true;
            for (link, seen) in self.links.iter().zip(&mut seen) {
                let labels = exchange.labels.len();
                let knows = seen.is_some_and(|(shown, under)| {
                    shown == version && (under == labels || !link.interceptor.reads_labels())
                });
                if knows
                    || !link.wants(exchange, phase)
                    || (round > 0 && !link.interceptor.repeatable())
                {
                    continue;
                }
                settled = false;
                let replaced = self.step(link, exchange, phase, trail).await?;
                if replaced {
                    version += 1;
                    changer = Some(link);
                }
                // Labels are never removed, so a higher number means new ones; an entry's own
                // labels are not new to it.
                *seen = Some((version, exchange.labels.len()));
            }
            if settled {
                return Ok(());
            }
        }
        let mut refusal =
            Refusal::new(Code::InterceptorFault, "interceptors kept changing this message")
                .detail(format!("interceptors still changed the message in round {MAX_ROUNDS}"));
        refusal.rules.extend(changer.map(ChainEntry::rule));
        Err(refusal)
    }

    /// Runs one entry and executes its verdict. Returns whether it replaced the payload.
    async fn step(
        &self,
        link: &ChainEntry,
        exchange: &mut Exchange,
        phase: Phase,
        trail: &mut ChainTrace,
    ) -> Result<bool, Refusal> {
        let name = link.interceptor.name();
        let began = Instant::now();
        let result = link.ask(exchange, phase).await;
        let stage = SmolStr::from_iter([phase.as_str(), "/", name]);
        trail.stages.push((stage, began.elapsed()));
        let verdict = match result {
            Ok(verdict) => match self.legal(exchange, phase, &verdict.decision) {
                Ok(()) => Ok(link.placed(verdict)),
                Err(fault) => Err(fault),
            },
            Err(fault) => Err(fault),
        };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(Fault(what)) => {
                tracing::warn!(interceptor = name, decision = %exchange.id, fault = %what, "interceptor fault");
                if link.fail_open || link.mode == Mode::Audit {
                    trail.findings.push(link.finding(phase, link.rule(), what, Effect::Fault));
                    return Ok(false);
                }
                return Err(Refusal::new(
                    Code::InterceptorFault,
                    "a check on this message could not be completed",
                )
                .rule(link.rule())
                .detail(what));
            }
        };

        let enforced = link.mode == Mode::Enforce;
        let reported = verdict
            .findings
            .iter()
            .any(|f| matches!(f.effect, Effect::Redacted | Effect::Replaced));
        trail.findings.extend(verdict.findings.into_iter().map(|mut finding| {
            if !enforced {
                finding.effect = finding.effect.in_audit();
            }
            finding
        }));
        if enforced {
            if verdict.revision.is_some() && phase == Phase::Request {
                trail.labels = Some(exchange.labels.clone());
            }
            if !verdict.labels.is_empty() && exchange.from_server(phase) {
                let rule = link.rule();
                trail.added_labels.extend(verdict.labels.iter().map(|l| (l.clone(), rule.clone())));
            }
            exchange.labels.extend(verdict.labels);
            trail.revision = verdict.revision.or(trail.revision.take());
        }
        let refused = matches!(verdict.decision, Decision::Refuse(_));
        for rule in verdict.rules.into_iter().filter(|_| enforced && !refused) {
            let asks = &rule.obligations;
            if phase == Phase::Request && !exchange.obligations.contains(asks) {
                exchange.obligations.push(asks.clone());
            }
            if !trail.rules.contains(&rule) {
                trail.rules.push(rule);
            }
        }
        match verdict.decision {
            Decision::Pass => Ok(false),
            Decision::Refuse(refusal) if enforced => Err(refusal),
            Decision::Refuse(refusal) => {
                let rule = refusal.rules.into_iter().next().unwrap_or_else(|| link.rule());
                let message = format!("{}: {}", refusal.code, refusal.message);
                trail.findings.push(link.finding(phase, rule, message, Effect::WouldRefuse));
                Ok(false)
            }
            Decision::Replace(raw) if enforced => {
                match (phase, &mut exchange.response) {
                    (Phase::Response, Some(answer)) => *answer = answer.with(raw),
                    _ => exchange.request = Payload::new(raw),
                }
                trail.replaced = true;
                // The record says who changed a message, even if the interceptor reports nothing.
                if !reported {
                    let message = "replaced the payload".to_owned();
                    let rule = link.rule();
                    trail.findings.push(link.finding(phase, rule, message, Effect::Replaced));
                }
                Ok(true)
            }
            Decision::Replace(_) => {
                let message = "would replace the payload".to_owned();
                trail.findings.push(link.finding(
                    phase,
                    link.rule(),
                    message,
                    Effect::WouldReplace,
                ));
                Ok(false)
            }
        }
    }

    fn legal(&self, exchange: &Exchange, phase: Phase, decision: &Decision) -> Result<(), Fault> {
        let Decision::Replace(raw) = decision else { return Ok(()) };
        let (what, caps) = match (phase, &exchange.response) {
            (Phase::Request, _) => (Text::Params, self.request),
            (Phase::Response, Some(Answer::Error(_))) => (Text::Error, self.response),
            (Phase::Response, _) => (Text::Result, self.response),
        };
        may_replace(exchange.request.raw(), raw, what, caps)
    }
}

/// Checks a replacement by the rules for messages of clients and servers. It must not change the
/// target in `params`.
///
/// # Errors
/// Why it is refused.
pub fn may_replace(params: &Bytes, raw: &Bytes, what: Text, caps: Caps) -> Result<(), Fault> {
    let object = codec::check(raw, what, caps)
        .and_then(|_| Object::parse(raw.clone()))
        .map_err(|flaw| Fault(format!("its replacement is not legal: {flaw}")))?;
    if what == Text::Params {
        let before = Object::parse(params.clone()).map_err(|flaw| Fault(flaw.to_string()))?;
        if let Some(member) = TARGET_MEMBERS.into_iter().find(|m| object.get(m) != before.get(m)) {
            return Err(Fault(format!(
                "its replacement changes `{member}`, but the target is already decided"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
