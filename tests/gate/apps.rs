//! MCP Apps: servers of the official packages, which choose the same URI for their Apps, at the
//! endpoint of all servers.

use serde_json::{Value, json};

use crate::support::{
    PERMIT_ALL,
    client::{Client, MODERN},
    gate::{Gate, Setup},
    root,
};

const UI: &str = "io.modelcontextprotocol/ui";

async fn gate() -> Gate {
    let sdk = root().join("tests/sdks/typescript");
    let server = |name: &str| {
        format!(
            "[servers.{name}]\ncommand = [\"node\", \"/sdk/apps.mjs\", \"{name}\"]\nmounts = \
             [\"{}:/sdk\"]\nruntime = \"sandbox\"\n",
            sdk.display()
        )
    };
    let policies = format!(
        "{PERMIT_ALL}\n\
         @id(\"no-private-page\") forbid (principal, action == \
         Portcullis::Action::\"read_resource\", resource == \
         Portcullis::Resource::\"first/ui://view/private.html\");\n\
         @id(\"no-refresh\") forbid (principal, action == Portcullis::Action::\"call_tool\", \
         resource == Portcullis::Tool::\"first/refresh\");\n"
    );
    let config = format!("{}{}", server("first"), server("second"));
    Setup::new(&config).policies(&policies).start().await
}

fn by_name<'a>(list: &'a Value, member: &str, key: &str, name: &str) -> &'a Value {
    let found = list[member].as_array().unwrap().iter().find(|item| item[key] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

#[tokio::test]
async fn apps_of_several_servers_have_their_own_uris() {
    let gate = gate().await;
    for revision in ["2025-11-25", MODERN] {
        let client = Client::http(revision, &gate.url("/mcp")).await.unwrap();
        let tools = client.ask("tools/list", json!({})).await.unwrap();
        let resources = client.ask("resources/list", json!({})).await.unwrap();
        for server in ["first", "second"] {
            let uri = format!("ui://{server}/view/main.html");
            let tool = by_name(&tools, "tools", "name", &format!("{server}__show"));
            assert_eq!(tool["_meta"]["ui"]["resourceUri"], *uri, "{tool:#}");
            // The SDK writes the earlier form, too.
            assert_eq!(tool["_meta"]["ui/resourceUri"], *uri, "{tool:#}");
            by_name(&resources, "resources", "uri", &uri);
            let read = client.ask("resources/read", json!({ "uri": uri })).await.unwrap();
            let page = &read["contents"][0];
            assert_eq!(page["text"], format!("<html>{server}</html>"), "{read:#}");
            assert_eq!(page["mimeType"], "text/html;profile=mcp-app");
        }
        // Without a server's name, it could be the page of either.
        let own = client.ask("resources/read", json!({ "uri": "ui://view/main.html" })).await;
        assert!(own.as_ref().is_err_and(|error| error.contains("does not exist")), "{own:?}");
        // Both servers have announced the extension.
        let again = Client::http(revision, &gate.url("/mcp")).await.unwrap();
        let extensions = &again.greeting["capabilities"]["extensions"];
        assert_eq!(extensions[UI], json!({}), "{:#}", again.greeting);

        // One server alone keeps its own URIs.
        let client = Client::http(revision, &gate.url("/servers/second/mcp")).await.unwrap();
        let tools = client.ask("tools/list", json!({})).await.unwrap();
        let tool = by_name(&tools, "tools", "name", "show");
        assert_eq!(tool["_meta"]["ui"]["resourceUri"], "ui://view/main.html");
        let read = client.ask("resources/read", json!({ "uri": "ui://view/main.html" })).await;
        assert_eq!(read.unwrap()["contents"][0]["text"], "<html>second</html>");
    }
}

#[tokio::test]
async fn requests_of_an_app_pass_the_chain() {
    let gate = gate().await;
    let client = Client::http("2025-11-25", &gate.url("/mcp")).await.unwrap();
    client.ask("tools/list", json!({})).await.unwrap();
    let call =
        async |tool: &str| client.ask("tools/call", json!({ "name": tool, "arguments": {} })).await;
    // What an App calls is decided as any other call.
    let refused = call("first__refresh").await.unwrap_err();
    assert!(refused.contains("policy-denied"), "{refused}");
    let read = async |uri: &str| client.ask("resources/read", json!({ "uri": uri })).await;
    let refused = read("ui://first/view/private.html").await.unwrap_err();
    assert!(refused.contains("policy-denied"), "{refused}");
    assert!(read("ui://second/view/private.html").await.is_ok());
    for uri in ["ui://third/view/main.html", "ui://first", "ui://FIRST/view/main.html"] {
        let refused = read(uri).await.unwrap_err();
        assert!(refused.contains("does not exist"), "{uri}: {refused}");
    }
    // Changes come with the URI that the client knows, from the right server only.
    let uri = "ui://second/view/main.html";
    client.ask("resources/subscribe", json!({ "uri": uri })).await.unwrap();
    let done = call("second__refresh").await.unwrap();
    assert_eq!(done["content"][0]["text"], "second refreshed");
    client
        .heard("the change of the App", |message| {
            message["method"] == "notifications/resources/updated"
                && message["params"]["uri"] == uri
        })
        .await
        .unwrap();

    // Records have the server and its own URI.
    let filter = "method = resources/read and server = first and decision = refused";
    let found = gate.cli(&["audit", "query", filter, "--format", "json"]).await;
    assert!(found.stdout.contains("ui://view/private.html"), "{found:#?}");
    assert!(!found.stdout.contains("ui://first"), "{found:#?}");
}
