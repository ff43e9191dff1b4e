//! States of the servers, with and without a running proxy.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::servers::launcher;
use portcullis_config::Loaded;

/// Beginning of the cause if a server needs a container engine; the sockets that were tried follow.
const NO_ENGINE: &str = "no container engine answers";

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

/// Cause of a server's state, in one line, and details of it that several servers may share.
pub fn why(state: &Value) -> (&str, Option<&str>) {
    if state["stoppedByOperator"] == true {
        return ("an operator stopped it (`portcullis server start`)", None);
    }
    let why = state["failure"].as_str().or(state["why"].as_str()).unwrap_or("");
    match why.strip_prefix(NO_ENGINE).and_then(|rest| rest.strip_prefix(": ")) {
        Some(_) => (NO_ENGINE, Some(why)),
        None => (why, None),
    }
}

/// The details of all states, each once.
pub fn details(states: &[Value]) -> BTreeSet<&str> {
    states.iter().filter_map(|state| why(state).1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_of_several_servers_are_shown_once() {
        let full = "no container engine answers: a does not exist; b does not exist";
        let states = ["one", "two"].map(|name| json!({ "name": name, "why": full }));
        assert_eq!(why(&states[0]), ("no container engine answers", Some(full)));
        assert_eq!(details(&states).into_iter().collect::<Vec<_>>(), [full]);
        let other = json!({ "why": "the config names an image", "failure": null });
        assert_eq!(why(&other), ("the config names an image", None));
    }
}
