//! A server that misbehaves on demand, over standard input and output, in the legacy revisions.
//! Every tool is one way to go wrong; `echo` and `reflect` are the honest ones.
//!
//! With an argument it goes wrong before anybody asks: `silent` never greets, `mute` greets and
//! never lists its tools, `dead` ends at once, `babble` writes no JSON.
//!
//! With a folder in `WAITS` it holds back a method for as long as there is a file of its name (`-` for
//! `/`), and tells on standard error that it does. It then takes subscriptions, too: `update` tells of
//! all that it was asked to tell of.
//!
//! With a file in `RECEIVED` it appends every line that it receives.

use std::{
    collections::BTreeSet,
    io::{BufRead, Write, stdin, stdout},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

fn main() {
    let way = std::env::args().nth(1);
    let lists = way.as_deref() != Some("mute");
    match way.as_deref() {
        None | Some("mute") => {}
        Some("dead") => std::process::exit(3),
        Some("babble") => say("this is not JSON"),
        Some("silent") => {
            // Until the end of input, and no longer: an orphan would be the test's own fault.
            for _ in stdin().lock().lines() {}
            return;
        }
        Some(other) => panic!("no such way to go wrong: {other}"),
    }
    let mut received = std::env::var_os("RECEIVED")
        .and_then(|path| std::fs::OpenOptions::new().append(true).create(true).open(path).ok());
    for line in stdin().lock().lines() {
        let Ok(line) = line else { return };
        if let Some(file) = &mut received
            && writeln!(file, "{line}").is_err()
        {
            return;
        }
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        let Some(method) = message["method"].as_str() else {
            // An answer to what `ask_client` asked.
            say(&log(&format!("the client answered {line}")));
            continue;
        };
        let id = message["id"].clone();
        if id.is_null() {
            continue;
        }
        let method = method.to_owned();
        if is_held(&method) {
            eprintln!("holds {method}");
            thread::spawn(move || {
                while is_held(&method) {
                    thread::sleep(Duration::from_millis(10));
                }
                take(&method, id, line, message, lists);
            });
        } else {
            take(&method, id, line, message, lists);
        }
    }
}

fn waits() -> Option<PathBuf> {
    std::env::var_os("WAITS").map(PathBuf::from)
}

fn is_held(method: &str) -> bool {
    waits().is_some_and(|folder| folder.join(method.replace('/', "-")).exists())
}

/// What is to be told of.
static SUBSCRIBED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn subscribed() -> MutexGuard<'static, BTreeSet<String>> {
    SUBSCRIBED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(method: &str, id: Value, line: String, message: Value, lists: bool) {
    let uri = message["params"]["uri"].as_str().unwrap_or_default().to_owned();
    match method {
        "initialize" => answer(
            &id,
            json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": { "tools": {}, "logging": {} },
                "serverInfo": { "name": "crooked", "version": "1" },
            }),
        ),
        "ping" => answer(&id, json!({})),
        "tools/list" if !lists => {}
        "tools/list" => answer(&id, json!({ "tools": tools() })),
        "tools/call" => {
            // A thread for each: one that hangs holds up no other.
            thread::spawn(move || call(&id, &line, &message["params"]));
        }
        "resources/subscribe" if waits().is_some() => {
            subscribed().insert(uri);
            answer(&id, json!({}));
        }
        "resources/unsubscribe" if waits().is_some() => {
            subscribed().remove(&uri);
            answer(&id, json!({}));
        }
        _ => {
            let error = json!({ "code": -32601, "message": "no such method" });
            say(&json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string());
        }
    }
}

fn tools() -> Value {
    let any = json!({ "type": "object" });
    let tool = |name: &str| json!({ "name": name, "inputSchema": any });
    let mut tools: Vec<_> = [
        "echo",
        "reflect",
        "slow",
        "hang",
        "die",
        "flood",
        "flood_stderr",
        "complain",
        "babble",
        "huge",
        "crowd",
        "twice",
        "stranger",
        "leak",
        "ask_client",
        "spawn",
        "no_result",
        "environment",
    ]
    .map(tool)
    .into();
    tools.extend(waits().map(|_| tool("update")));
    tools.push(json!({
        "name": "lie",
        "inputSchema": any,
        "outputSchema": {
            "type": "object",
            "properties": { "count": { "type": "integer" } },
            "required": ["count"],
        },
    }));
    tools.into()
}

fn call(id: &Value, line: &str, params: &Value) {
    let arguments = &params["arguments"];
    let mib = usize::try_from(arguments["mib"].as_u64().unwrap_or(1)).unwrap_or(1);
    match params["name"].as_str().unwrap_or_default() {
        "echo" => answer(id, text(arguments["text"].as_str().unwrap_or_default())),
        "reflect" => answer(id, text(line)),
        "environment" => {
            let name = arguments["name"].as_str().unwrap_or_default();
            let mut value = std::env::var(name).unwrap_or_default();
            if arguments["read"] == true {
                // It names a file.
                value = std::fs::read_to_string(&value).unwrap_or_else(|error| error.to_string());
            }
            answer(id, text(&value));
        }
        "slow" => {
            thread::sleep(Duration::from_millis(arguments["ms"].as_u64().unwrap_or(100)));
            answer(id, text("at last"));
        }
        "hang" => {}
        "update" => {
            for uri in &*subscribed() {
                let method = "notifications/resources/updated";
                let params = json!({ "uri": uri });
                say(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string());
            }
            answer(id, text("told"));
        }
        "die" => std::process::exit(3),
        "flood" => {
            let bytes = usize::try_from(arguments["bytes"].as_u64().unwrap_or(1_000)).unwrap_or(1);
            let line = log(&"x".repeat(bytes));
            for _ in 0..(mib * 1_000_000).div_ceil(bytes) {
                say(&line);
            }
            answer(id, text("flooded"));
        }
        "flood_stderr" => {
            let line = "x".repeat(1_000);
            for _ in 0..mib * 1_000 {
                eprintln!("{line}");
            }
            answer(id, text("flooded"));
        }
        "complain" => {
            eprintln!("{}", arguments["text"].as_str().unwrap_or_default());
            answer(id, text("complained"));
        }
        "babble" => {
            say("this is not JSON");
            answer(id, text("babbled"));
        }
        "huge" => answer(id, text(&"x".repeat(mib << 20))),
        "twice" => {
            answer(id, text("once"));
            answer(id, text("twice"));
        }
        "stranger" => {
            answer(&json!(123_456_789), text("for nobody"));
            answer(id, text("for you"));
        }
        "leak" => answer(id, text(&format!("the key is {}", credential()))),
        "ask_client" => {
            let params = json!({ "messages": [], "maxTokens": 1 });
            let method = "sampling/createMessage";
            say(&json!({ "jsonrpc": "2.0", "id": 900, "method": method, "params": params })
                .to_string());
            answer(id, text("asked"));
        }
        "spawn" => {
            // Outlives its parent, unless somebody cares.
            let child = std::process::Command::new("/bin/sleep").arg("3600").spawn();
            answer(id, text(&format!("{:?}", child.map(|child| child.id()))));
        }
        "no_result" => say(&json!({ "jsonrpc": "2.0", "id": id }).to_string()),
        "crowd" => {
            let count = |name: &str| {
                usize::try_from(arguments[name].as_u64().unwrap_or_default()).unwrap_or_default()
            };
            let keys: Vec<_> = (0..count("keys")).map(|i| format!("\"k{i:07}\":0")).collect();
            let object = format!("{{{}}}", keys.join(","));
            let objects = vec![object.as_str(); count("objects").max(1)].join(",");
            if arguments["aside"] == true {
                say(&format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"info","data":[{objects}]}}}}"#
                ));
                return answer(id, text("told"));
            }
            let rows = "0,".repeat(count("rows"));
            say(&format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[],"structuredContent":{{"rows":[{rows}0],"objects":[{objects}]}}}}}}"#
            ));
        }
        "lie" => answer(
            id,
            json!({ "content": [], "structuredContent": { "count": "many" }, "isError": false }),
        ),
        _ => answer(id, json!({ "content": [], "isError": true })),
    }
}

/// Something that looks like a cloud key, put together here so that it stands in no file.
fn credential() -> String {
    ["AK", "IA", "Q3EG", "XMPL", "7KEY", "R2D2"].concat()
}

fn text(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": false })
}

fn log(text: &str) -> String {
    let params = json!({ "level": "info", "data": text });
    json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": params }).to_string()
}

fn answer(id: &Value, result: Value) {
    say(&json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string());
}

fn say(line: &str) {
    let mut out = stdout().lock();
    // Where nobody listens any more the end of input follows.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
