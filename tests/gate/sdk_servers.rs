//! Servers built with SDKs behind the proxy: over pipes and over HTTP, in both eras, with clients
//! of both.

use std::{path::Path, process::Stdio};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{
    client::{Client, MODERN, Wrong},
    gate::Setup,
    in_time, new_mark, root,
    sdk::node_program,
    target,
};

/// A server that prints its URL.
async fn remote(program: &Path, args: &[&str]) -> (Child, String) {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = in_time("a server's URL", lines.next_line()).await.unwrap();
    (child, url.expect("a URL"))
}

/// The folder of the Python that a virtual environment stands on: the sandbox shows what belongs to
/// the system, and this may not.
async fn base(python: &Path) -> String {
    let print = ["-c", "import sys; print(sys.base_prefix)"];
    let output = in_time("Python", Command::new(python).args(print).output()).await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Everything that these servers have.
async fn exchange(client: &Client, name: &str) -> Result<(), Wrong> {
    let samples = !name.starts_with("fastmcp");
    let tools = client.ask("tools/list", json!({})).await?.to_string();
    let token = new_mark();
    let mut calls = vec![
        ("echo", json!({ "text": "hello" }), ": hello"),
        ("steps", json!({}), "three steps"),
        ("form", json!({}), "the client said: Ada"),
    ];
    if samples {
        calls.push(("sample", json!({}), "the client said: 42"));
    }
    for (tool, arguments, text) in calls {
        if !tools.contains(&format!("\"{tool}\"")) {
            return Err(format!("no {tool} in {tools}"));
        }
        let meta = json!({ "progressToken": token });
        let params = json!({ "name": tool, "arguments": arguments, "_meta": meta });
        let result = client.ask("tools/call", params).await?;
        if !result["content"][0]["text"].as_str().is_some_and(|said| said.contains(text)) {
            return Err(format!("{tool}: {result} without {text:?}"));
        }
    }
    client
        .heard("the last step", |message| {
            message["params"]["progressToken"] == *token && message["params"]["progress"] == 3.0
        })
        .await?;
    let read = client.ask("resources/read", json!({ "uri": "scripted:///watched" })).await?;
    if read["contents"][0]["text"] != "the text of scripted:///watched" {
        return Err(format!("resources/read: {read}"));
    }
    let params = json!({ "name": "greet", "arguments": { "name": "Ada" } });
    let prompt = client.ask("prompts/get", params).await?;
    if prompt["messages"][0]["content"]["text"] != "Greet Ada." {
        return Err(format!("prompts/get: {prompt}"));
    }
    Ok(())
}

#[tokio::test]
async fn servers_of_every_sdk_serve_clients_of_both_eras() {
    let python = target("tests/python/bin/python");
    let sdks = root().join("tests/sdks");
    let (mut config, mut children, mut names) = (String::new(), Vec::new(), Vec::new());
    let base = base(&python).await;
    for era in ["legacy", "modern"] {
        let mut pipe = |name: &str, folder: &str, command: &[&str]| {
            let mut mounts = vec![format!("{}:/sdk", sdks.join(folder).display())];
            if folder == "python" && !base.starts_with("/usr") {
                mounts.push(format!("{base}:{base}"));
            }
            config.push_str(&format!(
                "[servers.{name}-pipe-{era}]\ncommand = {command:?}\nmounts = {mounts:?}\n\
                 runtime = \"sandbox\"\nera = \"{era}\"\n"
            ));
            names.push(format!("{name}-pipe-{era}"));
        };
        pipe("fastmcp", "python", &[python.to_str().unwrap(), "/sdk/fastmcp_server.py"]);
        pipe("typescript", "typescript", &["node", "/sdk/server.mjs", era, "stdio"]);
        let script = sdks.join("python/mcp_server.py");
        let server = node_program("typescript", "server.mjs");
        for (name, program, args) in [
            ("python", python.as_path(), vec![script.to_str().unwrap()]),
            ("typescript", Path::new("node"), vec![server.to_str().unwrap(), era, "http"]),
        ] {
            let (child, url) = remote(program, &args).await;
            children.push(child);
            config.push_str(&format!(
                "[servers.{name}-http-{era}]\nurl = {url:?}\nera = \"{era}\"\n"
            ));
            names.push(format!("{name}-http-{era}"));
        }
    }
    let gate = Setup::new(&config).start().await;
    let client =
        Client::http(MODERN, &gate.url("/servers/typescript-pipe-modern/mcp")).await.unwrap();
    for (email, invited) in [("ada@example.org", true), ("a..b@example.org", false)] {
        let arguments = json!({ "email": email, "at": "2026-01-01T00:00:00Z" });
        let params = json!({ "name": "invite", "arguments": arguments });
        let result = client.ask("tools/call", params).await;
        let text = format!("invited {email}");
        let done =
            result.as_ref().is_ok_and(|result| result["content"][0]["text"] == text.as_str());
        assert_eq!(done, invited, "{result:?}");
    }
    let mut wrong = Vec::new();
    for name in names {
        for revision in ["2025-11-25", MODERN] {
            let url = gate.url(&format!("/servers/{name}/mcp"));
            let done = match Client::http(revision, &url).await {
                Ok(client) => exchange(&client, &name).await.and_then(|()| {
                    let wrongs = client.wrongs();
                    if wrongs.is_empty() { Ok(()) } else { Err(wrongs.join("; ")) }
                }),
                Err(wrong) => Err(wrong),
            };
            if let Err(why) = done {
                wrong.push(format!("{revision} → {name}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    gate.stop().await;
    drop(children);
}
