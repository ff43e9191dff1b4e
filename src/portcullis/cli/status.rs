//! `portcullis status`: the proxy and its servers at a glance.
//!
//! Exits with 1 if no proxy runs, and with 11 if the running proxy has a problem.

use super::{
    Context, Exit,
    proxy_client::{Located, ProxyArgs},
};
use crate::manage::{
    server_states::why,
    status::{Overview, Policies, of_config, of_proxy},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    proxy_args: ProxyArgs,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let overview = {
        let _progress = ctx.progress("asking the proxy");
        match args.proxy_args.proxy(ctx).await? {
            Located::Running(proxy, loaded) => of_proxy(&proxy, loaded.as_ref()).await?,
            Located::Alone(loaded) => of_config(&loaded).await,
        }
    };
    if ctx.is_json() {
        ctx.json(&overview)?;
    } else {
        print(ctx, &overview)?;
    }
    Ok(match (overview.running, overview.problems.is_empty()) {
        (false, _) => Exit::Failure,
        (true, true) => Exit::Ok,
        (true, false) => Exit::Findings,
    })
}

fn print(ctx: &Context, overview: &Overview) -> anyhow::Result<()> {
    let line = |name: &str, text: String| ctx.line(format!("{name:<10}{text}"));
    let address = overview.address.as_deref().unwrap_or("its socket only");
    let version =
        overview.version.as_ref().map_or(String::new(), |version| format!(", version {version}"));
    match overview.running {
        true => ctx.state("running", format!("   at {address}{version}"))?,
        false => ctx.state("not running", "; `portcullis run` starts it")?,
    }
    line(
        "policies",
        match &overview.policies {
            Some(Policies { revision, count: 1 }) => format!("1, revision {revision}"),
            Some(Policies { revision, count }) => format!("{count}, revision {revision}"),
            None => "invalid; `portcullis check` prints the errors".to_owned(),
        },
    )?;
    if let Some(clients) = overview.clients {
        let sessions =
            overview.sessions.map_or(String::new(), |sessions| format!(", {sessions} sessions"));
        line("clients", format!("{clients}{sessions}"))?;
    }
    if let Some(records) = overview.records {
        line("audit", format!("{records} records"))?;
    }
    for problem in &overview.problems {
        line(&problem.name, problem.detail.clone())?;
        if let Some(remedy) = &problem.remedy {
            line("", remedy.clone())?;
        }
    }
    if overview.servers.is_empty() {
        ctx.note("No server is configured: `portcullis add` adds one.");
        return Ok(());
    }
    let rows = overview.servers.iter().map(|server| {
        let text = |key: &str| server[key].as_str().unwrap_or("").to_owned();
        [text("name"), text("state"), text("place"), why(server).0.to_owned()]
    });
    Ok(ctx.table(&["SERVER", "STATE", "PLACE", "WHY"], rows)?)
}
