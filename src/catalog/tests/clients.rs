//! Files from the documentation of each client, with a reference to a variable that exists for
//! another purpose. For every client, it becomes a reference to the server's own variable.

mod support;

use portcullis_catalog::{Options, Packages, read};
use support::server;

/// A file of each client: its name, its page of documentation, and its text, which refers to
/// `VARIABLE` in the client's syntax.
const FILES: &[(&str, &str, &str)] = &[
    (
        "Claude Code",
        "https://code.claude.com/docs/en/mcp",
        r#"{"mcpServers": {
            "far": {"type": "http", "url": "https://far.example.com/mcp", "headers": {"X-Key": "${VARIABLE}"}},
            "defaulted": {"type": "http", "url": "https://far.example.com/mcp", "headers": {"X-Key": "${VARIABLE:-none}"}},
            "near": {"type": "stdio", "command": "near", "args": [], "env": {"KEY": "${VARIABLE}"}}}}"#,
    ),
    (
        "VS Code",
        "https://code.visualstudio.com/docs/copilot/reference/mcp-configuration",
        r#"{"inputs": [{"type": "promptString", "id": "VARIABLE", "description": "A key", "password": true}],
            "servers": {
            "far": {"type": "http", "url": "https://far.example.com/mcp", "headers": {"X-Key": "${input:VARIABLE}"}},
            "near": {"type": "stdio", "command": "npx", "args": ["-y", "near@1.0.0"], "env": {"KEY": "${env:VARIABLE}"}}}}"#,
    ),
    (
        "Cursor",
        "https://cursor.com/docs/context/mcp",
        r#"{"mcpServers": {
            "far": {"url": "https://far.example.com/mcp", "headers": {"X-Key": "Bearer ${env:VARIABLE}"}},
            "near": {"type": "stdio", "command": "near", "args": [], "env": {"KEY": "${env:VARIABLE}"}}}}"#,
    ),
    (
        "Windsurf",
        "https://docs.windsurf.com/windsurf/cascade/mcp",
        r#"{"mcpServers": {
            "far": {"serverUrl": "https://far.example.com/mcp", "headers": {"X-Key": "Bearer ${env:VARIABLE}"}},
            "file": {"serverUrl": "https://far.example.com/mcp", "headers": {"X-Key": "${file:/home/me/VARIABLE}"}},
            "near": {"command": "near", "args": [], "env": {"KEY": "${env:VARIABLE}"}}}}"#,
    ),
    (
        "Zed",
        "https://zed.dev/docs/ai/mcp",
        r#"{"context_servers": {
            "far": {"url": "https://far.example.com/mcp", "headers": {"X-Key": "Bearer $VARIABLE"}},
            "bridged": {"source": "custom", "command": "npx",
                "args": ["-y", "mcp-remote@latest", "https://far.example.com/mcp", "--header", "X-Key:${VARIABLE}"],
                "env": {"VARIABLE": "Bearer YOUR_KEY"}},
            "near": {"command": "near", "args": ["a"], "env": {"KEY": "$VARIABLE"}}}}"#,
    ),
    (
        "Gemini CLI",
        "https://geminicli.com/docs/tools/mcp-server",
        r#"{"mcpServers": {
            "far": {"httpUrl": "https://far.example.com/mcp", "headers": {"X-Key": "$VARIABLE"}, "timeout": 5000},
            "near": {"command": "near", "args": [], "env": {"KEY": "$VARIABLE", "OTHER": "%VARIABLE%"}, "trust": false}}}"#,
    ),
    (
        "OpenCode",
        "https://opencode.ai/docs/mcp-servers",
        r#"{"mcp": {
            "far": {"type": "remote", "url": "https://far.example.com/mcp", "headers": {"X-Key": "Bearer {env:VARIABLE}"}},
            "near": {"type": "local", "command": ["near", "a"], "environment": {"KEY": "{env:VARIABLE}"}, "enabled": true}}}"#,
    ),
    (
        "Codex",
        "https://developers.openai.com/codex/mcp",
        "[mcp_servers.far]\nurl = \"https://far.example.com/mcp\"\nbearer_token_env_var = \"VARIABLE\"\n\
         env_http_headers = { \"X-Key\" = \"VARIABLE\" }\n\
         [mcp_servers.near]\ncommand = \"near\"\nenv_vars = [\"VARIABLE\"]\n",
    ),
    (
        "Goose",
        "https://block.github.io/goose/docs/getting-started/using-extensions",
        "extensions:\n  far:\n    enabled: true\n    type: streamable_http\n    name: far\n    \
         uri: https://far.example.com/mcp\n    headers:\n      X-Key: Bearer ${VARIABLE}\n    envs: {}\n    \
         env_keys: []\n    timeout: 300\n  near:\n    enabled: true\n    type: stdio\n    name: near\n    cmd: near\n    \
         args: []\n    envs: {}\n    env_keys: [VARIABLE]\n    timeout: 300\n",
    ),
    (
        "Continue",
        "https://docs.continue.dev/customize/deep-dives/mcp",
        "name: Far\nversion: 0.0.1\nschema: v1\nmcpServers:\n  - name: far\n    type: streamable-http\n    \
         url: https://far.example.com/mcp\n    requestOptions:\n      headers:\n        \
         X-Key: Bearer ${{ secrets.VARIABLE }}\n  - name: near\n    command: near\n    args: []\n    env:\n      \
         KEY: ${{ secrets.VARIABLE }}\n",
    ),
    (
        "Roo",
        "https://docs.roocode.com/features/mcp/using-mcp-in-roo",
        r#"{"mcpServers": {
            "far": {"type": "streamable-http", "url": "https://far.example.com/mcp", "headers": {"X-Key": "${env:VARIABLE}"},
                "alwaysAllow": [], "disabled": false},
            "near": {"command": "near", "args": [], "env": {"KEY": "${env:VARIABLE}"}, "alwaysAllow": ["a"]}}}"#,
    ),
];

#[test]
fn client_references_never_name_variables_of_the_proxy() {
    for (client, page, text) in FILES {
        for foreign in [false, true] {
            for packages in [Packages::Process, Packages::Container] {
                let options = Options { foreign, packages, ..Options::default() };
                let found =
                    read(text, &options).unwrap_or_else(|problem| panic!("{client}: {problem:?}"));
                for entry in &found.servers {
                    let server = server(&found, &entry.name);
                    let own = format!("env:MCP_{}__", entry.name.to_uppercase());
                    let references: Vec<&str> =
                        server.references().map(|(_, secret)| secret.from.as_str()).collect();
                    assert!(!references.is_empty(), "{client} {}: {page}", entry.name);
                    for from in references {
                        assert!(from.starts_with(&own), "{client} {}: {from}", entry.name);
                    }
                    // The plain values do not contain it either.
                    let plain = format!("{:?} {:?}", server.env, server.run);
                    assert!(!plain.replace("MCP_", "").contains("VARIABLE}"), "{client}: {plain}");
                    assert!(server.references().all(|(_, secret)| !secret.permitted));
                }
            }
        }
    }
}

#[test]
fn reference_named_by_the_operator_is_used() {
    for (client, _, text) in FILES {
        let mut options = Options::default();
        for server in ["far", "near", "file", "defaulted", "bridged"] {
            for name in ["X-Key", "KEY", "VARIABLE", "OTHER", "Authorization"] {
                let secrets = options.secrets.entry(server.to_owned()).or_default();
                secrets.insert(name.to_owned(), format!("vault:kv/{server}#{name}"));
            }
        }
        let found = read(text, &options).unwrap_or_else(|problem| panic!("{client}: {problem:?}"));
        for entry in &found.servers {
            let server = server(&found, &entry.name);
            for (name, secret) in server.references() {
                assert_eq!(secret.from, format!("vault:kv/{}#{name}", entry.name), "{client}");
            }
        }
    }
}
