//! Config reloads of a running proxy affect only servers that are added, removed or changed.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, MODERN, code_of},
    events::Events,
    gate::{Gate, Setup},
    in_time, marked, new_mark, until,
};

/// An entry of the server that misbehaves on demand.
fn entry(name: &str, mark: &str, more: &str) -> String {
    let program = crate::support::server("crooked");
    format!(
        "\n[servers.{name}]\ncommand = [{program:?}]\nruntime = \"sandbox\"\nenv = {{ GATE = \"{mark}\" }}\n{more}\n"
    )
}

fn echo() -> Value {
    json!({ "text": "x" })
}

async fn listed(agent: &Agent, name: &str) -> bool {
    agent.names("tools/list").await.iter().any(|tool| tool.starts_with(&format!("{name}__")))
}

/// A call that takes a while, under way.
async fn slow(gate: &Gate, ms: u64) -> tokio::task::JoinHandle<String> {
    let agent = gate.modern();
    let call = tokio::spawn(async move { agent.text("crooked__slow", json!({ "ms": ms })).await });
    until("the call to be under way", async || {
        let states: Value = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
        (states[0]["active"] == 1).then_some(())
    })
    .await;
    call
}

async fn event(gate: &Gate, name: &str) -> Vec<Value> {
    gate.records(&[&format!("event = {name}")]).await
}

#[tokio::test]
async fn reload_adds_and_removes_servers_without_affecting_others() {
    let gate = Setup::crooked("").start().await;
    let client = gate.legacy().await;
    client.call("crooked__echo", echo()).await.unwrap();
    let before = marked(&gate.mark);
    let url = gate.url("/mcp");
    let session = client.session.clone().unwrap();
    let headers = [("mcp-session-id", session.as_str()), ("accept", "text/event-stream")];
    let mut stream = Events::get(&url, &headers).await;
    let mut heard = async |method: &str| {
        in_time(method, async {
            // The first event has no message.
            while !stream.next().await.expect("an event").data.contains(method) {}
        })
        .await;
    };

    let (first, other) = (gate.config(), new_mark());
    gate.put(&(first.clone() + &entry("second", &other, "")));
    heard("notifications/tools/list_changed").await;
    assert!(listed(&client, "second").await);
    client.call("second__echo", echo()).await.unwrap();
    assert!(!marked(&other).is_empty());
    let taken = event(&gate, "config-reloaded").await;
    assert_eq!(taken.len(), 1, "{taken:#?}");
    assert_eq!((&taken[0]["added"], &taken[0]["servers"]), (&json!(["second"]), &json!(2)));
    assert!(taken[0]["removed"].is_null() && taken[0]["changed"].is_null(), "{taken:#?}");

    gate.put(&first);
    heard("notifications/tools/list_changed").await;
    until("it to have ended", async || marked(&other).is_empty().then_some(())).await;
    assert!(!listed(&client, "second").await);
    assert_eq!(client.refused("second__echo", echo()).await, "unknown-target");
    let ended = event(&gate, "server-stopped").await;
    // Those for all clients, and for the one that can be asked.
    assert!(!ended.is_empty());
    let reason = |one: &Value| one["reason"] == "it was removed from the config";
    assert!(ended.iter().all(reason), "{ended:#?}");
    // The one that was there all along was not touched, nor was the client's session.
    client.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(marked(&gate.mark), before);
    gate.stop().await;
}

#[tokio::test]
async fn call_to_a_removed_server_is_answered() {
    let mut gate = Setup::crooked("").start().await;
    let call = slow(&gate, 3_000).await;
    let text = gate.config();
    gate.put(&text[..text.find("[servers.crooked]").unwrap()]);
    gate.logged("the change", |line| line.contains("config reloaded")).await;
    assert_eq!(gate.modern().refused("crooked__echo", echo()).await, "unknown-target");
    assert!(!call.is_finished());
    assert_eq!(call.await.unwrap(), "at last");
    until("it to have ended", async || marked(&gate.mark).is_empty().then_some(())).await;
    gate.stop().await;
}

#[tokio::test]
async fn new_calls_use_the_new_entry_while_the_old_drains() {
    let setup = Setup::crooked("").and(&entry("other", "OTHER", ""));
    let written = setup.write();
    written.put(&written.config().replace("OTHER", &format!("{}o", written.mark)));
    let others = format!("{}o", written.mark);
    let mut gate = written.start().await;
    let agent = gate.modern();
    agent.call("other__echo", echo()).await.unwrap();
    let call = slow(&gate, 4_000).await;
    let (before, beside) = (marked(&gate.mark), marked(&others));
    let of_mark = format!("env = {{ GATE = \"{}\" }}", gate.mark);
    let with_more = of_mark.replace(" }", ", MORE = \"yes\" }");
    gate.put(&gate.config().replace(&of_mark, &with_more));
    gate.logged("the change", |line| line.contains("config reloaded")).await;
    let more = agent.text("crooked__environment", json!({ "name": "MORE" })).await;
    assert_eq!(more, "yes");
    assert!(!call.is_finished(), "the old one was not at its call any more");
    assert!(before.iter().all(|pid| marked(&gate.mark).contains(pid)));
    assert_eq!(call.await.unwrap(), "at last");
    until("the old one to be gone", async || {
        let now = marked(&gate.mark);
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    assert_eq!(marked(&others), beside, "another server was touched");
    let taken = event(&gate, "config-reloaded").await;
    assert_eq!(taken[0]["changed"], json!(["crooked"]), "{taken:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn invalid_config_changes_nothing() {
    let secret = ["not", "to", "be", "shown", "4711"].concat();
    let mut gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let (before, good) = (marked(&gate.mark), gate.config());
    // A new server that is right, and one that is not.
    let wrong = format!("secrets = {{ TOKEN = {{ from = {secret:?} }} }}\nno-such-key = 1");
    let bad = good.clone() + &entry("second", "none", "") + &entry("third", "none", &wrong);
    let line = bad.lines().position(|line| line.starts_with("no-such-key")).unwrap() + 1;
    gate.put(&bad);
    let place = format!("portcullis.toml:{line}:");
    let told = gate.logged("what is wrong", |told| told.contains(&place)).await;
    assert!(told.contains("changed config rejected"), "{told}");
    assert!(!listed(&agent, "second").await);
    agent.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(marked(&gate.mark), before);

    // Whoever asks hears it again.
    gate.signal(Signal::SIGHUP);
    until("it to be told again", async || {
        let told = gate.log().iter().filter(|told| told.contains(&place)).count();
        (told == 2).then_some(())
    })
    .await;
    gate.put(&good);
    gate.logged("that all is well", |line| line.contains("config file is valid again")).await;
    gate.signal(Signal::SIGHUP);
    gate.logged("that there is nothing", |line| line.contains("no changes")).await;
    assert_eq!(marked(&gate.mark), before);
    let rejected = event(&gate, "config-rejected").await;
    assert_eq!(rejected.len(), 2, "{rejected:#?}");
    assert!(rejected[0]["reason"].as_str().unwrap().contains(&place), "{rejected:#?}");
    assert!(event(&gate, "config-reloaded").await.is_empty());
    let all = format!("{:?}{:?}", gate.log(), gate.records(&[]).await);
    assert!(!all.contains(&secret));
    gate.stop().await;
}

#[tokio::test]
async fn running_server_never_sees_secrets_of_another() {
    let gate = Setup::crooked("mounts = [\"./app:/app:rw\"]")
        .file("app/token", value(3))
        .file("kept/token", value(3))
        .start()
        .await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let (before, good) = (marked(&gate.mark), gate.config());
    let mark = new_mark();
    let with = |folder: &str| {
        let secret = format!("secrets.TOKEN.from = \"file:{folder}/token\"");
        good.clone() + &entry("second", &mark, &secret)
    };
    gate.put(&with("app"));
    let rejected = until("it to be refused", async || {
        Some(event(&gate, "config-rejected").await).filter(|all| !all.is_empty())
    })
    .await;
    let line = good.lines().position(|line| line.trim().starts_with("mounts")).unwrap() + 1;
    let reason = rejected[0]["reason"].as_str().unwrap();
    for told in [
        &format!("portcullis.toml:{line}:"),
        "app may not be mounted",
        "a source file of \
        secrets",
    ] {
        assert!(reason.contains(told), "{told}: {rejected:#?}");
    }
    assert!(!listed(&agent, "second").await);
    agent.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(marked(&gate.mark), before);
    assert!(event(&gate, "config-reloaded").await.is_empty());

    // One whose own folder is not there keeps nobody else's from being taken, and neither does one in
    // which by now is what is never mounted: servers can make that.
    fs::create_dir(gate.path("app/.ssh")).unwrap();
    gate.put(&(with("kept") + &entry("third", &mark, "mounts = [\"./none:/none\"]")));
    until("it to be taken", async || listed(&agent, "second").await.then_some(())).await;
    assert_eq!(marked(&gate.mark), before);
    gate.stop().await;
}

#[tokio::test]
async fn paths_of_servers_outside_the_profile_are_protected() {
    let profile = "version = 1\nservers = [\"crooked\"]\n";
    let written =
        Setup::crooked("mounts = [\"./data:/data\"]").file("profiles/few.toml", profile).write();
    for folder in ["data", "other"] {
        fs::create_dir(written.path(folder)).unwrap();
    }
    let mut gate = written.start_with(&["--profile", "few"]).await;
    let good = gate.config();
    let with = |folder: &str| {
        let secret = format!("secrets.TOKEN.from = \"file:{folder}/token\"");
        good.clone() + &entry("second", "none", &secret)
    };
    gate.put(&with("data"));
    gate.logged("why it is not taken", |line| line.contains("data may not be mounted")).await;
    gate.put(&with("other"));
    gate.logged("that all is well", |line| line.contains("config file is valid again")).await;
    // Nothing of the servers changed, and still this is another's now.
    fs::remove_dir(gate.path("data")).unwrap();
    std::os::unix::fs::symlink("other", gate.path("data")).unwrap();
    let code = gate.modern().refused("crooked__echo", echo()).await;
    assert!(["server-unavailable", "unknown-target"].contains(&&code[..]), "{code}");
    let why = |line: &str| line.contains("may not be mounted") && line.contains("other");
    gate.logged("why", why).await;
    gate.stop().await;
}

#[tokio::test]
async fn other_changes_are_reported_to_need_a_restart() {
    let mut gate = Setup::crooked("").start().await;
    let good = gate.config();
    gate.put(&(good.clone() + "\n[limits]\npage = 7\n[telemetry]\nlog-format = \"text\"\n"));
    let told = gate.logged("the warning", |line| line.contains("need a restart")).await;
    assert!(told.contains("limits, telemetry"), "{told}");
    let taken = event(&gate, "config-reloaded").await;
    assert_eq!(taken[0]["waiting"], json!(["limits", "telemetry"]), "{taken:#?}");
    let doctor = gate.cli(&["doctor"]).await;
    assert!(doctor.stdout.contains("limits, telemetry"), "{doctor:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn profile_applies_after_a_reload() {
    let written = Setup::crooked("")
        .file("profiles/few.toml", "version = 1\nservers = [\"crooked\"]\n")
        .write();
    let gate = written.start_with(&["--profile", "few"]).await;
    let agent = gate.modern();
    assert!(listed(&agent, "crooked").await);
    let mark = format!("{}o", gate.mark);
    gate.put(&(gate.config() + &entry("second", &mark, "") + "[limits]\npage = 9\n"));
    until("the config to be taken", async || {
        (!event(&gate, "config-reloaded").await.is_empty()).then_some(())
    })
    .await;
    assert!(!listed(&agent, "second").await);
    fs::write(gate.path("profiles/few.toml"), "version = 1\nservers = [\"crooked\", \"second\"]\n")
        .unwrap();
    until("the profile to be taken", async || listed(&agent, "second").await.then_some(())).await;
    gate.stop().await;
    assert!(marked(&mark).is_empty());
}

#[tokio::test]
async fn profile_sets_tools_and_settings_of_its_servers() {
    let body = r#"
        [servers.crooked]
        command = ["{crooked}"]
        runtime = "sandbox"
        env = { GATE = "{mark}", MORE = "of the config" }
        secrets = { WORD = { from = "env:GATE_ONE" } }
        "#;
    let profile = "version = 1\nservers = [\"crooked\"]\n\n[settings.crooked]\nenv = { MORE = \"of the profile\" }\n\
                   secrets = { WORD = \"env:GATE_TWO\" }\ntools = [\"echo\", \"environment\"]\n";
    let written = Setup::new(body)
        .shown()
        .env("GATE_ONE", &value(1))
        .env("GATE_TWO", &value(2))
        .file("profiles/few.toml", profile)
        .write();
    let gate = written.start_with(&["--profile", "few"]).await;
    let agent = gate.modern();
    let listed = async || {
        let mut names = agent.names("tools/list").await;
        names.sort();
        names
    };
    assert_eq!(listed().await, ["crooked__echo", "crooked__environment"]);
    let named = |name: &str| json!({ "name": name });
    assert_eq!(agent.text("crooked__environment", named("MORE")).await, "of the profile");
    assert_eq!(agent.text("crooked__environment", named("WORD")).await, value(2));

    // Who is refused finds it where it is said.
    assert_eq!(agent.refused("crooked__slow", json!({ "ms": 1 })).await, "policy-denied");
    let refused = gate.records(&["decision = refused"]).await;
    let rule = &refused[0]["rules"][0];
    assert_eq!(rule["id"], "few.crooked.profile-tools", "{refused:#?}");
    let line = profile.lines().position(|line| line.starts_with("tools")).unwrap() + 1;
    assert_eq!(
        (&rule["file"], &rule["line"]),
        (&json!("profiles/few.toml"), &json!(line)),
        "{rule:#}"
    );

    // It goes on to hold as it changes.
    let next = profile.replace("\"echo\", ", "\"slow\", ").replace("of the profile", "of the next");
    fs::write(gate.path("next.toml"), next).unwrap();
    fs::rename(gate.path("next.toml"), gate.path("profiles/few.toml")).unwrap();
    until("the tools to be others", async || {
        (listed().await == ["crooked__environment", "crooked__slow"]).then_some(())
    })
    .await;
    assert_eq!(agent.refused("crooked__echo", echo()).await, "policy-denied");
    until("the value to be another", async || {
        let more = agent.text("crooked__environment", named("MORE")).await;
        (more == "of the next").then_some(())
    })
    .await;
    // What can't be read as a profile changes nothing.
    fs::write(gate.path("profiles/few.toml"), "version = 1\nservers = [\"crooked\"]\ntols = []\n")
        .unwrap();
    until("it to be told", async || {
        (!event(&gate, "config-rejected").await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(agent.refused("crooked__echo", echo()).await, "policy-denied");
    gate.stop().await;
}

/// A value that nothing else looks like.
fn value(n: u8) -> String {
    ["hunter", "2", "hunter", &n.to_string()].concat()
}

#[tokio::test]
async fn new_entry_gets_its_secrets_and_redaction_covers_them() {
    // Only what clients say is looked through, so that the server can show what it has.
    let gate = Setup::crooked("secrets = { TOKEN = { from = \"file:one\" } }")
        .shown()
        .file("one", value(1))
        .file("two", value(2))
        .start()
        .await;
    let agent = gate.modern();
    let token = json!({ "name": "TOKEN" });
    assert_eq!(agent.text("crooked__environment", token.clone()).await, value(1));
    gate.put(&gate.config().replace("file:one", "file:two"));
    until("the new entry", async || {
        (!event(&gate, "config-reloaded").await.is_empty()).then_some(())
    })
    .await;
    assert_eq!(agent.text("crooked__environment", token).await, value(2));
    // The old value is known still.
    for n in 1..3 {
        let code = agent.refused("crooked__echo", json!({ "text": value(n) })).await;
        assert_eq!(code, "secret-found", "{n}");
    }
    let handed = event(&gate, "secrets-delivered").await;
    assert_eq!(handed.len(), 2, "{handed:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn operator_claims_about_tools_are_reloaded() {
    let policies = "@id(\"read\") permit (principal, action, resource) when \
                    { !(resource is Portcullis::Tool) || resource.claims.read_only };";
    let gate = Setup::crooked("").policies(policies).start().await;
    let agent = gate.modern();
    assert_eq!(agent.refused("crooked__echo", echo()).await, "policy-denied");
    gate.put(&(gate.config() + "\n[servers.crooked.tools.echo]\nread-only = true\n"));
    until("the tool to be one that reads", async || agent.call("crooked__echo", echo()).await.ok())
        .await;
    gate.stop().await;
}

/// Has another entry in the place of the only one, by a variable more.
fn change(gate: &Gate) {
    let of_mark = format!("env = {{ GATE = \"{}\" }}", gate.mark);
    gate.put(&gate.config().replace(&of_mark, &of_mark.replace(" }", ", MORE = \"yes\" }")));
}

const WATCHED: &str = "test://watched-resource";
const UPDATED: &str = "notifications/resources/updated";

/// A legacy client that watches a resource, with the stream on which it hears of that.
async fn watching(gate: &Gate) -> (Agent, Events) {
    let client = gate.legacy().await;
    client.ask("resources/subscribe", json!({ "uri": WATCHED })).await.unwrap();
    let session = client.session.clone().unwrap();
    let headers = [("mcp-session-id", session.as_str()), ("accept", "text/event-stream")];
    let stream = Events::get(&gate.url("/mcp"), &headers).await;
    (client, stream)
}

/// A modern client's stream that is to tell of it, too, and the resources that are granted.
async fn listening(gate: &Gate) -> (Events, Value) {
    let asked = json!({ "notifications": { "resourceSubscriptions": [WATCHED] } });
    let listen = gate.modern().request("subscriptions/listen", asked);
    let headers = [("mcp-protocol-version", MODERN), ("mcp-method", "subscriptions/listen")];
    let mut stream = Events::post(&gate.url("/mcp"), &headers, listen.to_string()).await;
    let mut granted = stream.message().await;
    (stream, granted["params"]["notifications"]["resourceSubscriptions"].take())
}

/// The next message with this method; its `params`.
async fn told(stream: &mut Events, method: &str) -> Value {
    in_time(method, async {
        loop {
            let event = stream.next().await.expect("an event");
            // The first one of a session has no message.
            if event.data.contains(method) {
                return event.message()["params"].take();
            }
        }
    })
    .await
}

/// What is on record of subscriptions: `intent`, `outcome` or `refused`.
async fn subscriptions(gate: &Gate, kind: &str) -> Vec<Value> {
    let mut all = gate.records(&["--oldest-first"]).await;
    all.retain(|one| one["method"] == "resources/subscribe" && one["record"] == kind);
    all
}

#[tokio::test]
async fn subscriptions_move_to_the_new_entry() {
    for era in ["legacy", "modern"] {
        let gate = Setup::everything(era).start().await;
        let (client, mut session) = watching(&gate).await;
        let (mut listener, granted) = listening(&gate).await;
        assert_eq!(granted, json!([WATCHED]), "{era}");
        let before = marked(&gate.mark);
        assert_eq!(subscriptions(&gate, "outcome").await.len(), 2, "{era}");
        change(&gate);
        // Nobody asks for anything, and it is there all the same.
        until("the new one alone", async || {
            let now = marked(&gate.mark);
            (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
        })
        .await;
        // Each is decided and on record as it was the first time.
        let asked = until("both on record", async || {
            let outcomes = subscriptions(&gate, "outcome").await;
            (outcomes.len() == 4).then_some(outcomes)
        })
        .await;
        assert!(asked.iter().all(|one| one["server"] == "everything"), "{era}: {asked:#?}");
        let intents = subscriptions(&gate, "intent").await;
        let known = |outcome: &Value| intents.iter().any(|intent| intent["id"] == outcome["id"]);
        assert!(intents.len() == 4 && asked.iter().all(known), "{era}: {intents:#?}");
        // It may have changed while nobody told, and is something else now.
        for stream in [&mut session, &mut listener] {
            let heard = told(stream, UPDATED).await;
            assert_eq!(heard["uri"], WATCHED, "{era}");
        }
        let records = gate.records(&[]).await;
        let of_it = records.iter().filter(|one| one["method"] == UPDATED);
        assert_eq!(of_it.count(), 2, "{era}");
        // What changes there is told of.
        let update = "everything__test_trigger_resource_update";
        client.call(update, json!({})).await.unwrap();
        let heard = told(&mut session, UPDATED).await;
        assert_eq!(heard["uri"], WATCHED, "{era}");
        gate.modern().call(update, json!({})).await.unwrap();
        let heard = told(&mut listener, UPDATED).await;
        assert_eq!(heard["uri"], WATCHED, "{era}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn forbidden_subscriptions_do_not_move_to_the_new_entry() {
    let gate = Setup::everything("legacy").start().await;
    let (_client, mut session) = watching(&gate).await;
    let (mut listener, granted) = listening(&gate).await;
    assert_eq!(granted, json!([WATCHED]));
    let (before, all) = (marked(&gate.mark), crate::support::PERMIT_ALL);
    let forbid = "@id(\"unwatched\") forbid (principal, \
                  action == Portcullis::Action::\"subscribe_resource\", resource);";
    fs::write(gate.path("policies/gate.cedar"), format!("{all}{forbid}")).unwrap();
    until("the policies", async || listening(&gate).await.1.is_null().then_some(())).await;
    let refused = subscriptions(&gate, "refused").await.len();
    change(&gate);
    // The revisions with sessions have no word for it but this.
    let heard = told(&mut session, "notifications/message").await;
    assert_eq!(heard["level"], "warning", "{heard:#}");
    let data = &heard["data"];
    assert_eq!((&data["code"], &data["uri"]), (&json!("policy-denied"), &json!(WATCHED)));
    // Who listens asks again.
    let ended = in_time("the listener's end", async {
        loop {
            let message = listener.message().await;
            if message.get("error").is_some() {
                return message["error"].clone();
            }
        }
    })
    .await;
    assert_eq!(code_of(&ended), "policy-denied", "{ended:#}");
    assert_eq!(ended["data"]["uri"], WATCHED, "{ended:#}");
    assert!(ended["message"].as_str().unwrap().contains("subscribe again"), "{ended:#}");
    let now = subscriptions(&gate, "refused").await;
    assert!(now.len() >= refused + 2, "{now:#?}");
    let decided = now.iter().find(|one| one["id"] == data["decision"]).expect("its decision");
    assert_eq!(decided["rules"][0]["id"], "unwatched", "{decided:#}");
    // Nothing is started of the new entry for what may not be watched there.
    until("the old one to be gone", async || {
        marked(&gate.mark).iter().all(|pid| !before.contains(pid)).then_some(())
    })
    .await;
    assert_eq!(marked(&gate.mark), [0; 0]);
    gate.stop().await;
}

#[tokio::test]
async fn subscribers_of_a_removed_server_are_notified() {
    let gate = Setup::everything("modern").start().await;
    let (_client, mut session) = watching(&gate).await;
    let text = gate.config();
    gate.put(&text[..text.find("[servers.everything]").unwrap()]);
    let heard = told(&mut session, "notifications/message").await;
    assert_eq!(heard["data"]["code"], "server-unavailable", "{heard:#}");
    assert!(
        heard["data"]["message"].as_str().unwrap().contains("removed from the config"),
        "{heard:#}"
    );
    gate.stop().await;
}

#[tokio::test]
async fn suspended_call_does_not_resume_at_another_entry() {
    // Of a legacy server the call waits here, of a modern one its own state is sealed.
    for era in ["legacy", "modern"] {
        let gate = Setup::everything(era).start().await;
        let mut agent = gate.modern();
        agent.abilities = json!({ "elicitation": {} });
        let tool = "everything__test_input_required_result_request_state";
        let call = |more: Value| {
            let mut params = json!({ "name": tool, "arguments": {} });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            params
        };
        let asked = agent.ask("tools/call", call(json!({}))).await.unwrap();
        assert_eq!(asked["resultType"], "input_required", "{asked:#}");
        change(&gate);
        until("the config to be followed", async || {
            (!event(&gate, "config-reloaded").await.is_empty()).then_some(())
        })
        .await;
        let given = json!({ "action": "decline" });
        let keys = asked["inputRequests"].as_object().unwrap().keys();
        let given: Value = keys.map(|key| (key.clone(), given.clone())).collect();
        let taken_up = json!({ "inputResponses": given, "requestState": asked["requestState"] });
        let error = agent.ask("tools/call", call(taken_up)).await.unwrap_err();
        assert_eq!(error["data"]["code"], "request-state-invalid", "{error:#}");
        assert!(error["message"].as_str().unwrap().contains("call again"), "{error:#}");
        gate.stop().await;
    }
}
