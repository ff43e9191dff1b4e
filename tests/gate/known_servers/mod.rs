//! Third-party servers behind the proxy. docs/start/servers.md lists what each needs beyond the
//! default profile, and the configs here contain nothing else.

mod everything;
mod files;
mod git;
mod packages;
mod sqlite;
mod web;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    agent::Agent,
    engine::{containers, docker, servers_image},
    gate::{Gate, Setup},
};

/// A folder that everybody may write in: the server's user is nobody.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    mode(folder.path(), 0o777);
    folder
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
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

/// Files of a control group, of version 1 and 2: the most memory that it had, and its tasks.
const MOST: &[(&str, &str)] = &[("memory", "memory.max_usage_in_bytes"), ("", "memory.peak")];
const TASKS: &[(&str, &str)] = &[("pids", "pids.current"), ("", "pids.current")];

/// What the control group of a container counts, if it can be seen from here.
fn counted(container: &str, files: &[(&str, &str)]) -> Option<u64> {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    files.iter().find_map(|(controller, file)| {
        let group = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|one| one == *controller).then_some(path)
        })?;
        let place =
            Path::new("/sys/fs/cgroup").join(controller).join(group.trim_start_matches('/'));
        fs::read_to_string(place.join(file)).ok()?.trim().parse().ok()
    })
}

/// Checks that the server has one container that uses far less than the default limits, and that
/// none is left after the stop.
async fn stop_without_orphans(gate: Gate) {
    let state = gate.cli(&["server", "stats", "--format", "json"]).await.expect(0);
    let memory = state[0]["instances"][0]["memoryBytes"].as_u64().expect("its memory");
    assert!(memory < 256 << 20, "{state:#}");
    let all = containers(&gate.mark);
    assert!(!all.is_empty());
    // The numbers in docs/start/servers.md: `-- --nocapture` shows them.
    let most = all.iter().filter_map(|id| Some((counted(id, MOST)?, counted(id, TASKS)?))).max();
    println!(
        "{} (MiB now, most; tasks; s): {} {:?} {:?} {}",
        state[0]["name"],
        memory >> 20,
        most.map(|(most, _)| most >> 20),
        // Without the engine's init.
        most.map(|(_, tasks)| tasks.saturating_sub(1)),
        state[0]["instances"][0]["cpuSeconds"],
    );
    let written = gate.stop().await;
    assert!(containers(&written.mark).is_empty());
}
