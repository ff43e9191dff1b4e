//! One caller's messages leave capacity for others, however many, large or slow they are.

use std::time::Duration;

use portcullis_chain::Decision;
use tokio::task::JoinHandle;

use super::{
    grants::{all, loaded, probe, server},
    *,
};

/// As many messages of one caller as it likes, each of which waits for a host that never answers.
fn flood(plugin: &Arc<Plugin>, messages: usize, tool: &'static str) -> Vec<JoinHandle<()>> {
    let one = || {
        let plugin = plugin.clone();
        async move {
            let _ = ask_as(&plugin, tool, "greedy").await;
        }
    };
    (0..messages).map(|_| tokio::spawn(one())).collect()
}

async fn refusal_of_another_caller(plugin: &Plugin, tool: &str) -> String {
    let verdict = ask_as(plugin, tool, "other").await.expect("a verdict");
    let Decision::Refuse(refusal) = verdict.decision else { panic!("refused: {verdict:?}") };
    refusal.message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_messages_of_one_caller_do_not_delay_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server("").await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let plugin = Arc::new(loaded(&config, Arc::default()).expect("it loads"));
    let slow = flood(&plugin, 100, "get http://HOST/");
    for _ in 0..8 {
        let heard = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        heard.expect("in time").expect("a request");
    }
    // Else it would wait as long as they do, and be late.
    assert_eq!(refusal_of_another_caller(&plugin, "config").await, "{}");
    assert!(heard.try_recv().is_err(), "a part of the instances, and no more");
    slow.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_of_one_caller_leave_memory_for_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server("").await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let plugin = Arc::new(loaded(&config, Arc::default()).expect("it loads"));
    // Two of these fit into a part, ten into all of the memory.
    let large = flood(&plugin, 12, "hold-and-get http://HOST/");
    for _ in 0..2 {
        let heard = tokio::time::timeout(Duration::from_secs(60), heard.recv()).await;
        heard.expect("in time").expect("a request");
    }
    let others_failed = async {
        while large.iter().filter(|one| one.is_finished()).count() < 10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), others_failed).await.expect("they lack memory");
    let said = refusal_of_another_caller(&plugin, "hold-and-get file:///").await;
    assert!(said.contains("Invalid"), "{said}");
    // What its own messages lacked for each other is no fault of the plugin's: it is not let alone.
    ask_as(&plugin, "config", "greedy").await.expect("a verdict");
    large.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_instances_release_their_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = probe(folder.path(), 1, all(folder.path(), 1));
    let plugin = Arc::new(loaded(&config, Arc::default()).expect("it loads"));
    // So many at once that many are made ready from then on.
    let many = (0..64).map(|at| {
        let plugin = plugin.clone();
        tokio::spawn(async move { ask_as(&plugin, "config", &at.to_string()).await.is_ok() })
    });
    for one in many.collect::<Vec<_>>() {
        assert!(one.await.expect("no panic"));
    }
    for at in 0..40 {
        let said = refusal_of_another_caller(&plugin, "hold-and-get file:///").await;
        assert!(said.contains("Invalid"), "{at}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_instances_are_discarded_when_memory_is_needed() {
    let settings = EntrySettings { deadline_ms: Some(20_000), ..EntrySettings::default() };
    let plugin = load(&config("keeper"), &settings).expect("it loads");
    let seen = async |user: &str, session: &str, tool: &str| {
        let verdict = plugin.inspect(&by(user, Some(session), tool), Phase::Request).await;
        let verdict = verdict.unwrap_or_else(|fault| panic!("{user} {session}: {fault:?}"));
        let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
        refusal.message
    };
    // One that is asked now and then, and needs little.
    assert_eq!(seen("modest", "s", "any").await, "0");
    // One caller has a part at most: its oldest session begins anew.
    for at in 0..10 {
        assert_eq!(seen("greedy", &at.to_string(), "hold 50").await, "0");
    }
    assert_eq!(seen("greedy", "0", "any").await, "0");
    assert_eq!(seen("greedy", "9", "any").await, "1");
    // Several have all: one of the largest is let go, and not the modest one's.
    for user in ["a", "b", "c", "d", "e"] {
        for session in ["1", "2"] {
            assert_eq!(seen(user, session, "hold 50").await, "0");
        }
    }
    assert_eq!(seen("other", "s", "hold 50").await, "0");
    assert_eq!(seen("modest", "s", "any").await, "1");
    // An instance that grows after it began has the same right.
    assert_eq!(seen("modest", "s", "hold 50").await, "2");
}
