//! Why tools are missing from a list.

use serde_json::Value;

use super::servers::current_user;
use portcullis_protocol::{exchange::Method, refusal::Code};

/// A sentence for each server whose tools are missing from the list, by the states of all servers.
pub fn missing(states: &[Value]) -> Vec<String> {
    let beginning = format!("missing from `{}`: ", Method::TOOLS_LIST);
    let of = |state: &Value| {
        let name = state["name"].as_str()?;
        let mut notices = state["notices"].as_array()?.iter().filter_map(Value::as_str);
        let why = notices.find_map(|notice| notice.strip_prefix(&beginning))?;
        let remedy = match why.starts_with(&format!("{}: ", Code::PolicyDenied)) {
            true => format!("; `portcullis server inspect {name}` shows what is not permitted"),
            false => String::new(),
        };
        Some(format!("the tools of server `{name}` are missing: {why}{remedy}"))
    };
    states.iter().filter_map(of).collect()
}

/// The caller of a command, for messages.
pub fn acting(client: Option<&str>) -> String {
    match (client, current_user().user) {
        (Some(client), _) => format!("the client `{client}`"),
        (None, Some(user)) => format!("the local user `{user}`"),
        (None, None) => "the local user".to_owned(),
    }
}

/// Why a list is empty although each server listed its tools, and what to do.
pub fn nothing_listed(client: Option<&str>, states: &[Value]) -> String {
    let Some(server) = states.first().and_then(|state| state["name"].as_str()) else {
        let acting = acting(client);
        return format!(
            "No server is configured, or policies permit {acting} no tool: `portcullis add` adds a server."
        );
    };
    let principal = match (client, current_user().user) {
        (Some(client), _) => format!(" --client {client}"),
        (None, Some(user)) => format!(" --local-user {user}"),
        (None, None) => String::new(),
    };
    format!(
        "Policies permit {} no tool of any server. `portcullis server tools {server}` lists all tools of a server, \
         and `portcullis policy new read-only{principal} --server {server}` prints a policy.",
        acting(client)
    )
}
