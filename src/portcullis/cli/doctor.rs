//! `portcullis doctor`: reports what this machine offers, and problems that prevent a run.
//!
//! Exits with 11 if a problem would prevent the proxy, or one of its servers, from working.

use super::{Context, Exit};
use crate::manage::doctor::{Check, Grade, examine};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub async fn run(_args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let checks = {
        let _progress = ctx.progress("looking at this machine");
        examine(&ctx.config).await?
    };
    let failed = checks.iter().any(|check| check.status == Grade::Fail);
    if ctx.is_json() {
        ctx.json(&serde_json::json!({ "ok": !failed, "checks": checks }))?;
    } else {
        for Check { name, status, detail, remedy } in &checks {
            let word = text(*status);
            let pad = 6_usize.saturating_sub(word.len());
            ctx.state(word, format!("{:pad$}{name:<12} {detail}", ""))?;
            if let Some(remedy) = remedy {
                ctx.line(format!("{:<19}{remedy}", ""))?;
            }
        }
    }
    Ok(if failed { Exit::Findings } else { Exit::Ok })
}

fn text(status: Grade) -> &'static str {
    match status {
        Grade::Ok => "ok",
        Grade::Warn => "warn",
        Grade::Fail => "FAIL",
    }
}
