//! Support for tests of the whole proxy: the real executable, a config in its own folder, clients
//! over the network.

pub mod agent;
pub mod authority;
pub mod bad_http;
pub mod client;
#[path = "../../../src/oci/tests/support/mod.rs"]
pub mod docker_registry;
pub mod engine;
pub mod events;
pub mod front;
pub mod gate;
#[allow(dead_code, reason = "a benchmark needs more of it")]
pub mod ground;
pub mod held;
pub mod peers;
pub mod recorder;
pub mod remote;
pub mod rmcp;
pub mod sdk;
#[path = "../../../src/provenance/tests/support/sigstore.rs"]
pub mod sigstore;
pub mod web;
pub mod wire;

use std::{path::PathBuf, time::Duration};

/// Timeout that is sufficient on a loaded machine. Only a defect reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A policy that permits everything, for tests of other things.
pub const PERMIT_ALL: &str = "@id(\"all\")\npermit (principal, action, resource);\n";

/// The executable under test.
pub fn portcullis() -> PathBuf {
    env!("CARGO_BIN_EXE_portcullis").into()
}

/// Folder of the repository.
pub fn root() -> PathBuf {
    std::fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).unwrap()
}

/// Path of a file that `cargo test` or `tests/run` built beside the executable.
pub fn target(path: &str) -> PathBuf {
    let target = root().join("target").join(path);
    assert!(target.exists(), "{} is not there: `tests/run` makes it", target.display());
    target
}

/// Path of a server of `tests/servers`.
pub fn server(name: &str) -> PathBuf {
    let folder = portcullis().parent().unwrap().join("examples");
    let server = folder.join(name);
    assert!(server.exists(), "{} is not there: `cargo build --examples`", server.display());
    server
}

/// Waits for a future, at most for [`PATIENCE`].
pub async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// Polls for a state without notification, such as the end of a process or container.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    in_time(what, async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
}

/// Processes of this machine that have `mark` in their environment.
pub fn marked(mark: &str) -> Vec<i32> {
    let mark = format!("GATE={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that has just ended has no environment, nor does a zombie.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// Kills one process with SIGKILL, as an out-of-memory killer does.
pub fn kill_9(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A mark unique to this test.
pub fn new_mark() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// A text that looks like a credential, composed here so that no file contains it.
pub fn credential() -> String {
    ["AK", "IA", "Q3EG", "XMPL", "7KEY", "R2D2"].concat()
}
