//! `portcullis stop`: ends the running proxy, also one that `connect --start` started.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Context, Exit, proxy_client::ProxyArgs};
use portcullis_gateway::admin::Stopping;

/// Longest wait for the end of the proxy: calls in flight and exports have their own limits.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two checks whether it has ended.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    proxy_args: ProxyArgs,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let (Some(proxy), _) = args.proxy_args.proxy(ctx).await?.parts() else {
        anyhow::bail!("no proxy runs with this config");
    };
    let _progress = ctx.progress("waiting for the end of the proxy");
    let stopping: Stopping = proxy.post_json("/v1/stop", &()).await?;
    let end = Instant::now() + STOP_TIMEOUT;
    while is_running(stopping.pid) {
        if Instant::now() >= end {
            anyhow::bail!("the proxy (pid {}) has not ended yet: see its log", stopping.pid);
        }
        sleep(PAUSE).await;
    }
    if ctx.is_json() {
        ctx.json(&stopping)?;
    } else {
        ctx.note("The proxy has stopped.");
    }
    Ok(Exit::Ok)
}

/// Whether there is such a process, other than one that waits to be reaped. A proxy in another PID
/// namespace counts as ended.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `PID (NAME) STATE …`; the name may contain anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}
