//! Foreign catalogs, imports and profiles: the real binary, a folder, and a real registry.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod adding;
mod image;
mod local_image;
#[path = "../../src/oci/tests/support/mod.rs"]
mod registry;
mod registry_pages;
mod replacing;
mod secret_confirmation;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use registry::{Door, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a config that has a comment of its own.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("portcullis.toml"), CONFIG).unwrap();
    fs::create_dir(dir.path().join("policies")).unwrap();
    dir
}

const CONFIG: &str = "# Mine\n[servers.notes]\ncommand = [\"notes-server\"] # as it was\n";

/// The program, in a folder with a config.
fn portcullis(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("portcullis"));
    command.current_dir(dir).args(args).env_remove("PORTCULLIS_CONFIG").env("DOCKER_CONFIG", dir);
    command
}

/// Runs it as it is, without a terminal.
fn bare(dir: &Path, args: &[&str]) -> (i32, String, String) {
    ended(portcullis(dir, args))
}

fn ended(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs it as a script does: what takes servers is confirmed, which permits no secret.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let takes = [&["add"][..], &["server", "import"], &["profile", "import"], &["profile", "pull"]];
    match takes.iter().find(|verb| args.starts_with(verb)) {
        // Before the command of an added server.
        Some(verb) => bare(dir, &[*verb, &["--yes"], &args[verb.len()..]].concat()),
        None => bare(dir, args),
    }
}

/// Runs what must succeed, and hands back what it printed.
fn ok(dir: &Path, args: &[&str]) -> String {
    let (code, out, err) = run(dir, args);
    assert_eq!(code, 0, "{args:?}\n{out}\n{err}");
    out
}

/// What stands in the config passes `check`, which may only say that a server lacks a permit to start (the
/// operator's own has no policy here, and a secret that nobody confirmed has none), and that the group of
/// clients that `add` permits has no client yet.
fn checks(dir: &Path) {
    let (_, out, err) = run(dir, &["check", "--format", "json"]);
    let found: Vec<Value> = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let may = ["config-not-permitted", "policy-empty-group"].map(Value::from);
    let other: Vec<&Value> = found.iter().filter(|one| !may.contains(&one["code"])).collect();
    assert!(other.is_empty(), "{other:#?}{err}\n{}", config(dir));
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn config(dir: &Path) -> String {
    read(dir, "portcullis.toml")
}

fn table(dir: &Path) -> toml::Table {
    config(dir).parse().unwrap()
}

/// A secret, put together here so that it stands in no file.
fn secret() -> String {
    ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat()
}

fn digest() -> String {
    format!("sha256:{}", "0123456789abcdef".repeat(4))
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

fn catalog(image: &str) -> String {
    format!(
        "name: team\ndisplayName: Team\nregistry:\n  search:\n    type: server\n    title: Search\n    \
         image: {image}\n    allowHosts: [api.example.com:443]\n    secrets: [{{name: search.key, env: SEARCH_KEY}}]\n    \
         env: [{{name: LIMIT, value: '{{{{search.limit}}}}'}}]\n    volumes: ['{{{{search.data}}}}:/data']\n    \
         config: [{{name: search, description: d, type: object, properties: {{limit: {{type: integer}}, data: {{type: string}}}}, required: [limit, data]}}]\n    \
         tools: [{{name: find}}, {{name: erase}}]\n  far:\n    type: remote\n    remote: {{url: 'https://far.example.com/mcp', transport_type: sse}}\n"
    )
}

#[test]
fn client_file_is_imported_without_its_secrets() {
    let dir = folder();
    let dir = dir.path();
    fs::create_dir(dir.join("box")).unwrap();
    let text = json!({ "mcpServers": {
        "Local One": { "command": "local-server", "args": ["--stdio"], "env": { "API_KEY": secret(), "LEVEL": "info" } },
        "boxed": { "command": "docker", "args": ["run", "-i", "--rm", "-e", "TOKEN", "-v", format!("{}:/box", dir.join("box").display()),
            format!("example.com/boxed@{}", digest())], "env": { "TOKEN": secret() } },
        "far": { "url": "https://far.example.com/mcp", "headers": { "Authorization": format!("Bearer {}", secret()) } },
        "packed": { "command": "npx", "args": ["-y", "@scope/pkg@1.2.3"] },
        "leaky": { "command": "x", "args": ["--token", secret()] },
        "notes": { "command": "another" },
    } });
    write(dir, "claude.json", &text.to_string());
    let (code, out, err) = run(dir, &["server", "import", "claude.json"]);
    assert_eq!(code, 11, "two were not taken\n{out}{err}");
    assert!(err.contains("`leaky`") && err.contains("`notes`"), "{err}");
    for shown in [&out, &err, &config(dir), &read(dir, "portcullis.lock")] {
        assert!(!shown.contains(&secret()), "a secret is in\n{shown}");
    }
    let made = table(dir);
    let servers = &made["servers"];
    assert_eq!(servers["local-one"]["command"][1].as_str(), Some("--stdio"));
    assert_eq!(servers["local-one"]["env"]["LEVEL"].as_str(), Some("info"));
    // Each has a variable of the server's own.
    assert_eq!(
        servers["local-one"]["secrets"]["API_KEY"]["from"].as_str(),
        Some("env:MCP_LOCAL_ONE__API_KEY")
    );
    assert_eq!(servers["boxed"]["secrets"]["TOKEN"]["from"].as_str(), Some("env:MCP_BOXED__TOKEN"));
    assert_eq!(
        servers["far"]["headers"]["Authorization"]["from"].as_str(),
        Some("env:MCP_FAR__AUTHORIZATION")
    );
    assert_eq!(servers["packed"]["command"][1].as_str(), Some("--yes"));
    assert!(config(dir).starts_with(CONFIG.trim_end()), "what was there changed:\n{}", config(dir));
    checks(dir);

    // What was taken may be started, and nobody may call it.
    let policies = read(dir, "policies/server-boxed.cedar");
    assert!(
        policies.contains(&digest()) && policies.contains("// @id(\"boxed.secret.TOKEN\")"),
        "{policies}"
    );
    let (code, ..) = run(dir, &["policy", "can-i", "--as", "group:any", "tools/call", "boxed/x"]);
    assert_eq!(code, 10);

    // Again: nothing is overwritten.
    let before = config(dir);
    let (code, _, err) = run(dir, &["server", "import", "claude.json", "--only", "far"]);
    assert_eq!((code, config(dir)), (1, before.clone()), "{err}");
    assert!(err.contains("a server named \"far\" already exists"), "{err}");
    ok(dir, &["server", "import", "claude.json", "--only", "far", "--replace"]);
    assert_eq!(config(dir), before);
    checks(dir);
}

/// Local paths and users of a foreign file are omitted, and its access is reported.
#[test]
fn foreign_server_gets_no_local_access() {
    let dir = folder();
    let dir = dir.path();
    fs::create_dir(dir.join("mine")).unwrap();
    let mine = dir.join("mine").display().to_string();
    let image = format!("example.com/helper@{}", digest());
    write(
        dir,
        "team.yaml",
        &format!(
            "name: team\nregistry:\n  helper:\n    type: server\n    image: {image}\n    \
             allowHosts: ['169.254.169.254:80', '127.0.0.1:2375', 'localhost:9', '10.0.0.1:443', api.example.com]\n    \
             volumes: ['{{{{helper.dir}}}}:/a:rw', '{{{{helper.none|or:/srv/backups}}}}:/b:rw', '{{{{helper.data}}}}:/c', \
             '/srv/shared:/d']\n    config: [{{name: helper, type: object, properties: {{dir: {{type: string, default: \
             /srv/payroll}}, data: {{type: string}}}}}}]\n  near:\n    type: remote\n    remote: {{url: \
             'http://localhost:2375/mcp'}}\n"
        ),
    );
    let set = format!("helper.data={mine}");
    let (code, out, err) = run(dir, &["server", "import", "team.yaml", "--set", &set]);
    assert_eq!(code, 11, "{out}{err}");
    assert!(err.contains("`near`") && err.contains("a network around it"), "{err}");
    let helper = &table(dir)["servers"]["helper"];
    assert_eq!(helper["egress"], toml::Value::from(vec!["api.example.com:443"]));
    assert_eq!(helper["mounts"], toml::Value::from(vec![format!("{mine}:/c")]));
    let policy = read(dir, "policies/server-helper.cedar");
    for host in ["169.254.169.254", "127.0.0.1", "localhost", "10.0.0.1"] {
        assert!(!policy.contains(host), "{policy}");
        assert!(out.lines().any(|line| line.contains("left out") && line.contains(host)), "{out}");
    }
    for folder in ["/srv/payroll:/a", "/srv/backups:/b", "/srv/shared:/d"] {
        assert!(
            out.lines().any(|line| line.contains("left out") && line.contains(folder)),
            "{out}"
        );
    }
    for deviation in ["it reaches `api.example.com:443`", &format!("it reads `{mine}`")] {
        assert!(
            out.lines().any(|line| line.contains("deviates") && line.contains(deviation)),
            "{out}"
        );
    }
    checks(dir);

    let positional = |value: &str| json!({ "type": "positional", "value": value });
    let arguments =
        ["-v", "/srv/payroll:/a:rw", "-u", "1000:1000", "--network", "host", "--privileged"];
    let text = json!({ "name": "com.example/mapper", "version": "1", "packages": [{
        "registryType": "oci", "identifier": image, "transport": { "type": "stdio" },
        "runtimeArguments": arguments.map(positional),
    }] });
    write(dir, "server.json", &text.to_string());
    let out = ok(dir, &["server", "import", "server.json"]);
    let mapper = &table(dir)["servers"]["mapper"];
    assert!(mapper.get("mounts").is_none() && mapper.get("hardening").is_none(), "{mapper}");
    for left_out in ["/srv/payroll:/a", "`1000:1000`", "`host`", "--privileged"] {
        assert!(
            out.lines().any(|line| line.contains("left out") && line.contains(left_out)),
            "{out}"
        );
    }
    let policy = read(dir, "policies/server-mapper.cedar");
    assert!(policy.contains("resource.deviations.isEmpty()"), "{policy}");
    checks(dir);
}

/// An operator may allow this access, and gets a warning that names it.
#[test]
fn access_to_local_services_causes_a_warning() {
    let dir = folder();
    let dir = dir.path();
    let key = secret();
    let hosts = [
        ("http://169.254.169.254:80", true),
        ("meta.example:443=fd00:ec2::254", true),
        ("tcp://127.0.0.1:2375", true),
        ("tcp://[::1]:2375", true),
        ("tcp://127.0.0.1:5432=127.0.0.1", false),
        ("db.example:443=10.0.0.5", false),
        ("tcp://10.0.0.5:5432", false),
    ];
    let list: Vec<String> = hosts.iter().map(|(host, _)| format!("  \"{host}\",\n")).collect();
    let text = format!(
        "[servers.a]\nurl = \"https://mcp.example.com/s/{key}/mcp\"\n[servers.b]\ncommand = [\"b\"]\negress = [\n{}]\n",
        list.concat()
    );
    write(dir, "portcullis.toml", &text);
    let (code, out, err) = run(dir, &["check", "--format", "json"]);
    assert_eq!(code, 11, "{out}{err}");
    assert!(!format!("{out}{err}").contains(&key), "{out}{err}");
    let (_, shown, err) = run(dir, &["check"]);
    assert!(shown.contains("https://mcp.example.com/s/") && !shown.contains(&key), "{shown}{err}");
    let found: Vec<Value> = serde_json::from_str(&out).unwrap();
    let lines = |code: &str| -> Vec<u64> {
        found
            .iter()
            .filter(|one| one["code"] == code)
            .filter_map(|one| one["line"].as_u64())
            .collect()
    };
    assert_eq!(lines("config-literal-secret"), [2], "{out}");
    let warned = (6..).zip(hosts).filter(|(_, (_, warned))| *warned).map(|(line, _)| line);
    assert_eq!(lines("config-unsafe"), warned.collect::<Vec<u64>>(), "{out}");
}

/// URLs of hosted servers can contain a key in the path.
#[test]
fn secret_in_a_url_path_is_not_imported() {
    let dir = folder();
    let dir = dir.path();
    let key = secret();
    let text = json!({ "mcpServers": {
        "a": { "url": format!("https://mcp.example.com/s/{key}/mcp") },
        "b": { "url": format!("https://mcp.example.com/a/1/sk-{}/mcp", &key[..8]) },
        "c": { "command": "npx", "args": ["mcp-remote@1.0.0", format!("https://mcp.example.com/s/{key}")] },
        "d": { "url": "https://mcp.example.com/v1/teams/my-team-2026/mcp" },
    } });
    write(dir, "claude.json", &text.to_string());
    let (code, out, err) = run(dir, &["server", "import", "claude.json"]);
    assert_eq!(code, 11, "{out}{err}");
    assert_eq!(err.matches("this URL holds a secret").count(), 3, "{err}");
    for shown in [&out, &err, &config(dir), &read(dir, "portcullis.lock")] {
        assert!(!shown.contains(&key[..8]), "a secret is in\n{shown}");
    }
    assert!(table(dir)["servers"].get("d").is_some());
    checks(dir);
}

#[test]
fn dry_run_writes_nothing() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.json", r#"{"mcpServers": {"x": {"command": "x"}}}"#);
    let out = ok(dir, &["server", "import", "x.json", "--dry-run", "--format", "json"]);
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&said["written"], &said["added"][0]["server"]["name"]),
        (&json!(false), &json!("x"))
    );
    assert_eq!(config(dir), CONFIG);
    assert!(!dir.join("portcullis.lock").exists());
}

#[test]
fn added_catalog_is_stored_unchanged() {
    let dir = folder();
    let dir = dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    let data = dir.join("data").display().to_string();
    write(dir, "team.yaml", &catalog(&format!("example.com/search:2@{}", digest())));
    ok(dir, &["catalog", "add", "team", "team.yaml"]);
    assert!(ok(dir, &["catalog", "ls"]).contains("team.yaml"));
    assert!(ok(dir, &["catalog", "show", "team"]).contains("https://far.example.com/mcp"));
    // The file may go; what was added is what counts.
    write(dir, "team.yaml", "registry: {}");
    let (code, _, err) = run(dir, &["add", "catalog://team/search"]);
    assert_eq!(code, 1);
    assert!(err.contains("--set"), "{err}");
    let (code, _, err) = run(dir, &["add", "catalog://team/serch"]);
    assert!(code == 1 && err.contains("did you mean `search`?"), "{err}");
    let set = format!("data={data}");
    let out = ok(
        dir,
        &[
            "add",
            "catalog://team/search",
            "--set",
            "limit=3",
            "--set",
            &set,
            "--secret",
            "SEARCH_KEY=env:MINE",
        ],
    );
    assert!(out.contains("env:MINE"), "{out}");
    ok(dir, &["add", "catalog://team/far", "--name", "away"]);
    let made = table(dir);
    assert_eq!(made["servers"]["search"]["env"]["LIMIT"].as_str(), Some("3"));
    assert_eq!(made["servers"]["search"]["mounts"][0].as_str(), Some(&*format!("{data}:/data")));
    assert_eq!(made["servers"]["search"]["egress"][0].as_str(), Some("api.example.com:443"));
    assert!(read(dir, "policies/server-search.cedar").contains("api.example.com"));
    assert_eq!(made["servers"]["away"]["transport"].as_str(), Some("sse"));
    checks(dir);
    let lock: toml::Table = read(dir, "portcullis.lock").parse().unwrap();
    assert_eq!(lock["servers"]["search"]["image-digest"].as_str(), Some(&*digest()));
    assert_eq!(lock["servers"]["search"]["source"].as_str(), Some("team.yaml"));

    // An image that was pinned is the one that runs.
    let text = config(dir).replace(&digest(), &format!("sha256:{}", "f".repeat(64)));
    write(dir, "portcullis.toml", &text);
    let (code, out, _) = run(dir, &["check", "--format", "json"]);
    assert!(code == 11 && out.contains("in the lock file"), "{out}");
    let (code, _, err) = run(dir, &["run", "--dry-run"]);
    assert!(
        code == 1 && err.contains("config-conflict") && err.contains("server lock search"),
        "{err}"
    );

    // A copy that somebody changed is not used.
    let copies = dir.join(".portcullis/catalogs");
    for entry in fs::read_dir(&copies).unwrap() {
        fs::write(entry.unwrap().path(), catalog("example.com/evil:1")).unwrap();
    }
    let (code, _, err) = run(dir, &["catalog", "show", "team"]);
    assert!(code == 1 && err.contains("was changed"), "{err}");
    ok(dir, &["catalog", "rm", "team"]);
    assert_eq!(fs::read_dir(&copies).unwrap().count(), 0);
}

#[test]
fn errors_have_positions() {
    let dir = folder();
    let dir = dir.path();
    write(
        dir,
        "bad.yaml",
        "registry:\n  a:\n    type: server\n    image: x\n  a:\n    type: server\n",
    );
    let (code, _, err) = run(dir, &["server", "import", "bad.yaml"]);
    assert!(code == 1 && err.contains("bad.yaml:5:3") && err.contains("stands twice"), "{err}");
    write(dir, "bad.yaml", "registry:\n  a:\n    type: server\n    image: --privileged\n");
    let (code, _, err) = run(dir, &["server", "import", "bad.yaml"]);
    assert!(code == 1 && err.contains("bad.yaml:4:12"), "{err}");
    let (code, _, err) = run(dir, &["server", "import", "ftp://x/y"]);
    assert_eq!(code, 2, "{err}");
    let (code, _, err) = run(dir, &["add", "ftp://x/y"]);
    assert!(code == 2 && err.contains("`portcullis server import`"), "{err}");
    let (code, _, err) =
        run(dir, &["server", "import", "bad.yaml", "--secret", &format!("K={}", secret())]);
    assert!(code == 2 && !err.contains(&secret()), "{err}");
    assert_eq!(config(dir), CONFIG);
}

#[test]
fn catalogs_are_pushed_and_pulled_with_locked_tags() {
    let registry = Registry::start(&Door::default());
    let here = registry.host();
    let dir = folder();
    let dir = dir.path();
    let pushed = image::image(&here, "search", "2");
    fs::create_dir(dir.join("data")).unwrap();
    write(dir, "team.yaml", &catalog(&format!("{here}/search:2")));
    ok(dir, &["catalog", "add", "team", "team.yaml"]);
    let artifact = format!("{here}/catalogs/team:1");
    let out = ok(dir, &["catalog", "push", "team", &artifact]);
    assert!(out.contains("@sha256:"), "{out}");

    // Elsewhere, by its name in the registry or pulled before.
    let other = folder();
    let other = other.path();
    let set = format!("data={}", dir.join("data").display());
    let reference = format!("catalog://{artifact}/search");
    ok(other, &["add", &reference, "--set", "limit=1", "--set", &set]);
    let image = table(other)["servers"]["search"]["image"].as_str().unwrap().to_owned();
    assert_eq!(image, format!("{here}/search:2@{pushed}"));
    checks(other);
    ok(other, &["catalog", "pull", &artifact]);
    assert!(ok(other, &["catalog", "ls"]).contains(&artifact));

    // Somebody has the tag mean another. The digest means what it meant.
    let (_, meant) = out.trim().split_once('@').unwrap();
    let meant = format!("{here}/catalogs/team@{meant}");
    let theirs = catalog(&format!("{here}/search:2")).replace("https://far.", "https://evil.");
    write(dir, "team.yaml", &theirs);
    ok(dir, &["catalog", "add", "team", "team.yaml"]);
    ok(dir, &["catalog", "push", "team", &artifact]);
    for (name, host) in [(&artifact, "evil"), (&meant, "far")] {
        let url = format!("https://{host}.example.com/mcp");
        assert!(ok(other, &["catalog", "show", name]).contains(&url), "{name}");
        let far = ["add", &format!("catalog://{name}/far"), "--dry-run"];
        assert!(ok(other, &far).contains(&url), "{name}");
    }
    ok(other, &["catalog", "pull", &meant, "--name", "pinned"]);
    assert!(ok(other, &["catalog", "show", "pinned"]).contains("https://far.example.com/mcp"));
    let other_digest = format!("{here}/catalogs/team@{}", digest());
    let (code, _, err) = run(other, &["catalog", "pull", &other_digest]);
    assert_eq!(code, 1, "{err}");

    // An image by itself says what it is, and shapes nothing.
    let out = ok(other, &["add", "image", &format!("{here}/search:2"), "--name", "own"]);
    assert!(
        out.contains("it says that it reads `EVIL`")
            || out.contains("the image says that it reads `EVIL`"),
        "{out}"
    );
    let own = &table(other)["servers"]["own"];
    assert!(own.get("command").is_none() && own.get("mounts").is_none(), "{own}");
    checks(other);

    // A tag that nobody can resolve is not written.
    let gone = format!("{here}/nothing:1");
    let (code, _, err) = run(other, &["add", "image", &gone]);
    assert!(code == 1 && err.contains("name it by digest"), "{err}");
    assert!(table(other)["servers"].get("nothing").is_none());

    // What is no catalog is not pulled as one.
    let (code, _, err) = run(other, &["catalog", "pull", &format!("{here}/search:2")]);
    assert_eq!(code, 1, "{err}");
}

#[test]
fn profiles_are_pushed_and_pulled() {
    let registry = Registry::start(&Door::default());
    let dir = folder();
    let dir = dir.path();
    let text = format!(
        "\n[servers.boxed]\nimage = \"example.com/boxed@{}\"\ncommand = [\"--quiet\"]\nenv = {{ LEVEL = \"2\" }}\nsecrets = {{ KEY = {{ from = \"env:KEY\" }} }}\n\
         \n[servers.far]\nurl = \"https://far.example.com/mcp\"\n",
        digest()
    );
    write(dir, "portcullis.toml", &format!("{CONFIG}{text}"));
    let (code, _, err) = run(dir, &["profile", "create", "dev", "--server", "nobody"]);
    assert!(code == 1 && err.contains("nobody"), "{err}");
    ok(
        dir,
        &[
            "profile",
            "create",
            "dev",
            "--server",
            "boxed",
            "--server",
            "far",
            "--title",
            "Development",
        ],
    );
    assert!(ok(dir, &["profile", "ls"]).contains("boxed, far"));
    assert!(ok(dir, &["profile", "show", "dev"]).contains("https://far.example.com/mcp"));
    let exported: Value = serde_json::from_str(&ok(dir, &["profile", "export", "dev"])).unwrap();
    assert_eq!(
        (&exported["id"], exported["servers"].as_array().unwrap().len()),
        (&json!("dev"), 2)
    );
    ok(dir, &["profile", "export", "dev", "dev.yaml"]);
    let artifact = format!("{}/profiles/dev:1", registry.host());
    ok(dir, &["profile", "push", "dev", &artifact]);

    for how in ["file", "registry"] {
        let other = folder();
        let other = other.path();
        match how {
            "file" => {
                ok(other, &["profile", "import", &dir.join("dev.yaml").display().to_string()])
            }
            _ => ok(other, &["profile", "pull", &artifact]),
        };
        let made = table(other);
        let boxed = &made["servers"]["boxed"];
        assert_eq!(boxed["image"].as_str(), Some(&*format!("example.com/boxed@{}", digest())));
        assert_eq!(
            (boxed["command"][0].as_str(), boxed["env"]["LEVEL"].as_str()),
            (Some("--quiet"), Some("2"))
        );
        assert_eq!(boxed["secrets"]["KEY"]["from"].as_str(), Some("env:MCP_BOXED__KEY"));
        assert_eq!(made["servers"]["far"]["url"].as_str(), Some("https://far.example.com/mcp"));
        assert!(ok(other, &["profile", "ls"]).contains("dev"));
        checks(other);
    }

    // A program of this machine has no place in it.
    ok(dir, &["profile", "create", "all", "--server", "notes"]);
    let (code, _, err) = run(dir, &["profile", "export", "all"]);
    assert!(code == 1 && err.contains("`notes`"), "{err}");
    // What runs is what the profile names.
    for (profile, told) in [(None, true), (Some("dev"), false)] {
        let mut args = vec!["run", "--dry-run"];
        args.extend(profile.into_iter().flat_map(|name| ["--profile", name]));
        let (_, out, err) = run(dir, &args);
        assert_eq!(format!("{out}{err}").contains("server `notes`"), told, "{out}{err}");
        assert!(format!("{out}{err}").contains("server `far`"), "{out}{err}");
    }
    let (code, _, err) = run(dir, &["run", "--dry-run", "--profile", "none"]);
    assert!(code == 1 && err.contains("no profile `none`"), "{err}");
}

/// An exported profile.
fn exported(dir: &Path, name: &str) -> (Value, String) {
    let (code, out, err) = run(dir, &["profile", "export", name]);
    assert_eq!(code, 0, "{err}");
    (serde_json::from_str(&out).unwrap(), err)
}

#[test]
fn exported_profile_round_trips() {
    let registry = Registry::start(&Door::default());
    let dir = folder();
    let dir = dir.path();
    let text = format!(
        "\n[servers.boxed]\nimage = \"example.com/boxed@{}\"\ncommand = [\"--quiet\", \"$HOME\"]\nenv = {{ LEVEL = \"2\", EMPTY = \"\" }}\n\
         secrets = {{ KEY = {{ from = \"env:MINE\" }} }}\negress = [\"api.example.com:443\", \"http://old.example.com:80\"]\n\
         hardening = {{ user = \"1000:1000\" }}\nidle-stop-s = 0\n\
         \n[servers.far]\nurl = \"https://far.example.com/mcp\"\nheaders = {{ X-Api-Key = {{ from = \"env:FAR\" }} }}\n\
         \n[servers.old]\nurl = \"https://old.example.com/sse\"\ntransport = \"sse\"\n",
        digest()
    );
    write(dir, "portcullis.toml", &format!("{CONFIG}{text}"));
    let servers = ["--server", "boxed", "--server", "far", "--server", "old"];
    let tools = ["--tool", "boxed/find", "--tool", "boxed/look", "--tool", "far/a/b"];
    ok(dir, &[&["profile", "create", "dev"][..], &servers, &tools].concat());
    let (first, told) = exported(dir, "dev");
    let lists: Vec<&Value> =
        first["servers"].as_array().unwrap().iter().map(|one| &one["tools"]).collect();
    assert_eq!(lists, [&json!(["find", "look"]), &json!(["a/b"]), &Value::Null]);
    // Names of secrets, and nothing of where they come from.
    assert!(
        told.contains("names alone (KEY)") && told.contains("names alone (X_API_KEY)"),
        "{told}"
    );
    assert!(!first.to_string().contains("MINE") && !first.to_string().contains("env:"), "{first}");
    let artifact = format!("{}/profiles/dev:1", registry.host());
    let pushed = ok(dir, &["profile", "push", "dev", &artifact]);
    let (_, by_digest) = pushed.trim().split_once('@').unwrap();
    let by_digest = format!("{}@{by_digest}", artifact.rsplit_once(':').unwrap().0);

    let other = folder();
    let other = other.path();
    ok(other, &["profile", "pull", &by_digest]);
    let made = table(other);
    let boxed = &made["servers"]["boxed"];
    assert_eq!(boxed["hardening"]["user"].as_str(), Some("1000:1000"));
    assert_eq!(boxed["egress"][1].as_str(), Some("http://old.example.com:80"));
    assert_eq!(boxed["secrets"]["KEY"]["from"].as_str(), Some("env:MCP_BOXED__KEY"));
    let key = &made["servers"]["far"]["headers"]["X-Api-Key"];
    assert_eq!(key["from"].as_str(), Some("env:MCP_FAR__X_API_KEY"));
    assert_eq!(exported(other, "dev").0, first, "{}", config(other));
    let shown = ok(other, &["profile", "show", "dev"]);
    assert!(shown.contains("find, look") && shown.contains("all"), "{shown}");
    checks(other);
    // The list holds here, too, whichever servers run.
    let all = "@id(\"all\")\npermit (principal, action == Portcullis::Action::\"call_tool\", resource);\n";
    write(other, "policies/all.cedar", all);
    for (tool, code) in [("find", 0), ("erase", 10)] {
        let target = format!("boxed/{tool}");
        let asked = run(other, &["policy", "can-i", "--as", "group:any", "tools/call", &target]);
        assert_eq!(asked.0, code, "{tool}: {asked:?}");
    }

    // A list with nothing in it is no missing one.
    let mut none = first;
    none["servers"][0]["tools"] = json!([]);
    write(other, "none.json", &none.to_string());
    // It came from elsewhere, so what it replaces is named.
    let named = ["--replace", "--replace=boxed", "--replace=far", "--replace=old"];
    ok(other, &[&["profile", "import", "none.json", "--name", "dev"][..], &named].concat());
    assert_eq!(exported(other, "dev").0, none);
}

#[test]
fn settings_missing_from_a_profile_are_reported() {
    let dir = folder();
    let dir = dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    let text = format!(
        "\n[servers.boxed]\nimage = \"example.com/boxed@{}\"\nenv = {{ LEVEL = \"2\", FORM = \"a {{{{b}}}} $c\" }}\n\
         egress = [\"http://web.example.com:8080\", \"tcp://db.example.com:5432=10.0.0.5\"]\n\
         secrets = {{ KEY = {{ from = \"env:KEY\", as = \"file\" }}, OWN = {{ by-client = {{ me = \"env:ME\" }} }} }}\n\
         mounts = [\"data:/data\"]\nhardening = {{ writable-root = true, user = \"1000:1000\" }}\ncall-timeout-s = 5\nprefix = \"\"\n",
        digest()
    );
    write(dir, "portcullis.toml", &format!("{CONFIG}{text}"));
    ok(dir, &["profile", "create", "dev", "--server", "boxed"]);
    let (profile, told) = exported(dir, "dev");
    for what in [
        "egress: of `http://web.example.com:8080`, it has `web.example.com:8080`, which is read as `tcp://web.example.com:8080`",
        "egress: of `tcp://db.example.com:5432=10.0.0.5`",
        "secrets: it has their names alone (KEY, OWN)",
        "secrets.KEY.as",
        "secrets.OWN.by-client",
        "mounts: they are folders of this machine",
        "hardening.writable-root: each says",
        "call-timeout-s: the form has no place for it",
        "prefix: the form",
        // By its secrets of clients.
        "sharing: the form",
    ] {
        assert!(told.contains(what), "{what} is missing: {told}");
    }
    assert_eq!(told.matches("left out of").count(), 10, "{told}");
    // What others would take for a template is put in by one.
    assert_eq!(profile["servers"][0]["config"]["FORM"], "a {{b}} $c");
    write(dir, "dev.json", &profile.to_string());
    let other = folder();
    let other = other.path();
    let from = dir.join("dev.json").display().to_string();
    let out = ok(other, &["profile", "import", &from]);
    assert!(out.contains("`FORM` may be a secret"), "{out}");
    assert_eq!(table(other)["servers"]["boxed"]["env"]["LEVEL"].as_str(), Some("2"));
    checks(other);

    // An argument cannot be put in, whatever it begins with.
    let text = config(dir).replace("prefix = \"\"", "command = [\"-x={{y}}\"]");
    write(dir, "portcullis.toml", &text);
    let (code, _, err) = run(dir, &["profile", "export", "dev"]);
    assert!(code == 1 && err.contains("argument 1 of `boxed`"), "{err}");
}

#[test]
fn profile_has_its_own_settings() {
    let dir = folder();
    let dir = dir.path();
    let text = format!(
        "\n[servers.boxed]\nimage = \"example.com/boxed@{}\"\nenv = {{ LEVEL = \"2\" }}\nsecrets = {{ KEY = {{ from = \"env:KEY\" }} }}\n",
        digest()
    );
    write(dir, "portcullis.toml", &format!("{CONFIG}{text}"));
    let create = |more: &[&str]| {
        run(dir, &[&["profile", "create", "dev", "--server", "boxed"][..], more].concat())
    };
    let (code, _, err) = create(&["--env", "boxed/LEVEL=3", "--secret", "boxed/KEY=env:OTHER"]);
    assert_eq!(code, 0, "{err}");
    let made: toml::Table = read(dir, "profiles/dev.toml").parse().unwrap();
    assert_eq!(made["settings"]["boxed"]["secrets"]["KEY"].as_str(), Some("env:OTHER"));
    let (profile, _) = exported(dir, "dev");
    let env = &profile["servers"][0]["snapshot"]["server"]["env"];
    assert_eq!(env, &json!([{ "name": "LEVEL", "value": "3" }]));
    assert_eq!(config(dir), format!("{CONFIG}{text}"));

    let before = read(dir, "profiles/dev.toml");
    for (wrong, code, why) in [
        (["--env", "boxed/OTHER=1"], 1, "no variable `OTHER`"),
        (["--env", &format!("boxed/LEVEL={}", secret())], 1, "looks like a secret"),
        (["--env", "LEVEL=1"], 2, "SERVER/NAME=VALUE"),
        (["--env", "notes/LEVEL=1"], 2, "not one of the profile's servers"),
        (["--secret", &format!("boxed/KEY={}", secret())], 1, "not a reference"),
        (["--secret", "boxed/NONE=env:X"], 1, "no secret and no header `NONE`"),
        (["--tool", "find"], 2, "SERVER/TOOL"),
    ] {
        let (got, out, err) = create(&wrong);
        assert!(got == code && err.contains(why), "{wrong:?}: {got} {err}");
        assert!(!out.contains(&secret()) && !err.contains(&secret()), "{err}");
        assert_eq!(read(dir, "profiles/dev.toml"), before);
    }
    // Nor where somebody wrote it by hand.
    write(dir, "profiles/dev.toml", &before.replace("\"3\"", &format!("{:?}", secret())));
    for verb in [&["profile", "export", "dev"][..], &["run", "--dry-run", "--profile", "dev"]] {
        let (code, out, err) = run(dir, verb);
        assert!(code == 1 && err.contains("looks like a secret"), "{verb:?} {err}");
        assert!(!out.contains(&secret()) && !err.contains(&secret()), "{err}");
    }
}

/// Docker's settings files, a server of the MCP registry, and a URL in a file.
#[test]
fn enabled_servers_and_tools_follow_the_files() {
    let dir = folder();
    let dir = dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    let data = dir.join("data").display().to_string();
    let entry = |name: &str| {
        format!(
            "  {name}:\n    type: server\n    image: example.com/{name}@{}\n    disableNetwork: true\n    \
             env: [{{name: LIMIT, value: '{{{{{name}.limit}}}}'}}]\n    volumes: ['{{{{{name}.data}}}}:/data']\n    \
             config: [{{name: {name}, description: d, type: object, properties: {{limit: {{type: integer}}, data: {{type: string}}}}}}]\n    \
             tools: [{{name: find}}, {{name: erase}}]\n",
            digest()
        )
    };
    write(
        dir,
        "catalog.yaml",
        &format!("registry:\n{}{}{}", entry("search"), entry("silent"), entry("off")),
    );
    write(
        dir,
        "registry.yaml",
        &format!(
            "registry:\n  search:\n    ref: ''\n  silent:\n    ref: ''\n    config: {{limit: 7, data: {data}}}\n"
        ),
    );
    write(dir, "config.yaml", &format!("search:\n  limit: 3\n  data: {data}\n"));
    write(dir, "tools.yaml", "search: [find]\nsilent: []\n");
    let import = ["server", "import", "catalog.yaml", "--enabled", "registry.yaml"];
    let files = ["--settings", "config.yaml", "--tools", "tools.yaml"];
    ok(dir, &[&import[..], &files].concat());
    let made = table(dir);
    assert!(made["servers"].get("off").is_none(), "it is not on");
    assert_eq!(made["servers"]["search"]["env"]["LIMIT"].as_str(), Some("3"));
    let data = format!("{data}:/data");
    assert_eq!(made["servers"]["search"]["mounts"][0].as_str(), Some(&*data));
    assert_eq!(made["servers"]["silent"]["env"]["LIMIT"].as_str(), Some("7"));

    let registry = json!({ "name": "com.example/mapper", "description": "Makes maps", "version": "1.2.0", "remotes": [
        { "type": "streamable-http", "url": "https://mapper.example.com/mcp",
          "headers": [{ "name": "X-Api-Key", "isSecret": true, "isRequired": true }] }] });
    write(dir, "server.json", &registry.to_string());
    ok(dir, &["server", "import", "server.json"]);
    let mapper = &table(dir)["servers"]["mapper"];
    assert_eq!(mapper["url"].as_str(), Some("https://mapper.example.com/mcp"));
    assert_eq!(mapper["headers"]["X-Api-Key"]["from"].as_str(), Some("env:MCP_MAPPER__X_API_KEY"));
    let single = "name: single\ntype: server\nimage: example.com/single@";
    write(
        dir,
        "single.yaml",
        &format!("{single}{}\ntools: [{{name: find}}, {{name: erase}}]\n", digest()),
    );
    write(dir, "tools.yaml", "single: [find, 'a\"b']\n");
    let url = format!("file://{}/single.yaml", dir.display());
    ok(dir, &["server", "import", &url, "--tools", "tools.yaml"]);
    checks(dir);

    // Somebody lets everybody call everything.
    write(dir, "policies/all.cedar", "@id(\"all\")\npermit (principal, action, resource);\n");
    for (server, tool, code) in [
        ("search", "find", 0),
        ("search", "erase", 10),
        ("search", "unheard-of", 10),
        ("silent", "find", 10),
        ("single", "find", 0),
        ("single", "a\"b", 0),
        ("single", "erase", 10),
        ("mapper", "erase", 0),
        ("notes", "erase", 0),
    ] {
        let target = format!("{server}/{tool}");
        let (got, out, err) =
            run(dir, &["policy", "can-i", "--as", "group:any", "tools/call", &target]);
        assert_eq!(got, code, "{target}: {out}{err}");
        let rule = format!("{server}.tools-left-on");
        assert_eq!(format!("{out}{err}").contains(&rule), code != 0, "{target}: {out}{err}");
    }

    // A profile has no policies, so it says where it lacks the list.
    let profile = ["profile", "create", "dev", "--server", "search", "--server", "mapper"];
    let (code, _, err) = run(dir, &profile);
    assert!(code == 0 && err.contains("no list of the tools of `search`"), "{err}");
    assert!(!err.contains("of `mapper`"), "{err}");
    let (_, err) = exported(dir, "dev");
    assert!(err.contains("no list of the tools of `search`"), "{err}");
    let (code, _, err) = run(dir, &[&profile[..], &["--tool", "search/find"]].concat());
    assert!(code == 0 && !err.contains("no list"), "{err}");
}

/// What is on record of images, in the order in which it was done: what each was, and what it became.
fn locked(dir: &Path) -> Vec<(Option<String>, String)> {
    let mut args = vec!["audit", "query", "event = image-locked", "--oldest-first"];
    args.extend(["--format", "json"]);
    let records = ok(dir, &args);
    let records = serde_json::Deserializer::from_str(&records).into_iter::<Value>();
    let record = |record: Value| {
        let text = |key: &str| record[key].as_str().map(str::to_owned);
        (text("was"), text("digest").unwrap_or_else(|| panic!("{record}")))
    };
    records.map(Result::unwrap).map(record).collect()
}

/// Only the operator can bring back an old version with its flaws.
#[test]
fn rollback_needs_confirmation() {
    let registry = Registry::start(&Door::default());
    let here = registry.host();
    let fixed = |of: char| format!("sha256:{}", of.to_string().repeat(64));
    let entry =
        |image: &str| format!("name: search\ntype: server\nimage: {image}\ndisableNetwork: true\n");
    let list = |image: &str| {
        let server =
            json!({ "name": "search", "type": "server", "image": image, "disableNetwork": true });
        json!({ "version": 1, "id": "dev", "name": "Dev", "servers": [
            { "type": "image", "image": image, "config": {}, "snapshot": { "server": server } }] })
    };
    for way in ["file", "name", "profile", "catalog", "tag"] {
        let dir = folder();
        let dir = dir.path();
        let url = format!("file://{}/x.yaml", dir.display());
        let artifact = format!("{here}/{way}:2");
        let refused = std::cell::Cell::new(0);
        // Puts a version where it is taken from, and takes it.
        let take = |version: char, more: &[&str]| {
            let digest = match way {
                "tag" => image::version(&here, way, "2", &version.to_string()),
                _ => fixed(version),
            };
            // Strangers call their images what they like.
            let name = if way == "name" { format!("search:{version}") } else { "search:2".into() };
            let image = format!("example.com/{name}@{digest}");
            let args: Vec<&str> = match way {
                "file" | "name" => {
                    write(dir, "x.yaml", &entry(&image));
                    vec!["server", "import", &url, "--replace"]
                }
                "profile" => {
                    write(dir, "p.json", &list(&image).to_string());
                    vec!["profile", "import", "p.json", "--replace"]
                }
                "catalog" => {
                    write(
                        dir,
                        "x.yaml",
                        &format!("registry:\n  search:\n    type: server\n    image: {image}\n"),
                    );
                    let (code, _, err) =
                        run(dir, &[&["catalog", "add", "team", "x.yaml"][..], more].concat());
                    if code != 0 {
                        assert!(err.contains("--allow-downgrade"), "{err}");
                        refused.set(refused.get() + 1);
                        ok(dir, &["catalog", "add", "team", "x.yaml", "--allow-downgrade"]);
                    }
                    vec!["add", "catalog://team/search", "--replace"]
                }
                _ => vec!["add", "image", &artifact, "--name", "search", "--replace"],
            };
            (digest, run(dir, &[&args[..], more].concat()))
        };
        let is = || table(dir)["servers"]["search"]["image"].as_str().unwrap().to_owned();
        let (one, (code, _, err)) = take('1', &[]);
        assert_eq!(code, 0, "{way}: {err}");
        assert_eq!(locked(dir), [(None, one.clone())], "{way}");
        let (two, (code, _, err)) = take('2', &[]);
        assert!(code == 0 && is().ends_with(&two), "{way}: {err}");
        // The same again is no news.
        assert_eq!(take('2', &[]).1.0, 0, "{way}");
        let moved = [(None, one.clone()), (Some(one.clone()), two.clone())];
        assert_eq!(locked(dir), moved, "{way}");

        let before =
            [config(dir), read(dir, "portcullis.lock"), read(dir, "policies/server-search.cedar")];
        let (_, (code, _, err)) = take('1', &[]);
        assert!(
            code == 1 && err.contains("--allow-downgrade") && err.contains(&one),
            "{way}: {code} {err}"
        );
        let (_, (code, _, err)) = take('1', &["--dry-run"][..usize::from(way != "catalog")]);
        assert!(code == 1 && err.contains("--allow-downgrade"), "{way}: {code} {err}");
        let after =
            [config(dir), read(dir, "portcullis.lock"), read(dir, "policies/server-search.cedar")];
        if way != "catalog" {
            assert_eq!(after, before, "{way}: something was written");
        }
        assert!(is().ends_with(&two) && locked(dir) == moved, "{way}");

        let (_, (code, _, err)) = take('1', &["--allow-downgrade"]);
        assert!(code == 0 && is().ends_with(&one), "{way}: {err}");
        assert_eq!(locked(dir).last(), Some(&(Some(two.clone()), one)), "{way}");
        checks(dir);
        // What was left for it was left, too.
        let (_, (code, ..)) = take('2', &[]);
        assert_eq!(code, 1, "{way}");
        // The catalog's own copies went back twice before that.
        assert_eq!(refused.get(), if way == "catalog" { 2 } else { 0 });
    }
}

#[test]
fn digest_only_in_the_config_is_remembered() {
    let dir = folder();
    let dir = dir.path();
    let [one, two] = ["1", "2"].map(|of| format!("sha256:{}", of.repeat(64)));
    let by_hand = format!("\n[servers.x]\nimage = \"example.com/x@{one}\"\n");
    write(dir, "portcullis.toml", &format!("{CONFIG}{by_hand}"));
    let take = |digest: &str, replace: &str| {
        write(dir, "x.yaml", &format!("name: x\ntype: server\nimage: example.com/x@{digest}\n"));
        run(dir, &["server", "import", "x.yaml", replace])
    };
    // It came from nowhere, so it is named.
    let (code, _, err) = take(&two, "--replace");
    assert!(code == 1 && err.contains("--replace=x"), "{err}");
    let (code, _, err) = take(&two, "--replace=x");
    assert_eq!(code, 0, "{err}");
    assert_eq!(locked(dir), [(Some(one.clone()), two)]);
    let (code, _, err) = take(&one, "--replace");
    assert!(code == 1 && err.contains("--allow-downgrade"), "{err}");
}

/// An action that cannot be recorded is not done.
#[test]
fn unrecorded_image_is_not_imported() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &format!("name: x\ntype: server\nimage: example.com/x@{}\n", digest()));
    write(dir, ".portcullis", "a file where the state folder should be");
    let (code, _, err) = run(dir, &["server", "import", "x.yaml"]);
    assert!(code == 1 && err.contains("can't be recorded"), "{err}");
    assert_eq!(config(dir), CONFIG);
    assert!(!dir.join("portcullis.lock").exists());
    assert_eq!(fs::read_dir(dir.join("policies")).unwrap().count(), 0);
}

/// Every command that publishes an entry refuses it with its line, and publishes nothing.
#[test]
fn possible_secrets_are_not_published() {
    let registry = Registry::start(&Door::default());
    let dir = folder();
    let dir = dir.path();
    let image = format!("[servers.x]\nimage = \"example.com/x@{}\"\n", digest());
    let vendors = ["gh", "p_", &secret()].concat();
    let far = "[servers.x]\nurl = \"https://far.example.com/";
    for (entry, line) in [
        (format!("{image}env = {{ LEVEL = \"2\", GITHUB_TOKEN = \"{}\" }}\n", secret()), 6),
        (format!("{image}env.DATABASE = \"postgresql://me:{}@db/x\"\n", secret()), 6),
        (format!("{image}env.LEVEL = \"{vendors}\"\n"), 6),
        (format!("{image}command = [\n  \"--token\",\n  \"{vendors}\",\n]\n"), 8),
        (format!("{image}command = [\"--password\", \"hunter-and-two\"]\n"), 6),
        (format!("{image}command = [\"--key={}\"]\n", secret()), 6),
        (format!("{far}mcp?api_key={}\"\n", secret()), 5),
        (format!("{far}s/{}/mcp\"\n", secret()), 5),
    ] {
        write(dir, "portcullis.toml", &format!("{CONFIG}{entry}"));
        ok(dir, &["profile", "create", "dev", "--server", "x"]);
        let artifact = format!("{}/profiles/dev:1", registry.host());
        let pod = format!("example.com/portcullis@{}", digest());
        let verbs: [&[&str]; 5] = [
            &["profile", "export", "dev"],
            &["profile", "export", "dev", "dev.json"],
            &["profile", "export", "dev", "dev.yaml"],
            &["profile", "push", "dev", &artifact],
            &["server", "export", "k8s", "x", "--portcullis-image", &pod],
        ];
        for verb in verbs {
            let (code, out, err) = run(dir, verb);
            let place = format!("portcullis.toml:{line}: ");
            assert!(code == 1 && err.contains(&place), "{entry}{verb:?}: {code} {out}{err}");
            assert_eq!(err.matches("portcullis.toml:").count(), 1, "{entry}{err}");
            for kept in [&secret(), "hunter-and-two"] {
                assert!(!out.contains(kept) && !err.contains(kept), "{verb:?}: {out}{err}");
            }
        }
        assert!(!dir.join("dev.json").exists() && !dir.join("dev.yaml").exists());
        let (code, _, err) = run(dir, &["profile", "pull", &artifact, "--name", "got"]);
        assert!(code == 1 && err.contains("cannot find"), "the registry has it: {err}");
    }

    // What only sounds like one, and references, are not secrets.
    let plain = format!(
        "{image}command = [\"--token-limit=100\", \"--dir\", \"/data\"]\nenv = {{ TOKEN_FILE = \"/run/token\" }}\n\
         secrets = {{ KEY = {{ from = \"env:MINE\" }} }}\n"
    );
    write(dir, "portcullis.toml", &format!("{CONFIG}{plain}"));
    ok(dir, &["profile", "export", "dev", "dev.yaml"]);
}

#[test]
fn references_are_fetched_over_tls_with_a_configured_authority() {
    let registry = Registry::start(&Door { tls: true, ..Door::default() });
    let here = registry.host();
    let dir = folder();
    let dir = dir.path();
    let asked = format!("\n[registries]\nca-file = {:?}\n", registry.authority());
    write(dir, "portcullis.toml", &format!("{CONFIG}{asked}"));
    write(
        dir,
        "one.yaml",
        "name: one\ndisplayName: One\nregistry:\n  far:\n    type: remote\n    title: Far\n    \
         remote: {url: 'https://far.example.com/mcp', transport_type: sse}\n",
    );
    ok(dir, &["catalog", "add", "one", "one.yaml"]);
    let artifact = format!("{here}/catalogs/one:1");
    ok(dir, &["catalog", "push", "one", &artifact]);
    ok(dir, &["catalog", "pull", &artifact, "--name", "pulled"]);
    let lock: toml::Table = read(dir, "portcullis.lock").parse().unwrap();
    let digest = lock["catalogs"]["pulled"]["digest"].as_str().unwrap();

    let url = format!("https://{here}/v2/catalogs/one/blobs/{digest}");
    let add = |known: bool, url: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("portcullis"));
        command
            .current_dir(dir)
            .args(["server", "import", url, "--yes"])
            .env_remove("PORTCULLIS_CONFIG");
        if known {
            command.env("SSL_CERT_FILE", registry.authority());
        }
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    };
    let (code, err) = add(false, &url);
    assert!(code == 1 && err.contains("certificate"), "{err}");
    let (code, err) = add(true, &url.replace(digest, &format!("sha256:{}", "0".repeat(64))));
    assert!(code == 1 && err.contains("404"), "{err}");
    let (code, err) = add(true, &url.replace("https:", "http:"));
    assert!(code != 0, "{err}");
    assert!(table(dir)["servers"].get("far").is_none());
    let (code, err) = add(true, &url);
    assert_eq!(code, 0, "{err}");
    assert_eq!(table(dir)["servers"]["far"]["url"].as_str(), Some("https://far.example.com/mcp"));
    let lock: toml::Table = read(dir, "portcullis.lock").parse().unwrap();
    assert_eq!(lock["servers"]["far"]["source"].as_str(), Some(&*url));
    assert_eq!(lock["servers"]["far"]["source-digest"].as_str(), Some(digest));
}
