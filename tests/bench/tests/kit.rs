//! The bench kit works, and its load generator corrects for coordinated omission.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::{
    convert::Infallible,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bench::load::{Client, Endpoint, Pace, load};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;

const BENCH: &str = env!("CARGO_BIN_EXE_bench");
const STALL: Duration = Duration::from_millis(300);

/// Runs the program; what it printed.
fn bench(args: &[&str]) -> String {
    let output = Command::new(BENCH).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Calls a second in the row of a way.
fn rate(table: &str, way: &str) -> f64 {
    let row = table.lines().find(|line| line.starts_with(&format!("| 100 | 2 | {way} |")));
    row.and_then(|row| row.split(" | ").nth(3)?.parse().ok()).unwrap_or_default()
}

#[test]
fn calls_pass_the_floors() {
    let common = ["calls", "--bytes", "100", "--clients", "2", "--rounds", "1", "--seconds", "0.2"];
    let ways = ["--way", "direct", "--way", "floor", "--way", "floor, stdio", "--binary", BENCH];
    let table = bench(&[&common[..], &ways].concat());
    for way in ["direct", "floor", "floor, stdio"] {
        assert!(rate(&table, way) > 0.0, "{way}: {table}");
    }
    let table = bench(&[&common[..], &ways, &["--rate", "100"]].concat());
    assert!(rate(&table, "floor") > 0.0, "{table}");
}

/// Calls at a fixed rate that were due during a pause of the server count from when they were due.
#[tokio::test]
async fn pause_of_the_server_counts_for_every_call_that_was_due() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: Request<Incoming>| async {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body);
            let mut response = Response::new(Full::new(body.clone()));
            if text.contains("\"initialize\"") {
                let result = "{\"result\":{\"protocolVersion\":\"2025-11-25\"}}";
                *response.body_mut() = Full::new(Bytes::from_static(result.as_bytes()));
            } else if text.contains("notifications/") {
                *response.status_mut() = hyper::StatusCode::ACCEPTED;
            } else if CALLS.fetch_add(1, Ordering::Relaxed) == 10 {
                tokio::time::sleep(STALL).await;
            }
            Ok::<_, Infallible>(response)
        });
        let builder = hyper::server::conn::http1::Builder::new();
        builder.serve_connection(TokioIo::new(stream), service).await.unwrap();
    });
    let endpoint = Endpoint { port, path: "/mcp".into(), key: None };
    let mut clients = [Client::connect(&endpoint, 10).await.unwrap()];
    let pace = Pace::Fixed(100.0);
    let load = load(&mut clients, pace, Duration::from_secs(1), false).await.unwrap();
    // About 30 calls were due during the pause, and two thirds of them a third of it before its
    // end. Without the correction, one call would be slow.
    let slow = load.times.count_between(STALL.as_nanos() as u64 / 3, u64::MAX);
    assert!(slow >= 15, "{slow} slow calls");
}

/// See the section "Guard" of the README.
#[test]
#[cfg(target_arch = "x86_64")]
fn instructions_of_a_call_do_not_increase() {
    println!("{}", bench(&["counts", "--check"]));
}
