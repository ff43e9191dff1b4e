//! The command line: exit codes, streams, and secrets that are never shown.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a config.
fn folder(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("portcullis.toml"), config).unwrap();
    fs::create_dir(dir.path().join("policies")).unwrap();
    dir
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("portcullis"));
    command.current_dir(dir).args(args).env_remove("PORTCULLIS_CONFIG").env_remove("NO_COLOR");
    command
}

fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let dir = folder("");
    for args in [
        &[][..],
        &["nonsense"],
        &["client"],
        &["client", "add", "Bad Name"],
        &["check", "--format", "yaml"],
        &["schema", "everything"],
    ] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert!(err.contains("Usage") || err.contains("error"), "{err}");
    }
    for args in [&["--help"][..], &["client", "add", "--help"], &["--version"]] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        assert!(out.contains("ortcullis"));
    }
}

#[test]
fn missing_config_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(dir.path(), &["client", "ls", "-c", "else/where.toml"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("config-unreadable") && err.contains("else/where.toml"), "{err}");
    assert!(err.contains("--config") && err.contains("portcullis init"), "{err}");
    let (code, out, _) = run(dir.path(), &["check", "--format", "json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &found[0]["code"]), (11, &"config-unreadable".into()));
    assert_eq!(found[0]["file"], "portcullis.toml");
}

#[test]
fn check_finds_everything_at_once() {
    let dir = folder("[servers.a]\nimgae = 'x'\n\n[listen]\nhttp = 'x'\n");
    let (code, out, err) = run(dir.path(), &["check"]);
    assert_eq!((code, err.as_str()), (11, ""));
    for part in ["config-unknown-key", "did you mean `image`?", "portcullis.toml:2:1", "2 findings"]
    {
        assert!(out.contains(part), "{part} in {out}");
    }
    let (code, out, err) = run(dir.path(), &["check", "--format", "json"]);
    assert_eq!((code, err.as_str()), (11, ""));
    let found: Value = serde_json::from_str(&out).unwrap();
    let first = &found[0];
    assert_eq!(first["code"], "config-unknown-key");
    assert_eq!(first["severity"], "error");
    assert_eq!(first["file"], "portcullis.toml");
    assert_eq!((first["line"].as_u64(), first["column"].as_u64()), (Some(2), Some(1)));
    assert!(first["help"].as_str().unwrap().contains("did you mean `image`?"));
    assert_eq!(found.as_array().unwrap().len(), 2);
}

#[test]
fn check_reads_files_named_by_the_config() {
    let dir = folder(
        "[servers.a]\ncommand = ['x']\nmounts = ['nowhere:/data']\n\
         [[interceptors]]\nuse = 'plugin'\npath = 'missing.wasm'\nallow-unpinned = true\n\
         [[interceptors]]\nuse = 'rate-limit'\nlimits = []\n\
         [[interceptors]]\nuse = 'secrets'\nrules = { nonsense = 'refuse' }\n\
         [policy]\npaths = ['policies', 'nowhere']\n",
    );
    fs::write(dir.path().join("policies/a.cedar"), "permit(principal, action, resource").unwrap();
    let (code, out, _) = run(dir.path(), &["check", "--format", "json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let places: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["file"].as_str().unwrap_or("-"), one["line"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(code, 11);
    assert!(places.iter().any(|(file, line)| file.ends_with("a.cedar") && *line == 1), "{out}");
    for line in [3, 6, 8, 11, 15] {
        assert!(places.contains(&("portcullis.toml", line)), "{line} in {out}");
    }
}

#[test]
fn check_without_findings_exits_with_0() {
    let dir = folder("");
    let (code, out, _) = run(dir.path(), &["check"]);
    assert_eq!(code, 0, "{out}");
    let (code, out, _) = run(dir.path(), &["check", "--format", "json"]);
    assert_eq!((code, out.trim()), (0, "[]"));
}

#[test]
fn check_finds_servers_without_a_launch_permit() {
    let dir = folder(
        "[servers.local]\ncommand = ['true']\n\
         [servers.local.secrets]\nTOKEN = { from = 'env:TOKEN' }\n\
         [servers.far]\nurl = 'https://a.example/mcp/k'\n",
    );
    let (code, out, _) = run(dir.path(), &["check", "--format", "json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    let found = found.as_array().unwrap();
    assert_eq!((code, found.len()), (11, 2), "{out}");
    let mut policies = String::new();
    for (one, name, permits) in [(&found[0], "local", 2), (&found[1], "far", 2)] {
        assert_eq!(one["code"], "config-not-permitted");
        assert_eq!(one["message"], format!("no policy lets the server `{name}` start"));
        let help = one["help"].as_str().unwrap();
        assert_eq!(help.matches("permit (").count(), permits, "{help}");
        // The path of a URL may be a secret.
        assert!(!help.contains("mcp/k"), "{help}");
        policies.push_str(help.split_once(":\n").unwrap().1);
    }
    // With what it says to paste, it has nothing to say.
    fs::write(dir.path().join("policies/start.cedar"), &policies).unwrap();
    let (code, out, _) = run(dir.path(), &["check"]);
    assert_eq!(code, 0, "{out}{policies}");
    // A permit is found whatever its condition: whether that holds is known at the start alone.
    let bounded = "permit (principal, action in Portcullis::Action::\"from_proxy\", resource)\n\
                   when { resource has digest };\n";
    fs::write(dir.path().join("policies/start.cedar"), bounded).unwrap();
    let (code, out, _) = run(dir.path(), &["check"]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn deviation_without_a_permit_is_found_and_explained() {
    let dir =
        folder("[servers.a]\ncommand = ['true']\nruntime = 'sandbox'\nmounts = ['data:/data']\n");
    let dir = dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    let policy = |condition: &str| {
        let text = format!(
            "@id(\"a.launch\")\npermit (principal == Portcullis::Server::\"a\", action == \
             Portcullis::Action::\"launch\", resource)\nwhen {{ {condition} }};\n"
        );
        fs::write(dir.join("policies/a.cedar"), text).unwrap();
    };
    policy("[\"egress\"].containsAll(resource.deviations)");
    let (code, out, _) = run(dir, &["check", "--format", "json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, found.as_array().unwrap().len()), (11, 1), "{out}");
    assert_eq!(found[0]["message"], "no policy lets the server `a` start with `mounts`");
    assert_eq!((&found[0]["code"], &found[0]["line"]), (&"config-not-permitted".into(), &4.into()));
    let help = found[0]["help"].as_str().unwrap();
    assert!(help.contains("`a.launch` (policies/a.cedar:1)"), "{help}");
    let why =
        "no policy permits it with `mounts`; `a.launch` (policies/a.cedar:1) permits it without";
    for args in
        [&["server", "inspect", "a"] as &[_], &["policy", "can-i", "--as", "server:a", "launch"]]
    {
        let (_, out, err) = run(dir, args);
        assert!(out.contains(why), "{args:?}: {out}{err}");
    }
    let (_, _, err) = run(dir, &["tools", "ls"]);
    assert!(!err.contains("panicked"), "{err}");
    // Whether these hold is known at the start only, or another check has a finding.
    for condition in [
        "[\"mounts\"].containsAll(resource.deviations)",
        "resource has digest && resource.digest == \"sha256:00\"",
    ] {
        policy(condition);
        let (code, out, _) = run(dir, &["check"]);
        assert_eq!(code, 0, "{condition}: {out}");
    }
}

#[test]
fn unknown_server_is_answered_with_the_known_ones() {
    let dir = folder("[servers.one]\ncommand = ['true']\n[servers.two]\ncommand = ['true']\n");
    for (name, text) in [
        ("twoo", "there is no server `twoo`; did you mean `two`?"),
        ("elsewhere", "there is no server `elsewhere`; the config has `one`, `two`"),
    ] {
        let (code, _, err) = run(dir.path(), &["server", "rm", name]);
        assert!(code == 1 && err.contains(text), "{err}");
    }
    let (code, _, err) = run(folder("").path(), &["server", "rm", "one"]);
    assert!(
        code == 1 && err.contains("the config has no servers, and `portcullis add` adds one"),
        "{err}"
    );
}

#[test]
fn client_key_is_the_only_standard_output() {
    let dir = folder(
        "[clients.fixed]\nkey-hash = 'sha256:0000000000000000000000000000000000000000000000000000000000000000'\n",
    );
    let (code, key, err) = run(dir.path(), &["client", "add", "ci", "--group", "ops"]);
    assert_eq!(code, 0, "{err}");
    assert!(key.starts_with("pck_") && key.lines().count() == 1, "one line");
    assert!(!err.contains(key.trim()) && err.contains("Authorization"), "{err}");
    let stored = fs::read_to_string(dir.path().join(".portcullis/clients.toml")).unwrap();
    assert!(!stored.contains(key.trim()) && stored.contains("sha256:"));

    for name in ["ci", "fixed"] {
        let (code, out, err) = run(dir.path(), &["client", "add", name]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(name), "{err}");
    }
    let (code, out, _) = run(dir.path(), &["client", "add", "b", "--format", "json"]);
    let added: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &added["client"]), (0, &"b".into()));
    assert!(added["key"].as_str().unwrap().starts_with("pck_"));

    let (code, out, _) = run(dir.path(), &["client", "ls", "--format", "json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<_> =
        list.as_array().unwrap().iter().map(|one| one["client"].as_str().unwrap()).collect();
    assert_eq!((code, names), (0, vec!["b", "ci", "fixed"]));
    assert_eq!(list[1]["groups"][0], "ops");
    let (_, out, _) = run(dir.path(), &["client", "ls"]);
    assert!(out.contains("NAME") && out.contains("ops") && !out.contains(key.trim()), "{out}");

    assert_eq!(run(dir.path(), &["client", "rm", "ci"]).0, 0);
    let (code, _, err) = run(dir.path(), &["client", "rm", "ci"]);
    assert_eq!(code, 1);
    assert!(err.contains("client `ci` does not exist"), "{err}");
    let (code, _, err) = run(dir.path(), &["client", "rm", "fixed"]);
    assert_eq!(code, 1);
    assert!(err.contains("portcullis.toml:1"), "{err}");
}

#[test]
fn closed_pipe_causes_no_panic() {
    let dir = folder("");
    let mut child = command(dir.path(), &["schema", "config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before anything can be read: the first write fails.
    drop(child.stdout.take());
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn config_schema_is_a_json_schema() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(dir.path(), &["schema", "config"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let schema: Value = serde_json::from_str(&out).unwrap();
    assert!(schema["properties"]["servers"].is_object());
}

/// In the sandbox and in a container: the access of a server with the config lines, and the policy
/// that permits or forbids its launch.
#[test]
fn server_explanation_names_the_config_lines() {
    for runtime in ["sandbox", "container"] {
        let dir = folder(&format!(
            "[servers.notes]\n\
             command = [\"portcullis\", \"example-server\", \"notes\"]\n\
             runtime = \"{runtime}\"\n\
             mounts = [\"data:/data:rw\"]\n\
             egress = [\"api.example.com:443\"]\n\
             secrets = {{ TOKEN = {{ from = \"env:NOBODY_SET_IT\", as = \"file\" }} }}\n\
             resources = {{ tmp-mib = 128, files = 4096 }}\n\
             hardening = {{ exec-tmp = true }}\n"
        ));
        fs::create_dir(dir.path().join("data")).unwrap();
        let policies = "@id(\"starts\")\npermit (principal, action, resource);\n\
             @id(\"no-secrets\")\n@reason(\"not yet\")\n\
             forbid (principal, action == Portcullis::Action::\"deliver_secret\", resource);\n";
        fs::write(dir.path().join("policies/a.cedar"), policies).unwrap();

        let (code, out, err) = run(dir.path(), &["server", "inspect", "notes", "--format", "json"]);
        assert_eq!(code, 0, "{err}");
        let told: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(told["place"], runtime);
        let may = told["may"].as_array().unwrap();
        for (what, key, line) in [
            ("read and change ", "mounts.0", Some(4)),
            ("reach api.example.com:443", "egress.0", Some(5)),
            ("have 4096 files open", "resources.files", Some(7)),
            ("write 128 MiB to /tmp", "hardening.exec-tmp", Some(8)),
            ("use 512 MiB of memory", "resources.memory-mib", None),
        ] {
            let found = may.iter().find(|may| may["what"].as_str().unwrap().starts_with(what));
            let found = found.unwrap_or_else(|| panic!("{what} is not in {told:#}"));
            assert_eq!((found["configKey"].as_str(), found["line"].as_u64()), (Some(key), line));
        }
        let deviations = told["deviations"].as_array().unwrap().iter();
        let mut keys: Vec<_> = deviations
            .map(|one| (one["configKey"].as_str().unwrap(), one["line"].as_u64()))
            .collect();
        keys.sort_unstable();
        let expected = [
            ("egress", Some(5)),
            ("hardening.exec-tmp", Some(8)),
            ("mounts", Some(4)),
            ("resources.files", Some(7)),
            ("resources.tmp-mib", Some(7)),
        ];
        assert_eq!(keys, expected);
        assert_eq!(told["secrets"], serde_json::json!([{ "name": "TOKEN", "as": "file" }]));
        assert_eq!(told["limits"]["tmp-mib"], 128);
        let asked = &told["launch"]["decisions"];
        assert_eq!(told["launch"]["allowed"], false, "{asked:#}");
        assert_eq!((&asked[0]["action"], &asked[0]["allowed"]), (&"launch".into(), &true.into()));
        let rule = &asked[1]["rules"][0];
        assert_eq!((&rule["id"], &rule["reason"]), (&"no-secrets".into(), &"not yet".into()));
        assert_eq!(rule["line"], 3);

        let (code, page, err) = run(dir.path(), &["server", "inspect", "notes"]);
        assert_eq!(code, 0, "{err}");
        for words in [
            "it may:",
            "[egress.0, portcullis.toml:5]",
            "it may not:",
            "reach anything else: its network has no way out but ours, and no DNS",
            "TOKEN (as a file in memory)",
            "policies do NOT let it be started",
            "deliver_secret TOKEN: forbidden by `no-secrets`",
            "(not yet)",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }
}

#[test]
fn server_above_a_ceiling_is_an_error_with_both_lines() {
    let text = "[limits.servers]\nmemory-mib = 256\n[servers.a]\ncommand = [\"a\"]\n\
                resources = { memory-mib = 300 }\n";
    let (code, out, _) = run(folder(text).path(), &["check"]);
    assert_eq!(code, 11, "{out}");
    for part in ["config-above-ceiling", "portcullis.toml:5:", "(line 2)"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

/// `script` and others create terminals of unknown size.
#[test]
fn terminal_without_a_width_gets_whole_lines() {
    let dir = folder("[servers.notes]\ncommand = [\"notes\"]\nruntime = \"sandbox\"\n");
    let shown = on_terminal(0, command(dir.path(), &["server", "ls"]));
    assert!(shown.lines().any(|line| line.starts_with("SERVER  STATE")), "{shown}");
}

/// The MCP clients that `client connect` supports.
const MCP_CLIENTS: [&str; 12] = [
    "claude-code",
    "claude-desktop",
    "vscode",
    "cursor",
    "gemini",
    "continue",
    "codex",
    "goose",
    "zed",
    "windsurf",
    "lmstudio",
    "opencode",
];

/// Runs a command of a user whose home is the folder `home` beside the config.
fn run_at_home(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = command(dir, args);
    command.env("HOME", dir.join("home")).env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn folder_with_home() -> TempDir {
    let dir = folder("");
    fs::create_dir(dir.path().join("home")).unwrap();
    fs::create_dir(dir.path().join("project")).unwrap();
    dir
}

/// Whether a folder has neither files nor folders.
fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn names_of_clients(dir: &Path) -> Vec<String> {
    let (code, out, err) = run_at_home(dir, &["client", "ls", "--format", "json"]);
    assert_eq!(code, 0, "{err}");
    let list: Value = serde_json::from_str(&out).unwrap();
    let names = list.as_array().unwrap().iter().map(|one| one["client"].as_str().unwrap());
    names.map(str::to_owned).collect()
}

#[test]
fn each_mcp_client_is_connected_and_disconnected_without_a_trace() {
    let dir = folder_with_home();
    let (home, connections) = (dir.path().join("home"), dir.path().join(".portcullis/connections"));
    for client in MCP_CLIENTS {
        let connect = ["client", "connect", client, "--yes", "--format", "json"];
        let (code, out, err) = run_at_home(dir.path(), &connect);
        assert_eq!(code, 0, "{client}: {err}");
        let connected: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(connected["written"], true, "{client}");
        let file = Path::new(connected["file"].as_str().unwrap());
        assert!(file.starts_with(&home), "{}", file.display());
        let text = fs::read_to_string(file).unwrap();
        let key_file = connections.join(format!("{client}.key"));
        let key = fs::read_to_string(&key_file).unwrap();
        assert!(key.starts_with("pck_"), "not a key");
        for shown in [&text, &out, &err] {
            assert!(!shown.contains(key.trim()), "{client}: a key is shown");
        }
        for part in ["\"connect\"", "http://127.0.0.1:8811/mcp", key_file.to_str().unwrap()] {
            assert!(text.contains(part), "{client}: {part} is not in {text}");
        }
        assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names_of_clients(dir.path()), [client]);
        // Again: nothing to do.
        let (code, _, err) = run_at_home(dir.path(), &["client", "connect", client, "--yes"]);
        assert_eq!((code, err.contains("connected already")), (0, true), "{client}: {err}");
        assert_eq!(fs::read_to_string(file).unwrap(), text);

        let (code, _, err) = run_at_home(dir.path(), &["client", "disconnect", client, "--yes"]);
        assert_eq!(code, 0, "{client}: {err}");
        assert!(is_empty(&home), "{client}");
        assert!(!connections.exists(), "{client}");
        assert!(names_of_clients(dir.path()).is_empty(), "{client}");
        let (code, _, err) = run_at_home(dir.path(), &["client", "disconnect", client, "--yes"]);
        assert_eq!((code, err.contains("is not connected")), (1, true), "{client}: {err}");
    }
}

#[test]
fn config_file_of_an_mcp_client_keeps_its_bytes() {
    let dir = folder_with_home();
    let project = dir.path().join("project");
    for (client, name, text) in [
        ("claude-code", ".mcp.json", "{\r\n\t// mine\r\n\t\"mcpServers\": {\"a\": {},},\r\n}"),
        ("vscode", ".vscode/mcp.json", "{\"servers\":{}}"),
        ("opencode", "opencode.jsonc", "/* mine */ {\n  \"mcp\": {\n    // none\n  }\n}\n"),
        ("codex", ".codex/config.toml", "# mine\n[mcp_servers.a] # a\ncommand = 'a'"),
    ] {
        let file = project.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let verb = |verb: &str, option: &str| {
            run_at_home(dir.path(), &["client", verb, client, "--project", "project", option])
        };
        let (code, out, err) = verb("connect", "--dry-run");
        assert_eq!(code, 0, "{client}: {err}");
        assert!(out.contains("+ ") && out.contains("--key-file"), "{client}: {out}");
        let (code, _, err) = verb("connect", "--format=text");
        assert_eq!((code, err.contains("`--yes`")), (1, true), "{client}: {err}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert!(names_of_clients(dir.path()).is_empty(), "{client}");

        let (code, _, err) = verb("connect", "--yes");
        assert_eq!(code, 0, "{client}: {err}");
        assert!(fs::read_to_string(&file).unwrap().contains("--key-file"), "{client}");
        assert_eq!(names_of_clients(dir.path()), [format!("{client}-project")]);
        let (code, _, err) = verb("disconnect", "--yes");
        assert_eq!(code, 0, "{client}: {err}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "{client}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(names_of_clients(dir.path()).is_empty(), "{client}");
    }
    // The user's file is not written for a project.
    assert!(is_empty(&dir.path().join("home")));
}

#[test]
fn unusable_config_file_of_an_mcp_client_is_refused() {
    let dir = folder_with_home();
    let file = dir.path().join("mcp.json");
    let text = |text: &str| fs::write(&file, text).unwrap();
    let refused = |args: &[&str], part: &str| {
        let before = fs::read(&file).ok();
        let args: Vec<&str> = ["client"].iter().chain(args).copied().collect();
        let (code, _, err) = run_at_home(dir.path(), &args);
        assert_eq!(code, 1, "{args:?}: {err}");
        assert!(err.contains(part), "{part}: {err}");
        assert_eq!(err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{err}");
        assert_eq!(fs::read(&file).ok(), before, "{args:?}");
        assert!(names_of_clients(dir.path()).is_empty(), "{args:?}");
        assert!(!dir.path().join(".portcullis/connections").exists(), "{args:?}");
    };
    let connect = ["connect", "cursor", "--file", "mcp.json", "--yes"];
    text("{ \"a\": ");
    refused(&connect, "this is not JSON");
    text("[]");
    refused(&connect, "mcp.json:1:1: the file is a list");
    text("{\n  \"mcpServers\": {\n    \"portcullis\": {}\n  }\n}\n");
    refused(&connect, "mcp.json:3:5: there is an entry `portcullis`");
    refused(&["disconnect", "cursor", "--file", "mcp.json", "--yes"], "is not connected");
    text("{}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    refused(&connect, "is not writable");
    fs::remove_file(&file).unwrap();
    fs::write(&file, [0xff, 0xfe]).unwrap();
    refused(&connect, "not text in UTF-8");
    fs::remove_file(&file).unwrap();
    symlink(dir.path().join("missing.json"), &file).unwrap();
    refused(&connect, "is a link to a file that does not exist");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused(&connect, "is not a file");
    refused(
        &["connect", "lmstudio", "--project", "project", "--yes"],
        "no config file of a project",
    );
    refused(&["connect", "cursor", "--project", "nowhere", "--yes"], "not a folder");
    let (code, _, err) = run_at_home(dir.path(), &["client", "connect", "netscape"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("claude-code") && err.contains("opencode"), "{err}");
}

#[test]
fn connection_of_a_removed_client_is_kept_until_it_is_disconnected() {
    let dir = folder_with_home();
    let run = |args: &[&str]| {
        let args: Vec<&str> = ["client"].iter().chain(args).copied().collect();
        run_at_home(dir.path(), &args)
    };
    let done = |args: &[&str]| {
        let (code, _, err) = run(args);
        assert_eq!(code, 0, "{args:?}: {err}");
    };
    let refused = |args: &[&str], part: &str| {
        let (code, _, err) = run(args);
        assert_eq!((code, err.contains(part)), (1, true), "{args:?}: {err}");
    };
    let key_file = dir.path().join(".portcullis/connections/cursor.key");
    done(&["connect", "cursor", "--yes"]);
    let key = fs::read(&key_file).unwrap();
    refused(&["connect", "cursor", "--group", "dev", "--yes"], "to change its options");
    done(&["rm", "cursor"]);
    refused(&["connect", "cursor", "--yes"], "its key is revoked or missing");
    let other = ["connect", "zed", "--name", "cursor", "--yes"];
    refused(&other, "its connection is still there");
    // Another key of that name is not the connection's.
    done(&["add", "cursor"]);
    refused(&["connect", "cursor", "--yes"], "its key is revoked or missing");
    assert_eq!(fs::read(&key_file).unwrap(), key);
    done(&["disconnect", "cursor", "--yes"]);
    assert_eq!(names_of_clients(dir.path()), ["cursor"]);
    assert!(is_empty(&dir.path().join("home")));
    done(&["rm", "cursor"]);

    // Options reach the entry and the client.
    let url = "http://127.0.0.1:9911/mcp";
    let options = ["--name", "mine", "--group", "dev", "--entry", "gate", "--url", url, "--yes"];
    done(&[&["connect", "zed", "--project", "project"][..], &options].concat());
    let text = fs::read_to_string(dir.path().join("project/.zed/settings.json")).unwrap();
    let entry: Value = serde_json::from_str(&text).unwrap();
    let arguments = entry["context_servers"]["gate"]["args"].as_array().unwrap();
    assert!(arguments.contains(&url.into()), "{text}");
    let (_, out, _) = run(&["ls", "--format", "json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&list[0]["client"], &list[0]["groups"]),
        (&"mine".into(), &serde_json::json!(["dev"]))
    );
    // The same folder by another path.
    symlink(dir.path().join("project"), dir.path().join("link")).unwrap();
    done(&["connect", "zed", "--project", "link"]);
    fs::write(dir.path().join("project/.zed/settings.json"), "{").unwrap();
    refused(&["disconnect", "zed", "--project", "link", "--yes"], "`portcullis client rm mine`");
    assert_eq!(names_of_clients(dir.path()), ["mine"]);
    fs::remove_dir_all(dir.path().join("project/.zed")).unwrap();
    done(&["disconnect", "zed", "--project", "link", "--yes"]);
    assert!(names_of_clients(dir.path()).is_empty());
    assert!(is_empty(&dir.path().join("project")));
}

#[test]
fn entry_of_an_mcp_client_in_a_changed_file_is_removed() {
    let dir = folder_with_home();
    let file = dir.path().join("home/.cursor/mcp.json");
    let (code, _, err) = run_at_home(dir.path(), &["client", "connect", "cursor", "--yes"]);
    assert_eq!(code, 0, "{err}");
    // The client writes its file again, with a server more.
    let mut content: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    content["mcpServers"]["other"] = serde_json::json!({ "command": "other" });
    fs::write(&file, content.to_string()).unwrap();
    let (code, _, err) = run_at_home(dir.path(), &["client", "disconnect", "cursor", "--yes"]);
    assert_eq!(code, 0, "{err}");
    let expected = "{\"mcpServers\":{\"other\":{\"command\":\"other\"}}}";
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    assert!(names_of_clients(dir.path()).is_empty());
}

#[test]
fn config_value_is_read_and_set() {
    let text = "# Mine\n[servers.a] # here\ncommand = ['true']\n";
    let dir = folder(text);
    let dir = dir.path();
    let file = dir.join("portcullis.toml");
    let (code, out, _) = run(dir, &["config", "get", "servers.a.call-timeout-s"]);
    assert_eq!((code, out.as_str()), (0, "60\n"));
    let (code, out, err) = run(dir, &["config", "get", "servers.a.image"]);
    assert_eq!((code, out.as_str(), err.contains("is not set")), (1, "", true));
    let (code, _, err) = run(dir, &["config", "get", "servers.a.imgae"]);
    assert_eq!((code, err.contains("did you mean `image`?")), (1, true), "{err}");
    let (code, out, _) = run(dir, &["config", "get", "servers.a.command", "--format", "json"]);
    assert_eq!(
        (code, serde_json::from_str::<Value>(&out).unwrap()),
        (0, serde_json::json!(["true"]))
    );
    for value in ["0", "-1", "fast"] {
        let (code, _, err) = run(dir, &["config", "set", "servers.a.call-timeout-s", value]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("portcullis.toml is not changed"), "{err}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!(run(dir, &["config", "set", "servers.a.call-timeout-s", "90"]).0, 0);
    assert_eq!(run(dir, &["config", "set", "listen.http", "127.0.0.1:8899"]).0, 0);
    let (_, out, _) = run(dir, &["config", "get", "listen.http"]);
    assert_eq!(out, "127.0.0.1:8899\n");
    let now = fs::read_to_string(&file).unwrap();
    assert!(now.starts_with(text) && now.contains("call-timeout-s = 90\n"), "{now}");
    // A config with an error is not changed.
    fs::write(&file, "[listen\n").unwrap();
    let (code, _, err) = run(dir, &["config", "set", "listen.http", "127.0.0.1:1"]);
    assert_eq!((code, err.contains("config-syntax")), (1, true), "{err}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "[listen\n");
}

#[test]
fn status_without_a_proxy_exits_with_1() {
    let dir = folder(
        "[servers.a]\ncommand = ['true']\nruntime = 'sandbox'\n[servers.b]\nurl = 'https://b.example/mcp'\nenabled = false\n",
    );
    let (code, out, err) = run(dir.path(), &["status"]);
    assert_eq!(code, 1, "{err}");
    for part in ["not running; `portcullis run`", "policies  0, revision", "disabled"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, _) = run(dir.path(), &["status", "--format", "json"]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["running"]), (1, &false.into()));
    assert_eq!(status["servers"].as_array().unwrap().len(), 2);
    fs::write(dir.path().join("policies/a.cedar"), "permit(").unwrap();
    let (_, out, _) = run(dir.path(), &["status"]);
    assert!(out.contains("policies  invalid"), "{out}");
}

#[test]
fn completions_name_the_verbs() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = run(dir.path(), &["completions", shell]);
        assert_eq!((code, err.as_str()), (0, ""), "{shell}");
        assert!(out.contains("portcullis") && out.contains("completions"), "{shell}");
    }
    let script = dir.path().join("portcullis.bash");
    fs::write(&script, run(dir.path(), &["completions", "bash"]).1).unwrap();
    assert!(Command::new("bash").arg("-n").arg(script).status().unwrap().success());
}

/// Standard output of a command on a terminal with that many columns.
fn on_terminal(columns: u16, mut command: Command) -> String {
    let size = Winsize { ws_row: columns.min(40), ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let child = command.stdout(Stdio::from(pty.slave)).stderr(Stdio::null()).spawn();
    // It has the terminal, too.
    drop(command);
    let mut shown = Vec::new();
    // The end of the last process on the other side is an error (EIO) here.
    let _ = fs::File::from(pty.master).read_to_end(&mut shown);
    child.unwrap().wait().unwrap();
    String::from_utf8(shown).unwrap()
}

#[test]
fn decisions_and_states_have_colors_on_a_terminal_only() {
    let dir = folder(
        "[servers.b]\nurl = 'https://b.example/mcp'\nenabled = false\n[clients.ann]\n\
         key-hash = 'sha256:0000000000000000000000000000000000000000000000000000000000000000'\n",
    );
    let denied = ["policy", "can-i", "--as", "ann", "initialize"];
    for (args, colored) in [
        (&denied[..], "\u{1b}[31mdenied\u{1b}[0m: no policy"),
        (&["status"], "\u{1b}[31mnot running\u{1b}[0m;"),
        (&["server", "ls"], "mdisabled"),
        (&["doctor"], "\u{1b}[32mok\u{1b}[0m    "),
    ] {
        let shown = on_terminal(200, command(dir.path(), args));
        assert!(shown.contains(colored), "{args:?}: {shown:?}");
        let mut plain = command(dir.path(), args);
        plain.env("NO_COLOR", "1");
        let plain = on_terminal(200, plain);
        assert!(!plain.contains('\u{1b}') && !plain.is_empty(), "{args:?}: {plain:?}");
        let (_, piped, _) = run(dir.path(), args);
        assert!(!piped.contains('\u{1b}'), "{args:?}: {piped:?}");
    }
}

#[test]
fn backup_is_queried_by_its_folder() {
    let dir = folder("");
    let dir = dir.path();
    assert_eq!(run(dir, &["client", "add", "ci"]).0, 0);
    let (code, _, err) = run(dir, &["audit", "backup", "copy"]);
    assert_eq!(code, 0, "{err}");
    fs::remove_dir_all(dir.join(".portcullis/audit")).unwrap();
    for args in [&["query"][..], &["tail"], &["stats"], &["verify"], &["export"]] {
        let args = [&["audit"], args, &["--store", "copy"]].concat();
        let (code, out, err) = run(dir, &args);
        assert_eq!(code, 0, "{args:?}: {err}");
        assert!(!out.is_empty(), "{args:?}");
    }
    let (_, out, _) = run(dir, &["audit", "query", "--store", "copy"]);
    assert!(out.contains("ci"), "{out}");
    let (code, _, err) = run(dir, &["audit", "query", "--store", "copy", "--state-dir", "x"]);
    assert_eq!((code, err.contains("cannot be used with")), (2, true), "{err}");
}

#[test]
fn empty_list_of_tools_names_the_missing_policy() {
    let dir = folder(
        "[servers.notes]\ncommand = ['portcullis', 'example-server', 'notes']\nruntime = 'sandbox'\n",
    );
    let dir = dir.path();
    let policies = |text: &str| fs::write(dir.join("policies/a.cedar"), text).unwrap();
    let connects = "permit (principal, action == Portcullis::Action::\"connect\", resource);\n\
                    permit (principal, action == Portcullis::Action::\"launch\", resource)\n\
                    when { resource.deviations.isEmpty() };\n";
    let (code, _, err) = run(dir, &["tools", "ls"]);
    assert_eq!(code, 10, "{err}");
    assert!(err.contains("You act as the local user `"), "{err}");
    assert!(err.contains("policy new read-only --local-user "), "{err}");
    policies(connects);
    let (code, _, err) = run(dir, &["tools", "ls"]);
    assert_eq!(code, 0, "{err}");
    for part in [
        "Policies permit the local user `",
        "server tools notes",
        "policy new read-only --local-user ",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    policies(&format!(
        "{connects}permit (principal, action == Portcullis::Action::\"call_tool\", resource);\n"
    ));
    let (code, out, err) = run(dir, &["tools", "ls", "--short"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.lines().any(|line| line == "notes__add_note"), "{out}");
    fs::write(dir.join("portcullis.toml"), "").unwrap();
    let (_, _, err) = run(dir, &["tools", "ls"]);
    assert!(err.contains("`portcullis add`"), "{err}");
}

#[test]
fn list_without_a_proxy_shows_why_a_server_failed() {
    let dir = folder(
        "[servers.bad]\ncommand = ['sh', '-c', 'echo no license >&2; exit 3']\nruntime = 'sandbox'\n",
    );
    let dir = dir.path();
    fs::write(dir.join("policies/a.cedar"), "permit (principal, action, resource);").unwrap();
    let (code, _, err) = run(dir, &["tools", "ls"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("bad: no license"), "{err}");
    assert!(err.contains("the tools of server `bad` are missing: "), "{err}");
    // A pipe that nobody reads is the end of the server, and no error of its own.
    assert!(!err.contains("Broken pipe"), "{err}");
}

#[test]
fn export_into_an_existing_file_is_refused_with_a_remedy() {
    let dir = folder("");
    let (code, ..) = run(dir.path(), &["tools", "ls"]);
    assert_eq!(code, 10);
    fs::write(dir.path().join("out.csv"), "mine").unwrap();
    let (code, _, err) = run(dir.path(), &["audit", "export", "--output", "out.csv"]);
    assert!(code == 1 && err.contains("out.csv exists already: name another file"), "{err}");
    assert_eq!(fs::read(dir.path().join("out.csv")).unwrap(), b"mine");
}

#[test]
fn call_whose_server_may_not_start_is_recorded_with_server_and_tool() {
    let dir = folder(
        "[servers.notes]\ncommand = ['portcullis', 'example-server', 'notes']\nruntime = 'sandbox'\n",
    );
    let dir = dir.path();
    let calls = "permit (principal, action in [Portcullis::Action::\"connect\", Portcullis::Action::\"use\"], resource);";
    fs::write(dir.join("policies/a.cedar"), calls).unwrap();
    let (code, _, err) = run(dir, &["tools", "call", "notes__add_note", "{\"text\": \"/etc/x\"}"]);
    assert_eq!(code, 10, "{err}");
    let query = ["audit", "query", "method = tools/call", "--group", "server,tool,code"];
    let (_, out, _) = run(dir, &query);
    assert!(out.contains("notes   add_note  policy-denied"), "{out}");
    // Nothing was kept, and an empty answer says so.
    let (code, _, err) = run(dir, &["audit", "query", "arguments contains \"/etc\""]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("only where a policy has `@keep`"), "{err}");
}

#[test]
fn missing_engine_is_reported_once_for_an_image() {
    let image = format!("a.example/b@sha256:{}", "0".repeat(64));
    let dir = folder(&format!(
        "[engine]\nhost = 'unix:///nowhere.sock'\n[servers.a]\nimage = '{image}'\n"
    ));
    let dir = dir.path();
    fs::write(dir.join("policies/a.cedar"), "permit (principal, action, resource);").unwrap();
    let (code, out, err) = run(dir, &["run", "--dry-run"]);
    let line = err.lines().rfind(|line| line.starts_with("server `a`: ")).unwrap();
    assert_eq!((code, line.matches("no container engine answers").count()), (1, 1), "{out}{err}");
    // A sandbox cannot run an image.
    assert!(!err.contains("runtime = \"sandbox\""), "{err}");
}

#[test]
fn port_in_use_is_an_error_with_a_command() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = folder(&format!("[listen]\nhttp = '{address}'\n"));
    let (code, _, err) = run(dir.path(), &["run"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&format!("cannot listen on {address}")), "{err}");
    assert!(err.contains("portcullis config set listen.http HOST:PORT"), "{err}");
}

/// The processes with this path among their arguments that run the proxy.
fn proxies_of(config: &Path) -> Vec<i32> {
    let config = config.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&config.as_bytes()) && words.get(1) == Some(&&b"run"[..])
    };
    pids.filter(runs).collect()
}

#[test]
fn clients_without_a_proxy_start_one_and_share_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = folder(&format!(
        "[listen]\nhttp = '127.0.0.1:{port}'\n[servers.notes]\ncommand = ['portcullis', \
         'example-server', 'notes']\nruntime = 'sandbox'\n"
    ));
    let dir = dir.path();
    fs::write(dir.join("policies/a.cedar"), "permit (principal, action, resource);").unwrap();
    let connect = ["client", "connect", "claude-code", "--file", "client.json", "--yes"];
    let (code, _, err) = run_at_home(dir, &connect);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("It starts the proxy in the background if none runs."), "{err}");
    let (code, _, err) = run(dir, &["stop"]);
    assert!(code == 1 && err.contains("no proxy runs with this config"), "{err}");
    let file = fs::read(dir.join("client.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let entry = &file["mcpServers"]["portcullis"];
    let arguments: Vec<_> =
        entry["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let client = || {
        let mut command = Command::new(entry["command"].as_str().unwrap());
        // A client starts its servers anywhere.
        command.args(&arguments).current_dir("/").env_remove("PORTCULLIS_CONFIG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let hello = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":\
                     {\"protocolVersion\":\"2025-11-25\",\"capabilities\":{},\"clientInfo\":\
                     {\"name\":\"c\",\"version\":\"1\"}}}\n";
        child.stdin.take().unwrap().write_all(hello.as_bytes()).unwrap();
        child
    };
    let clients = [client(), client()];
    let answers = clients.map(|child| child.wait_with_output().unwrap());
    let proxies = proxies_of(&dir.join("portcullis.toml"));
    let after = client().wait_with_output().unwrap();
    let (code, _, err) = run(dir, &["stop"]);
    let left = proxies_of(&dir.join("portcullis.toml"));
    for pid in &left {
        kill(Pid::from_raw(*pid), Signal::SIGTERM).unwrap();
    }
    assert!(code == 0 && err.contains("The proxy has stopped."), "{err}");
    assert!(left.is_empty(), "{left:?}");
    let (_, records, _) = run(dir, &["audit", "query", "kind = event", "--format", "json"]);
    assert!(records.contains("/v1/stop"), "{records}");
    for output in answers.iter().chain([&after]) {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\"serverInfo\""), "{output:?}");
    }
    assert_eq!(proxies.len(), 1, "{proxies:?}");
    let log = fs::read_to_string(dir.join(".portcullis/background.log")).unwrap();
    assert!(log.contains("portcullis listens on"), "{log}");
}

/// The commands of the first console block behind a heading of a page.
fn commands_of(page: &str, heading: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
    let text = fs::read_to_string(page).unwrap();
    let section = text.split(heading).nth(1).unwrap();
    let block = section.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(|line| line.strip_prefix("$ ").unwrap().to_owned()).collect()
}

/// The first steps of the docs, with a server that needs no network.
#[test]
fn first_steps_of_the_docs_lead_to_a_recorded_call() {
    let single = commands_of("docs/start/quickstart.md", "The same in single steps:");
    let one = commands_of("README.md", "## Your own gateway");
    assert_eq!((one.len(), single.len()), (1, 3));
    assert_eq!(commands_of("docs/start/quickstart.md", "# Quickstart"), one);
    for commands in [one, single] {
        let home = folder_with_home();
        let dir = home.path().join("empty");
        fs::create_dir(&dir).unwrap();
        let server = "--name notes -- portcullis example-server notes";
        let script = commands.join("\n").replace("-- uvx mcp-server-time", server);
        assert!(script.contains(server), "{script}");
        let script = format!("set -e\nportcullis() {{ \"$PORTCULLIS\" \"$@\"; }}\n{script}\npwd\n")
            .replace("portcullis add", "portcullis add --yes")
            .replace("client connect claude-code", "client connect claude-code --yes");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(&dir).env_remove("PORTCULLIS_CONFIG");
        shell.env("PORTCULLIS", assert_cmd::cargo::cargo_bin!("portcullis"));
        shell.env("HOME", home.path()).env_remove("XDG_CONFIG_HOME");
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{script}{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let gateway = std::path::PathBuf::from(text.lines().last().unwrap());
        assert!(gateway.join(".gitignore").exists() && gateway.starts_with(&dir), "{text}");

        // Other tests use the usual port.
        let client = home.path().join(".claude.json");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = fs::read_to_string(&client).unwrap().replace(":8811/", &format!(":{port}/"));
        let address = format!("127.0.0.1:{port}");
        let (code, _, err) = run(&gateway, &["config", "set", "listen.http", &address]);
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = run(&gateway, &["config", "set", "servers.notes.runtime", "sandbox"]);
        assert_eq!(code, 0, "{err}");
        let client: Value = serde_json::from_str(&text).unwrap();
        let entry = &client["mcpServers"]["portcullis"];
        let words = entry["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let mut child = Command::new(entry["command"].as_str().unwrap())
            .args(words)
            .current_dir("/")
            .env_remove("PORTCULLIS_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let messages = [
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"notes__list_notes","arguments":{}}}"#,
        ];
        let mut input = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
        for message in messages {
            writeln!(input, "{message}").unwrap();
            if message.contains("\"id\"") {
                let answer = answers.next().unwrap().unwrap();
                assert!(answer.contains("\"result\""), "{answer}");
                assert!(!answer.contains("\"isError\":true"), "{answer}");
            }
        }
        drop(input);
        assert!(child.wait().unwrap().success());
        let query = ["audit", "query", "client = claude-code and decision = allowed", "--count"];
        let (code, count, err) = run(&gateway, &[&query[..], &["--method", "tools/call"]].concat());
        let (stopped, _, problem) = run(&gateway, &["stop"]);
        assert_eq!((code, count.trim(), stopped), (0, "1", 0), "{err}{problem}");
    }
}
