//! Other people's servers behind the proxy: what each needs beyond the default profile is in
//! docs/servers.md, and nothing else is in the configs here.

mod everything;
mod files;
mod git;
mod packages;
mod sqlite;
mod web;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    agent::Agent,
    engine::{containers, servers_image},
    gate::{Gate, Setup},
};

/// A folder that everybody may write in: the server's user is nobody.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    mode(folder.path(), 0o777);
    folder
}

fn mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A server of the image, with no more than these lines.
fn contained(name: &str, command: &[&str], more: &str) -> Setup {
    Setup::new(&format!(
        "[servers.{name}]\nimage = \"{}\"\ncommand = {}\nenv.GATE = \"{{mark}}\"\n{more}",
        servers_image(),
        json!(command),
    ))
    .and("[[interceptors]]\nuse = \"schema\"")
}

/// The text of a result that says that it is an error.
async fn failed(agent: &Agent, tool: &str, arguments: Value) -> String {
    let result = agent.call(tool, arguments).await.unwrap_or_else(|e| panic!("{tool}: {e:#}"));
    assert_eq!(result["isError"], true, "{tool}: {result:#}");
    result["content"][0]["text"].as_str().expect("text").to_owned()
}

/// It has one container, which uses far less than the default limits, and leaves none.
async fn leaves_nothing(gate: Gate) {
    let state = gate.cli(&["server", "stats", "--format", "json"]).await.expect(0);
    // The numbers in docs/servers.md: `-- --nocapture` shows them.
    println!("{:#}", state[0]["instances"][0]);
    let memory = state[0]["instances"][0]["memoryBytes"].as_u64().expect("its memory");
    assert!(memory < 256 << 20, "{state:#}");
    assert!(!containers(&gate.mark).is_empty());
    let written = gate.stop().await;
    assert!(containers(&written.mark).is_empty());
}
