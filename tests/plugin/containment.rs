//! A hostile plugin: every attempt is a fault within the deadline, and the next message is served.

use std::time::Duration;

use portcullis_chain::{Chain, ChainEntry, ChainTrace, Decision};
use portcullis_config::Limits;
use portcullis_plugin_host::Grants;
use portcullis_protocol::refusal::Code;

use super::*;

/// Long enough for a busy machine to serve an honest message, short enough to wait for.
fn settings() -> EntrySettings {
    EntrySettings { deadline_ms: Some(2_000), ..EntrySettings::default() }
}

/// A deadline that no test waits for.
fn patient() -> EntrySettings {
    EntrySettings { deadline_ms: Some(60_000), ..EntrySettings::default() }
}

fn logging(name: &str) -> Config {
    let grants = Grants { log: true, ..Grants::default() };
    Config { grants, ..config(name) }
}

fn hostile() -> Plugin {
    load(&logging("hostile"), &settings()).expect("it loads")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_is_a_fault_of_one_message() {
    let plugin = hostile();
    for (harm, told) in [
        ("spin", "did not finish within 2s"),
        ("allocate", "more than its 64 MiB"),
        ("trap", "unreachable"),
        ("panic", "unreachable"),
        ("out-of-bounds", "out of bounds"),
        ("recurse", "exceeded its stack"),
        ("recurse-in-memory", "out of bounds"),
        ("flood-out", "more than its 64 MiB"),
        ("flood-out-some", "its output exceeds"),
        ("flood-log-forever", "did not finish within 2s"),
        ("fail", "it failed: xxx"),
        ("labels", "exceeds twice the message"),
        ("label", "not a legal label"),
    ] {
        let Fault(text) = ask(&plugin, harm).await.expect_err(harm);
        assert!(text.contains(told), "{harm}: {text}");
        assert!(text.len() < 512, "{harm}: a short fault");
        assert_eq!(ask(&plugin, "nothing").await, Ok(Verdict::pass()), "after {harm}");
    }
}

#[tokio::test]
async fn invalid_replacement_is_refused() {
    let caps = Limits::default().request_caps();
    let chain = Chain::new(vec![ChainEntry::strict(Arc::new(hostile()))], caps, caps);
    for (harm, told) in [
        ("garbage", "not JSON"),
        ("garbage-list", "object"),
        ("garbage-twice", "duplicate key"),
        ("other-tool", "changes `name`"),
    ] {
        let mut exchange = call(harm, json!({}), None);
        let before = exchange.request.raw().clone();
        let refusal = chain
            .pass(&mut exchange, Phase::Request, &mut ChainTrace::default())
            .await
            .expect_err("refused");
        assert_eq!(refusal.code, Code::InterceptorFault);
        let detail = refusal.detail.expect("words for the operator");
        assert!(detail.contains(told), "{harm}: {detail}");
        assert_eq!(*exchange.request.raw(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_limited_independently_of_memory() {
    let roomy = Config { memory_mib: 256, ..logging("hostile") };
    let plugin = load(&roomy, &settings()).expect("it loads");
    let Fault(text) = ask(&plugin, "flood-out").await.expect_err("a fault");
    assert!(text.contains("its output exceeds"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_all_instances_is_limited() {
    let plugin = Arc::new(load(&logging("hostile"), &patient()).expect("it loads"));
    let greedy: Vec<_> = (0..32)
        .map(|_| {
            let plugin = plugin.clone();
            tokio::spawn(async move { ask(&plugin, "allocate").await })
        })
        .collect();
    for starved in greedy {
        let Fault(text) = starved.await.expect("no panic").expect_err("a fault");
        assert!(text.contains("MiB of") || text.contains("circuit open"), "{text}");
    }
    assert_eq!(ask_as(&plugin, "nothing", "other").await, Ok(Verdict::pass()));
}

#[tokio::test]
async fn log_flood_does_not_affect_the_verdict() {
    assert_eq!(ask(&hostile(), "flood-log").await, Ok(Verdict::pass()));
}

#[tokio::test]
async fn refusal_text_is_truncated() {
    let verdict = ask(&hostile(), "long-words").await.expect("a verdict");
    let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
    assert!(refusal.message.len() <= 520, "{}", refusal.message.len());
    assert_eq!(refusal.rules[0].id, "hostile/words");
}

#[tokio::test]
async fn every_message_gets_a_fresh_instance() {
    let plugin = hostile();
    for _ in 0..50 {
        let verdict = ask(&plugin, "state").await.expect("a verdict");
        let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
        assert_eq!(refusal.message, "0", "messages that the instance saw before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_loops_do_not_block_other_plugins() {
    let plugin = Arc::new(hostile());
    let spinning: Vec<_> = (0..40)
        .map(|_| {
            let plugin = plugin.clone();
            tokio::spawn(async move { ask(&plugin, "spin").await })
        })
        .collect();
    // Another plugin is asked while they spin; one of them ends only at its deadline.
    let noop = load(&config("noop"), &settings()).expect("it loads");
    for _ in 0..20 {
        assert_eq!(ask(&noop, "any").await, Ok(Verdict::pass()));
    }
    for spun in spinning {
        spun.await.expect("no panic").expect_err("a fault");
    }
    assert_eq!(ask_as(&plugin, "nothing", "other").await, Ok(Verdict::pass()));
}

#[tokio::test]
async fn repeated_faults_open_the_circuit_for_one_caller() {
    let plugin = hostile();
    for _ in 0..5 {
        let Fault(text) = ask(&plugin, "trap").await.expect_err("a fault");
        assert!(text.contains("unreachable"), "{text}");
    }
    let Fault(text) = ask(&plugin, "nothing").await.expect_err("it is not asked");
    assert!(text.contains("failed repeatedly"), "{text}");
    // Nobody else can have others' messages refused.
    assert_eq!(ask_as(&plugin, "nothing", "other").await, Ok(Verdict::pass()));
    let recovered = async {
        while ask(&plugin, "nothing").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), recovered).await.expect("it is asked again");
}

#[tokio::test]
async fn dropped_call_ends_its_instance() {
    let plugin = load(&logging("hostile"), &patient()).expect("it loads");
    for _ in 0..50 {
        let gone = Duration::from_millis(1);
        // More often than there are permits: were guests left behind, the last would find none.
        let _ = tokio::time::timeout(gone, ask(&plugin, "spin")).await;
    }
    assert_eq!(ask(&plugin, "nothing").await, Ok(Verdict::pass()));
}

#[tokio::test]
async fn fail_open_plugin_has_no_circuit_breaker() {
    let open = EntrySettings { fail_open: true, ..settings() };
    let plugin = load(&logging("hostile"), &open).expect("it loads");
    for _ in 0..10 {
        let Fault(text) = ask(&plugin, "trap").await.expect_err("a fault");
        assert!(text.contains("unreachable"), "{text}");
    }
    // Else it would pass unseen.
    let verdict = ask(&plugin, "state").await.expect("a verdict");
    assert!(matches!(verdict.decision, Decision::Refuse(_)), "{verdict:?}");
}

/// Replaces the payload of every call, once.
struct Replacer;

#[async_trait::async_trait]
impl Interceptor for Replacer {
    fn name(&self) -> &str {
        "replacer"
    }

    fn wants(&self, _: &Method, phase: Phase) -> bool {
        phase == Phase::Request
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        let text = String::from_utf8_lossy(exchange.payload(phase).raw()).into_owned();
        Ok(match text.contains("before") {
            true => Verdict::replace(text.replace("before", "after").into()),
            false => Verdict::pass(),
        })
    }
}

#[tokio::test]
async fn once_plugin_runs_once_per_message() {
    let caps = Limits::default().request_caps();
    let counter = || load(&config("counter"), &settings()).expect("it loads");
    for (counter_first, told) in [(true, "before"), (false, "after")] {
        let counter = ChainEntry::strict(Arc::new(counter()));
        let mut links = vec![counter, ChainEntry::strict(Arc::new(Replacer))];
        if !counter_first {
            links.reverse();
        }
        let mut exchange = call("any", json!({ "text": "before" }), None);
        let mut trail = ChainTrace::default();
        let chain = Chain::new(links, caps, caps);
        chain.pass(&mut exchange, Phase::Request, &mut trail).await.expect("it passes");
        assert!(exchange.request.raw().windows(5).any(|text| text == b"after"));
        let seen = trail.findings.iter().filter(|one| one.rule.id == "counter/seen");
        let seen: Vec<_> = seen.map(|one| one.message.contains(told)).collect();
        assert_eq!(seen, [true]);
    }
}
