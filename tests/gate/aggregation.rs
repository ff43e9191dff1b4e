//! Many servers behind one endpoint: names, order, pages, and slow servers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Json, extract::State, http::HeaderMap};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    agent::{Agent, LEGACY, MODERN, code_of},
    gate::{Gate, Setup, reqwest_client},
    in_time,
};

/// A server that lists what it is told to.
fn lister(name: &str, more: &str, mut lists: Value) -> String {
    lists["label"] = name.into();
    format!(
        "[servers.{name}]\ncommand = [\"{{lister}}\", '''{lists}''']\nruntime = \"sandbox\"\n{more}\n"
    )
}

/// What the strictest of common clients take.
fn is_legal(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What `server ls` says of a server's lists.
async fn notices(gate: &Gate, server: &str) -> Vec<String> {
    let states = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
    let state = states.as_array().unwrap().iter().find(|state| state["name"] == server);
    let notices = state.expect("the server")["notices"].as_array().expect("notices");
    notices.iter().map(|notice| notice.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn merged_names_are_legal_and_resolve() {
    let long = "n".repeat(90);
    let names = ["add", "repos/list", "repos.list", "読む", "b c", &long, &long[1..]];
    let gate =
        Setup::new(&lister("a", "", json!({ "tools": names, "prompts": names }))).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let tools = agent.names("tools/list").await;
        assert_eq!(tools, agent.names("prompts/list").await);
        assert_eq!(tools.len(), names.len(), "{tools:?}");
        assert_eq!(tools[0], "a__add");
        for (tool, name) in tools.iter().zip(names) {
            assert!(is_legal(tool), "{tool}");
            assert_eq!(agent.text(tool, json!({})).await, format!("a:{name}"));
            let prompt = agent.ask("prompts/get", json!({ "name": tool })).await.unwrap();
            assert_eq!(prompt["messages"][0]["content"]["text"], format!("a:{name}"));
            let params = json!({
                "ref": { "type": "ref/prompt", "name": tool },
                "argument": { "name": "x", "value": "" },
            });
            let completed = agent.ask("completion/complete", params).await.unwrap();
            assert_eq!(completed["completion"]["values"], json!([name]));
        }
        // A name that no list shows is none, though the server would know it.
        assert_eq!(agent.refused("a__b c", json!({})).await, "unknown-target");
    }
    let alone = Agent::modern(&gate.url("/servers/a/mcp"), None);
    assert_eq!(alone.names("tools/list").await, names);
    assert_eq!(alone.text("repos/list", json!({})).await, "a:repos/list");
    gate.stop().await;
}

#[tokio::test]
async fn confusable_tools_are_omitted_and_reported() {
    let again = json!({ "name": "read", "inputSchema": { "type": "object" }, "title": "other" });
    let tools = json!(["read", "re\u{430}d", "re\u{200b}ad", again, "write"]);
    let gate = Setup::new(&lister("a", "", json!({ "tools": tools }))).start().await;
    let agent = gate.legacy().await;
    assert_eq!(agent.names("tools/list").await, ["a__read", "a__write"]);
    let list = agent.ask("tools/list", json!({})).await.unwrap();
    assert!(list["tools"][0].get("title").is_none(), "{list:#}");
    let told = notices(&gate, "a").await;
    for (name, why) in [
        ("`read`", "of this name before"),
        (r"`re\u{430}d`", "looks like another"),
        (r"`re\u{200b}ad`", "invisible"),
    ] {
        let tells = |notice: &&String| notice.contains(name) && notice.contains(why);
        assert_eq!(told.iter().filter(tells).count(), 1, "{name}: {told:#?}");
    }
    gate.stop().await;
}

/// Every name of a list, page by page, and the number of pages.
async fn pages(agent: &Agent, method: &str, of: &str) -> (Vec<String>, usize) {
    let (mut names, mut count, mut params) = (Vec::new(), 0, json!({}));
    loop {
        let page = agent.ask(method, params).await.unwrap();
        count += 1;
        let items = page[of].as_array().unwrap();
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["nextCursor"].as_str() else { return (names, count) };
        params = json!({ "cursor": cursor });
    }
}

#[tokio::test]
async fn lists_are_paged_in_config_order() {
    let names: Vec<_> = (0..5).map(|number| format!("t{number}")).collect();
    let lists = json!({ "tools": names, "prompts": names, "page": 2 });
    let gate = Setup::new(&lister("b", "", lists.clone()))
        .and(&lister("a", "", lists))
        .and("[limits]\npage = 3")
        .keyed()
        .write();
    let (one, other) = (gate.add_client("one", &[]).await, gate.add_client("other", &[]).await);
    let gate = gate.start().await;
    let expected: Vec<_> =
        ["b", "a"].iter().flat_map(|s| (0..5).map(move |n| format!("{s}__t{n}"))).collect();
    let url = gate.url("/mcp");
    let legacy = Agent::legacy(&url, Some(&one)).await.unwrap();
    let modern = Agent::modern(&url, Some(&one));
    for agent in [&legacy, &modern] {
        assert_eq!(pages(agent, "tools/list", "tools").await, (expected.clone(), 4));
    }
    let list = legacy.ask("tools/list", json!({})).await.unwrap();
    let cursor = list["nextCursor"].as_str().expect("a cursor");
    // The same client's, in whichever era.
    let second = modern.ask("tools/list", json!({ "cursor": cursor })).await.unwrap();
    assert_eq!(second["tools"][0]["name"], "b__t3");
    let elsewhere = gate.url("/servers/b/mcp");
    for (agent, method, cursor) in [
        (&modern, "prompts/list", json!(cursor)),
        (&Agent::modern(&url, Some(&other)), "tools/list", json!(cursor)),
        (&Agent::modern(&elsewhere, Some(&one)), "tools/list", json!(cursor)),
        (&modern, "tools/list", json!(format!("{cursor}A"))),
        (&modern, "tools/list", json!("")),
        (&modern, "tools/list", json!(7)),
        (&modern, "tools/list", Value::Null),
    ] {
        let error = agent.ask(method, json!({ "cursor": cursor })).await.unwrap_err();
        assert_eq!(error["code"], -32602, "{error:#}");
        assert_eq!(code_of(&error), "invalid-params");
    }
    gate.stop().await;
}

#[tokio::test]
async fn slow_server_does_not_delay_lists_and_is_reported() {
    let gate = Setup::new(&lister("quick", "", json!({ "tools": ["t"] })))
        .and(&lister(
            "late",
            "mounts = [\"{folder}/signs:/signs\"]",
            json!({ "tools": ["t"], "wait": "/signs/go" }),
        ))
        .file("signs/none", "")
        .start()
        .await;
    let agent = gate.legacy().await;
    let mut heard = reqwest_client()
        .get(gate.url("/mcp"))
        .header("accept", "text/event-stream")
        .header("mcp-session-id", agent.session.as_deref().unwrap())
        .header("mcp-protocol-version", LEGACY)
        .send()
        .await
        .unwrap();
    // The first list waits a while for it, the next ones do not, and none has it.
    for _ in 0..20 {
        assert_eq!(agent.names("tools/list").await, ["quick__t"]);
    }
    let told = notices(&gate, "late").await;
    assert!(told.iter().any(|notice| notice.contains("missing from `tools/list`")), "{told:?}");
    std::fs::write(gate.path("signs/go"), "").unwrap();
    in_time("word of the list", async {
        let mut text = String::new();
        while !text.contains("notifications/tools/list_changed") {
            let chunk = heard.chunk().await.unwrap().expect("more of the stream");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
    })
    .await;
    assert_eq!(agent.names("tools/list").await, ["quick__t", "late__t"]);
    assert_eq!(notices(&gate, "late").await, Vec::<String>::new());
    gate.stop().await;
}

#[tokio::test]
async fn only_server_of_an_endpoint_is_waited_for() {
    let gate = Setup::new("[servers.away]\nurl = \"http://127.0.0.1:9/mcp\"").start().await;
    let alone = Agent::modern(&gate.url("/servers/away/mcp"), None);
    let error = alone.ask("tools/list", json!({})).await.unwrap_err();
    assert_eq!(code_of(&error), "server-unavailable");
    assert_eq!(gate.modern().names("tools/list").await, Vec::<String>::new());
    gate.stop().await;
}

#[tokio::test]
async fn resource_belongs_to_the_first_server_that_lists_it() {
    let lists =
        |uris: Value, templates: Value| json!({ "resources": uris, "templates": templates });
    let gate = Setup::new(&lister("one", "", lists(json!(["x://1", "x://2"]), json!(["t://{a}"]))))
        .and(&lister(
            "two",
            "",
            lists(json!(["x://2", "x://3"]), json!(["t://{a}", "u://{a}", "t://{+b}/c"])),
        ))
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.names("resources/list").await, ["x://1", "x://2", "x://3"]);
        assert_eq!(
            agent.names("resources/templates/list").await,
            ["t://{a}", "u://{a}", "t://{+b}/c"]
        );
        for (uri, server) in [
            ("x://1", "one"),
            ("x://2", "one"),
            ("x://3", "two"),
            // A template that both have is the first's, like a resource.
            ("t://y", "one"),
            ("u://y", "two"),
            ("t://y/z/c", "two"),
        ] {
            let read = agent.ask("resources/read", json!({ "uri": uri })).await.unwrap();
            assert_eq!(read["contents"][0]["text"], format!("{server}:{uri}"));
        }
    }
    let told = notices(&gate, "two").await;
    assert!(
        told.contains(
            &"1 of its resources are `one`'s in merged lists, which comes first".to_owned()
        ),
        "{told:?}"
    );
    gate.stop().await;
}

#[tokio::test]
async fn uri_of_two_templates_is_not_guessed() {
    let gate = Setup::new(&lister("one", "", json!({ "templates": ["t://{+a}"] })))
        .and(&lister("two", "", json!({ "templates": ["t://{b}"] })))
        .start()
        .await;
    let error = gate.modern().ask("resources/read", json!({ "uri": "t://y" })).await.unwrap_err();
    assert_eq!(code_of(&error), "unknown-target");
    let alone = Agent::modern(&gate.url("/servers/two/mcp"), None);
    let read = alone.ask("resources/read", json!({ "uri": "t://y" })).await.unwrap();
    assert_eq!(read["contents"][0]["text"], "two:t://y");
    gate.stop().await;
}

#[tokio::test]
async fn unlisted_resource_goes_to_the_only_possible_server() {
    let reads = r#"
        @id("lists")
        permit (principal, action in [Portcullis::Action::"connect", Portcullis::Action::"call_tool"], resource);
        @id("reads")
        permit (principal, action == Portcullis::Action::"read_resource", resource)
        when { resource.uri like "*://open/*" };
    "#;
    let read = async |agent: &Agent, uri: &str| {
        agent.ask("resources/read", json!({ "uri": uri })).await.map_err(|error| code_of(&error))
    };
    let tools = json!({ "tools": ["a"], "capabilities": { "tools": {} } });
    let one = lister("one", "prefix = \"\"", json!({ "resources": ["x://1"] }));
    let gate = Setup::new(&one).and(&lister("two", "", tools)).policies(reads).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        // From their first handshake on, it is known which servers have resources.
        agent.names("tools/list").await;
        let found = read(&agent, "y://open/2").await.unwrap();
        assert_eq!(found["contents"][0]["text"], "one:y://open/2");
        // Policies decide as for a listed one.
        assert_eq!(read(&agent, "y://closed/2").await.unwrap_err(), "unknown-target");
    }
    gate.stop().await;

    // Of two servers that could have it, none is guessed, except where policy leaves only one.
    let two = lister("two", "", json!({ "resources": ["x://2"] }));
    let gate = Setup::new(&one).and(&two).start().await;
    assert_eq!(read(&gate.modern(), "y://open/2").await.unwrap_err(), "unknown-target");
    gate.stop().await;
    let only = r#"
        @id("two")
        permit (principal, action, resource in Portcullis::Server::"two");
    "#;
    let gate = Setup::new(&one).and(&two).policies(only).start().await;
    let found = read(&gate.modern(), "y://open/2").await.unwrap();
    assert_eq!(found["contents"][0]["text"], "two:y://open/2");
    gate.stop().await;
}

#[tokio::test]
async fn only_visible_names_are_suggested() {
    let tools = ["read_note", "read_nose", "write"];
    let gate = Setup::new(&lister("a", "", json!({ "tools": tools })))
        .policies(
            r#"
            @id("lists")
            permit (principal, action == Portcullis::Action::"connect", resource);
            @id("reads")
            permit (principal, action == Portcullis::Action::"call_tool", resource)
            when { resource.name == "read_note" };
            "#,
        )
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.names("tools/list").await, ["a__read_note"]);
        // A refusal by policy suggests no other tool, whether there is such a tool or not.
        let mut said = Vec::new();
        for tool in ["a__read_nota", "a__read_nose"] {
            let error = agent.call(tool, json!({})).await.unwrap_err();
            assert_eq!(code_of(&error), "policy-denied");
            // Behind it stand the code and the decision's id.
            let message = error["message"].as_str().unwrap();
            said.push(message.split(" [").next().unwrap().to_owned());
        }
        assert!(!said[0].contains("did you mean"), "{said:?}");
        assert_eq!(said[0], said[1]);
        // A prefix that is not there, and none.
        for tool in ["b__read_note", "read_note"] {
            let error = agent.call(tool, json!({})).await.unwrap_err();
            assert_eq!(code_of(&error), "unknown-target");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("did you mean `a__read_note`?"), "{error:#}");
        }
        // The name of a tool that the client cannot see leads nowhere.
        let error = agent.call("read_nose", json!({})).await.unwrap_err();
        assert!(!error["message"].as_str().unwrap().contains("a__read_nose"), "{error:#}");
    }
    gate.stop().await;
}

fn with_headers() -> Value {
    json!({
        "name": "query",
        "inputSchema": { "type": "object", "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "options": { "type": "object", "properties": {
                "limit": { "type": "integer", "x-mcp-header": "Limit" },
            } },
        } },
    })
}

/// Calls `query` as a modern client with these headers; the status and the message.
async fn query(
    gate: &Gate,
    server: &str,
    arguments: Value,
    headers: &[(&str, &str)],
) -> (u16, Value) {
    let name = format!("{server}__query");
    let params = json!({
        "name": name,
        "arguments": arguments,
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let mut post = reqwest_client()
        .post(gate.url("/mcp"))
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .header("mcp-protocol-version", MODERN)
        .header("mcp-method", "tools/call")
        .header("mcp-name", name);
    for (name, value) in headers {
        post = post.header(*name, *value);
    }
    let reply = in_time("an answer", post.body(body.to_string()).send()).await.unwrap();
    (reply.status().as_u16(), serde_json::from_str(&reply.text().await.unwrap()).unwrap())
}

#[tokio::test]
async fn headers_must_match_the_arguments() {
    let gate = Setup::new(&lister("a", "", json!({ "tools": [with_headers()] }))).start().await;
    let arguments = json!({ "region": "Zürich", "options": { "limit": 42 } });
    let right = [("mcp-param-region", "=?base64?WsO8cmljaA==?="), ("mcp-param-limit", "42.0")];
    let (status, answer) = query(&gate, "a", arguments.clone(), &right).await;
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(answer["result"]["content"][0]["text"], "a:query");
    // What is not known is nobody's business.
    let more = [right[0], right[1], ("mcp-param-other", "x")];
    assert_eq!(query(&gate, "a", arguments.clone(), &more).await.0, 200);
    for wrong in [
        &[][..],
        &right[..1],
        &[right[0], ("mcp-param-limit", "43")],
        &[right[0], ("mcp-param-limit", "")],
        &[("mcp-param-region", "Zurich"), right[1]],
        &[("mcp-param-region", "=?base64?WsO8?"), right[1]],
        &[right[0], right[1], right[1]],
    ] {
        let (status, answer) = query(&gate, "a", arguments.clone(), wrong).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32020)), "{wrong:?}");
        assert_eq!(code_of(&answer["error"]), "header-mismatch");
    }
    // Where there is no value there must be no header.
    assert_eq!(query(&gate, "a", json!({}), &[]).await.0, 200);
    assert_eq!(query(&gate, "a", json!({ "region": null }), &[]).await.0, 200);
    assert_eq!(query(&gate, "a", json!({}), &[right[1]]).await.0, 400);
    // An earlier revision has no such headers.
    assert_eq!(gate.legacy().await.text("a__query", arguments).await, "a:query");
    gate.stop().await;
}

type Heard = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// A modern server over HTTP that keeps what calls it got.
async fn remote(heard: Heard) -> String {
    async fn answer(
        State(heard): State<Heard>,
        headers: HeaderMap,
        Json(message): Json<Value>,
    ) -> Json<Value> {
        let bad = json!({
            "name": "bad",
            "inputSchema": { "properties": { "x": { "type": "number", "x-mcp-header": "X" } } },
        });
        let result = match message["method"].as_str().unwrap_or_default() {
            "server/discover" => json!({
                "supportedVersions": [MODERN],
                "capabilities": { "tools": {} },
            }),
            "tools/list" => json!({ "tools": [with_headers(), bad] }),
            "tools/call" => {
                heard.lock().unwrap().push((headers, message.clone()));
                json!({ "content": [{ "type": "text", "text": "done" }] })
            }
            // The earlier era, which it does not speak.
            other => {
                let error = json!({ "code": -32601, "message": format!("no method {other}") });
                return Json(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
            }
        };
        let mut result = result;
        result["resultType"] = "complete".into();
        result["ttlMs"] = 0.into();
        result["cacheScope"] = "private".into();
        Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }))
    }
    let app = axum::Router::new().route("/mcp", axum::routing::post(answer)).with_state(heard);
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{addr}/mcp")
}

#[tokio::test]
async fn modern_server_gets_its_declared_headers() {
    let heard = Heard::default();
    let url = remote(heard.clone()).await;
    let gate = Setup::new(&format!("[servers.far]\nurl = \"{url}\"")).start().await;
    let arguments = json!({ "region": " Zürich", "options": { "limit": 7 } });
    // From a client whose era has no such headers, and from one that sends its own.
    let legacy = gate.legacy().await;
    assert_eq!(legacy.names("tools/list").await, ["far__query"]);
    assert_eq!(legacy.text("far__query", arguments.clone()).await, "done");
    let region = "=?base64?IFrDvHJpY2g=?=";
    let sent = [
        ("mcp-param-region", region),
        ("mcp-param-limit", "7"),
        ("mcp-param-other", "=?base64?w7w=?="),
        ("x-other", "x"),
    ];
    assert_eq!(query(&gate, "far", arguments, &sent).await.0, 200);
    let heard = heard.lock().unwrap().clone();
    let got = |at: usize, name: &str| heard[at].0.get(name).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(heard.len(), 2);
    for (at, (_, message)) in heard.iter().enumerate() {
        assert_eq!(got(at, "mcp-name").as_deref(), Some("query"));
        assert_eq!(message["params"]["name"], "query");
        assert_eq!(got(at, "mcp-param-region").as_deref(), Some(region));
        assert_eq!(got(at, "mcp-param-limit").as_deref(), Some("7"));
        assert_eq!(got(at, "x-other"), None);
    }
    assert_eq!(got(0, "mcp-param-other"), None);
    assert_eq!(got(1, "mcp-param-other").as_deref(), Some("=?base64?w7w=?="));
    let told = notices(&gate, "far").await;
    assert!(told.iter().any(|n| n.contains("`bad`") && n.contains("x-mcp-header")), "{told:?}");
    gate.stop().await;
}

/// A modern server over HTTP with this handshake and this list of tools.
async fn saying(discovered: Value, listed: Value) -> String {
    let answer = move |Json(message): Json<Value>| async move {
        let mut result = match message["method"].as_str().unwrap_or_default() {
            "server/discover" => discovered,
            "tools/list" => listed,
            other => {
                let error = json!({ "code": -32601, "message": format!("no method {other}") });
                return Json(json!({ "jsonrpc": "2.0", "id": message["id"], "error": error }));
            }
        };
        result["resultType"] = "complete".into();
        Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }))
    };
    let app = axum::Router::new().route("/mcp", axum::routing::post(answer));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{addr}/mcp")
}

#[tokio::test]
async fn members_of_lists_and_instructions_are_kept_or_merged() {
    let discovered = |instructions: &str, extensions: Value| {
        json!({
            "supportedVersions": [MODERN],
            "capabilities": { "tools": {}, "extensions": extensions },
            "instructions": instructions, "ttlMs": 0, "cacheScope": "private",
        })
    };
    let listed = |ttl: u64| {
        json!({
            "_meta": { "acme/revision": 7 }, "tools": [{ "name": "one", "inputSchema": {} }],
            "acme/hint": true, "ttlMs": ttl, "cacheScope": "public",
        })
    };
    let tasks = json!({ "io.modelcontextprotocol/tasks": {} });
    let far = saying(discovered("Be brief.", tasks), listed(90_000)).await;
    let near = saying(discovered("Be near.", json!({})), listed(30_000)).await;
    let config = format!("[servers.far]\nurl = \"{far}\"\n[servers.near]\nurl = \"{near}\"");
    let gate = Setup::new(&config).start().await;
    for server in ["far", "near"] {
        let agent = Agent::modern(&gate.url(&format!("/servers/{server}/mcp")), None);
        let list = agent.ask("tools/list", json!({})).await.unwrap();
        assert_eq!(list["_meta"]["acme/revision"], 7, "{list:#}");
        assert_eq!(list["acme/hint"], true, "{list:#}");
        assert_eq!(list["ttlMs"], if server == "far" { 60_000 } else { 30_000 }, "{list:#}");
        // Policies decide what each client sees.
        assert_eq!(list["cacheScope"], "private", "{list:#}");
        let agent =
            Agent::legacy(&gate.url(&format!("/servers/{server}/mcp")), None).await.unwrap();
        let list = agent.ask("tools/list", json!({})).await.unwrap();
        assert_eq!(list["acme/hint"], true, "{list:#}");
        assert!(list.get("ttlMs").is_none() && list.get("cacheScope").is_none(), "{list:#}");
        // A legacy client cannot follow the extension's tasks.
        assert!(agent.greeting["capabilities"].get("tasks").is_none(), "{:#}", agent.greeting);
    }
    let list = gate.modern().ask("tools/list", json!({})).await.unwrap();
    assert_eq!(list["tools"].as_array().unwrap().len(), 2, "{list:#}");
    assert_eq!((&list["ttlMs"], &list["_meta"]), (&json!(30_000), &Value::Null), "{list:#}");
    let merged = gate.modern().ask("server/discover", json!({})).await.unwrap();
    let expected = "Instructions of the server `far`:\n\n> Be brief.\n\n\
        Instructions of the server `near`:\n\n> Be near.";
    assert_eq!(merged["instructions"], expected, "{merged:#}");
    let extensions = &merged["capabilities"]["extensions"];
    assert!(extensions.get("io.modelcontextprotocol/tasks").is_some(), "{merged:#}");
    let legacy = gate.legacy().await;
    assert_eq!(legacy.greeting["instructions"], expected, "{:#}", legacy.greeting);
    gate.stop().await;
}

#[tokio::test]
async fn merged_instructions_are_limited_in_total() {
    let listed = json!({ "tools": [{ "name": "one", "inputSchema": {} }] });
    let text = |name: &str| format!("{name} {}", "x".repeat(60_000));
    let mut config = String::new();
    let names = ["one", "two", "six", "ten", "end"];
    for (name, text) in names.iter().map(|name| (*name, text(name))).chain([("near", "n".into())]) {
        let discovered = json!({
            "supportedVersions": [MODERN], "capabilities": { "tools": {} }, "instructions": text,
        });
        let url = saying(discovered, listed.clone()).await;
        config.push_str(&format!("[servers.{name}]\nurl = \"{url}\"\n"));
    }
    let gate = Setup::new(&config).start().await;
    let agent = gate.modern();
    // A server that never ran has no instructions.
    assert_eq!(agent.names("tools/list").await.len(), 6);
    let merged = agent.ask("server/discover", json!({})).await.unwrap();
    let merged = merged["instructions"].as_str().unwrap();
    assert!(merged.len() <= 256 << 10, "{}", merged.len());
    let quoted = |name: &str| merged.contains(&format!("Instructions of the server `{name}`:"));
    assert_eq!(names.map(quoted), [true, true, true, true, false]);
    assert!(merged.ends_with("Instructions of the server `near`:\n\n> n"));
    gate.stop().await;
}
