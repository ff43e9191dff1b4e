//! Instances that live as long as a session.

use std::time::Duration;

use portcullis_chain::Decision;
use tokio::task::JoinSet;

use super::*;

fn keeper() -> Plugin {
    let settings = EntrySettings { deadline_ms: Some(2_000), ..EntrySettings::default() };
    load(&config("keeper"), &settings).expect("it loads")
}

/// How many messages the instance has seen before.
async fn seen(plugin: &Plugin, user: &str, session: Option<&str>) -> u32 {
    let verdict = plugin.inspect(&by(user, session, "any"), Phase::Request).await;
    let verdict = verdict.expect("a verdict");
    let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
    refusal.message.parse().expect("a number")
}

#[tokio::test]
async fn each_session_has_its_own_instance() {
    let plugin = keeper();
    for expected in 0..3 {
        assert_eq!(seen(&plugin, "ann", Some("s1")).await, expected);
        assert_eq!(seen(&plugin, "ann", Some("s2")).await, expected);
        assert_eq!(seen(&plugin, "ann", None).await, expected);
        // The same id in another's hands is another session.
        assert_eq!(seen(&plugin, "bob", Some("s1")).await, expected);
        assert_eq!(seen(&plugin, "bob", None).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_session_are_processed_in_sequence() {
    let plugin = Arc::new(keeper());
    let all: Vec<_> = (0..40)
        .map(|_| {
            let plugin = plugin.clone();
            tokio::spawn(async move { seen(&plugin, "ann", Some("s")).await })
        })
        .collect();
    let mut counts = BTreeSet::new();
    for one in all {
        counts.insert(one.await.expect("no panic"));
    }
    assert_eq!(counts, (0..40).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_and_dropped_calls_discard_the_instance() {
    let plugin = keeper();
    assert_eq!(seen(&plugin, "ann", Some("s")).await, 0);
    assert_eq!(seen(&plugin, "ann", Some("s")).await, 1);
    let trapped = plugin.inspect(&by("ann", Some("s"), "trap"), Phase::Request).await;
    trapped.expect_err("a fault");
    assert_eq!(seen(&plugin, "ann", Some("s")).await, 0);

    let gone = by("ann", Some("s"), "spin");
    let gone = plugin.inspect(&gone, Phase::Request);
    let _ = tokio::time::timeout(Duration::from_millis(20), gone).await;
    assert_eq!(seen(&plugin, "ann", Some("s")).await, 0);
}

#[tokio::test]
async fn oldest_session_instances_are_discarded() {
    let plugin = keeper();
    for at in 0..200 {
        let (user, session) = (format!("u{}", at % 20), format!("s{at}"));
        assert_eq!(seen(&plugin, &user, Some(&session)).await, 0);
    }
    assert_eq!(seen(&plugin, "u0", Some("s0")).await, 0, "long gone");
    assert_eq!(seen(&plugin, "u19", Some("s199")).await, 1, "still there");
}

#[tokio::test]
async fn anonymous_message_without_session_gets_a_fresh_instance() {
    let plugin = keeper();
    for _ in 0..3 {
        let mut exchange = by("ann", None, "any");
        exchange.principal = Principal::anonymous();
        let verdict = plugin.inspect(&exchange, Phase::Request).await.expect("a verdict");
        let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
        assert_eq!(refusal.message, "0");
    }
}

#[tokio::test]
async fn initialize_gets_a_fresh_instance() {
    let plugin = keeper();
    assert_eq!(seen(&plugin, "ann", None).await, 0);
    let mut exchange = by("ann", None, "any");
    exchange.method = Method::new("initialize");
    for _ in 0..2 {
        let verdict = plugin.inspect(&exchange, Phase::Request).await.expect("a verdict");
        let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
        assert_eq!(refusal.message, "0");
    }
    assert_eq!(seen(&plugin, "ann", None).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_sessions_of_one_caller_do_not_block_others() {
    let settings = EntrySettings { deadline_ms: Some(600_000), ..EntrySettings::default() };
    let plugin = Arc::new(load(&config("keeper"), &settings).expect("it loads"));
    let mut all: JoinSet<_> = (0..24)
        .map(|at| {
            let plugin = plugin.clone();
            let spin = by("greedy", Some(&format!("s{at}")), "spin");
            async move { plugin.inspect(&spin, Phase::Request).await }
        })
        .collect();
    // Those that have an instance, or wait for a place with one, do not end.
    for _ in 16..24 {
        let ended = tokio::time::timeout(Duration::from_secs(60), all.join_next()).await;
        let verdict = ended.expect("one that finds none ends").expect("one").expect("no panic");
        let Fault(told) = verdict.expect_err("a fault");
        assert!(told.contains("all of its session instances"), "{told}");
    }
    assert_eq!(seen(&plugin, "other", Some("s")).await, 0);
    assert_eq!(seen(&plugin, "other", Some("s")).await, 1);
}
