//! `portcullis server`: the servers behind the proxy.

mod cleanup;
mod entries;
mod export;
mod images;
mod inspect;
mod life;
mod ls;
mod search;
mod stats;
mod verify;

pub(super) use images::show as show_pulls;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Context, Exit, catalog,
    proxy_client::{Located, ProxyArgs},
    start_failure::reported,
};
use crate::manage::{images::LockMode, servers::configured};
use portcullis_config::Loaded;
use portcullis_foundation::atomic_file;
use portcullis_gateway::{GatewayBuilder, Purpose, admin};
use portcullis_protocol::names::ServerName;
use portcullis_upstream::Server;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List the servers with runtime and state
    Ls(ProxyArgs),
    /// Show the permissions of a server, the config line of each, and whether policies permit its start
    Inspect {
        /// The server's name in the config
        server: ServerName,
    },
    /// List all tools of a server, without applying policies
    Tools {
        /// The server's name in the config
        server: ServerName,
        /// Write the list to a file. `SERVER.tools.json` in a policy folder gives each tool a typed action
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
    /// Verify the signatures of a server's image, and store the result
    Verify {
        /// The server's name in the config
        server: ServerName,
    },
    /// Show calls, time, memory and CPU of each running instance
    Stats {
        /// Show only this server
        server: Option<ServerName>,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
    /// Restart a server's running instances; in-flight calls finish on the old ones
    Restart {
        /// The server's name in the config
        server: ServerName,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
    /// Stop a server's running instances after their calls, and refuse further calls until `start`
    Stop {
        /// The server's name in the config
        server: ServerName,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
    /// Start a server now, also after `stop`
    Start {
        /// The server's name in the config
        server: ServerName,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
    /// Disable a server: it stays in the config, and clients do not see it
    Disable {
        /// The server's name in the config
        server: ServerName,
    },
    /// Enable a disabled server
    Enable {
        /// The server's name in the config
        server: ServerName,
    },
    /// Remove a server: its entry in the config, its lock, and the policies that were written for it
    Rm {
        /// The server's name in the config
        server: ServerName,
    },
    /// Search the added catalogs for servers
    Search {
        /// Words in the name or the description; without any, all servers are listed
        words: Vec<String>,
    },
    /// Remove orphans of killed proxies: containers, secrets in memory, control groups
    Cleanup(cleanup::Args),
    /// Import the servers of a file or a URL: a client's `mcpServers`, a catalog, a profile or a `server.json`
    Import(catalog::Import),
    /// Pin unpinned image tags to digests in portcullis.lock
    Lock(images::ServerSelection),
    /// Resolve image tags again, update portcullis.lock, and print old and new digests
    Update {
        #[command(flatten)]
        which: images::ServerSelection,
        /// Allow going back to a digest that was replaced earlier
        #[arg(long)]
        allow_downgrade: bool,
        /// Print the changes without writing them
        #[arg(long)]
        dry_run: bool,
    },
    /// Pull images into the engine, if policies permit their start
    Pull(images::ServerSelection),
    /// Export a server for another platform
    #[command(subcommand)]
    Export(export::Export),
    /// Show the last lines of a running server's standard error
    Logs {
        /// The server's name in the config
        server: ServerName,
        #[command(flatten)]
        proxy_args: ProxyArgs,
    },
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        // This command creates the config, which may not exist yet.
        Verb::Import(args) => catalog::import(args, ctx).await,
        Verb::Lock(which) => images::lock(ctx, &which, LockMode::Lock).await,
        Verb::Update { which, allow_downgrade, dry_run } => {
            images::lock(ctx, &which, LockMode::Update { allow_downgrade, dry_run }).await
        }
        Verb::Pull(which) => images::pull(ctx, &which).await,
        Verb::Export(export) => export::run(export, ctx).await,
        Verb::Ls(proxy_args) => ls::run(ctx, proxy_args.proxy(ctx).await?).await,
        Verb::Inspect { server } => {
            let loaded = ctx.load()?;
            let proxy = admin::Client::find(&loaded.config).await;
            inspect::run(ctx, &loaded, proxy, &server).await
        }
        Verb::Tools { server, save, proxy_args } => {
            let found = proxy_args.proxy(ctx).await?;
            tools(ctx, found, &server, save.as_deref()).await
        }
        Verb::Verify { server } => verify::run(ctx, &ctx.load()?, &server).await,
        Verb::Stats { server, proxy_args } => {
            let proxy = running(&proxy_args, ctx, server.as_ref()).await?;
            stats::run(ctx, proxy, server.as_ref()).await
        }
        Verb::Restart { server, proxy_args } => {
            let proxy = running(&proxy_args, ctx, Some(&server)).await?;
            life::run(ctx, proxy, &server, life::Action::Restart).await
        }
        Verb::Stop { server, proxy_args } => {
            let proxy = running(&proxy_args, ctx, Some(&server)).await?;
            life::run(ctx, proxy, &server, life::Action::Stop).await
        }
        Verb::Start { server, proxy_args } => {
            let proxy = running(&proxy_args, ctx, Some(&server)).await?;
            life::run(ctx, proxy, &server, life::Action::Start).await
        }
        Verb::Disable { server } => entries::enable(ctx, &server, false),
        Verb::Enable { server } => entries::enable(ctx, &server, true),
        Verb::Rm { server } => entries::remove(ctx, &server),
        Verb::Search { words } => search::run(ctx, &words),
        Verb::Cleanup(args) => cleanup::run(ctx, &args).await,
        Verb::Logs { server, proxy_args } => {
            let proxy = running(&proxy_args, ctx, Some(&server)).await?;
            logs(ctx, proxy, &server).await
        }
    }
}

/// Running proxy, if it may know that server. If the config is invalid, only the proxy can say.
async fn running(
    proxy_args: &ProxyArgs,
    ctx: &Context,
    server: Option<&ServerName>,
) -> anyhow::Result<Option<admin::Client>> {
    let (proxy, loaded) = proxy_args.proxy(ctx).await?.parts();
    if let (Some(loaded), Some(server)) = (&loaded, server) {
        configured(loaded, server)?;
    }
    Ok(proxy)
}

async fn tools(
    ctx: &Context,
    found: Located,
    name: &ServerName,
    save: Option<&Path>,
) -> anyhow::Result<Exit> {
    if let Some(loaded) = found.loaded() {
        configured(loaded, name)?;
    }
    let listed: Value = {
        let _progress = ctx.progress("asking the server");
        match found {
            Located::Running(proxy, _) => {
                proxy.get_json(&format!("/v1/servers/{name}/tools")).await?
            }
            Located::Alone(loaded) => in_new_proxy(ctx, &loaded, name).await?,
        }
    };
    let tools = listed["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(file) = save {
        let mut text = serde_json::to_string_pretty(&listed)?;
        text.push('\n');
        atomic_file::write_as(file, text.as_bytes(), atomic_file::PUBLIC)
            .with_context(|| format!("cannot write {}", file.display()))?;
        ctx.note(format_args!("{} tools of `{name}` are in {}", tools.len(), file.display()));
    } else if ctx.is_json() {
        ctx.json(&listed)?;
    } else {
        ctx.table(&super::tools::HEADER, tools.iter().map(super::tools::row))?;
    }
    Ok(Exit::Ok)
}

/// Lines of a server's standard error that are shown if it fails.
const LOG_LINES: usize = 10;

/// Shows the end of the standard error of a server in this process, which is gone afterwards.
pub(super) fn show_log_end(ctx: &Context, server: &Server) {
    let log = server.log();
    for line in log.iter().skip(log.len().saturating_sub(LOG_LINES)) {
        ctx.note(format!("{}: {line}", server.name));
    }
}

/// Starts a proxy for one request. If the server fails, shows the end of its standard error, which
/// is gone afterwards.
async fn in_new_proxy(ctx: &Context, loaded: &Loaded, name: &ServerName) -> anyhow::Result<Value> {
    let assembly = GatewayBuilder::of(loaded).await.map_err(reported)?;
    let _claim = admin::Server::bind(&loaded.config.state_dir)?;
    let (proxy, _watcher) = assembly.start(loaded, Purpose::Serve).await.map_err(reported)?;
    let server = proxy.router.server(name);
    let listed = match &server {
        Some(server) => server.tools().await.map_err(anyhow::Error::from),
        None => Err(anyhow::anyhow!("there is no server `{name}`")),
    };
    if let (Err(_), Some(server)) = (&listed, &server) {
        show_log_end(ctx, server);
    }
    proxy.close("the question is answered").await;
    listed.with_context(|| format!("`{name}` does not say which tools it has"))
}

async fn logs(
    ctx: &Context,
    proxy: Option<admin::Client>,
    name: &ServerName,
) -> anyhow::Result<Exit> {
    let Some(proxy) = proxy else {
        anyhow::bail!(
            "no proxy runs with this config, so there are no logs: start it with `portcullis run`"
        )
    };
    let lines: Vec<String> = proxy.get_json(&format!("/v1/servers/{name}/log")).await?;
    if ctx.is_json() {
        ctx.json(&lines)?;
    } else if lines.is_empty() {
        ctx.note(format_args!("Server `{name}` has written nothing to standard error."));
    } else {
        for line in lines {
            ctx.line(line)?;
        }
    }
    Ok(Exit::Ok)
}
