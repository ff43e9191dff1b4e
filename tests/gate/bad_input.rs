//! Invalid input gets one clear error with a position and a remedy, has the right exit code, and
//! leaves no half-started processes.

use serde_json::json;

use crate::support::{
    engine::containers,
    gate::{Setup, Written},
    marked, target,
};

/// What is broken, and what the one who has to mend it must be told.
struct Case {
    name: &'static str,
    written: Written,
    /// All of these stand in what `run` and `check` say.
    says: &'static [&'static str],
}

fn config(name: &'static str, body: &str, says: &'static [&'static str]) -> Case {
    Case { name, written: Setup::new(body).write(), says }
}

fn policy(name: &'static str, text: &str, says: &'static [&'static str]) -> Case {
    Case { name, written: Setup::notes().policies(text).write(), says }
}

#[tokio::test]
async fn invalid_files_prevent_the_start_with_a_position() {
    let broken_plugin = |name, bytes: &[u8], more: &str, says| {
        let entry = format!("[[interceptors]]\nuse = \"plugin\"\npath = \"plugin.wasm\"\n{more}");
        Case { name, written: Setup::notes().and(&entry).file("plugin.wasm", bytes).write(), says }
    };
    let good = std::fs::read(target("plugins/redact-pii.wasm")).unwrap();
    let cases = [
        config("no TOML", "[servers", &["portcullis.toml:6"]),
        config(
            "unknown key",
            "[servers.a]\ncommand = [\"x\"]\nimagee = \"y\"",
            &["portcullis.toml:8", "imagee", "image"],
        ),
        config("wrong type", "[limits]\ndepth = \"deep\"", &["portcullis.toml:7", "depth"]),
        config(
            "two kinds of server",
            "[servers.a]\ncommand = [\"x\"]\nurl = \"http://127.0.0.1:1/\"",
            &["portcullis.toml:8", "url", "command"],
        ),
        config(
            "no kind of server",
            "[servers.a]\ncall-timeout-s = 3",
            &["portcullis.toml:6", "command"],
        ),
        config(
            "illegal name",
            "[servers.\"A b\"]\ncommand = [\"x\"]",
            &["portcullis.toml:6", "A b"],
        ),
        config(
            "illegal image",
            "[servers.a]\nimage = \"not an image@sha256:12\"",
            &["portcullis.toml:7"],
        ),
        config(
            "invalid key hash",
            "[clients.a]\nkey-hash = \"sha256:12\"",
            &["portcullis.toml:7", "key-hash"],
        ),
        config(
            "unknown interceptor",
            "[[interceptors]]\nuse = \"rate-limt\"",
            &["portcullis.toml:7", "rate-limit"],
        ),
        config(
            "rate limit without a window",
            "[[interceptors]]\nuse = \"rate-limit\"\nlimits = [{ calls = 1 }]",
            &["portcullis.toml:8", "window"],
        ),
        policy("policy that does not parse", "permit (principal", &["gate.cedar:1"]),
        policy(
            "policy off the schema",
            "@id(\"a\")\npermit (principal, action, resource)\nwhen { context.nonsense };\n",
            &["gate.cedar", "nonsense"],
        ),
        policy(
            "two policies of one id",
            "@id(\"a\")\npermit (principal, action, resource);\n@id(\"a\")\nforbid (principal, action, resource);\n",
            &["gate.cedar:3", "a"],
        ),
        broken_plugin(
            "no plugin",
            b"not wasm",
            "allow-unpinned = true",
            &["portcullis.toml", "plugin.wasm"],
        ),
        broken_plugin("plugin without a pin", &good, "", &["portcullis.toml", "sha256"]),
        broken_plugin(
            "plugin of another digest",
            &good,
            "sha256 = \"00\"",
            &["portcullis.toml", "sha256"],
        ),
    ];
    let mut wrong = String::new();
    for Case { name, written, says } in cases {
        for (verb, code) in [("check", 11), ("run", 1)] {
            let ended = written.cli(&[verb]).await;
            let said = format!("{}{}", ended.stdout, ended.stderr);
            let unsaid: Vec<_> = says.iter().filter(|words| !said.contains(**words)).collect();
            if ended.code != Some(code) || !unsaid.is_empty() || said.contains("panicked") {
                let code = ended.code;
                wrong.push_str(&format!(
                    "== {name}, {verb}: {code:?}, without {unsaid:?}\n{said}\n"
                ));
            }
        }
        assert!(marked(&written.mark).is_empty(), "{name}");
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn forbidden_mount_is_found_by_check() {
    let written = Setup::crooked("mounts = [\"/etc:/host\"]").write();
    let ended = written.cli(&["check"]).await;
    assert_eq!(ended.code, Some(11), "{ended:#?}");
    assert!(ended.stdout.contains("portcullis.toml:11"), "{ended:#?}");
    let gate = written.start().await;
    let code = gate.modern().refused("crooked__echo", json!({ "text": "x" })).await;
    assert!(["server-unavailable", "unknown-target"].contains(&&code[..]), "{code}");
    gate.stop().await;
}

/// A server that reads the state, reaches the admin socket or writes policies would have the
/// operator's power.
#[tokio::test]
async fn protected_paths_of_the_proxy_are_not_mounted() {
    const BOTH: &[&str] = &["sandbox", "container"];
    for (source, what, tried_in) in [
        (".", "the proxy's config, ", BOTH),
        ("portcullis.toml", "the proxy's config", &[]),
        ("{folder}/../{name}", "the proxy's config, ", &[]),
        ("link", "the proxy's config, ", &[]),
        ("state", "the proxy's state folder", BOTH),
        ("state/known", "the proxy's state folder, ", &[]),
        ("records", "the audit log", &[]),
        ("door", "the operator's socket, ", &[]),
        ("policies", "the policies", &[]),
        ("more/inner", "the policies, ", &[]),
        ("token", "a source file of secrets", &[]),
        ("engine", "docker.sock is inside it", &["sandbox"]),
    ] {
        let engine = match source {
            "engine" => "engine.host = \"unix://{folder}/engine/docker.sock\"\n",
            _ => "",
        };
        let setup = Setup::crooked("secrets.TOKEN.from = \"file:token\"")
            .and(&format!("mounts = [\"{source}:/host\"]"))
            .file("token", "a-token-of-nobody");
        let mut written = setup.write();
        for folder in ["more/inner", "state/known", "records", "door", "engine"] {
            std::fs::create_dir_all(written.path(folder)).unwrap();
        }
        let folder = written.path("").canonicalize().unwrap();
        let name = folder.file_name().unwrap().to_str().unwrap();
        std::os::unix::fs::symlink(&folder, written.path("link")).unwrap();
        let text = format!(
            "policy.paths = [\"policies\", \"more\"]\naudit.dir = \"records\"\n\
             admin.socket = \"door/admin.sock\"\n{engine}{}",
            written.config()
        );
        let text = text.replace("{folder}", folder.to_str().unwrap()).replace("{name}", name);
        written.put(&text);
        let line = text.lines().position(|line| line.starts_with("mounts")).unwrap() + 1;
        let found = written.cli(&["check", "--format", "json"]).await.expect(11);
        let refused = found.as_array().unwrap().iter().find(|one| one["line"] == line);
        let refused = refused.unwrap_or_else(|| panic!("{source}: {found:#}"));
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("may not be mounted"), "{source}: {refused:#}");
        assert!(message.contains(what) && refused["help"].is_string(), "{source}: {refused:#}");
        for runtime in tried_in {
            written.put(&text.replace("\"sandbox\"", &format!("\"{runtime}\"")));
            let mut gate = written.start().await;
            let code = gate.modern().refused("crooked__echo", json!({ "text": "x" })).await;
            assert!(["server-unavailable", "unknown-target"].contains(&&code[..]), "{code}");
            let said = |line: &str| line.contains("may not be mounted") && line.contains(what);
            gate.logged("why", said).await;
            written = gate.stop().await;
        }
    }
}

#[tokio::test]
async fn folder_beside_protected_paths_is_mounted() {
    let setup = Setup::crooked("mounts = [\"./notes:/notes:rw\"]").file("notes/one", "");
    let written = setup.write();
    let ended = written.cli(&["check"]).await;
    assert!(!ended.stdout.contains("mount"), "{ended:#?}");
    let gate = written.start().await;
    gate.modern().text("crooked__echo", json!({ "text": "x" })).await;
    gate.stop().await;
}

#[tokio::test]
async fn missing_config_is_named() {
    let written = Setup::notes().write();
    std::fs::remove_file(written.path("portcullis.toml")).unwrap();
    for verb in ["run", "check"] {
        let ended = written.cli(&[verb]).await;
        assert!(matches!(ended.code, Some(1 | 2 | 11)), "{ended:#?}");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("portcullis.toml"), "{said}");
    }
}

#[tokio::test]
async fn invalid_command_lines_are_usage_errors() {
    let written = Setup::notes().write();
    for args in
        [&["no-such-verb"][..], &["audit", "show"], &["client", "add"], &["run", "--no-such"]]
    {
        let ended = written.cli(args).await;
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:#?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{args:?}: {ended:#?}");
    }
    for args in [&["audit", "show", "nonsense"][..], &["client", "add", "Not A Name"]] {
        let ended = written.cli(args).await;
        assert!(matches!(ended.code, Some(1 | 2)), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains(args[2]), "{args:?}: {ended:#?}");
    }
}

#[tokio::test]
async fn missing_engine_affects_only_servers_that_need_it() {
    let gone = "unix:///nonexistent/docker.sock";
    let mut gate = Setup::notes()
        .and(
            r#"
            [servers.contained]
            command = ["{crooked}"]
            runtime = "container"
            start-timeout-s = 5
            "#,
        )
        .and(&format!("[engine]\nhost = \"{gone}\""))
        .start()
        .await;
    let agent = gate.modern();
    let code = agent.refused("contained__echo", json!({ "text": "x" })).await;
    assert!(["server-unavailable", "unknown-target"].contains(&&code[..]), "{code}");
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    gate.logged("the reason", |line| line.contains("nonexistent")).await;
    let doctor = gate.cli(&["doctor"]).await;
    assert!(format!("{}{}", doctor.stdout, doctor.stderr).contains("nonexistent"), "{doctor:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn command_without_an_engine_runs_in_the_sandbox() {
    let mut gate = Setup::new(
        r#"
        [engine]
        host = "unix:///nonexistent/docker.sock"
        [servers.notes]
        command = ["portcullis", "example-server", "notes"]
        env = { GATE = "{mark}" }
        "#,
    )
    .start()
    .await;
    gate.modern().text("notes__read_note", json!({ "name": "welcome" })).await;
    assert!(!marked(&gate.mark).is_empty());
    gate.logged("the place and the reason", |line| {
        line.contains("sandbox") && line.contains("nonexistent")
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn command_with_an_engine_runs_in_a_container() {
    let gate = Setup::new(
        "[servers.notes]\ncommand = [\"portcullis\", \"example-server\", \"notes\"]\nenv = { GATE = \"{mark}\" }",
    )
    .start()
    .await;
    gate.modern().text("notes__read_note", json!({ "name": "welcome" })).await;
    assert_eq!(containers(&gate.mark).len(), 1);
    let written = gate.stop().await;
    assert!(containers(&written.mark).is_empty());
}

#[tokio::test]
async fn missing_image_and_missing_program_have_different_errors() {
    let digest = "0".repeat(64);
    let mut gate = Setup::notes()
        .and(&format!(
            r#"
            [servers.absent]
            image = "sha256:{digest}"
            start-timeout-s = 10
            [servers.missing]
            command = ["/nonexistent/program"]
            runtime = "sandbox"
            "#
        ))
        .start()
        .await;
    let agent = gate.modern();
    for server in ["absent", "missing"] {
        let code = agent.refused(&format!("{server}__echo"), json!({})).await;
        assert!(["server-unavailable", "unknown-target"].contains(&&code[..]), "{server}: {code}");
    }
    gate.logged("the image", |line| line.contains(&digest)).await;
    gate.logged("the program", |line| line.contains("/nonexistent/program")).await;
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    gate.stop().await;
}

#[tokio::test]
async fn occupied_port_is_reported_and_leaves_nothing() {
    let first = Setup::notes().start().await;
    let written = Setup::notes().write();
    let config = std::fs::read_to_string(written.path("portcullis.toml")).unwrap();
    let taken = config.replace("127.0.0.1:0", &first.addr.to_string());
    std::fs::write(written.path("portcullis.toml"), taken).unwrap();
    let ended = written.cli(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains(&first.addr.to_string()), "{ended:#?}");
    assert!(crate::support::marked(&written.mark).is_empty());
    first.stop().await;
}

#[tokio::test]
async fn second_proxy_on_a_state_folder_is_refused() {
    let first = Setup::notes().start().await;
    let ended = first.cli(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("state"), "{ended:#?}");
    first.modern().text("notes__read_note", json!({ "name": "welcome" })).await;
    first.stop().await;
}

#[tokio::test]
async fn connect_without_a_proxy_is_an_error() {
    let written = Setup::notes().write();
    let ended = written.cli(&["connect"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("portcullis run"), "{ended:#?}");
}
