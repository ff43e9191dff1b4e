//! Calls while the files, the clock or the open files of the proxy change.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinHandle};

use crate::support::{
    PERMIT_ALL,
    gate::{Gate, Setup},
    until,
};

/// Clients that call without pause.
const CLIENTS: usize = 4;
const CONFIG_RELOADS: usize = 800;
const POLICY_RELOADS: usize = 200;

/// Clients that call until the end; a call that fails is kept.
struct Callers {
    end: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Result<(), Value>>>,
}

impl Callers {
    async fn start(gate: &Gate) -> Self {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        for at in 0..CLIENTS {
            let agent = if at % 2 == 0 { gate.legacy().await } else { gate.modern() };
            let (end, done) = (end.clone(), done.clone());
            tasks.push(tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    agent.call("notes__list_notes", json!({})).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Self { end, done, tasks }
    }

    /// Waits until so many more calls succeeded.
    async fn succeed(&self, count: usize) {
        let until_then = self.done.load(Ordering::Relaxed) + count;
        until("calls to succeed", async || {
            assert!(!self.tasks.iter().any(JoinHandle::is_finished), "a call failed");
            (self.done.load(Ordering::Relaxed) >= until_then).then_some(())
        })
        .await;
    }

    /// Ends the calls, none of which may have failed.
    async fn end(self) -> usize {
        self.end.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

/// A value of a metric.
fn metric(metrics: &str, name: &str) -> usize {
    let line = metrics.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_reloads_fail_no_call() {
    let gate = Setup::notes()
        .without("rate-limit")
        .and("[servers.other]\nurl = \"http://127.0.0.1:9/mcp\"\ncall-timeout-s = 1\n")
        .start()
        .await;
    let callers = Callers::start(&gate).await;
    callers.succeed(CLIENTS).await;
    let (file, first) = (gate.path("policies/gate.cedar"), gate.config());
    let next = gate.path("next.cedar");
    // Each file of policies and each config differs from the one before.
    let policies = tokio::spawn(async move {
        for at in 0..POLICY_RELOADS {
            let text = format!(
                "{PERMIT_ALL}@id(\"other-{at}\")\nforbid (principal, action, \
                 resource == Portcullis::Tool::\"other/tool-{at}\");\n"
            );
            // Replaced as a whole: an empty file permits nothing.
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &file).unwrap();
            // The watch waits for 150 ms without a change.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let reloads = "portcullis_config_reloads_total{outcome=\"applied\"}";
    let before = metric(&gate.metrics().await, reloads);
    for at in 0..CONFIG_RELOADS {
        let seconds = format!("call-timeout-s = {}\n", 2 + at % 50);
        gate.put(&first.replace("call-timeout-s = 1\n", &seconds));
        gate.signal(Signal::SIGHUP);
        until("the config to be reloaded", async || {
            (metric(&gate.metrics().await, reloads) > before + at).then_some(())
        })
        .await;
    }
    policies.await.unwrap();
    let calls = callers.end().await;
    let reloaded = |name: &str| gate.log().iter().filter(|line| line.contains(name)).count();
    let (configs, policies) = (reloaded("config reloaded"), reloaded("policies reloaded"));
    eprintln!("{calls} calls, {configs} configs, {policies} policy sets");
    assert!(configs >= CONFIG_RELOADS, "{configs}");
    assert!(policies >= POLICY_RELOADS / 2, "{policies}");
    gate.stop().await;
}

/// Sets the limit of open files of the proxy.
fn limit_files(gate: &Gate, files: usize) {
    let limit = format!("--nofile={files}:");
    let pid = gate.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_open_files_end_no_connection_and_no_server() {
    let mut gate = Setup::notes().start().await;
    let callers = Callers::start(&gate).await;
    callers.succeed(100).await;
    let files = std::fs::read_dir(format!("/proc/{}/fd", gate.pid())).unwrap().count();
    limit_files(&gate, files + 2);
    // More connections than the limit leaves files for. Those that are accepted stay open.
    let mut connections = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\n").await.unwrap();
        connections.push(stream);
    }
    gate.logged("the limit", |line| line.contains("connection could not be accepted")).await;
    callers.succeed(100).await;
    drop(connections);
    limit_files(&gate, 1_024);
    callers.succeed(100).await;
    callers.end().await;
    let agent = gate.legacy().await;
    agent.call("notes__list_notes", json!({})).await.unwrap();
    gate.cli(&["audit", "verify", "--format", "json"]).await.expect(0);
    gate.stop().await;
}

/// The path of libfaketime, which tests/setup/packages installs.
fn faketime() -> String {
    let library =
        format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
    assert!(std::fs::exists(&library).unwrap(), "{library} is missing: run tests/setup/packages");
    library
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_jumps_fail_no_call() {
    let setup = Setup::notes().file("clock", "+0\n");
    let written = setup.write();
    let clock = written.path("clock");
    let gate = written
        .with_env("LD_PRELOAD", &faketime())
        .with_env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
        .with_env("FAKETIME_NO_CACHE", "1")
        .with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()
        .await;
    let callers = Callers::start(&gate).await;
    callers.succeed(50).await;
    // Forwards by an hour and by two months, back by a day, and to before the start.
    for jump in ["+1h", "+60d", "+59d", "-2d", "+0"] {
        std::fs::write(&clock, format!("{jump}\n")).unwrap();
        callers.succeed(50).await;
    }
    let calls = callers.end().await;
    let written = gate.stop().await;
    written.cli(&["audit", "verify", "--format", "json"]).await.expect(0);
    eprintln!("{calls} calls");
}
