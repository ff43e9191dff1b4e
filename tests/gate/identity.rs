//! Authentication: keys, `Host` and `Origin`, and the owners of sessions.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    agent::{Agent, MODERN, code_of},
    events::Events,
    gate::Setup,
    in_time, until,
    wire::{self, ORDINARY},
};

fn ping() -> Vec<u8> {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string().into_bytes()
}

#[tokio::test]
async fn only_clients_with_a_key_are_served() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("ci", &[]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    // One that has the form of a key and was never given out.
    let other = ["pck", &"A".repeat(43)].join("_");
    for wrong in [None, Some(""), Some("x"), Some(&other[..]), Some(&key[..key.len() - 1])] {
        let Err((status, error)) = Agent::legacy(&url, wrong).await else {
            panic!("{wrong:?} was let in")
        };
        assert_eq!(status, 401, "{wrong:?}");
        assert_eq!(error["data"]["code"], "unauthenticated", "{wrong:?}: {error:#}");
        let modern = Agent::modern(&url, wrong);
        assert_eq!(modern.refused("notes__list_notes", json!({})).await, "unauthenticated");
    }
    let answered = Agent::modern(&url, None)
        .send(json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }))
        .await;
    assert_eq!(answered.status, 401);
    assert!(answered.challenge.unwrap().starts_with("Bearer"));
    // Under any other scheme a key is no key.
    let basic = format!("Basic {key}");
    let headers = [ORDINARY, &[("Authorization", basic.as_str())]].concat();
    assert_eq!(wire::post(gate.addr, "/mcp", &headers, &ping()).await.status, 401);

    let agent = Agent::legacy(&url, Some(&key)).await.unwrap();
    assert_eq!(agent.names("tools/list").await.len(), 4);
    let agent = Agent::modern(&url, Some(&key));
    assert_eq!(agent.names("tools/list").await.len(), 4);

    // The refusals are on record, the keys are not.
    let records = gate.records(&["--decision", "refused"]).await;
    assert!(!records.is_empty());
    let everything = format!("{records:?}{:?}", gate.log());
    assert!(!everything.contains(&key[4..]) && !everything.contains(&other[4..]));
    gate.stop().await;
}

#[tokio::test]
async fn added_and_removed_clients_take_effect() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("old", &[]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let agent = Agent::modern(&url, Some(&key));
    assert_eq!(agent.names("tools/list").await.len(), 4);
    let new = gate.add_client("new", &[]).await;
    crate::support::until("the new client to be let in", async || {
        Agent::modern(&url, Some(&new)).ask("tools/list", json!({})).await.ok()
    })
    .await;
    let listed = gate.cli(&["client", "ls", "--format", "json"]).await.expect(0).to_string();
    assert!(listed.contains("old") && listed.contains("new"), "{listed}");
    assert!(!listed.contains(&key) && !listed.contains(&new));
    assert_eq!(gate.cli(&["client", "rm", "old"]).await.code, Some(0));
    crate::support::until("the old client to be out", async || {
        agent.ask("tools/list", json!({})).await.err()
    })
    .await;
    assert!(Agent::modern(&url, Some(&new)).ask("tools/list", json!({})).await.is_ok());
    // Removing one that is not there is an error that says so.
    let again = gate.cli(&["client", "rm", "old"]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("old"), "{again:?}");
    gate.stop().await;
}

#[tokio::test]
async fn key_removed_while_sending_refuses_the_message() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("old", &[]).await;
    let gate = written.start().await;
    let bearer = format!("Bearer {key}");
    let of = |path: &str, body: Value| (path.to_owned(), body.to_string());
    let tool = json!({ "name": "notes__list_notes", "arguments": {} });
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": tool["name"], "arguments": {}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "slow", "version": "1" },
        } },
    });
    let mut begun = Vec::new();
    for (path, body) in [of("/mcp", call), of("/invoke", tool)] {
        let mut stream = TcpStream::connect(gate.addr).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: {bearer}\r\n\
             Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
             MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: notes__list_notes\r\n\
             Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            gate.addr,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Its key was looked at: the body is waited for.
        let mut said = [0; 25];
        in_time("a word to go on", stream.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
        begun.push((stream, body));
    }
    assert_eq!(gate.cli(&["client", "rm", "old"]).await.code, Some(0));
    let agent = Agent::modern(&gate.url("/mcp"), Some(&key));
    until("the client to be out", async || agent.ask("tools/list", json!({})).await.err()).await;
    for (mut stream, body) in begun {
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        in_time("an answer", stream.read_to_end(&mut answer)).await.unwrap();
        let reply = wire::parse(&answer);
        assert_eq!(reply.status, 401, "{reply:#?}");
        assert!(reply.body.contains("unauthenticated"), "{reply:#?}");
    }
    assert_eq!(gate.records(&["--tool", "list_notes"]).await, Vec::<Value>::new());
    gate.stop().await;
}

#[tokio::test]
async fn policies_distinguish_clients_groups_and_anonymous_callers() {
    let written = Setup::notes()
        .policies(
            r#"
            @id("connect")
            permit (principal, action == Portcullis::Action::"connect", resource);
            @id("readers")
            permit (principal in Portcullis::Group::"readers", action, resource == Portcullis::Tool::"notes/read_note");
            @id("ci")
            permit (principal == Portcullis::Client::"ci", action, resource == Portcullis::Tool::"notes/add_note");
            @id("anonymous")
            permit (principal is Portcullis::Anonymous, action, resource == Portcullis::Tool::"notes/list_notes");
            "#,
        )
        .write();
    let ci = written.add_client("ci", &[]).await;
    let reader = written.add_client("reader", &["readers"]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let cases = [
        (Some(&ci), "notes__add_note"),
        (Some(&reader), "notes__read_note"),
        (None, "notes__list_notes"),
    ];
    for (key, tool) in cases {
        let agent = Agent::modern(&url, key.map(String::as_str));
        assert_eq!(agent.names("tools/list").await, [tool]);
    }
    // A wrong key is not the same as none.
    let wrong = Agent::modern(&url, Some("wrong"));
    assert_eq!(wrong.refused("notes__list_notes", json!({})).await, "unauthenticated");
    gate.stop().await;
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let gate = Setup::notes()
        .listen("allowed-hosts = [\"gate.example\"]\nallowed-origins = [\"https://app.example\"]")
        .listen("anonymous-beyond-loopback = true")
        .start()
        .await;
    let addr = gate.addr.to_string();
    let local = format!("localhost:{}", gate.addr.port());
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } },
    })
    .to_string();
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[], 200),
        (&[("Host", &local)], 200),
        (&[("Host", "gate.example")], 200),
        (&[("Host", "evil.example")], 403),
        (&[("Host", "gate.example.evil.example")], 403),
        (&[("Host", &addr), ("Origin", "https://app.example")], 200),
        (&[("Host", &addr), ("Origin", "https://evil.example")], 403),
        (&[("Host", &addr), ("Origin", "http://app.example")], 403),
        (&[("Host", &addr), ("Origin", "null")], 403),
        (
            &[
                ("Host", &addr),
                ("Origin", "https://app.example"),
                ("Origin", "https://evil.example"),
            ],
            403,
        ),
    ];
    for (headers, status) in cases {
        let headers = [ORDINARY, headers].concat();
        let reply = wire::post(gate.addr, "/mcp", &headers, body.as_bytes()).await;
        assert_eq!(reply.status, *status, "{headers:?}: {reply:#?}");
        if *status == 403 {
            assert_eq!(reply.refusal(), "forbidden-origin", "{headers:?}");
        }
    }
    // Two hosts, or none, are no request at all.
    for head in [format!("Host: {addr}\r\nHost: gate.example\r\n"), String::new()] {
        let text = format!(
            "POST /mcp HTTP/1.1\r\n{head}Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = wire::raw(gate.addr, text.as_bytes()).await;
        assert!(matches!(reply.status, 400 | 403), "{head:?}: {reply:#?}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn refusals_of_host_origin_and_path_name_the_client() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("ci", &[]).await;
    let gate = written.start().await;
    let bearer = format!("Bearer {key}");
    let unknown = ["Bearer pck", &"A".repeat(43)].join("_");
    for (path, headers, code) in [
        ("/mcp", &[("Host", "evil.example")][..], "forbidden-origin"),
        ("/mcp", &[("Origin", "https://evil.example")], "forbidden-origin"),
        ("/mpc", &[], "unknown-target"),
    ] {
        for (authorization, client) in
            [(Some(&bearer), Some("ci")), (Some(&unknown), None), (None, None)]
        {
            let key = authorization.map(|bearer| ("Authorization", bearer.as_str()));
            let headers = [ORDINARY, headers, key.as_slice()].concat();
            let reply = wire::post(gate.addr, path, &headers, &ping()).await;
            assert_eq!(reply.refusal(), code, "{path} {headers:?}");
            let id = reply.messages()[0]["error"]["data"]["decision"].as_str().unwrap().to_owned();
            let records = gate.records(&["--code", code]).await;
            let record = records.iter().find(|record| record["id"] == *id).expect(&id);
            assert_eq!(record["principal"].as_str(), client, "{path} {headers:?}: {record:#}");
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn session_belongs_to_its_client() {
    let written = Setup::notes().keyed().write();
    let owner = written.add_client("owner", &[]).await;
    let thief = written.add_client("thief", &[]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let agent = Agent::legacy(&url, Some(&owner)).await.unwrap();
    let mut stolen = Agent::legacy(&url, Some(&thief)).await.unwrap();
    stolen.session.clone_from(&agent.session);
    assert_eq!(stolen.refused("notes__list_notes", json!({})).await, "session-unknown");
    let mut invented = Agent::legacy(&url, Some(&owner)).await.unwrap();
    invented.session = Some("00000000-0000-0000-0000-000000000000".into());
    assert_eq!(invented.refused("notes__list_notes", json!({})).await, "session-unknown");
    assert_eq!(agent.names("tools/list").await.len(), 4);

    // Its owner ends it; then it is nobody's.
    let session = agent.session.clone().unwrap();
    let bearer = format!("Bearer {owner}");
    let text = format!(
        "DELETE /mcp HTTP/1.1\r\nHost: {}\r\nAuthorization: {bearer}\r\nMcp-Session-Id: {session}\r\nMCP-Protocol-Version: 2025-11-25\r\nConnection: close\r\n\r\n",
        gate.addr
    );
    let reply = wire::raw(gate.addr, text.as_bytes()).await;
    assert!(matches!(reply.status, 200 | 202 | 204), "{reply:#?}");
    assert_eq!(agent.refused("notes__list_notes", json!({})).await, "session-unknown");
    let records: Value = gate.records(&[]).await.into();
    assert!(!records.to_string().contains(&session), "a whole session id is on record");
    gate.stop().await;
}

#[tokio::test]
async fn secret_reaches_only_its_server() {
    let secret = ["hunter", "2", "hunter", "2"].concat();
    for runtime in ["sandbox", "container"] {
        let gate = Setup::crooked("")
            .and("secrets = { TOKEN = { from = \"env:GATE_SECRET\" } }")
            .shown()
            .runtime(runtime)
            .env("GATE_SECRET", &secret)
            .start()
            .await;
        let agent = gate.modern();
        let given = agent.text("crooked__environment", json!({ "name": "TOKEN" })).await;
        assert_eq!(given, secret, "{runtime}");
        // The proxy's own environment is not the server's.
        let own = agent.text("crooked__environment", json!({ "name": "GATE_SECRET" })).await;
        assert_eq!(own, "", "{runtime}");
        for pid in crate::support::marked(&gate.mark) {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&arguments).contains(&secret), "{runtime}");
        }
        let inspected = gate.cli(&["server", "inspect", "crooked", "--format", "json"]).await;
        let told = format!("{:?}{:?}{inspected:?}", gate.records(&[]).await, gate.log());
        assert!(!told.contains(&secret), "{runtime}: {told}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn changed_groups_end_open_sessions_and_streams() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("one", &["writers"]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let agent = Agent::legacy(&url, Some(&key)).await.unwrap();
    assert_eq!(agent.names("tools/list").await.len(), 4);
    let mut listener = listening(&url, &key).await;
    let path = gate.path("state/clients.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("writers"), "{text}");
    std::fs::write(path.with_extension("new"), text.replace("writers", "readers")).unwrap();
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    // The session was opened for one of the writers.
    until("its session's end", async || {
        let reply = agent.send(agent.request("tools/list", json!({}))).await;
        (reply.status == 404).then_some(())
    })
    .await;
    assert_eq!(end_of(&mut listener).await, "unauthenticated");
    let anew = Agent::legacy(&url, Some(&key)).await.unwrap();
    assert_eq!(anew.names("tools/list").await.len(), 4);
    gate.stop().await;
}

/// The stream of a client that listens, once it is told what is granted.
async fn listening(url: &str, key: &str) -> Events {
    let asked = json!({ "notifications": { "toolsListChanged": true } });
    let asked = Agent::modern(url, None).request("subscriptions/listen", asked).to_string();
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("mcp-protocol-version", MODERN),
        ("mcp-method", "subscriptions/listen"),
    ];
    let mut stream = Events::post(url, &headers, asked).await;
    let granted = stream.message().await;
    assert_eq!(granted["params"]["notifications"]["toolsListChanged"], true, "{granted:#}");
    stream
}

/// The code with which a stream's request ended, which is the last that it tells.
async fn end_of(stream: &mut Events) -> String {
    let error = loop {
        let message = stream.message().await;
        if !message["error"].is_null() {
            break message["error"].clone();
        }
    };
    assert!(stream.next().await.is_none());
    code_of(&error)
}

#[tokio::test]
async fn removed_client_loses_its_streams_and_tasks() {
    const TASK: &str = "everything__test_tool_with_task";
    let written = Setup::everything("modern").keyed().write();
    let key = written.add_client("one", &[]).await;
    let other = written.add_client("other", &[]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let with = |key: &str| {
        let mut agent = Agent::modern(&url, Some(key));
        agent.abilities =
            json!({ "elicitation": {}, "extensions": { "io.modelcontextprotocol/tasks": {} } });
        agent
    };
    let made = async |agent: &Agent| {
        let asked = agent.call(TASK, json!({})).await.unwrap();
        let given = json!({ "action": "accept", "content": { "name": "ann" } });
        let keys = asked["inputRequests"].as_object().unwrap().keys();
        let given: Value = keys.map(|key| (key.clone(), given.clone())).collect();
        let mut params = json!({ "name": TASK, "arguments": {}, "inputResponses": given });
        if let Some(state) = asked.get("requestState") {
            params["requestState"] = state.clone();
        }
        let task = agent.ask("tools/call", params).await.unwrap();
        json!({ "taskId": task["taskId"].as_str().expect("a task") })
    };
    let (one, another) = (with(&key), with(&other));
    let (task, others) = (made(&one).await, made(&another).await);
    one.ask("tasks/get", task.clone()).await.unwrap();
    let mut listener = listening(&url, &key).await;
    let mut others_listener = listening(&url, &other).await;

    assert_eq!(gate.cli(&["client", "rm", "one"]).await.code, Some(0));
    assert_eq!(end_of(&mut listener).await, "unauthenticated");
    // Whoever has the name next is somebody else.
    let key = gate.add_client("one", &[]).await;
    let somebody = with(&key);
    let error = until("the new one to be let in", async || {
        let error = somebody.ask("tasks/get", task.clone()).await.unwrap_err();
        (error["data"]["code"] != "unauthenticated").then_some(error)
    })
    .await;
    assert_eq!(code_of(&error), "request-state-invalid");
    another.ask("tasks/get", others).await.unwrap();
    // The other one's goes on: the next that it hears is of a list.
    let config = gate.config();
    gate.put(&config[..config.find("[servers.everything]").unwrap()]);
    let heard = others_listener.message().await;
    assert_eq!(heard["method"], "notifications/tools/list_changed", "{heard:#}");
    gate.stop().await;
}
