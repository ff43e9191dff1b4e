//! Checks of this machine, of a config on it, and of the proxy that runs with that config.

mod audit;
mod machine;
mod proxy;
mod settings;

use std::path::Path;

use serde::Serialize;

pub(super) use proxy::of_running;

use portcullis_config::{Diagnostics, ProxyLocation};
use portcullis_gateway::admin;
use portcullis_runtime::{container, sandbox};

/// Severity of a [`Check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// No problem.
    Ok,
    /// The proxy works, with a restriction.
    Warn,
    /// The proxy or a server does not work.
    Fail,
}

/// Result of one check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Subject, such as `engine`.
    pub name: String,
    /// Result.
    pub status: Grade,
    /// Finding.
    pub detail: String,
    /// Remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Grade::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { name: name.into(), status: Grade::Warn, detail: detail.into(), remedy }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: &str) -> Self {
        Self { status: Grade::Fail, ..Self::warn(name, detail, remedy) }
    }
}

/// Examines this machine for the config at `path`.
///
/// # Errors
/// The checks of the sandbox did not finish.
pub async fn examine(path: &Path) -> anyhow::Result<Vec<Check>> {
    let loaded = portcullis_config::load(path);
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let available = tokio::task::spawn_blocking(sandbox::available).await?;
    let host = config.and_then(|config| config.engine.host.as_deref());
    let engine = container::Engine::connect(host).await;

    let mut checks = machine::runtimes(config, &available, &engine);
    let user = machine::user(config, &sandbox::outside(None));
    checks.extend(user.filter(|_| available.is_ok()));
    match &loaded {
        Ok(loaded) => {
            checks.extend(settings::checks(loaded));
            checks.extend(proxy::checks(admin::Client::find(&loaded.config).await).await);
        }
        Err(Diagnostics(findings)) => {
            checks.push(settings::no_config(path, findings));
            let ProxyLocation { state_dir, socket, .. } = portcullis_config::proxy_location(path);
            let proxy = admin::Client::find_at(state_dir.as_deref(), socket.as_deref()).await;
            checks.extend(proxy::checks(proxy).await);
        }
    }
    Ok(checks)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
