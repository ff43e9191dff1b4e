//! `portcullis init`: creates a gateway folder.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Context, Exit};
use crate::manage::init;
use portcullis_protocol::names::Group;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder; it is created if it does not exist
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Let the clients of this group connect
    #[arg(long, value_name = "GROUP", default_value = super::AGENTS)]
    group: Group,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let Args { folder, group } = args;
    let created = init::init(&folder, &group)?;
    let with = match folder == Path::new(".") {
        true => String::new(),
        false => format!(" -c {}", folder.join(init::CONFIG).display()),
    };
    let next = [
        format!("portcullis add{with} -- uvx mcp-server-time"),
        format!("portcullis client connect claude-code --group {group}{with}"),
    ];
    if ctx.is_json() {
        ctx.json(&json!({ "created": created, "next": next }))?;
        return Ok(Exit::Ok);
    }
    for path in created {
        ctx.line(format!("wrote {}", path.strip_prefix(".").unwrap_or(&path).display()))?;
    }
    ctx.note("Next, add a server, and connect a client that may use it:");
    next.iter().for_each(|command| ctx.note(format!("  {command}")));
    Ok(Exit::Ok)
}
