//! `portcullis server rm`, `enable` and `disable`.

use serde_json::json;

use crate::{
    cli::{Context, Exit},
    manage::server_entries::{self, Removed},
};
use portcullis_protocol::names::ServerName;

/// Enables or disables a server.
pub(super) fn enable(ctx: &Context, name: &ServerName, enabled: bool) -> anyhow::Result<Exit> {
    let changed = server_entries::enable(&ctx.load()?, name, enabled)?;
    if ctx.is_json() {
        ctx.json(&json!({ "server": name, "enabled": enabled, "changed": changed }))?;
        return Ok(Exit::Ok);
    }
    let state = if enabled { "enabled" } else { "disabled" };
    ctx.note(match changed {
        true => format!("server `{name}` is {state}; a running proxy follows the config"),
        false => format!("server `{name}` is {state} already"),
    });
    Ok(Exit::Ok)
}

/// Removes a server.
pub(super) fn remove(ctx: &Context, name: &ServerName) -> anyhow::Result<Exit> {
    let Removed { removed, kept, naming } = server_entries::remove(&ctx.load()?, name)?;
    if ctx.is_json() {
        ctx.json(&json!({ "server": name, "removed": removed, "kept": kept, "naming": naming }))?;
        return Ok(Exit::Ok);
    }
    ctx.note(format_args!("server `{name}` is removed from {}", ctx.config.display()));
    for path in removed {
        ctx.line(format_args!("removed {}", path.display()))?;
    }
    for path in kept {
        ctx.line(format_args!("kept {}, which was edited", path.display()))?;
    }
    for path in naming {
        ctx.line(format_args!("kept {}, which names the server", path.display()))?;
    }
    Ok(Exit::Ok)
}
