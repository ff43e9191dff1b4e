use std::path::Path;

use super::*;

mod bundle;
mod exports;
mod listen;
mod plugins;
mod properties;
mod secrets;
mod servers;
mod signers;

/// Findings on one line each: position, code, message, label, help. `HIDDEN` in the text stands for
/// a secret, which no finding may show.
fn findings(text: &str) -> String {
    let secret = ["hunter", "2-hunter2"].concat();
    let text = &text.replace("HIDDEN", &secret);
    let findings = match parse(Path::new("/etc/p/portcullis.toml"), text) {
        Ok(loaded) => loaded.warnings,
        Err(Diagnostics(findings)) => findings,
    };
    let mut shown = String::new();
    for finding in findings {
        let (line, column) = finding.position().unwrap_or_default();
        let severity = if finding.severity == Severity::Warning { "warning " } else { "" };
        shown += &format!("{line}:{column} {severity}[{}] {}\n", finding.code, finding.message);
        for (what, text) in [("^ ", &finding.label), ("= ", &finding.help)] {
            if let Some(text) = text {
                shown += &format!("    {what}{text}\n");
            }
        }
    }
    assert!(!shown.contains(&secret), "{shown}");
    shown
}

#[test]
fn unknown_keys_are_found_at_every_depth() {
    let text = r#"
listen.htp = "127.0.0.1:1"
[polcy]
[servers.a]
imgae = "x"
[[interceptors]]
use = "rate-limit"
limits = [{ calls = 1, widnow = "1m" }]
[[interceptors]]
use = "schema"
bogus = 1
"#;
    insta::assert_snapshot!(findings(text), @"
    2:8 [config-unknown-key] unknown key `htp`
        ^ did you mean `http`?
        = known here: `http`, `anonymous`, `anonymous-beyond-loopback`, `allowed-hosts`, `allowed-origins`, `rest`, `trusted-proxies`, `client-address`
    3:2 [config-unknown-key] unknown key `polcy`
        ^ did you mean `policy`?
        = known here: `listen`, `state-dir`, `policy`, `audit`, `admin`, `approvals`, `limits`, `telemetry`, `engine`, `registries`, `signers`, `clients`, `servers`, `interceptors`
    5:1 [config-unknown-key] unknown key `imgae`
        ^ did you mean `image`?
        = known here: `enabled`, `image`, `signed-by`, `command`, `url`, `transport`, `runtime`, `pod-socket`, `prefix`, `env`, `secrets`, `headers`, `restart-on-rotation`, `mounts`, `resources`, `egress`, `egress-limits`, `hardening`, `era`, `start-timeout-s`, `call-timeout-s`, `idle-stop-s`, `health-s`, `health-timeout-s`, `concurrent`, `queue`, `sharing`, `instances`, `warm`, `replicas`, `tools`
    8:11 [config-missing-key] the key `window` is missing
        ^ in this table
        = `window`: Length of the window: a number and one of `ms`, `s`, `m`, `h`, `d`, such as `1m`.
    8:24 [config-unknown-key] unknown key `widnow`
        ^ did you mean `window`?
        = known here: `name`, `per`, `calls`, `window`, `burst`, `events`
    11:1 [config-unknown-key] unknown key `bogus`
        ^ unknown here
        = known here: `use`, `arguments`, `results`, `unusable`, `name`, `mode`, `fail-open`, `deadline-ms`, `events`
    ");
}

#[test]
fn entry_of_the_chain_needs_a_known_use() {
    let text = r#"
[[interceptors]]
use = "rate-limt"
[[interceptors]]
mode = "audit"
[[interceptors]]
use = 1
[[interceptors]]
use = "schema"
mode = "enforced"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    3:7 [config-bad-value] `rate-limt` is not a value of this key
        ^ did you mean `rate-limit`?
        = one of `rate-limit`, `schema`, `secrets`, `plugin`
    4:1 [config-missing-key] the key `use` is missing
        ^ in this table
        = one of `rate-limit`, `schema`, `secrets`, `plugin`
    7:7 [config-bad-value] expected a string, found an integer
        = one of `rate-limit`, `schema`, `secrets`, `plugin`
    10:8 [config-bad-value] `enforced` is not a value of this key
        ^ did you mean `enforce`?
        = one of `enforce`, `audit`, `off`
    "#);
}

#[test]
fn values_of_the_wrong_type_or_form_are_found() {
    let text = r#"
state-dir = 1
[listen]
http = "localhost"
anonymous = "yes"
[limits]
depth = 0
nodes = 1.5
[telemetry]
log-format = "jsn"
[servers.a]
command = "notes"
[servers.b]
command = []
prefix = "a b"
[servers.c]
command = ["notes"]
mounts = ["/a", "/a:/proc", "/a:/b:rw"]
resources = { cpus = 0, memory-mib = 1 }
[servers.d]
command = ["notes"]
env = { "A B" = "x", A = 1 }
[servers.D]
[clients.c]
key-hash = "sha256:00"
groups = ["a b"]
"#;
    insta::assert_snapshot!(findings(text), @r#"
    2:13 [config-bad-value] expected a string, found an integer
        = State folder: audit store, client keys and local socket. Default: `.portcullis` next to the config.
    4:8 [config-bad-value] invalid socket address syntax: write an address and a port, such as `127.0.0.1:8811`
        = Address and port of the HTTP front. Put it behind TLS unless the address is a loopback address.
    5:13 [config-bad-value] expected true or false, found a string
        = Accept calls without a key. Their principal in policies is `Portcullis::Anonymous::"anonymous"`.
    7:9 [config-bad-value] this must be at least 4
        = Maximum nesting depth of arrays and objects in a message.
    8:9 [config-bad-value] expected an integer, found a number with a fraction
        = Maximum number of values in a message, including keys.
    10:14 [config-bad-value] `jsn` is not a value of this key
        ^ did you mean `json`?
        = one of `text`, `json`, `auto`
    12:11 [config-bad-value] expected an array, found a string
        = Program and its arguments. With `image`: arguments for the image's entry point.
    14:11 [config-bad-value] the program is missing
        = write `["PROGRAM", "ARGUMENT", …]`
    15:10 [config-bad-value] `a b` cannot be a prefix of tool names
        = use letters, digits, `_` and `-`: some clients accept no others
    18:11 [config-bad-value] a mount is `SOURCE:TARGET`, and `:rw` at the end lets the server write
        = `SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`.
    18:17 [config-bad-value] nothing can be mounted on `/`, `/proc`, `/sys` or `/dev`
        = `SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`.
    19:22 [config-bad-value] this must be at least 0.01
        = Number of processors.
    19:38 [config-bad-value] this must be at least 8
        = Memory in MiB, including swap.
    22:26 [config-bad-value] expected a string, found an integer
    23:10 [config-bad-value] `D` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit
    26:11 [config-bad-value] `a b` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit
        = Group of clients, as Cedar policies see it.
    "#);
}

#[test]
fn values_that_json_lacks_are_found() {
    let text = r#"
state-dir = 1979-05-27
limits.depth = 99999999999999999999
limits.nodes = inf
"#;
    insta::assert_snapshot!(findings(text), @r#"
    2:13 [config-bad-value] this is a date, which no key accepts
    3:16 [config-bad-value] this is a number of more than 64 bits
    4:16 [config-bad-value] this is not a finite number
    "#);
}

#[test]
fn all_syntax_errors_are_found() {
    let text = r#"
a =
b = 1
b = 2
[x
"#;
    insta::assert_snapshot!(findings(text), @r#"
    2:4 [config-syntax] not TOML: string values must be quoted, expected literal string
    4:1 [config-syntax] not TOML: duplicate key
    5:3 [config-syntax] not TOML: unclosed table, expected `]`
    "#);
}

#[test]
fn insecure_settings_need_confirmation() {
    let text = r#"
[listen]
http = "0.0.0.0:8811"
anonymous = true
allowed-hosts = ["http://x", "x:80"]
allowed-origins = ["https://x/", "https://x"]
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:1 [config-unsafe] anyone who reaches 0.0.0.0:8811 could call without a key
        = listen on 127.0.0.1, or give each client a key with `portcullis client add`, or confirm with `anonymous-beyond-loopback = true`
    5:18 [config-bad-value] `http://x` is not a host
        = write `name` or `name:port`, without a scheme
    6:20 [config-bad-value] `https://x/` is not an origin
        = write `https://name` or `https://name:port` in lower case, without a path
    "#);
}

#[test]
fn entries_of_the_chain_have_distinct_names() {
    let text = r#"
[[interceptors]]
use = "schema"
[[interceptors]]
use = "schema"
events = ["tool/call"]
[[interceptors]]
use = "schema"
name = "policy"
events = []
[[interceptors]]
use = "schema"
name = "a b"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:1 [config-conflict] two interceptors are called `schema` (line 2)
        = give each a distinct `name`, which records use
    6:11 warning [config-bad-value] `tool/call` is not a known method
        ^ did you mean `tools/call`?
    9:1 [config-conflict] the name `policy` belongs to the interceptor that is always in the chain
        = choose another name
    10:10 [config-bad-value] without an event the interceptor would never run
        = remove the key to keep the interceptor's own events
    13:8 [config-bad-value] this is not a legal name of an interceptor
        = use 1 to 64 letters, digits, `.`, `_` and `-`
    "#);
}

#[test]
fn clients_with_the_same_key_are_refused() {
    let text = r#"
[clients.a]
key-hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
[clients.b]
key-hash = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    5:1 [config-conflict] the clients `a` and `b` have the same key
        = give each client its own key: the audit log distinguishes clients by key
    "#);
}

#[test]
fn literal_secret_causes_a_warning() {
    let text = r#"
[servers.a]
command = ["x"]
env = { GITHUB_TOKEN = "HIDDEN", LOG = "info", KEY_FILE = "/run/key" }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:9 warning [config-literal-secret] `GITHUB_TOKEN` looks like a secret in plain text
        = write it under `secrets`: `GITHUB_TOKEN = { from = "env:GITHUB_TOKEN" }`
    "#);
}

#[test]
fn secret_in_place_of_its_reference_is_not_repeated() {
    let text = r#"
[servers.a]
command = ["x"]
secrets = { A = "HIDDEN", B = { from = 1 } }
[servers.b]
command = ["x"]
secrets = { A = { from = "HIDDEN" } }
"#;
    insta::assert_snapshot!(findings(text), @"
    4:17 [config-bad-value] expected a table, found a string
        = Source of a secret of a server, and its delivery.
    4:49 [config-bad-value] expected a string, found an integer
        = Reference to the secret. With `by-client`: the value for all other clients, and for the instance that serves lists. If absent, these have no value.
    7:26 [config-bad-value] a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that docs/concepts/secrets.md lists, never the value
    ");
}

#[test]
fn other_invalid_values_are_found() {
    let text = r#"
[telemetry]
log = "portcullis=loud"
[engine]
host = "/var/run/docker.sock"
[policy]
paths = ["a", "", "a"]
"#;
    insta::assert_snapshot!(findings(text), @r#"
    3:7 [config-bad-value] this is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
        = write a level (`info`) or targets with levels (`portcullis=debug,info`)
    5:8 [config-bad-value] `/var/run/docker.sock` is not the address of a container engine
        = such as `unix:///var/run/docker.sock`
    7:15 [config-bad-value] this path is empty
        = name a file or a folder
    7:19 [config-conflict] this path is named twice
        = remove one of the two
    "#);
}

#[test]
fn keys_cannot_control_a_terminal() {
    let text = r#"
"a\u001b[31m" = 1
"#;
    insta::assert_snapshot!(findings(text), @r#"
    2:1 [config-unknown-key] unknown key `a\u{1b}[31m`
        ^ unknown here
        = known here: `listen`, `state-dir`, `policy`, `audit`, `admin`, `approvals`, `limits`, `telemetry`, `engine`, `registries`, `signers`, `clients`, `servers`, `interceptors`
    "#);
}

#[test]
fn finding_is_shown_at_its_position() {
    let text = "[listen]\nhttp = \"127.0.0.1:8811\"\nanonymus = true\n";
    let Diagnostics(findings) = parse(Path::new("/etc/p/portcullis.toml"), text).unwrap_err();
    let mut shown = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
        .render_report(&mut shown, &findings[0])
        .unwrap();
    insta::assert_snapshot!(shown, @"
    config-unknown-key

      × unknown key `anonymus`
       ╭─[/etc/p/portcullis.toml:3:1]
     2 │ http = \"127.0.0.1:8811\"
     3 │ anonymus = true
       · ────┬───
       ·     ╰── did you mean `anonymous`?
       ╰────
      help: known here: `http`, `anonymous`, `anonymous-beyond-loopback`, `allowed-hosts`, `allowed-origins`, `rest`, `trusted-proxies`, `client-address`
    ");
}

#[test]
fn no_message_or_excerpt_shows_a_secret() {
    let secret = ["hunter", "2-hunter2"].concat();
    let key = ["ghp", "_", &"a1".repeat(18)].concat();
    for text in [
        format!("[servers.a]\nenv = {{ API_KEY = \"{secret}\" }}\nbogus = 1\n"),
        format!("[servers.a]\nenv.API_KEY = '''\n{secret}\n'''\nbogus = 1\n"),
        format!("[servers.a]\nenv = {{ API_KEY = \"{secret}\", = }}\n"),
        format!("[servers.a]\nsecrets = {{ X = \"{secret}\" }}\n"),
        format!("[servers.a]\ncommand = ['x']\nsecrets = {{ X = {{ from = \"{secret}\" }} }}\n"),
        format!("[servers.a]\nurl = 1\nheaders = {{ X = {{ from = [\"{secret}\"] }} }}\n"),
        format!("[servers.a]\nurl = \"https://me:{secret}@example.com\"\n"),
        format!("state-dir = \"{key}\"\nbogus = 1\n"),
    ] {
        let error = parse(Path::new("p.toml"), &text).unwrap_err();
        let mut shown = error.to_string();
        for finding in &error.0 {
            let handler = miette::GraphicalReportHandler::new().with_context_lines(3);
            handler.render_report(&mut shown, finding).unwrap();
        }
        assert!(!shown.contains(&secret) && !shown.contains(&key), "{shown}");
    }
}

#[test]
fn valid_config_is_loaded_with_absolute_paths() {
    let text = r#"
        [servers.z]
        command = ["./bin/notes", "./as-it-is"]
        mounts = ["data:/data", "/srv:/srv:rw"]
        secrets = { A = { from = "file:a.txt" }, B = { from = "env:B" } }
        [servers.a]
        command = ["notes"]
        [[interceptors]]
        use = "plugin"
        path = "p.wasm"
        allow-unpinned = true
    "#;
    let loaded = parse(Path::new("/etc/p/portcullis.toml"), text).unwrap();
    let config = &loaded.config;
    assert_eq!(loaded.base, Path::new("/etc/p"));
    assert_eq!(config.state_dir, Path::new("/etc/p/.portcullis"));
    assert_eq!(config.audit.dir.as_deref(), Some(Path::new("/etc/p/.portcullis/audit")));
    // Paths of policies and plugins stay as the operator wrote them.
    assert_eq!(config.policy.paths, [Path::new("policies")]);
    // The order of the file, not of the alphabet.
    let names: Vec<_> = config.servers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["z", "a"]);
    let server = &config.servers[0];
    assert_eq!(server.command.as_deref().unwrap(), ["/etc/p/./bin/notes", "./as-it-is"]);
    let mounts: Vec<_> = server.mounts.iter().map(ToString::to_string).collect();
    assert_eq!(mounts, ["/etc/p/data:/data:ro", "/srv:/srv:rw"]);
    assert_eq!(server.secrets["A"].from.as_deref(), Some("file:/etc/p/a.txt"));
    assert_eq!(server.secrets["B"].from.as_deref(), Some("env:B"));
    let portcullis_interceptors::InterceptorKind::Plugin(plugin) = &config.interceptors[0].kind
    else {
        panic!()
    };
    assert_eq!(plugin.path.as_deref(), Some(Path::new("p.wasm")));
    assert_eq!(loaded.line("/interceptors/0/path"), Some(10));
    let finding = loaded.finding("/interceptors/0/path", Code::BadValue, "no plugin");
    assert_eq!(finding.position(), Some((10, 16)));
}

#[test]
fn empty_file_is_a_config_that_allows_nothing() {
    let loaded = parse(Path::new("p.toml"), "").unwrap();
    assert!(loaded.config.servers.is_empty() && !loaded.config.listen.anonymous);
    assert!(loaded.warnings.is_empty());
}

#[test]
fn quickstart_config_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart/portcullis.toml");
    let loaded = load(Path::new(path)).unwrap();
    assert!(loaded.warnings.is_empty());
}

#[test]
fn files_that_are_not_a_config_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("portcullis.toml");
    let error = |path: &Path| {
        let Diagnostics(findings) = load(path).unwrap_err();
        (findings[0].code, findings[0].help.is_some(), findings[0].position())
    };
    assert_eq!(error(&path), (Code::Unreadable, true, None));
    assert_eq!(error(dir.path()).0, Code::Unreadable);
    std::fs::write(&path, b"a = 1\nb = '\xff'\n").unwrap();
    assert_eq!(error(&path), (Code::Syntax, true, Some((2, 6))));
    std::fs::write(&path, "#".repeat(5 << 20)).unwrap();
    assert_eq!(error(&path), (Code::Unreadable, true, None));
}

#[test]
fn findings_are_limited() {
    let text: String = (0..5_000).map(|n| format!("key-{n} = 1\n")).collect();
    let Diagnostics(findings) = parse(Path::new("p.toml"), &text).unwrap_err();
    assert!(findings.len() <= MAX_FINDINGS);
}

#[test]
fn deep_nesting_is_an_error_without_overflow() {
    for text in ["a=".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000) + "b = 1"] {
        assert!(parse(Path::new("p.toml"), &text).is_err());
    }
}
