//! `portcullis server restart`: what runs of a server is started anew, and no call is lost for that.

use crate::cli::{Context, Exit};
use portcullis_gateway::admin;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::RestartReport;

/// Asks the running proxy.
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
        let _progress = ctx.progress(format!("starting `{server}` anew"));
        proxy.post_json_slowly(&format!("/v1/servers/{server}/restart"), &()).await?
    };
    if ctx.is_json() {
        ctx.json(&done)?;
        return Ok(Exit::Ok);
    }
    let RestartReport { instances, calls } = done;
    match (instances, calls) {
        (0, _) => {
            ctx.line(format_args!("{server}: nothing of it runs; what starts next is new"))?
        }
        (n, 0) => ctx.line(format_args!("{server}: {n} started anew"))?,
        (n, calls) => ctx.line(format_args!(
            "{server}: {n} started anew; {calls} under way at the old, which end with them"
        ))?,
    }
    Ok(Exit::Ok)
}
