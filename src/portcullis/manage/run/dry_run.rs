//! Dry run: what the proxy would offer.

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::manage::{Reporter, one_shot};
use portcullis_gateway::Gateway;
use portcullis_protocol::{
    codec::{Frame, era},
    exchange::View,
    identity::Principal,
};
use portcullis_upstream::ListKind;

/// Lists that the proxy offers to the local user.
#[derive(Debug, Default)]
pub struct Offered {
    /// Names by kind, such as `tools`.
    pub names: IndexMap<String, Vec<String>>,
    /// Servers that failed, with the reason.
    pub failed: Vec<(String, String)>,
}

/// Starts all servers and requests every list. Reports the lists that are refused.
pub(super) async fn list(reporter: &dyn Reporter, proxy: &Arc<Gateway>) -> anyhow::Result<Offered> {
    // Lists start only servers with something that the local user could use.
    let servers = proxy.router.servers(&View::All);
    futures_util::future::join_all(servers.iter().map(|server| server.shared().running())).await;
    let mut offered = Offered::default();
    for kind in ListKind::ALL {
        let params = serde_json::json!({ "_meta": era::own_meta() }).to_string();
        let text = Frame::request(1, kind.method(), params.as_bytes());
        let response = one_shot::send(proxy, Principal::local(), text).await?;
        let answer: Value =
            response.map(|text| serde_json::from_slice(&text)).transpose()?.unwrap_or_default();
        if let Some(error) = answer.get("error") {
            let why = error["message"].as_str().unwrap_or("");
            reporter.note(&format!("{}: {why}", kind.method()));
            continue;
        }
        let names = answer["result"][kind.member()]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item[kind.key()].as_str().map(str::to_owned))
            .collect();
        offered.names.insert(kind.member().to_owned(), names);
    }
    let states = proxy.servers.states().await.into_iter();
    let failed = states.filter_map(|state| {
        let name = state["name"].as_str().unwrap_or("").to_owned();
        Some((name, state["failure"].as_str()?.to_owned()))
    });
    offered.failed = failed.collect();
    Ok(offered)
}
