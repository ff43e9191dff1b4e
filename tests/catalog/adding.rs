//! `init`, `add` and `server rm`: from an empty folder to a guarded server, and back.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{bare, catalog, checks, config, digest, ok, read, run, secret, table, write};

/// A folder that `init` made.
fn gateway() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["init"]);
    dir
}

/// All files of a folder, with their contents.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn init_creates_a_gateway_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (code, out, err) = run(dir, &["init", "new/gateway"]);
    assert_eq!(code, 0, "{err}");
    let made = dir.join("new/gateway");
    let created = files(&made);
    let names: Vec<_> = created.keys().map(String::as_str).collect();
    let expected = [
        ".gitignore",
        "policies/connect-group-agents.cedar",
        "policies/connect-group-agents.test.yaml",
        "portcullis.toml",
    ];
    assert_eq!(names, expected);
    assert_eq!(out.lines().count(), 4, "{out}");
    for command in [
        "portcullis add -c new/gateway/portcullis.toml -- uvx mcp-server-time",
        "portcullis client connect claude-code --group agents -c new/gateway/portcullis.toml",
    ] {
        assert!(err.contains(command), "{err}");
    }
    checks(&made);
    ok(&made, &["policy", "test", "policies"]);
    ok(&made, &["policy", "can-i", "--as", "group:agents", "initialize"]);

    let (code, out, err) = run(&made, &["init"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("portcullis.toml exists already"), "{err}");
    assert_eq!(files(&made), created);
}

#[test]
fn added_command_gets_policies_and_leaves_no_trace_when_it_is_removed() {
    let dir = gateway();
    let dir = dir.path();
    let before = files(dir);
    let (code, out, err) = bare(dir, &["add", "--", "uvx", "mcp-server-time==2026.1.1"]);
    assert_eq!((code, files(dir)), (1, before.clone()), "{out}{err}");
    for shown in ["would add `time`", "@id(\"time.launch\")", "@id(\"agents-call-read-only-time\")"]
    {
        assert!(out.contains(shown), "{shown}: {out}");
    }
    assert!(err.contains("--yes"), "{err}");

    let (code, out, err) = run(dir, &["add", "--", "uvx", "mcp-server-time==2026.1.1"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains("portcullis client connect claude-code --group agents"), "{err}");
    assert!(config(dir).starts_with(std::str::from_utf8(&before["portcullis.toml"]).unwrap()));
    let command = json!(["uvx", "mcp-server-time==2026.1.1"]);
    assert_eq!(json!(table(dir)["servers"]["time"]["command"]), command);
    checks(dir);
    ok(dir, &["policy", "test", "policies"]);
    let can = |tool: &str, hint: &str| {
        let read_only = ["--hint", hint];
        run(
            dir,
            &[&["policy", "can-i", "--as", "group:agents", "tools/call", tool][..], &read_only]
                .concat(),
        )
        .0
    };
    assert_eq!(can("time/now", "readOnlyHint=true"), 0);
    assert_eq!(can("time/now", "readOnlyHint=false"), 10);
    let (code, _, err) = run(dir, &["add", "--", "uvx", "mcp-server-time"]);
    assert!(code == 1 && err.contains("\"time\" already exists"), "{err}");

    // A second server shares the policy for connections, which `init` wrote.
    ok(dir, &["add", "--permit", "nothing", "--", "npx", "-y", "@a/server-other@1.0.0"]);
    let out = ok(dir, &["server", "rm", "other"]);
    assert!(out.contains("removed policies/server-other.cedar"), "{out}");
    let out = ok(dir, &["server", "rm", "time"]);
    assert!(out.contains("removed policies/read-only-time.test.yaml"), "{out}");
    assert_eq!(files(dir), before);
    let (code, _, err) = run(dir, &["server", "rm", "time"]);
    assert!(code == 1 && err.contains("there is no server `time`"), "{err}");
}

#[test]
fn policies_that_were_edited_or_are_shared_stay_when_a_server_is_removed() {
    let dir = crate::folder();
    let dir = dir.path();
    for name in ["one", "two"] {
        ok(dir, &["add", "--name", name, "--tool", "look", "--client", "ann", "--", "x-server"]);
    }
    let edited = format!("{}// Mine\n", read(dir, "policies/server-one.cedar"));
    write(dir, "policies/server-one.cedar", &edited);
    ok(dir, &["profile", "create", "dev", "--server", "one"]);
    let (code, _, err) = run(dir, &["server", "rm", "one"]);
    assert!(code == 1 && err.contains("the profile `dev` has the server `one`"), "{err}");
    fs::remove_file(dir.join("profiles/dev.toml")).unwrap();
    let out = ok(dir, &["server", "rm", "one"]);
    assert!(out.contains("kept policies/server-one.cedar, which was edited"), "{out}");
    assert_eq!(read(dir, "policies/server-one.cedar"), edited);
    assert!(!dir.join("policies/named-tools-one.cedar").exists());
    assert!(dir.join("policies/connect-client-ann.cedar").exists(), "{out}");
    ok(dir, &["server", "rm", "two"]);
    assert!(!dir.join("policies/connect-client-ann.cedar").exists());
    assert_eq!(config(dir), crate::CONFIG);
}

#[test]
fn server_is_found_by_its_name_in_the_added_catalogs() {
    let dir = gateway();
    let dir = dir.path();
    let (code, _, err) = run(dir, &["add", "far"]);
    assert!(code == 1 && err.contains("catalog add"), "{err}");
    write(dir, "team.yaml", &catalog(&format!("example.com/search:2@{}", digest())));
    let far = json!({ "servers": [{ "name": "com.example/far", "version": "1", "description": "Not here",
        "remotes": [{ "type": "streamable-http", "url": "https://other.example.com/mcp" }] }] });
    write(dir, "registry.json", &far.to_string());
    ok(dir, &["catalog", "add", "team", "team.yaml"]);
    ok(dir, &["catalog", "add", "list", "registry.json"]);
    // The copies are what is searched.
    fs::remove_file(dir.join("team.yaml")).unwrap();
    let found = ok(dir, &["server", "search", "--format", "json", "FAR"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let names: Vec<_> = found.as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["com.example/far", "far"]);
    assert!(ok(dir, &["server", "search", "not", "here"]).contains("com.example/far"));
    assert_eq!(ok(dir, &["server", "search", "nowhere"]), "");
    assert!(ok(dir, &["server", "search"]).contains("search"));

    let (code, _, err) = run(dir, &["add", "serch"]);
    assert!(code == 1 && err.contains("did you mean `search`?"), "{err}");
    ok(dir, &["add", "far", "--name", "near"]);
    ok(dir, &["add", "list/com.example/far"]);
    let servers = &table(dir)["servers"];
    assert_eq!(servers["near"]["url"].as_str(), Some("https://far.example.com/mcp"));
    assert_eq!(servers["far"]["url"].as_str(), Some("https://other.example.com/mcp"));
    ok(dir, &["policy", "test", "policies"]);
    for args in [
        &["add", "team.yaml"][..],
        &["add", "registry.json"],
        &["add", "docker://example.com/x:1"],
        &["add", "image"],
        &["add", "a", "b"],
        &["add"],
        &["add", "far", "--", "x"],
        &["add", "far", "--env", "A=1"],
        &["server", "import", "catalog://team/far"],
    ] {
        let (code, out, err) = run(dir, args);
        assert!(code == 2 || (code == 1 && args[1] != "a"), "{args:?}: {code} {out}{err}");
    }
}

#[test]
fn remote_server_is_added_with_a_reference_for_its_header() {
    let dir = gateway();
    let dir = dir.path();
    let url = "https://mcp.example.com/v1/mcp";
    let out = ok(dir, &["add", url, "--secret", "Authorization=env:EXAMPLE_HEADER"]);
    assert!(
        out.contains("header Authorization  <- env:EXAMPLE_HEADER  -> https://mcp.example"),
        "{out}"
    );
    let server = &table(dir)["servers"]["example"];
    assert_eq!(server["url"].as_str(), Some(url));
    assert_eq!(server["headers"]["Authorization"]["from"].as_str(), Some("env:EXAMPLE_HEADER"));
    let policy = read(dir, "policies/server-example.cedar");
    assert!(policy.contains("\n@id(\"example.secret.Authorization\")"), "{policy}");
    checks(dir);

    let key = secret();
    let (before, in_path) = (config(dir), format!("https://mcp.other.com/s/{key}/mcp"));
    for args in [
        &["add", &*in_path][..],
        &["add", "http://mcp.other.com/mcp"],
        &["add", "https://user:word@mcp.other.com/mcp"],
        &["add", "--name", "x", "--", "server", "--token", &key],
        &["add", "--name", "x", "--", "sh", "-c", "server"],
    ] {
        let (code, out, err) = run(dir, args);
        assert_eq!((code, config(dir)), (1, before.clone()), "{args:?}: {out}{err}");
        assert!(!format!("{out}{err}").contains(&key), "{out}{err}");
        assert!(err.contains("not added"), "{args:?}: {err}");
    }
}

#[test]
fn values_of_an_added_command_are_variables_and_references() {
    let dir = gateway();
    let dir = dir.path();
    let key = secret();
    let token = format!("TOKEN={key}");
    let out = ok(
        dir,
        &[
            "add",
            "--env",
            "LEVEL=info",
            "--env",
            &token,
            "--secret",
            "KEY=env:MY_KEY",
            "--name",
            "x",
            "--",
            "x-server",
        ],
    );
    let server = &table(dir)["servers"]["x"];
    assert_eq!(server["env"]["LEVEL"].as_str(), Some("info"));
    assert_eq!(server["secrets"]["KEY"]["from"].as_str(), Some("env:MY_KEY"));
    assert_eq!(server["secrets"]["TOKEN"]["from"].as_str(), Some("env:MCP_X__TOKEN"));
    for (name, file) in files(dir) {
        assert!(!String::from_utf8_lossy(&file).contains(&key), "{name}");
    }
    assert!(!out.contains(&key), "{out}");
    let policy = read(dir, "policies/server-x.cedar");
    assert!(policy.contains("\n@id(\"x.secret.KEY\")"), "{policy}");
    assert!(policy.contains("\n// @id(\"x.secret.TOKEN\")"), "{policy}");
}

/// The whole way: the policies that `add` writes suffice to use the server, and no more.
#[test]
fn added_server_is_used_with_the_policies_that_were_written() {
    let dir = gateway();
    let dir = dir.path();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    ok(
        dir,
        &[
            "add",
            "--name",
            "notes",
            "--local-user",
            &user,
            "--",
            "portcullis",
            "example-server",
            "notes",
        ],
    );
    let listed = ok(dir, &["tools", "ls", "--format", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let tools = listed["tools"].as_array().unwrap();
    assert!(!tools.is_empty(), "{listed:#}");
    for tool in tools {
        assert_eq!(tool["annotations"]["readOnlyHint"], true, "{tool:#}");
    }
    let (code, _, err) = run(dir, &["tools", "call", "notes__delete_note", r#"{"name": "a"}"#]);
    assert_eq!(code, 10, "{err}");
    ok(dir, &["server", "disable", "notes"]);
    let listed = ok(dir, &["tools", "ls", "--format", "json"]);
    assert!(!listed.contains("notes__"), "{listed}");
    let states = ok(dir, &["server", "ls"]);
    assert!(states.contains("disabled") && states.contains("server enable notes"), "{states}");
    let (code, _, err) = run(dir, &["server", "inspect", "notes"]);
    assert!(code == 1 && err.contains("`portcullis server enable notes`"), "{err}");
    // Policies may name it.
    checks(dir);
    ok(dir, &["server", "enable", "notes"]);
    assert!(ok(dir, &["tools", "ls"]).contains("notes__"));
}

#[test]
fn policy_whose_id_is_in_use_is_not_written() {
    let dir = gateway();
    let dir = dir.path();
    let mine = "@id(\"agents-read-x\")\npermit (principal, action, resource);\n";
    write(dir, "policies/mine.cedar", mine);
    let before = files(dir);
    let (code, _, err) = run(dir, &["add", "--name", "x", "--", "x-server"]);
    assert_eq!((code, files(dir)), (1, before), "{err}");
    assert!(err.contains("policies/mine.cedar has a policy `agents-read-x`"), "{err}");
}

#[test]
fn lock_file_that_cannot_be_changed_prevents_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("policies")).unwrap();
    // Of a later version: it cannot be changed.
    write(dir, "portcullis.lock", "version = 99\n");
    let before = files(dir);
    let (code, _, err) = run(dir, &["add", "--name", "x", "--", "x-server"]);
    assert_eq!((code, files(dir)), (1, before), "{err}");
}

#[test]
fn word_before_a_command_is_the_name_of_the_server() {
    let dir = gateway();
    let dir = dir.path();
    ok(dir, &["add", "clock", "--", "uvx", "mcp-server-time==2026.1.1"]);
    assert!(table(dir)["servers"].get("clock").is_some(), "{}", config(dir));
    for (args, text) in [
        (&["add", "one", "two", "--", "x"] as &[&str], "name one server"),
        (&["add", "one", "--name", "two", "--", "x"], "name one server"),
        (&["add", "a b", "--", "x"], "`a b` is not a legal name"),
    ] {
        let (code, _, err) = run(dir, args);
        assert!(code == 2 && err.contains(text), "{args:?}: {err}");
    }
    // What it wrote is in the common layout.
    let out = ok(dir, &["policy", "fmt", "--check"]);
    assert!(out.contains("nothing to change"), "{out}");
}

#[test]
fn script_of_an_added_command_is_mounted() {
    let dir = gateway();
    let dir = dir.path();
    // Not below /tmp, which is the server's own.
    let tools = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = tools.path().join("server.py");
    fs::write(&script, "").unwrap();
    let script = script.to_str().unwrap();
    let command = ["add", "it", "--", "/usr/bin/python3", script, "/usr/share", "/mcp"];
    let out = ok(dir, &command);
    assert!(out.contains(&format!("deviates: it reads `{script}` of this machine")), "{out}");
    let mounts = json!([format!("{script}:{script}")]);
    assert_eq!(json!(table(dir)["servers"]["it"]["mounts"]), mounts);
    ok(dir, &["policy", "can-i", "--as", "server:it", "launch"]);
}

#[test]
fn removal_names_the_policies_that_stay() {
    let dir = gateway();
    let dir = dir.path();
    ok(dir, &["add", "--permit", "nothing", "time", "--", "x-server"]);
    let new =
        ["policy", "new", "read-only", "--group", "a", "--server", "time", "--dir", "policies"];
    ok(dir, &new);
    let out = ok(dir, &["server", "rm", "time"]);
    assert!(out.contains("kept policies/read-only-time.cedar, which names the server"), "{out}");
    assert!(!out.contains("connect-group-a"), "{out}");
}
