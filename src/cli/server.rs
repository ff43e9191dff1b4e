//! `portcullis server`: the servers behind the proxy.

mod stats;

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{Context, Exit, catalog, run::reported};
use crate::{
    admin,
    codec::Caps,
    config::Loaded,
    container,
    names::ServerName,
    proxy::{Assembly, Purpose},
    sandbox,
    upstream::{Launcher, Place},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the servers: where each runs, and how it stands
    Ls,
    /// Show a server's whole profile, and where the config deviates from the hardened default
    Inspect {
        /// The server's name in the config
        server: ServerName,
    },
    /// List all tools of a server, as it lists them, whoever may call them
    Tools {
        /// The server's name in the config
        server: ServerName,
        /// Write the list to a file: `SERVER.tools.json` among the policies gives each tool an action
        /// of its own
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
    },
    /// Show what each running instance does and uses: calls, time, memory, processor
    Stats {
        /// Only this server
        server: Option<ServerName>,
    },
    /// Add a server that a catalog, an image, a URL or a file describes
    Add(catalog::Add),
    /// Add the servers of a file: a client's `mcpServers`, a catalog, a profile, a `server.json`
    Import(catalog::Import),
    /// Show the last lines that a running server wrote to standard error
    Logs {
        /// The server's name in the config
        server: ServerName,
    },
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        // These make the config, which need not be there yet.
        Verb::Add(args) => catalog::add(args, ctx).await,
        Verb::Import(args) => catalog::import(args, ctx).await,
        Verb::Ls => {
            let (loaded, proxy) = open(ctx).await?;
            ls(ctx, &loaded, proxy).await
        }
        Verb::Inspect { server } => {
            let (loaded, proxy) = open(ctx).await?;
            inspect(ctx, &loaded, proxy, &server).await
        }
        Verb::Tools { server, save } => {
            let (loaded, proxy) = open(ctx).await?;
            tools(ctx, &loaded, proxy, &server, save.as_deref()).await
        }
        Verb::Stats { server } => {
            let (loaded, proxy) = open(ctx).await?;
            if let Some(server) = &server {
                configured(&loaded, server)?;
            }
            stats::run(ctx, proxy, server.as_ref()).await
        }
        Verb::Logs { server } => {
            let (loaded, proxy) = open(ctx).await?;
            logs(ctx, &loaded, proxy, &server).await
        }
    }
}

/// The config, and the proxy that runs with it, if one does.
async fn open(ctx: &Context) -> anyhow::Result<(Loaded, Option<admin::Client>)> {
    let loaded = ctx.load()?;
    let proxy = admin::Client::find(&loaded.config).await;
    Ok((loaded, proxy))
}

async fn ls(ctx: &Context, loaded: &Loaded, proxy: Option<admin::Client>) -> anyhow::Result<Exit> {
    let states: Vec<Value> = match proxy {
        Some(proxy) => proxy.get_json("/v1/servers").await?,
        None => {
            let launcher = launcher(loaded).await;
            let servers = loaded.config.servers.iter();
            servers
                .map(|(name, settings)| {
                    let place = launcher.place(settings);
                    json!({ "name": name, "state": "stopped", "place": place.kind(), "why": place.why() })
                })
                .collect()
        }
    };
    if ctx.is_json() {
        ctx.json(&states)?;
    } else {
        let rows = states.iter().map(|state| {
            ["name", "state", "place", "process", "revision"]
                .map(|key| state[key].as_str().unwrap_or("").to_owned())
                .into_iter()
                .chain([state["failure"]
                    .as_str()
                    .or(state["why"].as_str())
                    .unwrap_or("")
                    .to_owned()])
                .collect::<Vec<_>>()
        });
        ctx.table(&["SERVER", "STATE", "PLACE", "PROCESS", "REVISION", "WHY"], rows)?;
        for state in &states {
            let name = state["name"].as_str().unwrap_or("");
            let notices = state["notices"].as_array().into_iter().flatten();
            for notice in notices.filter_map(Value::as_str) {
                ctx.line(format_args!("{name}: {notice}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

async fn inspect(
    ctx: &Context,
    loaded: &Loaded,
    proxy: Option<admin::Client>,
    name: &ServerName,
) -> anyhow::Result<Exit> {
    let settings = configured(loaded, name)?;
    let launcher = launcher(loaded).await;
    let place = launcher.place(settings);
    let (profile, deviations) = match &place {
        Place::Remote { url } => (vec![("url".into(), url.clone())], Vec::new()),
        local => {
            let mut spec = launcher.spec_without_secrets(name, settings)?;
            if spec.image.is_none() {
                // A packed program's image is known once it is packed, and is then an id.
                spec.image = Some(format!("sha256:{}", "0".repeat(64)));
            }
            // The keys that open something are the same wherever the server runs.
            let profile = container::Profile::of(&spec)?;
            let shown = match local {
                Place::Sandbox { .. } => sandbox::facts(),
                _ => profile.describe(),
            };
            (shown, profile.deviations())
        }
    };
    let running: Option<Value> = match proxy {
        Some(proxy) => {
            let states: Vec<Value> = proxy.get_json("/v1/servers").await?;
            states.into_iter().find(|state| state["name"] == name.as_str())
        }
        None => None,
    };
    let deviations: Vec<Value> = deviations
        .into_iter()
        .map(|deviation| {
            let pointer = format!("/servers/{name}/{}", deviation.config_key.replace('.', "/"));
            json!({
                "field": deviation.field,
                "default": deviation.default,
                "actual": deviation.actual,
                "configKey": deviation.config_key,
                "line": loaded.line(&pointer),
            })
        })
        .collect();
    if ctx.is_json() {
        let profile: serde_json::Map<String, Value> =
            profile.into_iter().map(|(field, value)| (field, value.into())).collect();
        ctx.json(&json!({
            "name": name,
            "place": place.kind(),
            "why": place.why(),
            "running": running,
            "profile": profile,
            "deviations": deviations,
        }))?;
        return Ok(Exit::Ok);
    }
    ctx.line(format_args!("server {name}: {} ({})", place.kind(), place.why()))?;
    if let Some(running) = running {
        let text = |key: &str| running[key].as_str().unwrap_or("").to_owned();
        ctx.line(format_args!("{} {} {}", text("state"), text("process"), text("revision")))?;
    }
    ctx.table(&["SETTING", "VALUE"], profile.into_iter().map(|(field, value)| [field, value]))?;
    if matches!(place, Place::Remote { .. }) {
        return Ok(Exit::Ok);
    }
    if deviations.is_empty() {
        ctx.line("no deviation from the hardened default profile")?;
        return Ok(Exit::Ok);
    }
    let file = loaded.path.display().to_string();
    let rows = deviations.iter().map(|deviation| {
        let text = |key: &str| deviation[key].as_str().unwrap_or("").to_owned();
        let line = deviation["line"].as_u64().map_or(file.clone(), |line| format!("{file}:{line}"));
        vec![text("field"), text("default"), text("actual"), text("configKey"), line]
    });
    ctx.line("deviations from the hardened default profile:")?;
    ctx.table(&["SETTING", "DEFAULT", "HERE", "BECAUSE OF", "AT"], rows)?;
    Ok(Exit::Ok)
}

async fn tools(
    ctx: &Context,
    loaded: &Loaded,
    proxy: Option<admin::Client>,
    name: &ServerName,
    save: Option<&Path>,
) -> anyhow::Result<Exit> {
    configured(loaded, name)?;
    let listed: Value = {
        let _progress = ctx.progress("asking the server");
        match proxy {
            Some(proxy) => proxy.get_json(&format!("/v1/servers/{name}/tools")).await?,
            None => alone(loaded, name).await?,
        }
    };
    let tools = listed["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(file) = save {
        let mut text = serde_json::to_string_pretty(&listed)?;
        text.push('\n');
        replace(file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        ctx.note(format_args!("{} tools of `{name}` are in {}", tools.len(), file.display()));
    } else if ctx.is_json() {
        ctx.json(&listed)?;
    } else {
        ctx.table(&super::tools::HEADER, tools.iter().map(super::tools::row))?;
    }
    Ok(Exit::Ok)
}

/// Writes a file in one step: who reads it meanwhile finds all of the old or all of the new one.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    // Policies are for all to read who may read their folder.
    new.as_file().set_permissions(Permissions::from_mode(0o644))?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// Starts a proxy for one question.
async fn alone(loaded: &Loaded, name: &ServerName) -> anyhow::Result<Value> {
    let assembly = Assembly::of(loaded).await.map_err(reported)?;
    let _claim = admin::Server::bind(&loaded.config.state_dir)?;
    let (proxy, _watcher) = assembly.start(loaded, Purpose::Serve).await.map_err(reported)?;
    let listed = match proxy.router.server(name) {
        Some(server) => server.tools().await.map_err(anyhow::Error::from),
        None => Err(anyhow::anyhow!("there is no server `{name}`")),
    };
    proxy.close("the question is answered").await;
    listed.with_context(|| format!("`{name}` does not say which tools it has"))
}

async fn logs(
    ctx: &Context,
    loaded: &Loaded,
    proxy: Option<admin::Client>,
    name: &ServerName,
) -> anyhow::Result<Exit> {
    configured(loaded, name)?;
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

fn configured<'a>(
    loaded: &'a Loaded,
    name: &ServerName,
) -> anyhow::Result<&'a crate::config::Server> {
    loaded.config.servers.get(name).ok_or_else(|| {
        let known: Vec<_> = loaded.config.servers.keys().map(|name| name.as_str()).collect();
        let near = crate::names::nearest(name.as_str(), known.iter().copied());
        match near.first() {
            Some(near) => anyhow::anyhow!("there is no server `{name}`; did you mean `{near}`?"),
            None => anyhow::anyhow!("there is no server `{name}`; the config has {known:?}"),
        }
    })
}

async fn launcher(loaded: &Loaded) -> Launcher {
    Launcher {
        engine: container::Engine::connect(loaded.config.engine.host.as_deref())
            .await
            .map_err(|absent| absent.to_string()),
        instance: String::new(),
        base: loaded.base.clone(),
        caps: Caps::response(&loaded.config.limits),
        // Nothing is started here.
        hands: Default::default(),
        runtime: Default::default(),
        digests: Default::default(),
        outward: std::sync::Arc::new(crate::upstream::Nowhere),
    }
}
