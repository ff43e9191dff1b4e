//! States of the servers, with and without a running proxy.

use serde_json::{Value, json};

use super::servers::launcher;
use portcullis_config::Loaded;

/// State of servers that do not run, because no proxy does.
pub async fn stopped(loaded: &Loaded) -> Vec<Value> {
    let launcher = launcher(loaded).await;
    let servers = loaded.config.servers.iter();
    servers
        .map(|(name, settings)| {
            let placement = launcher.placement(settings);
            json!({
                "name": name, "state": "stopped", "place": placement.kind(), "why": placement.why(),
            })
        })
        .collect()
}

/// State of the disabled servers of a config.
pub fn disabled(loaded: &Loaded) -> impl Iterator<Item = Value> {
    let why = |name| format!("`portcullis server enable {name}` enables it");
    loaded
        .disabled
        .keys()
        .map(move |name| json!({ "name": name, "state": "disabled", "why": why(name) }))
}

/// Cause of a server's state, in one line.
pub fn why(state: &Value) -> &str {
    if state["stoppedByOperator"] == true {
        return "an operator stopped it (`portcullis server start`)";
    }
    state["failure"].as_str().or(state["why"].as_str()).unwrap_or("")
}
