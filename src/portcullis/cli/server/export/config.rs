//! Config of the pod's proxy: the operator's keys for one server, with the paths of the pod.

use portcullis_kubernetes::{POLICIES, PORT, SECRETS, SOCKET, STATE, hosts};
use toml::{Table, Value};

use portcullis_audit::config::Audit;
use portcullis_config::{Admin, Approvals, Config, Listen, Loaded};
use portcullis_interceptors::InterceptorKind;
use portcullis_policy::Policy;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::config::{Server, Sharing};

/// Treatment of a config key in the pod.
#[derive(Debug, Clone, PartialEq)]
enum KeyDisposition {
    /// The pod has the same value.
    Kept,
    /// The pod has its own value.
    Pods,
    /// Impossible in a pod: the key refers to other systems, or to files that are not in the pod.
    /// The export is refused unless the operator leaves the key out.
    Lost,
    /// The key applies to this machine; a comment says that it is left out.
    Left,
    /// Table with a treatment for each key.
    In(Keys),
}

type Keys = Vec<(String, KeyDisposition)>;

use KeyDisposition::{In, Kept, Left, Lost, Pods};

/// Keys of a table with their treatment. A key that is added to the config does not compile until
/// it is listed here.
macro_rules! keys {
    ($table:ident { $($field:ident: $fate:expr),* $(,)? }) => {{
        let _ = |$table { $($field: _),* }: $table| ();
        vec![$((stringify!($field).replace('_', "-"), $fate)),*]
    }};
}

/// Keys of the whole file. The pod has its own `servers`, with the keys of [`of_server`].
fn of_file() -> Keys {
    keys!(Config {
        listen: In(keys!(Listen {
            http: Pods,
            anonymous: Kept,
            anonymous_beyond_loopback: Kept,
            allowed_hosts: Kept,
            allowed_origins: Kept,
            rest: Kept,
            // The addresses differ from those of the cluster.
            trusted_proxies: Left,
            client_address: Left,
        })),
        state_dir: Pods,
        policy: In(keys!(Policy { paths: Pods, bundle: Lost, bundle_keys: Left })),
        audit: In(keys!(Audit {
            dir: Left,
            deadline_ms: Kept,
            on_failure: Kept,
            retention: Kept,
            encryption: Lost,
            checkpoint: Kept,
            witness: Lost,
            export: Lost,
        })),
        admin: In(keys!(Admin { socket: Left, roles: Left })),
        approvals: In(keys!(Approvals { timeout_s: Kept, per_client: Kept, webhook: Lost })),
        limits: Kept,
        telemetry: Kept,
        engine: Left,
        registries: Left,
        signers: Left,
        clients: Kept,
        servers: Pods,
        interceptors: Kept,
    })
}

/// Keys of the server.
fn of_server(settings: &Server) -> Keys {
    let in_container = settings.image.is_some();
    let unless = |fate: KeyDisposition| if in_container { fate } else { Kept };
    keys!(Server {
        enabled: Kept,
        image: Kept,
        signed_by: Left,
        command: unless(Pods),
        url: Kept,
        transport: Kept,
        runtime: Left,
        pod_socket: Pods,
        prefix: Kept,
        env: Kept,
        secrets: Kept,
        headers: Kept,
        restart_on_rotation: Kept,
        mounts: Kept,
        resources: Kept,
        egress: Kept,
        egress_limits: Kept,
        hardening: Kept,
        era: Kept,
        start_timeout_s: Kept,
        call_timeout_s: Kept,
        idle_stop_s: Kept,
        health_s: Kept,
        health_timeout_s: Kept,
        concurrent: Kept,
        queue: Kept,
        // All instances share a container: one client's could read what another's writes to /tmp.
        sharing: unless(if settings.sharing == Sharing::Shared { Pods } else { Left }),
        instances: unless(Left),
        warm: unless(Left),
        replicas: Kept,
        tools: Kept,
    })
}

/// All keys with that treatment, each with its pointer.
fn with(
    fate: &KeyDisposition,
    keys: &Keys,
    (name, pointer): (&str, &str),
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, its) in keys {
        let (name, pointer) = (format!("{name}{key}"), format!("{pointer}/{key}"));
        match its {
            In(keys) => found.extend(with(fate, keys, (&format!("{name}."), &pointer))),
            its if its == fate => found.push((name, pointer)),
            _ => {}
        }
    }
    found
}

/// Removes all keys from a table except the kept ones.
fn keep(table: &mut Table, keys: &Keys) {
    for (key, fate) in keys {
        match (fate, table.get_mut(key)) {
            (Kept, _) | (_, None) => {}
            (In(keys), Some(Value::Table(inner))) => {
                keep(inner, keys);
                if inner.is_empty() {
                    table.remove(key);
                }
            }
            _ => drop(table.remove(key)),
        }
    }
}

/// Keys in the config that the pod cannot have, each with its pointer.
fn lost(loaded: &Loaded) -> Vec<(String, String)> {
    let plugins = loaded.config.interceptors.iter().enumerate();
    let plugins = plugins.filter(|(_, entry)| matches!(entry.kind, InterceptorKind::Plugin(_)));
    let plugins = plugins.map(|(at, entry)| {
        (format!("interceptors.{}", entry.name()), format!("/interceptors/{at}"))
    });
    let stands = |(_, pointer): &(String, String)| loaded.written(pointer).is_some();
    with(&Lost, &of_file(), ("", "")).into_iter().filter(stands).chain(plugins).collect()
}

/// Keys of [`lost`] that the operator does not leave out.
pub(super) fn refused(loaded: &Loaded, leave_out: &[String]) -> Vec<(String, String)> {
    lost(loaded).into_iter().filter(|(key, _)| !leave_out.contains(key)).collect()
}

/// Keys in the config that the pod's config lacks, as comments with their lines.
fn left_out(loaded: &Loaded, server: &ServerName, settings: &Server) -> String {
    let (name, pointer) = (format!("servers.{server}."), format!("/servers/{server}"));
    let mut all = with(&Left, &of_file(), ("", ""));
    all.extend(lost(loaded));
    all.extend(with(&Left, &of_server(settings), (&name, &pointer)));
    let file = loaded.path.file_name().unwrap_or_default().to_string_lossy();
    let line = |(key, pointer): (String, String)| {
        Some(format!("# {key} ({file}:{})\n", loaded.written(&pointer)?))
    };
    let lines: String = all.into_iter().filter_map(line).collect();
    match lines.is_empty() {
        true => lines,
        false => format!("# Not in this pod, and in the config that it was made from:\n{lines}\n"),
    }
}

/// Text of the pod's config.
///
/// # Errors
/// The file changed since it was loaded.
pub(super) fn of(
    loaded: &Loaded,
    server: &ServerName,
    settings: &portcullis_upstream::config::Server,
    (arguments, namespace): (Option<&[String]>, &str),
    leave_out: &[String],
) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(&loaded.path)?;
    let mut pod: Table = toml::from_str(&text)?;
    let mut servers = table(pod.remove("servers"));
    keep(&mut pod, &of_file());
    pod.insert("state-dir".into(), STATE.into());
    let mut listen = table(pod.remove("listen"));
    let allowed = listen.remove("allowed-hosts");
    let allowed = allowed.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let allowed = hosts(server.as_str(), namespace).into_iter().map(Value::from).chain(allowed);
    listen.insert("allowed-hosts".into(), allowed.collect::<Vec<_>>().into());
    listen.insert("http".into(), format!("0.0.0.0:{PORT}").into());
    pod.insert("listen".into(), listen.into());
    let policy = Table::from_iter([("paths".to_owned(), Value::from(vec![POLICIES]))]);
    pod.insert("policy".into(), policy.into());
    let names: Vec<String> =
        loaded.config.interceptors.iter().map(|entry| entry.name().to_owned()).collect();
    if let Some(Value::Array(entries)) = pod.get_mut("interceptors") {
        let mut names = names.into_iter();
        let left_out = |name: &String| leave_out.contains(&format!("interceptors.{name}"));
        entries.retain(|_| !names.next().as_ref().is_some_and(left_out));
    }
    let mut entry = table(servers.remove(server.as_str()));
    keep(&mut entry, &of_server(settings));
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
        entry.insert("sharing".into(), "shared".into());
        if let Some(arguments) = arguments {
            let arguments: Vec<Value> = arguments.iter().map(|one| one.as_str().into()).collect();
            entry.insert("command".into(), arguments.into());
        }
    }
    let servers = Table::from_iter([(server.to_string(), Value::from(entry))]);
    pod.insert("servers".into(), servers.into());
    Ok(format!("{}{}", left_out(loaded, server, settings), toml::to_string(&pod)?))
}

fn table(value: Option<Value>) -> Table {
    match value {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
state-dir = "here"
[listen]
http = "127.0.0.1:9999"
rest = false
[policy]
paths = ["mine"]
[audit]
dir = "log"
deadline-ms = 7
[[audit.witness]]
file = "w"
[admin]
socket = "/run/x/admin.sock"
[admin.roles]
approver = ["user:0"]
[approvals]
timeout-s = 9
[engine]
host = "unix:///x"
[registries]
deadline-s = 5
[signers.acme]
key = "acme.pub"
[telemetry]
log = "debug"
[limits]
page = 3
[servers.one]
image = "example.com/one@sha256:DIGEST"
signed-by = ["acme"]
runtime = "runsc"
sharing = "auto"
instances = 3
call-timeout-s = 4
[servers.two]
url = "https://two.example"
instances = 3
"#;

    fn made(server: &str, leave_out: &[&str]) -> (String, Table) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portcullis.toml");
        std::fs::write(&path, TEXT.replace("DIGEST", &"0".repeat(64))).unwrap();
        let loaded = portcullis_config::load(&path).unwrap();
        let name: ServerName = server.parse().unwrap();
        let settings = &loaded.config.servers[&name];
        let leave_out: Vec<String> = leave_out.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(refused(&loaded, &leave_out), []);
        let text = of(&loaded, &name, settings, (None, "mcp"), &leave_out).unwrap();
        let parsed = toml::from_str(&text).unwrap();
        portcullis_config::parse("portcullis.toml".as_ref(), &text).unwrap();
        (text, parsed)
    }

    #[test]
    fn omitted_settings_are_reported_with_their_lines() {
        let (text, pod) = made("one", &["audit.witness"]);
        let line = |key: &str| TEXT.lines().position(|line| line == key).unwrap() + 1;
        for (key, at) in [
            ("audit.dir", "dir = \"log\""),
            ("audit.witness", "[[audit.witness]]"),
            ("admin.socket", "socket = \"/run/x/admin.sock\""),
            ("admin.roles", "[admin.roles]"),
            ("engine", "[engine]"),
            ("registries", "[registries]"),
            ("signers", "[signers.acme]"),
            ("servers.one.signed-by", "signed-by = [\"acme\"]"),
            ("servers.one.runtime", "runtime = \"runsc\""),
            ("servers.one.sharing", "sharing = \"auto\""),
            ("servers.one.instances", "instances = 3"),
        ] {
            let comment = format!("# {key} (portcullis.toml:{})\n", line(at));
            assert!(text.contains(&comment), "{comment}: {text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 12, "{text}");
        let has = |pointer: &str| {
            let mut at = Some(&Value::Table(pod.clone())).cloned();
            for key in pointer.split('.') {
                at = at.and_then(|value| value.get(key).cloned());
            }
            at
        };
        for (setting, value) in [
            ("listen.rest", Value::from(false)),
            ("audit.deadline-ms", 7.into()),
            ("approvals.timeout-s", 9.into()),
            ("telemetry.log", "debug".into()),
            ("limits.page", 3.into()),
            ("servers.one.call-timeout-s", 4.into()),
            ("servers.one.sharing", "shared".into()),
            ("state-dir", STATE.into()),
        ] {
            assert_eq!(has(setting), Some(value), "{setting}");
        }
        for gone in [
            "audit.dir",
            "audit.witness",
            "admin",
            "engine",
            "registries",
            "signers",
            "servers.two",
            "servers.one.signed-by",
            "servers.one.instances",
        ] {
            assert_eq!(has(gone), None, "{gone}");
        }
        // With a remote server, each client still has its own connection.
        let (_, pod) = made("two", &["audit.witness"]);
        assert_eq!(pod["servers"]["two"]["instances"].as_integer(), Some(3));
    }

    #[test]
    fn settings_impossible_in_a_pod_are_refused() {
        let text = TEXT.replace("DIGEST", &"0".repeat(64));
        let loaded = portcullis_config::parse("/x/portcullis.toml".as_ref(), &text).unwrap();
        let refused = refused(&loaded, &[]);
        assert_eq!(refused, [("audit.witness".to_owned(), "/audit/witness".to_owned())]);
    }
}
