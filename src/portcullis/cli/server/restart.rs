//! `portcullis server restart`: restarts a server's running instances without losing a call.

use crate::cli::{Context, Exit};
use portcullis_gateway::admin;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::RestartReport;

/// Sends the request to the running proxy.
pub(super) async fn run(
    ctx: &Context,
    proxy: Option<admin::Client>,
    server: &ServerName,
) -> anyhow::Result<Exit> {
    let Some(proxy) = proxy else {
        anyhow::bail!(
            "no proxy runs with this config, so no server does: start it with `portcullis run`"
        )
    };
    let done: RestartReport = {
        let _progress = ctx.progress(format!("restarting `{server}`"));
        proxy.post_json_slowly(&format!("/v1/servers/{server}/restart"), &()).await?
    };
    if ctx.is_json() {
        ctx.json(&done)?;
        return Ok(Exit::Ok);
    }
    let RestartReport { instances, calls } = done;
    match (instances, calls) {
        (0, _) => ctx.line(format_args!(
            "{server}: no instance is running; the next start uses the new configuration"
        ))?,
        (n, 0) => ctx.line(format_args!("{server}: {n} restarted"))?,
        (n, calls) => ctx.line(format_args!(
            "{server}: {n} restarted; {calls} in-flight calls finish on the old instances"
        ))?,
    }
    Ok(Exit::Ok)
}
