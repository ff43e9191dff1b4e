//! The official conformance suite against a server that has all it asks for: directly, and through
//! the proxy with its whole chain on. `tests/setup/conformance` installs the suite.
//!
//! Through the proxy no check fails, but for those that docs/reference/conformance.md lists with the reason
//! why nothing can be done about them. A check that is listed and does not fail is wrong too. The
//! page's numbers are held to as well.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod differential;
mod foreign;
mod listed;
mod rmcp_server;
mod suite;
#[expect(dead_code, reason = "the other tests of the whole gate need more of it")]
#[path = "../gate/support/mod.rs"]
mod support;

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use listed::listed;
use suite::{LEGACY, MODERN, Report};
use support::{
    gate::{Gate, Setup},
    in_time, root, server, target,
};

/// How the proxy reaches the server.
#[derive(Debug, Clone, Copy)]
enum Over {
    Http,
    Stdio,
}

/// Where the proxy offers it.
const OWN: &str = "/servers/everything/mcp";
const MERGED: &str = "/mcp";

/// The server over streamable HTTP. It ends with this.
struct Served {
    url: String,
    _process: Child,
}

impl Served {
    async fn start(era: &str) -> Self {
        let mut command = Command::new(server("everything"));
        command.args(["--era", era, "--listen", "127.0.0.1:0"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = in_time("the server's URL", lines.next_line()).await.unwrap();
        Self { url: url.expect("a URL"), _process: process }
    }
}

/// The proxy in front of the server, with every interceptor on and none that objects.
async fn gate(server_lines: &str) -> Gate {
    let plugin = target("plugins/noop.wasm");
    Setup::new(&format!(
        r#"
        [servers.everything]
        prefix = ""
        {server_lines}

        [[interceptors]]
        use = "rate-limit"
        limits = [{{ calls = 100000, window = "1m", events = ["*"] }}]

        [[interceptors]]
        use = "schema"

        [[interceptors]]
        use = "secrets"

        [[interceptors]]
        use = "plugin"
        path = "{}"
        allow-unpinned = true
        "#,
        plugin.display()
    ))
    .start()
    .await
}

/// Runs the suite of `revision` through the proxy, in front of a server of `era`.
async fn through(revision: &str, era: &str, over: Over, path: &str) {
    let served;
    let server_lines = match over {
        Over::Http => {
            served = Served::start(era).await;
            format!("url = \"{}\"", served.url)
        }
        Over::Stdio => {
            let program = server("everything");
            format!(
                "command = [\"{}\", \"--era\", \"{era}\"]\nruntime = \"sandbox\"\n\
                 env = {{ GATE = \"{{mark}}\" }}",
                program.display()
            )
        }
    };
    let gate = gate(&server_lines).await;
    let server = match era {
        "legacy" => LEGACY,
        "modern" => MODERN,
        both => both,
    };
    let reached = match over {
        Over::Http => "HTTP",
        Over::Stdio => "stdio",
    };
    let listed = listed(&root(), revision, server, reached);
    Report::expect(&gate.url(path), revision, &listed).await;
    gate.stop().await;
}

#[tokio::test]
async fn the_server_itself_conforms() {
    let served = Served::start("both").await;
    for revision in [LEGACY, MODERN] {
        let listed = listed(&root(), revision, "both", "directly");
        Report::expect(&served.url, revision, &listed).await;
    }
}

#[tokio::test]
async fn legacy_to_a_legacy_server() {
    through(LEGACY, "legacy", Over::Http, OWN).await;
}

#[tokio::test]
async fn legacy_to_a_legacy_server_over_stdio() {
    through(LEGACY, "legacy", Over::Stdio, MERGED).await;
}

#[tokio::test]
async fn modern_to_a_modern_server() {
    through(MODERN, "modern", Over::Http, OWN).await;
}

#[tokio::test]
async fn modern_to_a_modern_server_over_stdio() {
    through(MODERN, "modern", Over::Stdio, MERGED).await;
}

#[tokio::test]
async fn legacy_to_a_server_of_both_eras() {
    through(LEGACY, "both", Over::Http, MERGED).await;
}

#[tokio::test]
async fn modern_to_a_server_of_both_eras() {
    through(MODERN, "both", Over::Http, MERGED).await;
}

#[tokio::test]
async fn modern_to_a_legacy_server() {
    through(MODERN, "legacy", Over::Http, OWN).await;
}

#[tokio::test]
async fn modern_to_a_legacy_server_over_stdio() {
    through(MODERN, "legacy", Over::Stdio, OWN).await;
}

#[tokio::test]
async fn legacy_to_a_modern_server() {
    through(LEGACY, "modern", Over::Http, MERGED).await;
}

#[tokio::test]
async fn legacy_to_a_modern_server_over_stdio() {
    through(LEGACY, "modern", Over::Stdio, OWN).await;
}
