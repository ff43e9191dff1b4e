//! Carries verdicts out.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{Decision, Fault, Interceptor, Mode, Verdict};
use portcullis_protocol::{
    codec::{self, Caps, Object, Text},
    exchange::{Answer, Effect, Exchange, Finding, Payload, Phase},
    refusal::{Code, Refusal, Rule},
};

/// How often a message may go round before interceptors that keep changing it are a fault.
const ROUNDS: usize = 4;

/// The members of `params` that say what is asked: policy decided on them, the router chose the
/// server by them, so no interceptor may change them.
const FIXED: [&str; 6] = ["name", "uri", "ref", "cursor", "requestState", "taskId"];

/// One place in the chain.
pub struct ChainEntry {
    pub interceptor: Arc<dyn Interceptor>,
    pub mode: Mode,
    pub fail_open: bool,
    pub deadline: Duration,
    /// The methods to which the operator narrowed it.
    pub events: Option<Vec<String>>,
    /// Where the operator put it into the chain, a file and a line from 1: the place of each of
    /// its rules that has none of its own.
    pub place: Option<(PathBuf, u32)>,
}

impl ChainEntry {
    /// A link that enforces, refuses on a fault and hears all that its interceptor asks for.
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

    /// The link as the rule of what the chain itself says of it.
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

    /// Puts every rule of a verdict in its place. A refusal by an entry of the config has a rule
    /// also where its interceptor names none.
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

/// What the interceptors said on a message's way.
#[derive(Debug, Clone, Default)]
pub struct ChainTrace {
    /// The rules that let it pass.
    pub rules: Vec<Rule>,
    pub findings: Vec<Finding>,
    /// The revision of the policies that decided last.
    pub revision: Option<String>,
    /// The labels that there were then.
    pub labels: Option<BTreeSet<String>>,
    /// The labels that interceptors gave to words of a server, which its client is to carry, and who
    /// gave them.
    pub heard: BTreeMap<String, Rule>,
    /// Whether an interceptor replaced the payload.
    pub replaced: bool,
    /// What took how long: `PHASE/NAME` of each interceptor that was asked, in order, and what
    /// others add.
    pub stages: Vec<(String, Duration)>,
}

/// The links, in order.
pub struct Chain {
    links: Vec<ChainEntry>,
    request: Caps,
    response: Caps,
}

impl Chain {
    /// A chain of these links, holding what they replace to these caps.
    pub fn new(links: Vec<ChainEntry>, request: Caps, response: Caps) -> Self {
        Self { links, request, response }
    }

    /// Sends one half of an exchange through the chain. Afterwards the exchange holds what may
    /// be sent on.
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
        // What each link was shown: which version of the payload, and under how many labels.
        let mut seen: Vec<Option<(usize, usize)>> = vec![None; self.links.len()];
        for round in 0..ROUNDS {
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
                // Labels are never taken back, so their number tells whether there are new ones; its
                // own are no news to it.
                *seen = Some((version, exchange.labels.len()));
            }
            if settled {
                return Ok(());
            }
        }
        let mut refusal =
            Refusal::new(Code::InterceptorFault, "the checks on this message did not settle")
                .detail(format!("interceptors still changed the message in round {ROUNDS}"));
        refusal.rules.extend(changer.map(ChainEntry::rule));
        Err(refusal)
    }

    /// Asks one link and carries out its verdict; true where it replaced the payload.
    async fn step(
        &self,
        link: &ChainEntry,
        exchange: &mut Exchange,
        phase: Phase,
        trail: &mut ChainTrace,
    ) -> Result<bool, Refusal> {
        let name = link.interceptor.name();
        let began = Instant::now();
        let asked = link.ask(exchange, phase).await;
        trail.stages.push((format!("{}/{name}", phase.as_str()), began.elapsed()));
        let verdict = match asked {
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
        let told = verdict
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
            if exchange.from_server(phase) {
                let rule = link.rule();
                trail.heard.extend(verdict.labels.iter().map(|l| (l.clone(), rule.clone())));
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
                // Who changed a message is on record, also where the interceptor says nothing.
                if !told {
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

/// A replacement is held to what a client's or a server's own message is held to, and may not change
/// what is asked, which `params` say.
///
/// # Errors
/// Why it is not taken.
pub fn may_replace(params: &Bytes, raw: &Bytes, what: Text, caps: Caps) -> Result<(), Fault> {
    let object = codec::check(raw, what, caps)
        .and_then(|_| Object::parse(raw.clone()))
        .map_err(|flaw| Fault(format!("its replacement is not legal: {flaw}")))?;
    if what == Text::Params {
        let before = Object::parse(params.clone()).map_err(|flaw| Fault(flaw.to_string()))?;
        if let Some(member) = FIXED.into_iter().find(|m| object.get(m) != before.get(m)) {
            return Err(Fault(format!(
                "its replacement changes `{member}`: what is called is decided before"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
