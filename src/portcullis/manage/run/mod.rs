//! A run of the proxy: its config, its start, and its stop.

mod dry_run;
mod passed_sockets;
mod serve;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;

use super::{
    Reporter,
    locked_images::{apply, check_pins},
    profile_overrides::narrow,
};
use portcullis_catalog::{lock, profile_file::Profile};
use portcullis_config::{Code, Diagnostics, Loaded};
use portcullis_gateway::{
    Gateway, GatewayBuilder, Purpose, StartFailure, admin, front, record_start_failure,
};
use portcullis_policy::Watcher;
use portcullis_protocol::identity::Keyring;

pub use dry_run::Offered;
pub use passed_sockets::PassedSockets;

/// Options of a run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Whether the proxy only starts, and accepts no messages.
    pub dry_run: bool,
    /// Whether it serves one client over stdio, and stops at the end of its input.
    pub stdio: bool,
    /// Whether images with a tag that the lock file lacks are refused.
    pub locked: bool,
    /// Profile with the servers of the run.
    pub profile: Option<String>,
}

impl RunOptions {
    /// Reads the config with the servers of this run.
    ///
    /// # Errors
    /// The findings: the config is invalid, or disagrees with the lock file or the profile.
    pub fn read(&self, path: &Path) -> Result<Loaded, Diagnostics> {
        let mut loaded = portcullis_config::load(path)?;
        let conflict = |loaded: &Loaded, wrong: Vec<(String, String)>| {
            let findings = wrong.into_iter();
            let findings = findings.map(|(at, text)| loaded.finding(&at, Code::Conflict, text));
            Diagnostics(findings.collect())
        };
        check_pins(&loaded).map_err(|wrong| conflict(&loaded, wrong))?;
        if let Some(profile) = &self.profile
            && let Err(error) = narrow(&mut loaded, profile)
        {
            return Err(conflict(&loaded, vec![("/servers".to_owned(), format!("{error:#}"))]));
        }
        if self.locked
            && let Err(wrong) = apply(&mut loaded)
        {
            return Err(conflict(&loaded, wrong));
        }
        Ok(loaded)
    }

    /// Files that the config of this run is made of.
    fn files(&self, loaded: &Loaded) -> Vec<PathBuf> {
        let profile = self.profile.as_ref().and_then(|name| Profile::path(&loaded.base, name).ok());
        [Some(loaded.path.clone()), Some(loaded.base.join(lock::FILE)), profile]
            .into_iter()
            .flatten()
            .filter_map(|path| std::path::absolute(path).ok())
            .collect()
    }
}

/// Started proxy with its listeners and watchers.
pub struct StartedProxy {
    /// The proxy.
    pub proxy: Arc<Gateway>,
    watcher: Watcher,
    keyring: Arc<Keyring>,
    socket: admin::Server,
    /// HTTP listener; `None` for a dry run.
    listener: Option<front::http::Listener>,
}

/// Reason why the proxy did not start.
#[derive(Debug)]
pub enum NotStarted {
    /// The gateway could not be made or started.
    Gateway(StartFailure),
    /// Telemetry, keys, the admin socket or the listener failed.
    Other(anyhow::Error),
}

impl From<StartFailure> for NotStarted {
    fn from(failure: StartFailure) -> Self {
        Self::Gateway(failure)
    }
}

impl From<anyhow::Error> for NotStarted {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Checks everything and starts the proxy. A failure is recorded as a failed start.
///
/// # Errors
/// The reason. It is already recorded.
pub async fn start(
    reporter: &dyn Reporter,
    options: &RunOptions,
    loaded: &Loaded,
    sockets: PassedSockets,
) -> Result<StartedProxy, NotStarted> {
    let started = begin(reporter, options, loaded, sockets).await;
    match &started {
        Ok(_) => {}
        Err(NotStarted::Gateway(failure)) => failure.record(loaded).await,
        Err(NotStarted::Other(error)) => {
            record_start_failure(loaded, Vec::new(), format!("{error:#}")).await;
        }
    }
    started
}

async fn begin(
    reporter: &dyn Reporter,
    options: &RunOptions,
    loaded: &Loaded,
    sockets: PassedSockets,
) -> Result<StartedProxy, NotStarted> {
    portcullis_telemetry::init(&loaded.config.telemetry).map_err(anyhow::Error::new)?;
    let assembly = {
        let step = "loading policies and plugins, looking for a container engine";
        let _step = reporter.step(step.to_owned());
        GatewayBuilder::of(loaded).await?
    };
    if options.stdio && assembly.writes_to_stdout() {
        return Err(NotStarted::Other(anyhow::anyhow!(
            "with --stdio, standard output is the client's: give the audit export \
             `to = \"stdout\"` a file, or leave out --stdio"
        )));
    }
    let keyring = assembly.keyring.clone();
    // Addresses that another process could take are bound before anything starts.
    let settings = &loaded.config.admin;
    let socket = admin::Server::bind_with(
        &loaded.config.state_dir,
        settings.socket.as_deref(),
        settings.roles.clone(),
    )
    .map_err(anyhow::Error::new)?;
    let (listener, purpose) = if options.dry_run {
        (None, Purpose::DryRun)
    } else {
        let http = loaded.config.listen.http;
        let listener = match sockets.of(http)? {
            Some(socket) => front::http::Listener::passed(socket)
                .with_context(|| format!("cannot use the passed socket of {http}"))?,
            None => front::http::Listener::bind(http).await.with_context(|| {
                format!(
                    "cannot listen on {http}: choose another `listen.http` (`portcullis config set \
                     listen.http HOST:PORT`)"
                )
            })?,
        };
        (Some(listener), Purpose::Serve)
    };
    let (proxy, watcher) = assembly.start(loaded, purpose).await?;
    Ok(StartedProxy { proxy, watcher, keyring, socket, listener })
}

impl StartedProxy {
    /// Serves messages until there is a reason to stop, then closes the proxy. `listening` is called
    /// with the address once clients can connect.
    ///
    /// # Errors
    /// The proxy cannot serve.
    pub async fn serve(
        self,
        options: &RunOptions,
        loaded: &Loaded,
        listening: impl FnOnce(SocketAddr),
    ) -> anyhow::Result<()> {
        let proxy = self.proxy.clone();
        let served = serve::serve(self, options, loaded, listening).await;
        if let Err(error) = &served {
            proxy.close(&format!("{error:#}")).await;
        }
        served
    }

    /// Starts all servers and lists what the local user may see. Reports the lists that are refused.
    ///
    /// # Errors
    /// A list cannot be requested.
    pub async fn list(&self, reporter: &dyn Reporter) -> anyhow::Result<Offered> {
        dry_run::list(reporter, &self.proxy).await
    }

    /// Closes the proxy, with the reason for the record.
    pub async fn close(self, reason: &str) {
        self.proxy.close(reason).await;
    }
}
