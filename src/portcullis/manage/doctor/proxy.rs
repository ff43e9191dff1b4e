//! Checks from the status of a running proxy.

use serde_json::Value;

use super::{Check, audit};
use portcullis_gateway::admin;

/// Checks of the running proxy, if there is one.
pub(super) async fn checks(proxy: Option<admin::Client>) -> Vec<Check> {
    let Some(proxy) = proxy else { return Vec::new() };
    // A status that is unavailable, or not for this user, is not a finding.
    of_running(&proxy.get_json("/v1/status").await.unwrap_or_default())
}

/// Checks of a running proxy with this status.
pub(in crate::manage) fn of_running(status: &Value) -> Vec<Check> {
    let mut checks = audit::running(status);
    if let Some(why) = status["config"]["rejected"].as_str() {
        let why = why.lines().next().unwrap_or_default();
        let detail = format!("THE ONE BEFORE IS IN FORCE: {why}");
        checks.push(Check::fail("config", detail, "`portcullis check` shows every finding"));
    }
    let waiting = status["config"]["waiting"].as_array().into_iter().flatten();
    let waiting: Vec<_> = waiting.filter_map(Value::as_str).collect();
    if !waiting.is_empty() {
        let detail = format!("changed since the proxy started: {}", waiting.join(", "));
        checks.push(Check::warn("config", detail, "restart the proxy to apply this"));
    }
    checks.extend(status["servers"].as_array().into_iter().flatten().filter_map(server));
    if let Some(why) = status["policies"]["last_error"][0]["message"].as_str() {
        let revision = status["policies"]["revision"].as_str().unwrap_or_default();
        let detail = format!("THE ONES BEFORE ARE IN FORCE (revision {revision}): {why}");
        checks.push(Check::fail("policies", detail, "`portcullis check` shows every finding"));
    }
    checks
}

/// Check of a server of a running proxy, if its state needs attention.
fn server(state: &Value) -> Option<Check> {
    let name = state["name"].as_str()?;
    let why = state["failure"].as_str().unwrap_or_default();
    // The failure may end with a remedy that is meant for other output.
    let why = why.split("; see `portcullis server logs").next().unwrap_or_default();
    let logs = format!("`portcullis server logs {name}` may say more");
    let health = state["health"].as_str()?;
    let detail = match (health, why) {
        (_, "") => format!("`{name}` is {health}"),
        _ => format!("`{name}` is {health}: {why}"),
    };
    Some(match health {
        "stopped" => return None,
        "running" | "healthy" => Check::ok("server", detail),
        "pulling" => Check::warn("server", detail, "wait until its image is there"),
        "failed" => Check::fail("server", detail, &logs),
        _ => Check::warn("server", detail, &logs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_server_is_explained_once() {
        let failed = serde_json::json!({
            "name": "time", "health": "failed",
            "failure": "it ended with exit code 2; see `portcullis server logs time`",
        });
        let check = server(&failed).unwrap();
        assert_eq!(check.detail, "`time` is failed: it ended with exit code 2");
        assert_eq!(check.remedy.unwrap(), "`portcullis server logs time` may say more");
    }
}
