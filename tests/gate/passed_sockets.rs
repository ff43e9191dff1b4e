//! Sockets that a service manager passes: no call fails while the proxy restarts.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::Signal,
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, process::Command};

use crate::support::{
    agent::Agent,
    gate::{Setup, Written},
    in_time, portcullis, until,
};

/// A config with this address, and variables that pass this socket as systemd does.
fn with_socket(socket: &TcpListener, address: SocketAddr) -> Written {
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let written = Setup::crooked("").write();
    written.put(&written.config().replace("127.0.0.1:0", &address.to_string()));
    written
        .with_env("LISTEN_FDS", "1")
        .with_env("LISTEN_FDS_FIRST_FD", &socket.as_raw_fd().to_string())
}

#[tokio::test]
async fn restart_with_a_passed_socket_fails_no_call() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut gate = with_socket(&socket, address).start().await;
    assert_eq!(gate.addr, address);
    let url = gate.url("/mcp");
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (url, over, calls) = (url.clone(), over.clone(), Arc::new(AtomicUsize::new(0)));
            let counted = calls.clone();
            let client = tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    // Each call has a connection of its own.
                    let agent = Agent::modern(&url, None);
                    assert_eq!(agent.text("crooked__echo", json!({ "text": "x" })).await, "x");
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
            (client, calls)
        })
        .collect();
    let all_called = async |more: usize| {
        for (_, calls) in &clients {
            let before = calls.load(Ordering::Relaxed);
            until("more calls", async || {
                (calls.load(Ordering::Relaxed) >= before + more).then_some(())
            })
            .await;
        }
    };
    for _ in 0..2 {
        all_called(5).await;
        let slow = tokio::spawn({
            let url = url.clone();
            async move { Agent::modern(&url, None).text("crooked__slow", json!({ "ms": 500 })).await }
        });
        until("the call to be under way", async || {
            (!gate.records(&["--tool", "slow"]).await.is_empty()).then_some(())
        })
        .await;
        let (slow, written) = tokio::join!(slow, gate.stop());
        assert_eq!(slow.unwrap(), "at last");
        gate = written.start().await;
    }
    all_called(5).await;
    over.store(true, Ordering::Relaxed);
    for (client, _) in clients {
        client.await.unwrap();
    }
    gate.stop().await;
}

#[tokio::test]
async fn passed_socket_of_another_address_is_refused() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let other: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let ended = with_socket(&socket, other).cli(&["run"]).await;
    let passed = socket.local_addr().unwrap();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let expected = format!(
        "the service manager passed sockets of {passed}, but `listen.http` is {other}: set both to \
         the same address"
    );
    assert!(ended.stderr.replace("\n  ", " ").contains(&expected), "{}", ended.stderr);
}

#[tokio::test]
async fn socket_of_systemd_is_used() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let written = Setup::crooked("").write();
    written.put(&written.config().replace("127.0.0.1:0", &free.to_string()));
    let mut activated = Command::new("systemd-socket-activate")
        .arg(format!("--listen={free}"))
        .arg(portcullis())
        .args(["run", "--config"])
        .arg(written.path("portcullis.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It starts the proxy at the first connection, which waits until then.
    until("the socket", async || tokio::net::TcpStream::connect(free).await.ok().map(drop)).await;
    let agent = Agent::modern(&format!("http://{free}/mcp"), None);
    assert_eq!(agent.text("crooked__echo", json!({ "text": "x" })).await, "x");
    let pid = nix::unistd::Pid::from_raw(activated.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let mut log = String::new();
    let mut stderr = activated.stderr.take().unwrap();
    in_time("the log", stderr.read_to_string(&mut log)).await.unwrap();
    assert!(in_time("the end", activated.wait()).await.unwrap().success(), "{log}");
}
