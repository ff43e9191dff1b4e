//! `portcullis connect`: bridges a client's standard input and output to a running proxy.
//!
//! Without `--url`, it uses the local socket of the proxy with this config, as the local user. With
//! `--url`, it uses HTTP with a key from `PORTCULLIS_KEY` or a file: every user of the machine
//! could read a key on the command line.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;

use super::{
    Context, Exit,
    proxy_client::{self, Located},
};
use crate::manage::{background, bridge::Bridge};
use portcullis_protocol::names::ServerName;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The proxy's endpoint, such as `http://127.0.0.1:8811/mcp`. Default: the local socket of the
    /// proxy with this config
    #[arg(long)]
    url: Option<String>,
    /// A file with the client's key. Default: the variable PORTCULLIS_KEY
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,
    /// Start the proxy of this config in the background if none runs. It continues after the client
    #[arg(long)]
    start: bool,
    /// Use only this server; its names have no prefix
    #[arg(long, conflicts_with = "url")]
    server: Option<ServerName>,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    if args.start
        && let Located::Alone(loaded) = proxy_client::find(ctx).await?
    {
        background::start(&ctx.config, &loaded).await?;
    }
    let bridge = match args.url {
        Some(url) => Bridge::to_url(url, key(args.key_file)?)?,
        None => local(args.server.as_ref(), ctx).await?,
    };
    Arc::new(bridge).run(tokio::io::stdin(), tokio::io::stdout()).await?;
    Ok(Exit::Ok)
}

/// Client's key from the file or `PORTCULLIS_KEY`.
fn key(file: Option<PathBuf>) -> anyhow::Result<Option<String>> {
    let Some(file) = file else { return Ok(std::env::var("PORTCULLIS_KEY").ok()) };
    let key = std::fs::read_to_string(&file);
    Ok(Some(key.with_context(|| format!("cannot read the key file {}", file.display()))?))
}

/// Bridge to the running proxy with this config.
async fn local(server: Option<&ServerName>, ctx: &Context) -> anyhow::Result<Bridge> {
    let found = proxy_client::find(ctx).await?;
    let state_dir = match &found {
        Located::Running(proxy, _) => proxy.state_dir(),
        Located::Alone(_) => None,
    };
    let state_dir = state_dir.with_context(|| {
        let file = ctx.config.display();
        format!("no proxy runs with {file}: start it with `portcullis run` or `--start`, or name one with --url")
    })?;
    Bridge::to_socket(state_dir, server)
}
