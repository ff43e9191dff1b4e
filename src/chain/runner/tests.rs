use std::{sync::Mutex, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::Hooks;
use portcullis_protocol::{
    exchange::{Direction, Method, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
};

type Verdicts = Box<dyn Fn(&Exchange) -> Result<Verdict, Fault> + Send + Sync>;

struct Fake {
    name: String,
    hooks: Hooks,
    reads_labels: bool,
    verdict: Verdicts,
    log: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Interceptor for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.hooks.wants(method, phase)
    }

    fn reads_labels(&self) -> bool {
        self.reads_labels
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
            key: None,
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
        obligations: Default::default(),
        trace: None,
    }
}

#[derive(Default)]
struct Bench {
    links: Vec<ChainEntry>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn link(
        mut self,
        name: &str,
        change: impl FnOnce(&mut ChainEntry),
        verdict: impl Fn(&Exchange) -> Result<Verdict, Fault> + Send + Sync + 'static,
    ) -> Self {
        let fake = Fake {
            name: name.into(),
            hooks: Hooks::every(&[Phase::Request]),
            // As policy does.
            reads_labels: name == "reader",
            verdict: Box::new(verdict),
            log: self.log.clone(),
        };
        let mut link = ChainEntry::strict(Arc::new(fake));
        change(&mut link);
        self.links.push(link);
        self
    }

    async fn run(self) -> (Result<(), Refusal>, Exchange, ChainTrace, Vec<String>) {
        let (mut exchange, mut trail) = (exchange(), ChainTrace::default());
        let caps =
            Caps { bytes: 1 << 20, depth: 64, nodes: 100_000, keys: 10_000, object_keys: 10_000 };
        let chain = Chain::new(self.links, caps, caps);
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

fn label(_: &Exchange) -> Result<Verdict, Fault> {
    let labels = ["tainted".to_owned()].into();
    Ok(Verdict { labels, ..Verdict::pass() })
}

fn unlabelled(exchange: &Exchange) -> Result<Verdict, Fault> {
    if exchange.labels.is_empty() { pass(exchange) } else { refuse(exchange) }
}

#[tokio::test]
async fn interceptor_that_reads_labels_runs_again_for_new_ones() {
    let (result, exchange, trail, log) = Bench::default()
        .link("a", |_| {}, pass)
        .link("reader", |_| {}, unlabelled)
        .link("b", |_| {}, label)
        .link("c", |_| {}, label)
        .run()
        .await;
    assert_eq!(result.unwrap_err().code, Code::PolicyDenied);
    let called: Vec<_> = log.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(called, ["a", "reader", "b", "c", "reader"]);
    assert_eq!(exchange.labels, ["tainted".to_owned()].into());
    // The client's own labels are not carried.
    assert!(trail.added_labels.is_empty());

    // In audit mode labels have no effect.
    let audit = |link: &mut ChainEntry| link.mode = Mode::Audit;
    let (result, exchange, ..) =
        Bench::default().link("reader", |_| {}, unlabelled).link("b", audit, label).run().await;
    assert!(result.is_ok() && exchange.labels.is_empty());
}

fn refuse(_: &Exchange) -> Result<Verdict, Fault> {
    Ok(Verdict::refuse(Refusal::new(Code::PolicyDenied, "no")))
}

#[tokio::test]
async fn replacement_passes_the_others_again() {
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
    let panic = |_: &Exchange| -> Result<Verdict, Fault> { panic!("in an interceptor") };
    let retarget = replace("{\"name\":\"other\"}");
    let twice = replace("{\"name\":\"t\",\"x\":1,\"x\":2}");
    let bench: [(&str, Verdicts); 4] = [
        ("broken", Box::new(fault)),
        ("panicked", Box::new(panic)),
        ("changes `name`", Box::new(retarget)),
        ("duplicate", Box::new(twice)),
    ];
    for (part, verdict) in bench {
        let verdict = Arc::new(verdict);
        let repeat = verdict.clone();
        let (result, ..) = Bench::default().link("f", |_| {}, move |x| verdict(x)).run().await;
        let refusal = result.unwrap_err();
        assert_eq!(refusal.code, Code::InterceptorFault);
        assert!(refusal.detail.unwrap().contains(part), "{part}");

        let (result, exchange, trail, _) =
            Bench::default().link("f", |l| l.fail_open = true, move |x| repeat(x)).run().await;
        assert_eq!(result, Ok(()));
        assert_eq!(trail.findings[0].effect, Effect::Fault);
        assert_eq!(exchange.request.raw(), "{\"name\":\"t\"}");
    }
}

#[tokio::test]
async fn missed_deadline_is_a_fault() {
    struct Never(Hooks);

    #[async_trait]
    impl Interceptor for Never {
        fn name(&self) -> &str {
            "never"
        }

        fn wants(&self, method: &Method, phase: Phase) -> bool {
            self.0.wants(method, phase)
        }

        async fn inspect(&self, _: &Exchange, _: Phase) -> Result<Verdict, Fault> {
            std::future::pending().await
        }
    }

    let mut link = ChainEntry::strict(Arc::new(Never(Hooks::every(&[Phase::Request]))));
    link.deadline = Duration::from_millis(1);
    let (result, ..) = Bench { links: vec![link], ..Bench::default() }.run().await;
    assert_eq!(result.unwrap_err().code, Code::InterceptorFault);
}

#[tokio::test]
async fn audit_mode_changes_nothing() {
    let audit = |link: &mut ChainEntry| link.mode = Mode::Audit;
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
async fn first_refusal_ends_processing() {
    let (result, _, _, log) =
        Bench::default().link("a", |_| {}, refuse).link("b", |_| {}, pass).run().await;
    assert_eq!(result.unwrap_err().code, Code::PolicyDenied);
    assert_eq!(log.len(), 1);
}

#[tokio::test]
async fn endless_replacements_are_a_fault() {
    let (result, ..) = Bench::default()
        .link("a", |_| {}, replace("{\"name\":\"t\",\"x\":1}"))
        .link("b", |_| {}, replace("{\"name\":\"t\",\"x\":2}"))
        .run()
        .await;
    assert_eq!(result.unwrap_err().code, Code::InterceptorFault);
}

#[tokio::test]
async fn every_rule_has_a_file_and_a_line() {
    fn put(link: &mut ChainEntry) {
        link.place = Some(("gate.toml".into(), 7));
    }
    fn placed(name: &str) -> Rule {
        Rule { file: Some("gate.toml".into()), line: Some(7), ..Rule::named(name) }
    }
    let own = Rule { file: Some("a.cedar".into()), line: Some(1), ..Rule::named("own") };
    let by_rules = {
        let own = own.clone();
        move |_: &Exchange| {
            let refusal = Refusal::new(Code::PolicyDenied, "no").rule(Rule::named("limit"));
            Ok(Verdict::refuse(refusal.rule(own.clone())))
        }
    };
    let broken = |_: &Exchange| Err(Fault("broken".into()));

    let (result, ..) = Bench::default().link("a", put, by_rules.clone()).run().await;
    assert_eq!(result.unwrap_err().rules, [placed("limit"), own]);
    for verdict in [Box::new(refuse) as Verdicts, Box::new(broken)] {
        let (result, ..) = Bench::default().link("a", put, verdict).run().await;
        assert_eq!(result.unwrap_err().rules, [placed("a")]);
    }
    let (result, ..) = Bench::default()
        .link("a", put, replace("{\"name\":\"t\",\"x\":1}"))
        .link("b", put, replace("{\"name\":\"t\",\"x\":2}"))
        .run()
        .await;
    assert_eq!(result.unwrap_err().rules.len(), 1);

    let audited = |link: &mut ChainEntry| {
        put(link);
        link.mode = Mode::Audit;
    };
    let respond = |_: &Exchange| {
        Ok(Verdict::pass().finding(Finding {
            interceptor: "d".into(),
            phase: Phase::Request,
            rule: Rule::named("seen"),
            message: String::new(),
            effect: Effect::Reported,
        }))
    };
    let (result, _, trail, _) = Bench::default()
        .link("a", audited, by_rules)
        .link("b", audited, broken)
        .link("c", audited, replace("{\"name\":\"t\",\"x\":1}"))
        .link("d", audited, respond)
        .run()
        .await;
    assert_eq!(result, Ok(()));
    let rules: Vec<_> = trail.findings.into_iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, [placed("limit"), placed("b"), placed("c"), placed("seen")]);
}
