//! The container engine, through its command line.

use std::process::Command;

use serde_json::Value;

use super::target;

/// Standard output of `docker`.
pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().expect("`docker`: see `tests/run`");
    assert!(output.status.success(), "docker {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Id of the image of `tests/setup/servers`.
pub fn servers_image() -> String {
    let id = std::fs::read_to_string(target("tests/servers.image")).unwrap();
    id.trim().to_owned()
}

/// Ids of the containers, running or not, that have this mark in their environment.
pub fn containers(mark: &str) -> Vec<String> {
    let all = docker(&["ps", "--all", "--quiet", "--no-trunc"]);
    let wanted = format!("GATE={mark}");
    let mut found = Vec::new();
    for id in all.lines() {
        // The container may be removed in the meantime.
        let Ok(output) = Command::new("docker").args(["inspect", id]).output() else { continue };
        let inspected: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let env = inspected[0]["Config"]["Env"].as_array().cloned().unwrap_or_default();
        if env.iter().any(|variable| variable == wanted.as_str()) {
            found.push(id.to_owned());
        }
    }
    found
}
