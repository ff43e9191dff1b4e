//! The socket and the audit routes, over a real socket.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use axum::{Router, extract::ConnectInfo, routing::get};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use portcullis_test_support::exchange;

use super::{BindFailure, Client, Peer, SOCKET, Server, TailLine, TailRequest, audit_routes};
use portcullis_audit::{
    Audit, CountRequest, Counted, DecisionContext, Intent, Outcome, Page, Query, StatsRequest,
    Summed,
    record::{Conclusion, Kind},
};
use portcullis_protocol::names::DecisionId;

struct Running {
    audit: Audit,
    client: Client,
    stopping: CancellationToken,
    served: JoinHandle<std::io::Result<()>>,
}

async fn run(state_dir: &Path) -> Running {
    let audit = Audit::open(&state_dir.join("audit"), Duration::from_secs(10)).unwrap();
    let stopping = CancellationToken::new();
    let who = |ConnectInfo(peer): ConnectInfo<Peer>| async move { peer.uid.to_string() };
    let routes =
        audit_routes(audit.clone(), stopping.clone()).merge(Router::new().route("/who", get(who)));
    let server = Server::bind(state_dir).unwrap();
    let served = tokio::spawn(server.serve(routes, stopping.clone()));
    let client = Client::connect(state_dir).await.unwrap();
    Running { audit, client, stopping, served }
}

async fn write_one(audit: &Audit) -> DecisionId {
    let exchange = exchange(|_| {});
    audit.intent(Intent::of(&exchange, DecisionContext::default(), audit.key())).await.unwrap();
    let done = Outcome::of(
        &exchange,
        DecisionContext::default(),
        Conclusion::Delivered,
        Some(Duration::from_millis(1)),
        audit.key(),
    );
    audit.outcome(done).await.unwrap();
    exchange.id
}

#[tokio::test]
async fn audit_log_is_queried_shown_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let Running { audit, client, stopping, served } = run(dir.path()).await;
    let id = write_one(&audit).await;

    let page: Page = client.post_json("/v1/audit/query", &Query::default()).await.unwrap();
    let kinds = |page: &Page| -> Vec<Kind> {
        page.entries().unwrap().iter().map(|entry| entry.record.kind()).collect()
    };
    assert_eq!(kinds(&page), [Kind::Outcome]);
    let page: Page = client.get_json(&format!("/v1/audit/show/{id}")).await.unwrap();
    assert_eq!(kinds(&page), [Kind::Intent, Kind::Outcome]);
    let counted: Counted =
        client.post_json("/v1/audit/count", &CountRequest::default()).await.unwrap();
    assert_eq!(counted.groups.iter().map(|group| group.count).collect::<Vec<_>>(), [1]);
    let summed: Summed =
        client.post_json("/v1/audit/stats", &StatsRequest::default()).await.unwrap();
    assert_eq!(summed.tally, audit.archive().stats(StatsRequest::default()).await.unwrap().tally);
    let missing = client.get_json::<Page>(&format!("/v1/audit/show/{}", DecisionId::next())).await;
    assert!(missing.unwrap_err().is_not_found());
    let nonsense = client.get_json::<Page>("/v1/audit/show/x%0Ay").await.unwrap_err();
    assert_eq!(nonsense.to_string(), r"`x\ny` is not a decision id");

    let request = TailRequest { last: 10, follow: true, ..TailRequest::default() };
    let mut lines = client.stream_lines("/v1/audit/tail", &request).await.unwrap();
    let mut next = async || match lines.next_json::<TailLine>().await {
        Some(Ok(TailLine::Record(line))) => Some(line.entry().unwrap().record.id()),
        None => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(next().await, Some(id));
    let later = write_one(&audit).await;
    assert_eq!(next().await, Some(later));

    // A follower does not delay the end.
    stopping.cancel();
    assert_eq!(next().await, None);
    served.await.unwrap().unwrap();
    assert!(Client::connect(dir.path()).await.is_none());
    assert!(!dir.path().join(SOCKET).exists());
}

#[tokio::test]
async fn socket_is_private_and_identifies_its_peer() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let running = run(&state_dir).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state_dir), 0o700);
    assert_eq!(mode(&state_dir.join(SOCKET)), 0o600);
    let uid: u32 = running.client.get_json("/who").await.unwrap();
    assert_eq!(uid, nix::unistd::Uid::effective().as_raw());
}

#[tokio::test]
async fn second_proxy_is_refused_and_stale_socket_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::bind(dir.path()).unwrap();
    assert!(matches!(Server::bind(dir.path()), Err(BindFailure::AlreadyRunning(_))));
    drop(first);
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    assert!(dir.path().join(SOCKET).exists());
    assert!(Client::connect(dir.path()).await.is_none());
    Server::bind(dir.path()).unwrap();
}

#[tokio::test]
async fn long_path_of_the_state_folder_works() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    let running = run(&deep).await;
    assert!(deep.join(SOCKET).exists());
    running.client.get_json::<u32>("/who").await.unwrap();
    running.stopping.cancel();
    running.served.await.unwrap().unwrap();
    assert!(!deep.join(SOCKET).exists());
}
