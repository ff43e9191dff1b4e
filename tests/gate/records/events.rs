//! Records of events.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{like, one};
use crate::support::{
    PERMIT_ALL,
    agent::Agent,
    gate::{Gate, Setup, Written},
    peers, target, until,
};

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Waits for a record like this.
async fn seen(gate: &Gate, wanted: Value) -> Value {
    until(&format!("a record like {wanted}"), async || {
        like(&gate.records(&[]).await, &wanted).first().map(|found| (*found).clone())
    })
    .await
}

#[tokio::test]
async fn run_is_recorded_from_start_to_end() {
    let written = Setup::notes()
        .env("NOTES_TOKEN", &["a", "token", "for", "notes"].join("-"))
        .and("secrets = { TOKEN = { from = \"env:NOTES_TOKEN\" } }\nidle-stop-s = 600\nera = \"modern\"")
        .keyed()
        .and("[[interceptors]]\nuse = \"schema\"\nmode = \"audit\"")
        .write();
    let key = written.add_client("ann", &["ops"]).await;
    let config = std::fs::read(written.path("portcullis.toml")).unwrap();
    let gate = written.start().await;
    let agent = Agent::legacy(&gate.url("/mcp"), Some(&key)).await.unwrap();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    let session = agent.session.clone().expect("a session");
    let closed = crate::support::gate::reqwest_client()
        .delete(gate.url("/mcp"))
        .bearer_auth(&key)
        .header("mcp-session-id", &session)
        .send()
        .await
        .unwrap();
    assert_eq!(closed.status(), 204);
    seen(
        &gate,
        json!({ "event": "session-ended", "session": session[..8], "principal": "ann",
        "requests": 2, "reason": "the client closed it" }),
    )
    .await;
    let written = gate.stop().await;
    let records = written.records(&[]).await;
    let version = env!("CARGO_PKG_VERSION");
    for wanted in [
        json!({ "event": "proxy-started", "version": version }),
        json!({ "event": "config-loaded", "revision": sha256(&config), "file": "*", "servers": 1,
            "chain": ["rate-limit (default)", "secrets (default)", "schema (audit)"] }),
        json!({ "event": "policy-loaded", "policies": 2, "revision": "*" }),
        json!({ "event": "client-seen", "principal": "ann", "verified": true, "groups": ["ops"],
            "key_id": "*", "client_addr": "*", "transport": "http" }),
        json!({ "event": "session-opened", "principal": "ann", "session": session[..8] }),
        json!({ "event": "secrets-delivered", "server": "notes",
            "secrets": [{ "secret": "TOKEN", "source": "env", "by": "environment" }] }),
        json!({ "event": "server-launched", "server": "notes", "kind": "sandbox", "place": "*",
            "reason": "*", "program": "*", "era": "*", "revision": "*", "server_info": "*",
            "took_us": "*" }),
        json!({ "event": "server-stopped", "server": "notes", "reason": "the proxy stops",
            "place": "*", "exit_code": "#" }),
        json!({ "event": "proxy-stopped", "reason": "SIGTERM" }),
    ] {
        one(&records, &wanted);
    }
    // Not one for each message.
    one(&records, &json!({ "event": "client-seen" }));
    // All of one launch are joined.
    let launch =
        &one(&records, &json!({ "event": "server-launching", "server": "notes" }))["launch"];
    for event in ["secrets-delivered", "server-launched", "server-stopped"] {
        one(&records, &json!({ "event": event, "launch": launch }));
    }
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("token-for-notes"), "{text}");
}

#[tokio::test]
async fn changes_of_clients_and_policies_are_recorded() {
    let gate = Setup::notes().start().await;
    let cli = async |args: &[&str]| assert_eq!(gate.cli(args).await.code, Some(0), "{args:?}");
    cli(&["client", "add", "bob", "--group", "ops"]).await;
    let added = seen(&gate, json!({ "event": "client-added", "client": "bob", "groups": ["ops"] }));
    let key = added.await["key_id"].clone();
    cli(&["client", "rm", "bob"]).await;
    seen(&gate, json!({ "event": "client-removed", "client": "bob", "key_id": key })).await;
    let uid = nix::unistd::getuid().as_raw();
    let policies = gate.path("policies/gate.cedar");
    let two = "permit (principal, action, resource);\npermit (principal, action, resource);";
    std::fs::write(&policies, two).unwrap();
    seen(&gate, json!({ "event": "policy-loaded", "policies": 2 })).await;
    std::fs::write(&policies, "permit (principal").unwrap();
    seen(&gate, json!({ "event": "policy-rejected", "reason": "*" })).await;
    // One of each, by whom it was done, and none for what the proxy then found in the file. A
    // change that nobody announced is on record as well, after those.
    let clients = gate.path("state/clients.toml");
    let text = std::fs::read_to_string(&clients).unwrap();
    let hash = format!("sha256:{}", "1".repeat(64));
    std::fs::write(
        &clients,
        format!("{text}\n[clients.eve]\nkey-hash = \"{hash}\"\nadded = \"2026-01-01T00:00:00Z\"\n"),
    )
    .unwrap();
    seen(&gate, json!({ "event": "client-added", "client": "eve", "uid": null })).await;
    let records = gate.records(&[]).await;
    for event in ["client-added", "client-removed"] {
        one(&records, &json!({ "event": event, "client": "bob", "uid": uid }));
    }
    gate.stop().await;
}

#[tokio::test]
async fn failed_starts_and_dry_runs_are_recorded() {
    let written = Setup::notes().write();
    let ended = written.cli(&["run", "--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let records = written.records(&[]).await;
    one(&records, &json!({ "event": "proxy-started", "dry_run": true }));
    one(&records, &json!({ "event": "proxy-stopped", "reason": "the dry run is over" }));

    let written = Setup::notes().file("state/clients.toml", "[clients").write();
    let records = not_started(&written).await;
    let why = &one(&records, &json!({ "event": "proxy-start-failed" }))["reason"];
    assert!(why.as_str().unwrap().contains("clients.toml"), "{why}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let written = Setup::notes().write();
    let config = std::fs::read_to_string(written.path("portcullis.toml")).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = config.replace("127.0.0.1:0", &address);
    std::fs::write(written.path("portcullis.toml"), config).unwrap();
    let records = not_started(&written).await;
    let why = &one(&records, &json!({ "event": "proxy-start-failed" }))["reason"];
    assert!(why.as_str().unwrap().contains(&address), "{why}");
    assert!(like(&records, &json!({ "event": "proxy-started" })).is_empty(), "{records:#?}");
}

#[tokio::test]
async fn ends_and_failed_launches_are_recorded_with_a_reason() {
    let gate = Setup::crooked("")
        .and("[servers.dead]\ncommand = [\"{crooked}\", \"dead\"]\nruntime = \"sandbox\"")
        .start()
        .await;
    let agent = gate.modern();
    assert!(agent.call("crooked__die", json!({})).await.is_err());
    assert!(agent.call("dead__echo", json!({})).await.is_err());
    seen(
        &gate,
        json!({ "event": "server-launch-failed", "server": "dead", "kind": "sandbox",
        "reason": "*" }),
    )
    .await;
    seen(
        &gate,
        json!({ "event": "server-stopped", "server": "crooked", "exit_code": 3,
        "reason": "*", "place": "*" }),
    )
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn remote_connections_and_their_secrets_are_recorded() {
    let url = peers::polled().await;
    let host = url.strip_suffix("/mcp").unwrap();
    let token = ["a", "header", "of", "ours"].join("-");
    let gate = Setup::new(&format!(
        "[servers.away]\nurl = \"{url}\"\nheaders = {{ X-Token = {{ from = \"file:token\" }} }}"
    ))
    .file("token", &token)
    .start()
    .await;
    assert_eq!(gate.modern().text("away__echo", json!({ "text": "one" })).await, "one");
    seen(&gate, json!({ "event": "server-launched", "server": "away" })).await;
    let records = gate.records(&[]).await;
    for wanted in [
        json!({ "event": "egress-opened", "server": "away", "url": host, "encrypted": false,
            "protocol": "streamable-http" }),
        json!({ "event": "secrets-delivered", "server": "away",
            "secrets": [{ "secret": "X-Token", "source": "file", "by": "header" }] }),
        json!({ "event": "server-launched", "server": "away", "kind": "remote", "place": host }),
    ] {
        one(&records, &wanted);
    }
    assert!(!serde_json::to_string(&records).unwrap().contains(&token));
    gate.stop().await;
}

/// URLs of hosted servers can contain a key.
#[tokio::test]
async fn path_of_a_server_url_is_never_shown() {
    let key = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
    let host = peers::polled().await.replace("/mcp", "");
    let servers: String = [("away", &*host), ("gone", "http://127.0.0.1:9"), ("barred", &*host)]
        .map(|(name, host)| format!("[servers.{name}]\nurl = \"{host}/s/{key}/mcp?k={key}\"\n"))
        .concat();
    let barred = "forbid (principal == Portcullis::Server::\"barred\", action == Portcullis::Action::\"launch\", resource);";
    let gate = Setup::new(&servers).policies(&format!("{PERMIT_ALL} {barred}")).start().await;
    let agent = gate.modern();
    assert_eq!(agent.text("away__echo", json!({ "text": "one" })).await, "one");
    let gone = agent.call("gone__echo", json!({})).await.unwrap_err();
    assert_eq!(agent.refused("barred__echo", json!({})).await, "policy-denied");
    let here = host.strip_prefix("http://").unwrap();
    for wanted in [
        json!({ "event": "server-launching", "server": "away", "program": host }),
        json!({ "event": "egress-opened", "server": "away", "url": host }),
        json!({ "event": "server-launched", "server": "away", "place": host }),
        json!({ "event": "server-launch-failed", "server": "gone" }),
        json!({ "event": "server-launch-refused", "server": "barred", "action": "launch", "target": here }),
    ] {
        seen(&gate, wanted).await;
    }
    let mut told = format!("{gone:?}{:?}{:?}", gate.records(&[]).await, gate.log());
    for args in
        [["server", "ls", "--format", "json"], ["server", "inspect", "away", "--format=json"]]
    {
        let ended = gate.cli(&args).await;
        assert!(ended.stdout.contains(&host), "{ended:#?}");
        told += &format!("{ended:?}");
    }
    let checked = gate.cli(&["check", "--format", "json"]).await;
    assert!(checked.stdout.contains("config-literal-secret"), "{checked:#?}");
    told += &format!("{checked:?}");
    let stopped = gate.stop().await;
    told += &format!("{:?}", stopped.records(&["event = server-stopped"]).await);
    assert!(!told.contains(&key), "{told}");
}

#[tokio::test]
async fn plugins_are_recorded_with_their_digests() {
    let plugin = target("plugins/redact-pii.wasm");
    let digest = sha256(&std::fs::read(&plugin).unwrap());
    let entry = |sha256: &str| {
        format!(
            "[[interceptors]]\nuse = \"plugin\"\nname = \"mail\"\npath = \"{}\"\nsha256 = \
             \"{sha256}\"\n[interceptors.grants]\nlog = true\n",
            plugin.display()
        )
    };
    let gate = Setup::notes().and(&entry(&digest[7..])).start().await;
    one(
        &gate.records(&[]).await,
        &json!({ "event": "plugin-loaded", "plugin": "mail", "digest": digest, "pinned": true,
            "grants": ["log"], "manifest": "*", "memory_mib": 64, "file": "*" }),
    );
    gate.stop().await;
    let written = Setup::notes().and(&entry(&"0".repeat(64))).write();
    let records = not_started(&written).await;
    one(&records, &json!({ "event": "plugin-refused", "plugin": "mail", "reason": "*" }));
}

#[tokio::test]
async fn unresolved_secret_is_recorded() {
    for (from, source) in [("env:SURELY_UNSET", "env"), ("file:missing", "file")] {
        let secrets = format!("secrets = {{ TOKEN = {{ from = \"{from}\" }} }}");
        let gate = Setup::notes().and(&secrets).start().await;
        one(
            &gate.records(&[]).await,
            &json!({ "event": "secret-unresolved", "server": "notes", "secret": "TOKEN",
            "source": source, "reason": "*" }),
        );
        gate.stop().await;
    }
}

/// What is on record of a start that fails.
async fn not_started(written: &Written) -> Vec<Value> {
    let ended = written.cli(&["run"]).await;
    assert_ne!(ended.code, Some(0), "{ended:#?}");
    let records = written.records(&[]).await;
    one(&records, &json!({ "event": "config-loaded", "revision": "*" }));
    one(&records, &json!({ "event": "proxy-start-failed", "reason": "*", "version": "*" }));
    records
}

#[tokio::test]
async fn unwanted_log_messages_are_counted() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.legacy().await;
    agent.ask("logging/setLevel", json!({ "level": "error" })).await.unwrap();
    // Its messages are of level `info`, whatever it was told.
    agent.call("crooked__flood", json!({ "mib": 1, "bytes": 100_000 })).await.unwrap();
    seen(
        &gate,
        json!({ "event": "messages-dropped", "server": "crooked", "reason": "level",
        "principal": "anonymous", "count": "*" }),
    )
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn client_changes_without_a_proxy_are_recorded() {
    let written = Setup::notes().keyed().write();
    written.add_client("ann", &["ops"]).await;
    assert_eq!(written.cli(&["client", "rm", "ann"]).await.code, Some(0));
    let records = written.records(&[]).await;
    let uid = nix::unistd::getuid().as_raw();
    let added = json!({ "event": "client-added", "client": "ann", "groups": ["ops"], "key_id": "*",
        "uid": uid });
    let key = &one(&records, &added)["key_id"];
    one(
        &records,
        &json!({ "event": "client-removed", "client": "ann", "key_id": key, "uid": uid }),
    );
}

#[tokio::test]
async fn unread_notifications_are_counted() {
    let mut gate = Setup::crooked("").write().start_with(&["--stdio"]).await;
    let mut input = gate.stdin.take().unwrap();
    let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": { "sampling": {} },
        "clientInfo": { "name": "deaf", "version": "1" } } });
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let flood = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "crooked__flood", "arguments": { "mib": 64 } } });
    let lines = format!("{hello}\n{ready}\n{flood}\n");
    tokio::io::AsyncWriteExt::write_all(&mut input, lines.as_bytes()).await.unwrap();
    // Nobody reads its output, until it is on record that something was dropped.
    let unread = json!({ "event": "messages-dropped", "server": "crooked", "reason": "unread",
        "count": "*" });
    seen(&gate, unread).await;
    drop(gate.stdout.take());
    drop(input);
    gate.ended().await;
}

#[tokio::test]
async fn container_is_recorded_with_image_and_profile() {
    let gate = Setup::crooked("[servers.crooked.hardening]\nwritable-root = true")
        .runtime("container")
        .start()
        .await;
    assert_eq!(gate.modern().text("crooked__echo", json!({ "text": "one" })).await, "one");
    seen(&gate, json!({ "event": "server-launched", "server": "crooked" })).await;
    let records = gate.records(&[]).await;
    let launched = one(
        &records,
        &json!({ "event": "server-launched", "server": "crooked",
        "kind": "container", "place": "*", "reason": "*", "image": "*", "image_ref": "*",
        "profile": "*", "deviations": ["ReadonlyRootfs: false (hardening.writable-root)"] }),
    );
    let image = &launched["image"];
    assert!(image.as_str().unwrap().starts_with("sha256:"), "{launched:#}");
    for record in ["intent", "outcome"] {
        one(&records, &json!({ "record": record, "target": { "tool": "echo" }, "image": image }));
    }
    gate.stop().await;
}
