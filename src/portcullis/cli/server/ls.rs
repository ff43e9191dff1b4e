//! `portcullis server ls`: the servers with runtime and state.

use serde_json::Value;

use crate::{
    cli::{Context, Exit, proxy_client::Located},
    manage::server_states::{details, disabled, stopped, why},
};

/// Lists the servers.
pub(super) async fn run(ctx: &Context, found: Located) -> anyhow::Result<Exit> {
    let mut states: Vec<Value> = match &found {
        Located::Running(proxy, _) => proxy.get_json("/v1/servers").await?,
        Located::Alone(loaded) => stopped(loaded).await,
    };
    states.extend(found.loaded().into_iter().flat_map(disabled));
    if ctx.is_json() {
        ctx.json(&states)?;
        return Ok(Exit::Ok);
    }
    let rows = states.iter().map(|state| {
        let cells = ["name", "state", "place", "process", "revision"]
            .map(|key| state[key].as_str().unwrap_or("").to_owned());
        cells.into_iter().chain([why(state).0.to_owned()]).collect::<Vec<_>>()
    });
    ctx.table(&["SERVER", "STATE", "PLACE", "PROCESS", "REVISION", "WHY"], rows)?;
    for details in details(&states) {
        ctx.line(details)?;
    }
    for state in &states {
        let name = state["name"].as_str().unwrap_or("");
        let notices = state["notices"].as_array().into_iter().flatten();
        for notice in notices.filter_map(Value::as_str) {
            ctx.line(format_args!("{name}: {notice}"))?;
        }
    }
    Ok(Exit::Ok)
}
