//! Secrets that differ by client: each is handed to processes of its own client, and to nobody else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup, Written},
    marked, peers, until,
};

/// A value that nothing else looks like.
fn value(of: &str) -> String {
    ["hunter", "2", "-of-", of].concat()
}

/// A server whose secret is alice's (in a file) or ci's (in the environment) own.
fn setup(from: &str, how: &str) -> Setup {
    with_values(Setup::crooked(&secrets(from, how)).shown())
}

fn secrets(from: &str, how: &str) -> String {
    format!(
        "secrets = {{ TOKEN = {{ {from} by-client = {{ alice = \"file:alice\", ci = \"env:CI_TOKEN\" }}, \
         as = \"{how}\" }} }}"
    )
}

fn with_values(setup: Setup) -> Setup {
    setup
        .file("alice", value("alice"))
        .file("common", value("common"))
        .env("CI_TOKEN", &value("ci"))
        .keyed()
}

const FOR_ALL: &str = "from = \"file:common\",";

struct Clients {
    gate: Gate,
    keys: Vec<(&'static str, String)>,
}

impl Clients {
    async fn of(written: Written) -> Self {
        let mut keys = Vec::new();
        for name in ["alice", "ci", "bob"] {
            keys.push((name, written.add_client(name, &[]).await));
        }
        Self { gate: written.start().await, keys }
    }

    fn key(&self, name: &str) -> &str {
        &self.keys.iter().find(|(client, _)| *client == name).unwrap().1
    }

    fn modern(&self, name: &str) -> Agent {
        Agent::modern(&self.gate.url("/mcp"), Some(self.key(name)))
    }

    async fn legacy(&self, name: &str) -> Agent {
        Agent::legacy(&self.gate.url("/mcp"), Some(self.key(name))).await.unwrap()
    }
}

async fn token(agent: &Agent, how: &str) -> String {
    let asked = match how {
        "file" => json!({ "name": "TOKEN_FILE", "read": true }),
        _ => json!({ "name": "TOKEN" }),
    };
    agent.text("crooked__environment", asked).await
}

/// Whose secrets a process has, in its environment or on its files.
fn secrets_of(pid: i32) -> BTreeSet<&'static str> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let file = std::fs::read(format!("/proc/{pid}/root/run/secrets/TOKEN")).unwrap_or_default();
    let all = String::from_utf8_lossy(&[environment, file].concat()).into_owned();
    ["alice", "ci", "common"].into_iter().filter(|of| all.contains(&value(of))).collect()
}

fn running(gate: &Gate) -> Vec<(i32, BTreeSet<&'static str>)> {
    marked(&gate.mark).into_iter().map(|pid| (pid, secrets_of(pid))).collect()
}

/// The processes that have this client's secret.
fn having(gate: &Gate, client: &str) -> Vec<i32> {
    let all = running(gate).into_iter();
    all.filter(|(_, has)| has.contains(client)).map(|(pid, _)| pid).collect()
}

fn handed(records: &[Value], principal: &Value) -> BTreeSet<String> {
    let handed = records.iter().filter(|record| {
        record["event"] == "secrets-delivered" && record["principal"] == *principal
    });
    handed.map(|record| record["secrets"].to_string()).collect()
}

#[tokio::test]
async fn each_client_has_only_its_own_secret() {
    for (how, by) in [("env", "environment"), ("file", "file")] {
        // Processes that wait have what is common, and are for nobody who has a secret of his own.
        let clients = Clients::of(setup(FOR_ALL, how).and("warm = 2").write()).await;
        for (name, has) in [("alice", "alice"), ("ci", "ci"), ("bob", "common")] {
            assert_eq!(token(&clients.modern(name), how).await, value(has), "{how}: {name}");
            assert_eq!(token(&clients.legacy(name).await, how).await, value(has), "{how}: {name}");
        }
        // Once more, now that all of them run.
        for (name, has) in [("ci", "ci"), ("bob", "common"), ("alice", "alice")] {
            assert_eq!(token(&clients.modern(name), how).await, value(has), "{how}: {name}");
        }
        let all = running(&clients.gate);
        let mixed: Vec<_> = all.iter().filter(|(_, secrets)| secrets.len() > 1).collect();
        assert!(mixed.is_empty(), "{how}: {mixed:?}");
        let seen: BTreeSet<_> = all.iter().flat_map(|(_, secrets)| secrets).copied().collect();
        assert_eq!(seen, ["alice", "ci", "common"].into(), "{how}");

        let records = clients.gate.records(&[]).await;
        let one = |source: &str, own: bool| {
            let mut handed = json!({ "secret": "TOKEN", "source": source, "by": by });
            if own {
                handed["own"] = true.into();
            }
            BTreeSet::from([json!([handed]).to_string()])
        };
        assert_eq!(handed(&records, &json!("alice")), one("file", true), "{how}");
        assert_eq!(handed(&records, &json!("ci")), one("env", true), "{how}");
        assert_eq!(handed(&records, &json!("bob")), one("file", false), "{how}");
        assert_eq!(handed(&records, &Value::Null), one("file", false), "{how}");
        let inspected = clients.gate.cli(&["server", "inspect", "crooked"]).await;
        let told = format!("{records:?}{:?}{inspected:?}", clients.gate.log());
        assert!(!told.contains("hunter"), "{how}: {told}");
        assert!(inspected.stdout.contains("own ones for alice, ci"), "{inspected:?}");
        clients.gate.stop().await;
    }
}

#[tokio::test]
async fn container_has_the_secret_of_its_client() {
    let clients = Clients::of(setup(FOR_ALL, "file").runtime("container").write()).await;
    for (name, has) in [("alice", "alice"), ("bob", "common"), ("ci", "ci")] {
        assert_eq!(token(&clients.modern(name), "file").await, value(has), "{name}");
    }
    clients.gate.stop().await;
}

#[tokio::test]
async fn client_without_a_secret_is_refused_and_the_operator_gets_the_line() {
    let clients = Clients::of(setup("", "env").write()).await;
    let bob = clients.modern("bob");
    // What is offered is told by an instance that has no such secret.
    assert!(bob.names("tools/list").await.contains(&"crooked__environment".to_owned()));
    let all = running(&clients.gate);
    assert!(!all.is_empty() && all.iter().all(|(_, secrets)| secrets.is_empty()), "{all:?}");
    for _ in 0..2 {
        let code = bob.refused("crooked__echo", json!({ "text": "x" })).await;
        assert_eq!(code, "secret-unavailable");
    }
    assert_eq!(token(&clients.modern("alice"), "env").await, value("alice"));

    let text = std::fs::read_to_string(clients.gate.path("portcullis.toml")).unwrap();
    let line = text.lines().position(|line| line.contains("by-client")).unwrap() + 1;
    let refused = clients.gate.records(&["code = secret-unavailable"]).await;
    let rule = &refused[0]["rules"][0];
    assert_eq!(rule["id"], "servers.crooked.secrets.TOKEN", "{refused:?}");
    assert_eq!(rule["line"], line, "{rule}");
    assert!(rule["file"].as_str().unwrap().ends_with("portcullis.toml"), "{rule}");
    let log = clients.gate.log().join("\n");
    assert!(log.contains("for `bob`") && log.contains(&format!("portcullis.toml:{line}")), "{log}");
    clients.gate.stop().await;
}

#[tokio::test]
async fn missing_secret_of_a_client_affects_only_that_client() {
    let setup = setup(FOR_ALL, "file");
    let written = setup.write();
    std::fs::remove_file(written.path("alice")).unwrap();
    let clients = Clients::of(written).await;
    assert_eq!(token(&clients.modern("ci"), "file").await, value("ci"));
    assert_eq!(token(&clients.modern("bob"), "file").await, value("common"));
    let alice = clients.modern("alice");
    let echo = json!({ "text": "x" });
    assert_eq!(alice.refused("crooked__echo", echo.clone()).await, "server-unavailable");
    let records = clients.gate.records(&["event = secret-unresolved"]).await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0]["principal"], "alice", "{records:?}");
    assert_eq!(records[0]["kept"], Value::Null, "{records:?}");

    // It is looked for whenever it is needed, and when its file is there.
    std::fs::write(clients.gate.path("alice"), value("alice")).unwrap();
    let found = until("alice's server", async || {
        let asked = json!({ "name": "TOKEN_FILE", "read": true });
        alice.call("crooked__environment", asked).await.ok()
    })
    .await;
    assert!(found.to_string().contains(&value("alice")), "{found}");
    // What is hers is looked for whoever says it.
    let said = json!({ "text": value("alice") });
    assert_eq!(clients.modern("bob").refused("crooked__echo", said).await, "secret-found");
    clients.gate.stop().await;
}

#[tokio::test]
async fn secret_of_one_client_is_found_in_the_traffic_of_all() {
    let setup = with_values(Setup::crooked(&secrets(FOR_ALL, "env")));
    let clients = Clients::of(setup.write()).await;
    // Before anybody was handed any.
    for of in ["alice", "ci", "common"] {
        let said = json!({ "text": value(of) });
        assert_eq!(clients.modern("bob").refused("crooked__echo", said).await, "secret-found");
    }
    for name in ["alice", "ci", "bob"] {
        let redacted = token(&clients.modern(name), "env").await;
        assert_eq!(redacted, "[redacted:vault:crooked/TOKEN]", "{name}");
    }
    clients.gate.stop().await;
}

#[tokio::test]
async fn instances_of_a_removed_client_are_ended() {
    let clients = Clients::of(setup(FOR_ALL, "file").write()).await;
    assert_eq!(token(&clients.modern("alice"), "file").await, value("alice"));
    assert_eq!(token(&clients.legacy("alice").await, "file").await, value("alice"));
    assert_eq!(token(&clients.modern("ci"), "file").await, value("ci"));
    let of = |client: &str| having(&clients.gate, client);
    let cis = of("ci");
    assert!(!of("alice").is_empty() && !cis.is_empty());
    assert_eq!(clients.gate.cli(&["client", "rm", "alice"]).await.code, Some(0));
    until("the end of what ran for alice", async || of("alice").is_empty().then_some(())).await;
    assert_eq!(of("ci"), cis);
    assert_eq!(token(&clients.modern("ci"), "file").await, value("ci"));
    let answered = clients.modern("alice");
    let answered = answered.send(answered.request("tools/list", json!({}))).await;
    assert_eq!(answered.status, 401);
    clients.gate.stop().await;
}

#[tokio::test]
async fn new_client_of_a_reused_name_does_not_reach_old_instances() {
    let clients = Clients::of(setup(FOR_ALL, "file").write()).await;
    assert_eq!(token(&clients.modern("alice"), "file").await, value("alice"));
    let before = having(&clients.gate, "alice");
    assert!(!before.is_empty());
    let key = clients.gate.add_client("zed", &[]).await;
    let another = Agent::modern(&clients.gate.url("/mcp"), Some(&key));
    until("the new client", async || {
        let answered = another.send(another.request("tools/list", json!({}))).await;
        (answered.status == 200).then_some(())
    })
    .await;
    // Removed and added again between two looks of the proxy at the file.
    let path = clients.gate.path("state/clients.toml");
    let mut all: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    let known = all["clients"].as_table_mut().unwrap();
    known["alice"]["key-hash"] = known.remove("zed").unwrap()["key-hash"].clone();
    std::fs::write(path.with_extension("new"), all.to_string()).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    until("the other alice", async || {
        // It may call while what ran for the first is being ended, and is told so.
        let asked = json!({ "name": "TOKEN_FILE", "read": true });
        let told = another.call("crooked__environment", asked).await.ok()?;
        (told["content"][0]["text"] == value("alice")).then_some(())
    })
    .await;
    until("the end of what ran for the first", async || {
        let now = having(&clients.gate, "alice");
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    clients.gate.stop().await;
}

#[tokio::test]
async fn removed_client_with_a_running_call_starts_no_process() {
    let written = with_values(Setup::holding(&secrets(FOR_ALL, "file"))).write();
    written.hold("tools/list");
    let clients = Clients::of(written).await;
    let alice = clients.modern("alice");
    let call =
        tokio::spawn(async move { alice.call("crooked__echo", json!({ "text": "x" })).await });
    clients.gate.held("crooked", "tools/list").await;
    assert_eq!(clients.gate.cli(&["client", "rm", "alice"]).await.code, Some(0));
    let alice = clients.modern("alice");
    until("her to be gone", async || {
        let answered = alice.send(alice.request("tools/list", json!({}))).await;
        (answered.status == 401).then_some(())
    })
    .await;
    clients.gate.let_go("tools/list");
    call.await.unwrap().unwrap_err();
    // Nor was anything that has ended since: a start is on record before it is made.
    let records = clients.gate.records(&[]).await;
    let launching = records.iter().filter(|one| one["event"] == "server-launching");
    let whose: Vec<_> = launching.map(|one| &one["principal"]).collect();
    assert_eq!(whose, [&Value::Null], "only the one that all share");
    clients.gate.stop().await;
}

#[tokio::test]
async fn instances_of_a_removed_client_and_a_changed_entry_are_ended() {
    let setup = setup(FOR_ALL, "file").and("call-timeout-s = 3600");
    let mut clients = Clients::of(setup.write()).await;
    let alice = clients.modern("alice");
    let call = tokio::spawn(async move { alice.call("crooked__hang", json!({})).await });
    until("hers", async || (!having(&clients.gate, "alice").is_empty()).then_some(())).await;
    until("the call", async || {
        let states = clients.gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
        (states[0]["active"] == 1).then_some(())
    })
    .await;
    let config = clients.gate.config();
    clients.gate.put(&config.replace("env = { ", "env = { MORE = \"yes\", "));
    clients.gate.logged("the change", |line| line.contains("config reloaded")).await;
    assert!(!having(&clients.gate, "alice").is_empty(), "the call goes on");
    assert_eq!(clients.gate.cli(&["client", "rm", "alice"]).await.code, Some(0));
    until("the end of it", async || having(&clients.gate, "alice").is_empty().then_some(())).await;
    assert!(call.await.unwrap().is_err());
    clients.gate.stop().await;
}

#[tokio::test]
async fn policies_decide_by_the_way_and_by_the_client() {
    let policies = r#"
        permit (principal, action in Portcullis::Action::"from_client", resource);
        permit (principal, action == Portcullis::Action::"launch", resource);
        @id("in-memory")
        permit (principal, action == Portcullis::Action::"deliver_secret", resource)
        when { resource.delivery == "file" };
        @id("not-ci")
        forbid (principal, action == Portcullis::Action::"deliver_secret", resource)
        when { resource has client && resource.client == "ci" };
    "#;
    for (how, may) in [("file", true), ("env", false)] {
        let setup = setup(FOR_ALL, how).without_launches().policies(policies);
        let clients = Clients::of(setup.write()).await;
        let echo = json!({ "text": "x" });
        if may {
            assert_eq!(token(&clients.modern("alice"), how).await, value("alice"));
            let code = clients.modern("ci").refused("crooked__echo", echo).await;
            assert_eq!(code, "policy-denied");
            let refused = clients.gate.records(&["event = server-launch-refused"]).await;
            assert_eq!(refused[0]["principal"], "ci", "{refused:?}");
            assert_eq!(refused[0]["rules"][0]["id"], "not-ci", "{refused:?}");
        } else {
            let code = clients.modern("alice").refused("crooked__echo", echo).await;
            assert_eq!(code, "policy-denied");
        }
        assert!(running(&clients.gate).iter().all(|(_, has)| !has.contains("ci")));
        clients.gate.stop().await;
    }
}

#[tokio::test]
async fn remote_server_gets_the_header_of_its_client() {
    for (from, bobs) in [(FOR_ALL, Some("common")), ("", None)] {
        let body = format!(
            "[servers.peer]\nurl = \"{}\"\nera = \"legacy\"\nheaders = {{ X-Key = {{ {from} by-client = {{ alice = \
             \"file:alice\", ci = \"env:CI_TOKEN\" }} }} }}",
            peers::keyed().await
        );
        let written = Setup::new(&body)
            .shown()
            .file("alice", value("alice"))
            .file("common", value("common"))
            .env("CI_TOKEN", &value("ci"))
            .keyed()
            .write();
        let clients = Clients::of(written).await;
        for (name, has) in [("alice", Some("alice")), ("ci", Some("ci")), ("bob", bobs)] {
            for agent in [clients.modern(name), clients.legacy(name).await] {
                match has {
                    Some(has) => assert_eq!(agent.text("peer__key", json!({})).await, value(has)),
                    None => {
                        let code = agent.refused("peer__key", json!({})).await;
                        assert_eq!(code, "secret-unavailable", "{name}");
                    }
                }
            }
        }
        clients.gate.stop().await;
    }
}
