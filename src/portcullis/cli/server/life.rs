//! `portcullis server restart`, `stop` and `start`: the running instances of a server.

use serde_json::Value;

use crate::cli::{Context, Exit};
use portcullis_gateway::admin;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::RestartReport;

/// A change of running instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Restart,
    Stop,
    Start,
}

/// Sends the request to the running proxy.
pub(super) async fn run(
    ctx: &Context,
    proxy: Option<admin::Client>,
    server: &ServerName,
    action: Action,
) -> anyhow::Result<Exit> {
    let Some(proxy) = proxy else {
        anyhow::bail!(
            "no proxy runs with this config, so no server does: start it with `portcullis run`"
        )
    };
    let (path, what) = match action {
        Action::Restart => ("restart", "restarting"),
        Action::Stop => ("stop", "stopping"),
        Action::Start => ("start", "starting"),
    };
    let done: Value = {
        let _progress = ctx.progress(format!("{what} `{server}`"));
        proxy.post_json_slowly(&format!("/v1/servers/{server}/{path}"), &()).await?
    };
    if ctx.is_json() {
        ctx.json(&done)?;
        return Ok(Exit::Ok);
    }
    let report: RestartReport = match action {
        Action::Start => {
            ctx.line(format_args!("{server}: started"))?;
            return Ok(Exit::Ok);
        }
        Action::Restart | Action::Stop => serde_json::from_value(done)?,
    };
    let done = if action == Action::Stop { "stopped" } else { "restarted" };
    match (report.instances, report.calls, action) {
        (0, _, Action::Restart) => ctx.line(format_args!(
            "{server}: no instance is running; the next start uses the new configuration"
        ))?,
        (0, _, _) => ctx.line(format_args!("{server}: {done}; no instance was running"))?,
        (n, 0, _) => ctx.line(format_args!("{server}: {n} {done}"))?,
        (n, calls, _) => ctx.line(format_args!(
            "{server}: {n} {done}; {calls} in-flight calls finish on the old instances"
        ))?,
    }
    if action == Action::Stop {
        ctx.note(format_args!("Calls are refused until `portcullis server start {server}`."));
    }
    Ok(Exit::Ok)
}
