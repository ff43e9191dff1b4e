//! Overview of a gateway: the proxy, its servers, policies, audit log and clients.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{
    doctor::{Check, Grade, of_running},
    server_states::{disabled, stopped},
};
use portcullis_config::Loaded;
use portcullis_gateway::admin;
use portcullis_policy::{Engine, Source};
use portcullis_protocol::identity::Store;

/// State of a gateway.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Whether a proxy runs.
    pub running: bool,
    /// Its address, or the one that the config has.
    pub address: Option<String>,
    /// Version of the running proxy.
    pub version: Option<String>,
    /// Policies in force, or those that a start would load. `None`: they are invalid.
    pub policies: Option<Policies>,
    /// Number of clients with a key. `None`: their store cannot be read.
    pub clients: Option<usize>,
    /// Open sessions of clients before revision 2026-07-28.
    pub sessions: Option<u64>,
    /// Records that the running proxy has written.
    pub records: Option<u64>,
    /// State of each server.
    pub servers: Vec<Value>,
    /// Findings about the running proxy, except its servers.
    pub problems: Vec<Check>,
}

/// A set of policies.
#[derive(Debug, Serialize)]
pub struct Policies {
    pub revision: String,
    pub count: u64,
}

/// State of a gateway with a running proxy. `loaded` is the config, if it is valid.
///
/// # Errors
/// The proxy does not answer.
pub async fn of_proxy(proxy: &admin::Client, loaded: Option<&Loaded>) -> anyhow::Result<Overview> {
    let status: Value = proxy.get_json("/v1/status").await?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut servers: Vec<Value> = status["servers"].as_array().cloned().unwrap_or_default();
    servers.extend(loaded.into_iter().flat_map(disabled));
    let revision = text(&status["policies"]["revision"]);
    let count = status["policies"]["policies"].as_u64().unwrap_or_default();
    let problems = of_running(&status).into_iter();
    let problems = problems.filter(|check| check.status != Grade::Ok && check.name != "server");
    Ok(Overview {
        running: true,
        address: text(&status["address"]).map(|address| endpoint(&address)),
        version: text(&status["version"]),
        policies: revision.map(|revision| Policies { revision, count }),
        clients: clients(loaded, proxy.state_dir()),
        sessions: status["sessions"].as_u64(),
        records: status["audit"]["records"].as_u64(),
        servers,
        problems: problems.collect(),
    })
}

/// State of a gateway without a running proxy.
pub async fn of_config(loaded: &Loaded) -> Overview {
    let source = Source::of(&loaded.config.policy, &loaded.config.state_dir);
    let policies = Engine::open(source, &loaded.base).ok().map(|engine| {
        let status = engine.status().borrow().clone();
        let count = u64::try_from(status.policies).unwrap_or(u64::MAX);
        Policies { revision: status.revision.to_string(), count }
    });
    let mut servers = stopped(loaded).await;
    servers.extend(disabled(loaded));
    Overview {
        running: false,
        address: Some(endpoint(&loaded.config.listen.http.to_string())),
        version: None,
        policies,
        clients: clients(Some(loaded), Some(&loaded.config.state_dir)),
        sessions: None,
        records: None,
        servers,
        problems: Vec::new(),
    }
}

fn endpoint(address: &str) -> String {
    format!("http://{address}/mcp")
}

fn clients(loaded: Option<&Loaded>, state_dir: Option<&Path>) -> Option<usize> {
    let stored = Store::in_state_dir(state_dir?).read().ok()?.len();
    Some(stored + loaded.map_or(0, |loaded| loaded.config.clients.len()))
}
