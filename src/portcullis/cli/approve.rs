//! `portcullis approve`: calls that wait for a person.

use clap::builder::NonEmptyStringValueParser;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    Context, Exit, escape,
    proxy_client::{Located, ProxyArgs},
};
use portcullis_gateway::{
    admin::{self, ResolveRequest},
    approval::PendingApproval,
};
use portcullis_protocol::names::DecisionId;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    proxy_args: ProxyArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the calls that wait for approval, with their arguments
    Ls,
    /// Approve a call
    Allow(DecisionArgs),
    /// Refuse a call
    Deny(DecisionArgs),
}

#[derive(Debug, clap::Args)]
struct DecisionArgs {
    /// The decision id, as shown by `approve ls` and to the agent
    id: DecisionId,
    /// The reason, kept in the audit record
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    reason: Option<String>,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let Located::Running(proxy, _) = args.proxy_args.proxy(ctx).await? else {
        anyhow::bail!(
            "no proxy runs with this config that you may ask; calls wait in a running one alone"
        );
    };
    let (DecisionArgs { id, reason }, allow) = match args.verb {
        Verb::Ls => return ls(ctx, &proxy).await,
        Verb::Allow(which) => (which, true),
        Verb::Deny(which) => (which, false),
    };
    let word = ResolveRequest { allow, reason };
    let resolution: Value = proxy.post_json(&format!("/v1/approvals/{id}"), &word).await?;
    if ctx.is_json() {
        ctx.json(&resolution)?;
    } else {
        ctx.line(format!("{} {id}", if allow { "allowed" } else { "denied" }))?;
    }
    Ok(Exit::Ok)
}

async fn ls(ctx: &Context, proxy: &admin::Client) -> anyhow::Result<Exit> {
    let calls: Vec<PendingApproval> = proxy.get_json("/v1/approvals").await?;
    if ctx.is_json() {
        ctx.json(&calls)?;
        return Ok(Exit::Ok);
    }
    if calls.is_empty() {
        ctx.note("no call waits");
    }
    for call in &calls {
        let what = [call.server.as_deref(), call.target.as_deref()];
        let what: Vec<_> = what.into_iter().flatten().collect();
        let remaining =
            SignedDuration::from_secs(call.until.duration_since(Timestamp::now()).as_secs());
        ctx.line(format!(
            "{}  {} asks for {} {}, {remaining:#} left",
            call.id,
            escape(&call.principal),
            escape(&call.method),
            escape(&what.join("/")),
        ))?;
        for asking in &call.rules {
            let place = match (&asking.rule.file, asking.rule.line) {
                (Some(file), Some(line)) => format!("  {}:{line}", file.display()),
                _ => String::new(),
            };
            ctx.line(format!("  {}: {}{place}", asking.rule.id, asking.why))?;
        }
        let body = call.params.body.as_ref().map(ToString::to_string).unwrap_or_default();
        ctx.line(format!("  {}", escape(&body)))?;
    }
    Ok(Exit::Ok)
}
