use super::*;

const NAME: &str = "portcullis";

fn arguments() -> Vec<String> {
    ["connect", "--url", "http://127.0.0.1:8811/mcp"].map(str::to_owned).to_vec()
}

fn insert(kind: &ClientKind, text: &str) -> Result<Edit, Problem> {
    kind.insert(text, NAME, Launch { program: "/bin/portcullis", arguments: &arguments() })
}

/// The text with the entry. Removes the entry again, with and without knowledge of the change.
#[track_caller]
fn added(client: &str, text: &str) -> String {
    let kind = named(client).unwrap();
    let edit = insert(kind, text).unwrap();
    let after = edit.apply(text).unwrap();
    assert_eq!(kind.remove(&after, NAME, &edit).unwrap(), text, "not restored from\n{after}");
    let unknown = Edit { inserted: "\0".to_owned(), ..edit };
    let parsed = kind.remove(&after, NAME, &unknown).unwrap();
    assert!(kind.find(&parsed, NAME).unwrap().is_none(), "{parsed}");
    assert_eq!(kind.remove(text, NAME, &unknown).unwrap(), text);
    after
}

#[test]
fn new_file_of_each_client() {
    let common = r#"{
  "mcpServers": {
    "portcullis": {
      "command": "/bin/portcullis",
      "args": [
        "connect",
        "--url",
        "http://127.0.0.1:8811/mcp"
      ]
    }
  }
}
"#;
    let typed = common.replace("\"command\"", "\"type\": \"stdio\",\n      \"command\"");
    let expected = [
        ("claude-code", typed.clone()),
        ("claude-desktop", common.to_owned()),
        ("vscode", typed.replace("mcpServers", "servers")),
        ("cursor", common.to_owned()),
        ("gemini", common.to_owned()),
        ("continue", common.to_owned()),
        (
            "codex",
            "[mcp_servers.portcullis]\ncommand = \"/bin/portcullis\"\n\
             args = [\"connect\", \"--url\", \"http://127.0.0.1:8811/mcp\"]\n"
                .to_owned(),
        ),
        (
            "goose",
            r#"extensions:
  portcullis:
    enabled: true
    type: "stdio"
    name: "portcullis"
    cmd: "/bin/portcullis"
    args:
    - "connect"
    - "--url"
    - "http://127.0.0.1:8811/mcp"
    envs: {}
    env_keys: []
    timeout: 300
"#
            .to_owned(),
        ),
        (
            "zed",
            common
                .replace("mcpServers", "context_servers")
                .replace("\"command\"", "\"source\": \"custom\",\n      \"command\"")
                .replace("      ]\n", "      ],\n      \"env\": {}\n"),
        ),
        ("windsurf", common.to_owned()),
        ("lmstudio", common.to_owned()),
        (
            "opencode",
            r#"{
  "mcp": {
    "portcullis": {
      "type": "local",
      "command": [
        "/bin/portcullis",
        "connect",
        "--url",
        "http://127.0.0.1:8811/mcp"
      ],
      "enabled": true
    }
  }
}
"#
            .to_owned(),
        ),
    ];
    assert_eq!(CLIENTS.len(), expected.len());
    for (client, text) in expected {
        assert_eq!(added(client, ""), text, "{client}");
    }
}

#[test]
fn json_keeps_comments_commas_and_indentation() {
    let entry = "\"portcullis\": {\n      \"command\": \"/bin/portcullis\",\n      \"args\": [\n        \
                 \"connect\",\n        \"--url\",\n        \"http://127.0.0.1:8811/mcp\"\n      ]\n    }";
    for (before, after) in [
        (
            "// mine\n{\n  \"a\": 1, // one\n  \"mcpServers\": {\n    \"x\": {} // last\n  }\n}\n",
            format!(
                "// mine\n{{\n  \"a\": 1, // one\n  \"mcpServers\": {{\n    \"x\": {{}}, // last\n    \
                 {entry}\n  }}\n}}\n"
            ),
        ),
        (
            "{\n  \"mcpServers\": {\n    \"x\": {}, /* c */\n  },\n}",
            format!("{{\n  \"mcpServers\": {{\n    \"x\": {{}}, /* c */\n    {entry},\n  }},\n}}"),
        ),
        (
            "{\n  \"mcpServers\": {}\n}\n",
            format!("{{\n  \"mcpServers\": {{\n    {entry}\n  }}\n}}\n"),
        ),
        (
            "{\n  \"mcpServers\": {\n    // none yet\n  }\n}\n",
            format!("{{\n  \"mcpServers\": {{\n    // none yet\n    {entry}\n  }}\n}}\n"),
        ),
        (
            "{\n  \"mcpServers\": null\n}\n",
            format!("{{\n  \"mcpServers\": {{\n    {entry}\n  }}\n}}\n"),
        ),
        (
            "{\n  \"a\": \"}\"\n}\n",
            format!("{{\n  \"a\": \"}}\",\n  \"mcpServers\": {{\n    {entry}\n  }}\n}}\n"),
        ),
        ("{}\n", format!("{{\n  \"mcpServers\": {{\n    {entry}\n  }}\n}}\n")),
    ] {
        assert_eq!(added("cursor", before), after);
    }
    // One line stays one line.
    let compact = "{\"command\":\"/bin/portcullis\",\"args\":[\"connect\",\"--url\",\
                   \"http://127.0.0.1:8811/mcp\"]}";
    assert_eq!(
        added("cursor", "{\"a\":1,\"mcpServers\":{\"x\":{}}}"),
        format!("{{\"a\":1,\"mcpServers\":{{\"x\":{{}}, \"portcullis\": {compact}}}}}")
    );
    // Tabs, line breaks of Windows and a byte order mark stay.
    let text = "\u{feff}{\r\n\t\"mcpServers\": {\r\n\t\t\"x\": {}\r\n\t}\r\n}\r\n";
    let after = added("cursor", text);
    assert!(after.contains("{},\r\n\t\t\"portcullis\": {\r\n\t\t\t\"command\""), "{after}");
    assert_eq!(after.matches('\n').count(), after.matches("\r\n").count());
}

#[test]
fn entry_in_a_changed_file_is_removed() {
    let kind = named("cursor").unwrap();
    let edit = insert(kind, "").unwrap();
    for (with, without) in [
        // The client wrote the file again.
        (
            "{\"mcpServers\":{\"portcullis\":{\"command\":\"/bin/portcullis\"}},\"a\":1}",
            "{\"a\":1}",
        ),
        // The user added servers before and behind it.
        (
            "{\n  \"mcpServers\": {\n    \"a\": {}, // a\n    \"portcullis\": {}\n  }\n}\n",
            "{\n  \"mcpServers\": {\n    \"a\": {} // a\n  }\n}\n",
        ),
        (
            "{\n  \"mcpServers\": {\n    \"portcullis\": {},\n    \"b\": {}\n  }\n}\n",
            "{\n  \"mcpServers\": {\n    \"b\": {}\n  }\n}\n",
        ),
        // Comments beside the entry keep their place.
        (
            "{\n  \"mcpServers\": {\n    // mine\n    \"portcullis\": {}\n  }\n}\n",
            "{\n  \"mcpServers\": {\n    // mine\n  }\n}\n",
        ),
    ] {
        assert_eq!(kind.remove(with, NAME, &edit).unwrap(), without);
    }
    let kind = named("codex").unwrap();
    let edit = insert(kind, "").unwrap();
    for (with, without) in [
        (
            "model = 'a'\n\n[mcp_servers.portcullis]\ncommand = 'x' # c\n\n[mcp_servers.b]\ncommand = 'b'\n",
            "model = 'a'\n\n[mcp_servers.b]\ncommand = 'b'\n",
        ),
        // Comments before it and behind it, its own tables, and quoted keys.
        (
            "# a\n[ mcp_servers . \"portcullis\" ]\ncommand = 'x'\n# of it\nargs = ['y']\n\n# of it\n\
             [mcp_servers.portcullis.env]\nA = 'b'\n# b\n[mcp_servers.\"]\"]\ncommand = \"\"\"\nb\"\"\"\n",
            "# a\n# b\n[mcp_servers.\"]\"]\ncommand = \"\"\"\nb\"\"\"\n",
        ),
        // Line breaks of Windows stay.
        (
            "a = 1 # b\r\n[mcp_servers.portcullis]\r\ncommand = 'x'\r\n[mcp_servers.b]\r\ncommand = 'b'\r\n",
            "a = 1 # b\r\n[mcp_servers.b]\r\ncommand = 'b'\r\n",
        ),
    ] {
        assert_eq!(kind.remove(with, NAME, &edit).unwrap(), without);
    }
    for with in [
        // Another server is between the entry's tables.
        "[mcp_servers.portcullis]\n[mcp_servers.b]\n[mcp_servers.portcullis.env]\n",
        // A line of a multi-line string can look like a header.
        "a = \"\"\"\n[mcp_servers.portcullis]\n\"\"\"\n[mcp_servers.portcullis]\ncommand = 'x'\n",
        "mcp_servers.portcullis.command = 'x'\nmcp_servers.b.command = 'b'\n",
    ] {
        let problem = kind.remove(with, NAME, &edit).unwrap_err();
        assert!(problem.text.contains("by hand"), "{}", problem.text);
    }
    let kind = named("goose").unwrap();
    let edit = insert(kind, "").unwrap();
    for (with, without) in [
        (
            "a: 1\nextensions:\n  b:\n    cmd: b\n  portcullis:\n    cmd: x\n    args:\n    - y\n\n# end\nc: 2\n",
            "a: 1\nextensions:\n  b:\n    cmd: b\n\n# end\nc: 2\n",
        ),
        (
            "extensions:\n  portcullis:\n    cmd: x\n    # b\n  b:\n    cmd: b\n",
            "extensions:\n    # b\n  b:\n    cmd: b\n",
        ),
    ] {
        assert_eq!(kind.remove(with, NAME, &edit).unwrap(), without);
    }
}

#[test]
fn toml_and_yaml_keep_the_rest() {
    let entry = "[mcp_servers.portcullis]\ncommand = \"/bin/portcullis\"\n\
                 args = [\"connect\", \"--url\", \"http://127.0.0.1:8811/mcp\"]\n";
    for before in [
        "# mine\nmodel = \"a\" # b\n",
        "[mcp_servers.a]\ncommand = 'a'\n\n[mcp_servers.a.env]\nA = 'b' # c\n",
        "[[x]]\na = 1\n",
    ] {
        assert_eq!(added("codex", before), format!("{before}\n{entry}"));
    }
    assert_eq!(added("codex", "a = 1"), format!("a = 1\n\n{entry}"));
    let block = "  portcullis:\n    enabled: true\n";
    for (before, start) in [
        ("# mine\nA: b # c\n", format!("# mine\nA: b # c\nextensions:\n{block}")),
        ("A: b", format!("A: b\nextensions:\n{block}")),
        ("extensions: # mine\n", format!("extensions: # mine\n{block}")),
        ("extensions: {} # mine\nA: b\n", format!("extensions: # mine\n{block}")),
        (
            "extensions: # x\n\n  # first\n  developer:\n    enabled: true # y\nA: b\n",
            format!("extensions: # x\n{block}"),
        ),
    ] {
        let after = added("goose", before);
        assert!(after.starts_with(&start), "{after}");
    }
}

#[test]
fn unusable_file_is_refused_with_its_position() {
    for (client, text, place, part) in [
        ("cursor", "{\"a\": 1", None, "not JSON"),
        ("cursor", "[]", Some((1, 1)), "a list"),
        ("cursor", "{\"mcpServers\": []}", Some((1, 16)), "not a map of servers"),
        ("cursor", "{\"mcpServers\": {\"portcullis\": {}}}", Some((1, 17)), "already"),
        ("cursor", "{\"a\": 1,\n\"a\": 2}", Some((2, 1)), "twice"),
        ("codex", "a = \n", None, "not TOML"),
        ("codex", "mcp_servers = {}\n", None, "inline table"),
        ("codex", "[mcp_servers.portcullis]\n", None, "already"),
        ("goose", "a: b: c\n", None, "not YAML"),
        ("goose", "{extensions: {a: {}}}\n", Some((1, 2)), "block style"),
        ("goose", "extensions: {a: {}}\n", Some((1, 13)), "block style"),
        ("goose", "- a\n", None, "a list"),
        ("goose", "extensions: {\n}\n", None, "one key a line"),
    ] {
        let kind = named(client).unwrap();
        let problem = insert(kind, text).unwrap_err();
        assert!(problem.text.contains(part), "{text}: {}", problem.text);
        if let Some((line, column)) = place {
            assert_eq!(problem.place, Some(Location { line, column }), "{text}");
        }
    }
}
