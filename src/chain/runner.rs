//! Carries verdicts out.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::{Decision, Fault, Hooks, Interceptor, Mode, Verdict};
use crate::{
    codec::{self, Caps, Object, Text},
    exchange::{Effect, Exchange, Finding, Payload, Phase},
    refusal::{Code, Refusal, Rule},
};

/// How often a message may go round before interceptors that keep changing it are a fault.
const ROUNDS: usize = 4;

/// The members of `params` that say what is asked: policy decided on them, the router chose the
/// server by them, so no interceptor may change them.
const FIXED: [&str; 6] = ["name", "uri", "ref", "cursor", "requestState", "taskId"];

/// One place in the chain.
pub struct Link {
    pub interceptor: Arc<dyn Interceptor>,
    pub mode: Mode,
    pub fail_open: bool,
    pub deadline: Duration,
    /// The methods to which the operator narrowed it.
    pub events: Option<Vec<String>>,
}

impl Link {
    /// A link that enforces, refuses on a fault and hears all that its interceptor asks for.
    pub fn strict(interceptor: Arc<dyn Interceptor>) -> Self {
        Self {
            interceptor,
            mode: Mode::Enforce,
            fail_open: false,
            deadline: Duration::from_secs(1),
            events: None,
        }
    }

    fn wants(&self, exchange: &Exchange, phase: Phase) -> bool {
        let method = exchange.method.as_str();
        let hooks: &Hooks = self.interceptor.hooks();
        hooks.wants(&exchange.method, phase)
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
}

/// What the interceptors said on a message's way.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    /// The rules that let it pass.
    pub rules: Vec<Rule>,
    pub findings: Vec<Finding>,
    /// Whether an interceptor replaced the payload.
    pub replaced: bool,
}

/// The links, in order.
pub struct Chain {
    links: Vec<Link>,
    request: Caps,
    response: Caps,
}

impl Chain {
    /// A chain of these links, holding what they replace to these caps.
    pub fn new(links: Vec<Link>, request: Caps, response: Caps) -> Self {
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
        trail: &mut Trail,
    ) -> Result<(), Refusal> {
        let mut version = 0_usize;
        let mut seen: Vec<Option<usize>> = vec![None; self.links.len()];
        for round in 0..ROUNDS {
            let mut settled = true;
            for (link, seen) in self.links.iter().zip(&mut seen) {
                if *seen == Some(version)
                    || !link.wants(exchange, phase)
                    || (round > 0 && !link.interceptor.repeatable())
                {
                    continue;
                }
                settled = false;
                let replaced = self.step(link, exchange, phase, trail).await?;
                version += usize::from(replaced);
                *seen = Some(version);
            }
            if settled {
                return Ok(());
            }
        }
        Err(Refusal::new(
            Code::InterceptorFault,
            "the checks on this message did not come to an end",
        )
        .detail(format!("interceptors still changed the message in round {ROUNDS}")))
    }

    /// Asks one link and carries out its verdict; true where it replaced the payload.
    async fn step(
        &self,
        link: &Link,
        exchange: &mut Exchange,
        phase: Phase,
        trail: &mut Trail,
    ) -> Result<bool, Refusal> {
        let name = link.interceptor.name();
        let verdict = match link.ask(exchange, phase).await {
            Ok(verdict) => match self.legal(exchange, phase, &verdict.decision) {
                Ok(()) => Ok(verdict),
                Err(fault) => Err(fault),
            },
            Err(fault) => Err(fault),
        };
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(Fault(what)) => {
                tracing::warn!(interceptor = name, decision = %exchange.id, fault = %what, "interceptor fault");
                if link.fail_open || link.mode == Mode::Audit {
                    trail.findings.push(link.finding(
                        phase,
                        Rule::named(name),
                        what,
                        Effect::Fault,
                    ));
                    return Ok(false);
                }
                return Err(Refusal::new(
                    Code::InterceptorFault,
                    "a check on this message could not be completed",
                )
                .rule(Rule::named(name))
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
            exchange.labels.extend(verdict.labels);
        }
        match verdict.decision {
            Decision::Pass => {
                for rule in verdict.rules {
                    if enforced && !trail.rules.contains(&rule) {
                        trail.rules.push(rule);
                    }
                }
                Ok(false)
            }
            Decision::Refuse(refusal) if enforced => Err(refusal),
            Decision::Refuse(refusal) => {
                let rule = refusal.rules.into_iter().next().unwrap_or_else(|| Rule::named(name));
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
                    let rule = Rule::named(name);
                    trail.findings.push(link.finding(phase, rule, message, Effect::Replaced));
                }
                Ok(true)
            }
            Decision::Replace(_) => {
                let message = "would replace the payload".to_owned();
                trail.findings.push(link.finding(
                    phase,
                    Rule::named(name),
                    message,
                    Effect::WouldReplace,
                ));
                Ok(false)
            }
        }
    }

    /// A replacement is held to what a client's or a server's own message is held to, and may not
    /// change what is asked.
    fn legal(&self, exchange: &Exchange, phase: Phase, decision: &Decision) -> Result<(), Fault> {
        let Decision::Replace(raw) = decision else { return Ok(()) };
        let caps = match phase {
            Phase::Request => self.request,
            Phase::Response => self.response,
        };
        let what = match phase {
            Phase::Request => Text::Params,
            Phase::Response => Text::Value,
        };
        let object = codec::check(raw, what, caps)
            .and_then(|()| Object::parse(raw.clone()))
            .map_err(|flaw| Fault(format!("its replacement is not legal: {flaw}")))?;
        if phase == Phase::Request {
            let before = Object::parse(exchange.request.raw().clone())
                .map_err(|flaw| Fault(flaw.to_string()))?;
            if let Some(member) = FIXED.into_iter().find(|m| object.get(m) != before.get(m)) {
                return Err(Fault(format!(
                    "its replacement changes `{member}`: what is called is decided before"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Instant};

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{
        config::Limits,
        exchange::{Direction, Method, Revision, Target, Transport},
        identity::{Principal, PrincipalKind},
        names::DecisionId,
    };

    type Verdicts = Box<dyn Fn(&Exchange) -> Result<Verdict, Fault> + Send + Sync>;

    struct Fake {
        name: String,
        hooks: Hooks,
        verdict: Verdicts,
        log: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Interceptor for Fake {
        fn name(&self) -> &str {
            &self.name
        }

        fn hooks(&self) -> &Hooks {
            &self.hooks
        }

        async fn inspect(&self, exchange: &Exchange, _: Phase) -> Result<Verdict, Fault> {
            let text = String::from_utf8_lossy(exchange.request.raw()).into_owned();
            self.log.lock().unwrap().push(format!("{} {text}", self.name));
            (self.verdict)(exchange)
        }
    }

    fn exchange() -> Exchange {
        Exchange {
            id: DecisionId::next(),
            at: jiff::Timestamp::now(),
            started: Instant::now(),
            principal: Arc::new(Principal {
                kind: PrincipalKind::Anonymous,
                groups: Vec::new(),
                verified: false,
            }),
            direction: Direction::ClientToServer,
            method: Method::new("tools/call"),
            notification: false,
            transport: Transport::Http,
            client_addr: None,
            session: None,
            session_calls: 0,
            revision: Revision::LATEST_LEGACY,
            server: None,
            target: Target::None,
            request: Payload::new(Bytes::from_static(b"{\"name\":\"t\"}")),
            response: None,
            labels: Default::default(),
            trace: None,
        }
    }

    #[derive(Default)]
    struct Bench {
        links: Vec<Link>,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl Bench {
        fn link(
            mut self,
            name: &str,
            change: impl FnOnce(&mut Link),
            verdict: impl Fn(&Exchange) -> Result<Verdict, Fault> + Send + Sync + 'static,
        ) -> Self {
            let fake = Fake {
                name: name.into(),
                hooks: Hooks::every(&[Phase::Request]),
                verdict: Box::new(verdict),
                log: self.log.clone(),
            };
            let mut link = Link::strict(Arc::new(fake));
            change(&mut link);
            self.links.push(link);
            self
        }

        async fn run(self) -> (Result<(), Refusal>, Exchange, Trail, Vec<String>) {
            let (mut exchange, mut trail) = (exchange(), Trail::default());
            let limits = Limits::default();
            let chain = Chain::new(self.links, Caps::request(&limits), Caps::response(&limits));
            let result = chain.pass(&mut exchange, Phase::Request, &mut trail).await;
            let log = self.log.lock().unwrap().clone();
            (result, exchange, trail, log)
        }
    }

    fn pass(_: &Exchange) -> Result<Verdict, Fault> {
        Ok(Verdict::pass())
    }

    fn replace(text: &'static str) -> impl Fn(&Exchange) -> Result<Verdict, Fault> {
        move |exchange| {
            Ok(if exchange.request.raw() == text {
                Verdict::pass()
            } else {
                Verdict::replace(Bytes::from_static(text.as_bytes()))
            })
        }
    }

    fn refuse(_: &Exchange) -> Result<Verdict, Fault> {
        Ok(Verdict::refuse(Refusal::new(Code::PolicyDenied, "no")))
    }

    #[tokio::test]
    async fn a_replacement_goes_past_the_others_again() {
        let (result, exchange, trail, log) = Bench::default()
            .link("a", |_| {}, pass)
            .link("b", |_| {}, replace("{\"name\":\"t\",\"x\":1}"))
            .link("c", |_| {}, pass)
            .run()
            .await;
        assert_eq!(result, Ok(()));
        assert!(trail.replaced);
        assert_eq!(exchange.request.raw(), "{\"name\":\"t\",\"x\":1}");
        let (old, new) = ("{\"name\":\"t\"}", "{\"name\":\"t\",\"x\":1}");
        assert_eq!(
            log,
            [format!("a {old}"), format!("b {old}"), format!("c {new}"), format!("a {new}")]
        );
    }

    #[tokio::test]
    async fn faults_are_refusals_unless_fail_open() {
        let fault = |_: &Exchange| Err(Fault("broken".into()));
        let panic = |_: &Exchange| -> Result<Verdict, Fault> { panic!("at the guard") };
        let retarget = replace("{\"name\":\"other\"}");
        let twice = replace("{\"name\":\"t\",\"x\":1,\"x\":2}");
        let bench: [(&str, Verdicts); 4] = [
            ("broken", Box::new(fault)),
            ("panicked", Box::new(panic)),
            ("changes `name`", Box::new(retarget)),
            ("twice", Box::new(twice)),
        ];
        for (part, verdict) in bench {
            let verdict = Arc::new(verdict);
            let again = verdict.clone();
            let (result, ..) = Bench::default().link("f", |_| {}, move |x| verdict(x)).run().await;
            let refusal = result.unwrap_err();
            assert_eq!(refusal.code, Code::InterceptorFault);
            assert!(refusal.detail.unwrap().contains(part), "{part}");

            let (result, exchange, trail, _) =
                Bench::default().link("f", |l| l.fail_open = true, move |x| again(x)).run().await;
            assert_eq!(result, Ok(()));
            assert_eq!(trail.findings[0].effect, Effect::Fault);
            assert_eq!(exchange.request.raw(), "{\"name\":\"t\"}");
        }
    }

    #[tokio::test]
    async fn a_missed_deadline_is_a_fault() {
        struct Never(Hooks);

        #[async_trait]
        impl Interceptor for Never {
            fn name(&self) -> &str {
                "never"
            }

            fn hooks(&self) -> &Hooks {
                &self.0
            }

            async fn inspect(&self, _: &Exchange, _: Phase) -> Result<Verdict, Fault> {
                std::future::pending().await
            }
        }

        let mut link = Link::strict(Arc::new(Never(Hooks::every(&[Phase::Request]))));
        link.deadline = Duration::from_millis(1);
        let (result, ..) = Bench { links: vec![link], ..Bench::default() }.run().await;
        assert_eq!(result.unwrap_err().code, Code::InterceptorFault);
    }

    #[tokio::test]
    async fn audit_mode_changes_nothing() {
        let audit = |link: &mut Link| link.mode = Mode::Audit;
        let (result, exchange, trail, _) = Bench::default()
            .link("r", audit, refuse)
            .link("m", audit, replace("{\"name\":\"t\",\"x\":1}"))
            .run()
            .await;
        assert_eq!(result, Ok(()));
        assert_eq!(exchange.request.raw(), "{\"name\":\"t\"}");
        let effects: Vec<_> = trail.findings.iter().map(|f| f.effect).collect();
        assert_eq!(effects, [Effect::WouldRefuse, Effect::WouldReplace]);
    }

    #[tokio::test]
    async fn the_first_refusal_ends_the_way() {
        let (result, _, _, log) =
            Bench::default().link("a", |_| {}, refuse).link("b", |_| {}, pass).run().await;
        assert_eq!(result.unwrap_err().code, Code::PolicyDenied);
        assert_eq!(log.len(), 1);
    }

    #[tokio::test]
    async fn interceptors_that_never_agree_are_a_fault() {
        let (result, ..) = Bench::default()
            .link("a", |_| {}, replace("{\"name\":\"t\",\"x\":1}"))
            .link("b", |_| {}, replace("{\"name\":\"t\",\"x\":2}"))
            .run()
            .await;
        assert_eq!(result.unwrap_err().code, Code::InterceptorFault);
    }
}
