//! The config of the pod's proxy: what of the operator's own concerns one server, with the places of
//! the pod.

use portcullis_kubernetes::{POLICIES, PORT, SECRETS, SOCKET, STATE, hosts};
use toml::{Table, Value};

use crate::{
    config::{self, Loaded, Use},
    names::ServerName,
};

/// Of the whole file, what concerns every server.
const KEPT: [&str; 4] = ["limits", "clients", "telemetry", "interceptors"];
/// What a pod can't have: other places, and files that are not in it.
const LOST: [&str; 5] =
    ["audit.encryption", "audit.witness", "audit.export", "approvals.webhook", "policy.bundle"];

/// The keys that stand in the config and that the pod can't have, but for those that the operator
/// leaves out: each with its pointer.
pub(super) fn lost(loaded: &Loaded, leave_out: &[String]) -> Vec<(String, String)> {
    let plugins = loaded.config.interceptors.iter().enumerate();
    let plugins = plugins.filter(|(_, entry)| matches!(entry.kind, Use::Plugin(_)));
    let plugins = plugins.map(|(at, entry)| {
        (format!("interceptors.{}", entry.name()), format!("/interceptors/{at}"))
    });
    let keys = LOST.into_iter().map(|key| (key.to_owned(), format!("/{}", key.replace('.', "/"))));
    let stands = |(_, pointer): &(String, String)| loaded.written(pointer).is_some();
    keys.filter(stands).chain(plugins).filter(|(key, _)| !leave_out.contains(key)).collect()
}

/// The text of the pod's config.
///
/// # Errors
/// Where the file is no longer what was loaded.
pub(super) fn of(
    loaded: &Loaded,
    server: &ServerName,
    settings: &config::Server,
    (arguments, namespace): (Option<&[String]>, &str),
    leave_out: &[String],
) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(&loaded.path)?;
    let mut file: Table = toml::from_str(&text)?;
    let mut pod = Table::new();
    pod.insert("state-dir".into(), STATE.into());
    let mut listen = table(file.remove("listen"));
    let allowed = listen.remove("allowed-hosts");
    let allowed = allowed.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let allowed = hosts(server.as_str(), namespace).into_iter().map(Value::from).chain(allowed);
    listen.insert("allowed-hosts".into(), allowed.collect::<Vec<_>>().into());
    listen.insert("http".into(), format!("0.0.0.0:{PORT}").into());
    pod.insert("listen".into(), listen.into());
    let policy = Table::from_iter([("paths".to_owned(), Value::from(vec![POLICIES]))]);
    pod.insert("policy".into(), policy.into());
    for key in KEPT {
        if let Some(value) = file.remove(key) {
            pod.insert(key.into(), value);
        }
    }
    let names: Vec<String> =
        loaded.config.interceptors.iter().map(|entry| entry.name().to_owned()).collect();
    if let Some(Value::Array(entries)) = pod.get_mut("interceptors") {
        let mut names = names.into_iter();
        let left_out = |name: &String| leave_out.contains(&format!("interceptors.{name}"));
        entries.retain(|_| !names.next().as_ref().is_some_and(left_out));
    }
    for (section, gone) in [
        ("audit", &["dir", "encryption", "witness", "export"][..]),
        ("approvals", &["webhook"][..]),
    ] {
        let mut kept = table(file.remove(section));
        kept.retain(|key, _| !gone.contains(&key));
        if !kept.is_empty() {
            pod.insert(section.into(), kept.into());
        }
    }
    let mut servers = table(file.remove("servers"));
    let mut entry = table(servers.remove(server.as_str()));
    for key in ["signed-by", "runtime", "warm", "instances"] {
        entry.remove(key);
    }
    for key in ["secrets", "headers"] {
        let Some(Value::Table(secrets)) = entry.get_mut(key) else { continue };
        for (name, secret) in secrets.iter_mut() {
            if let Value::Table(secret) = secret {
                secret.insert("from".into(), format!("file:{SECRETS}/{name}").into());
            }
        }
    }
    if settings.image.is_some() {
        entry.insert("pod-socket".into(), SOCKET.into());
        // All instances are in one container: what one client's writes to /tmp another's would read.
        entry.insert("sharing".into(), "shared".into());
        entry.remove("command");
        if let Some(arguments) = arguments {
            let arguments: Vec<Value> = arguments.iter().map(|one| one.as_str().into()).collect();
            entry.insert("command".into(), arguments.into());
        }
    }
    let servers = Table::from_iter([(server.to_string(), Value::from(entry))]);
    pod.insert("servers".into(), servers.into());
    Ok(toml::to_string(&pod)?)
}

fn table(value: Option<Value>) -> Table {
    match value {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}
