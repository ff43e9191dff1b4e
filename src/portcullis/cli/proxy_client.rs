//! Finding the running proxy. It can be used even if the config on disk is invalid: it continues
//! with the config that it accepted before.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Context, exit::reports};
use portcullis_config::{Code, Loaded, ProxyLocation};
use portcullis_gateway::admin::Client;

/// Where a proxy is, where the config is not to say it.
#[derive(Debug, clap::Args)]
pub(super) struct ProxyArgs {
    /// The state folder, instead of the config's `state-dir`
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The running proxy's `admin.socket`, for users with a role who cannot read the config
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "state_dir")]
    socket: Option<PathBuf>,
}

/// Result of the search for a proxy.
pub(super) enum Located {
    /// A proxy, and the config if it could be read.
    Running(Client, Option<Loaded>),
    /// No proxy that this user may use runs with this config.
    Alone(Loaded),
}

impl Located {
    /// Finds the proxy that runs with that config, if there is one.
    pub async fn with(loaded: Loaded) -> Self {
        match Client::find(&loaded.config).await {
            Some(proxy) => Self::Running(proxy, Some(loaded)),
            None => Self::Alone(loaded),
        }
    }

    /// The config, if it could be read.
    pub fn loaded(&self) -> Option<&Loaded> {
        match self {
            Self::Running(_, loaded) => loaded.as_ref(),
            Self::Alone(loaded) => Some(loaded),
        }
    }

    /// State folder, if it is certain: the folder by which the proxy was reached, or the config's
    /// folder if no proxy runs.
    pub fn state_dir(&self) -> Option<&Path> {
        match self {
            Self::Running(proxy, _) => proxy.state_dir(),
            Self::Alone(loaded) => Some(&loaded.config.state_dir),
        }
    }

    /// Splits it into both parts.
    pub fn parts(self) -> (Option<Client>, Option<Loaded>) {
        match self {
            Self::Running(proxy, loaded) => (Some(proxy), loaded),
            Self::Alone(loaded) => (None, Some(loaded)),
        }
    }
}

impl ProxyArgs {
    /// Finds the proxy by the command line, or else by the config.
    ///
    /// # Errors
    /// No proxy answers at the position that the command line gives; else the errors of [`find`].
    pub async fn proxy(&self, ctx: &Context) -> anyhow::Result<Located> {
        let client = match (&self.socket, &self.state_dir) {
            (Some(socket), _) => connect(socket).await?,
            (None, Some(dir)) => {
                let answers = Client::connect(dir).await;
                answers.with_context(|| format!("no proxy runs with {}", dir.display()))?
            }
            (None, None) => return find(ctx).await,
        };
        // The config of this folder may belong to another proxy.
        Ok(Located::Running(client, None))
    }
}

/// Connects to the proxy with that `admin.socket`.
pub(super) async fn connect(socket: &Path) -> anyhow::Result<Client> {
    Client::connect_socket(socket).await.with_context(|| {
        format!("no proxy answers on {}: is it its `admin.socket`?", socket.display())
    })
}

/// Finds the proxy that runs with the config. If the config is invalid now, a note says so.
///
/// # Errors
/// The errors of the config, if no proxy answers either.
pub(super) async fn find(ctx: &Context) -> anyhow::Result<Located> {
    let wrong = match portcullis_config::load(&ctx.config) {
        Ok(loaded) => return Ok(Located::with(loaded).await),
        Err(wrong) => wrong,
    };
    let ProxyLocation { state_dir, socket, .. } = portcullis_config::proxy_location(&ctx.config);
    if let Some(proxy) = Client::find_at(state_dir.as_deref(), socket.as_deref()).await {
        if let Some(first) = wrong.0.first() {
            let line = first.position().map_or_else(String::new, |(line, _)| format!(":{line}"));
            ctx.note(format_args!(
                "{}{line} can't be used: {}. The proxy at {} is asked all the same; `portcullis check` \
                 shows all that is wrong.",
                ctx.config.display(),
                first.message,
                proxy.place().display(),
            ));
        }
        return Ok(Located::Running(proxy, None));
    }
    // Without a file, no proxy is expected to run with it.
    if wrong.0.iter().all(|finding| finding.code != Code::Unreadable) {
        let file = ctx.config.display();
        let what = match &state_dir {
            Some(dir) => format!("No proxy that runs with {} answers.", dir.display()),
            None => format!("Where its proxy keeps its state, {file} does not say any more."),
        };
        ctx.note(format_args!(
            "{what} If one runs, most commands take its state folder as --state-dir, or its \
             `admin.socket` as --socket."
        ));
    }
    Err(reports(wrong).into())
}
