//! `portcullis policy` and `portcullis schema cedar` at the command line.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod cases;
mod fmt;
mod history;
mod new;
mod recorded;
mod shipped;
mod typed;

use std::{fs, process::Output};

use assert_cmd::Command;
use insta::assert_snapshot;
use tempfile::TempDir;

const CONFIG: &str = r#"
[clients.ci-bot]
key-hash = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
groups = ["readers"]

[servers.notes]
command = ["portcullis", "example-server", "notes"]
"#;

/// The hash of the key in [`CONFIG`].
const KEY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const POLICIES: &str = r#"
@id("readers-read")
permit (
  principal in Portcullis::Group::"readers",
  action == Portcullis::Action::"call_tool",
  resource in Portcullis::Server::"notes"
)
unless { context.args.hasTag("/force") };

@id("no-destruction")
@reason("nothing is destroyed here")
forbid (principal, action, resource is Portcullis::Tool)
when { resource.claims.destructive };

@id("forms")
permit (
  principal == Portcullis::Server::"notes",
  action == Portcullis::Action::"elicit",
  resource
);
"#;

/// A folder with the config and one file of policies.
fn folder(policies: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("portcullis.toml"), CONFIG).unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::write(folder.path().join("policies/p.cedar"), policies).unwrap();
    folder
}

fn portcullis(folder: &TempDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(args).current_dir(folder.path()).env_clear().output().unwrap()
}

/// Exit code, standard output, standard error.
fn shown(output: &Output) -> String {
    format!(
        "exit {}\n{}--- stderr\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

fn run(policies: &str, args: &[&str]) -> String {
    shown(&portcullis(&folder(policies), args))
}

#[test]
fn check_of_valid_policies_has_no_findings() {
    assert_snapshot!(run(POLICIES, &["policy", "check"]), @r#"
    exit 0
    3 policies: no findings
    --- stderr
    "#);
    assert_snapshot!(run("", &["policy", "check"]), @r#"
    exit 0
    0 policies: nothing can be listed or called
    --- stderr
    "#);
}

#[test]
fn policies_are_resolved_against_the_given_config() {
    let elsewhere = folder(POLICIES);
    let here = folder("");
    let config = elsewhere.path().join("portcullis.toml");
    let run = |args: &[&str]| {
        let config = ["--config", config.to_str().unwrap()];
        shown(&portcullis(&here, &[args, &config].concat()))
    };
    assert_snapshot!(run(&["policy", "check"]), @r#"
    exit 0
    3 policies: no findings
    --- stderr
    "#);
}

#[test]
fn check_reports_all_errors_with_positions() {
    assert_snapshot!(run(r#"@id("a")
permit (principal, action == Portcullis::Action::"call_tols", resource);

@moed("shadow")
permit (principal is Portcullis::Client, action, resource)
when { principal.verifed };
"#, &["policy", "check"]), @r#"
    exit 11
    policy-invalid

      × for policy `a`, unrecognized action `Portcullis::Action::"call_tols"`
       ╭─[policies/p.cedar:2:30]
     1 │ @id("a")
     2 │ permit (principal, action == Portcullis::Action::"call_tols", resource);
       ·                              ───────────────────────────────
     3 │ 
       ╰────
      help: did you mean `Portcullis::Action::"call_tool"`?
    policy-annotation

      × unknown annotation `@moed`
       ╭─[policies/p.cedar:4:1]
     3 │ 
     4 │ @moed("shadow")
       · ───────┬───────
       ·        ╰── means nothing here
     5 │ permit (principal is Portcullis::Client, action, resource)
       ╰────
      help: did you mean `@mode`?
    policy-invalid

      × for policy `policies/p.cedar:4`, attribute `verifed` on entity type `Portcullis::Client` not found
       ╭─[policies/p.cedar:6:8]
     5 │ permit (principal is Portcullis::Client, action, resource)
     6 │ when { principal.verifed };
       ·        ─────────────────
       ╰────
      help: did you mean `verified`?
    3 findings
    --- stderr
    "#);
}

#[test]
fn check_finds_unknown_servers() {
    assert_snapshot!(run(r#"@id("a")
permit (
  principal,
  action == Portcullis::Action::"call_tool",
  resource == Portcullis::Tool::"note/read_note"
);
"#, &["policy", "check"]), @r#"
    exit 11
    policy-unknown-server

      ⚠ the config has no server `note`
       ╭─[policies/p.cedar:5:15]
     4 │   action == Portcullis::Action::"call_tool",
     5 │   resource == Portcullis::Tool::"note/read_note"
       ·               ─────────────────┬────────────────
       ·                                ╰── is on no server of the config
     6 │ );
       ╰────
      help: did you mean `notes`?
    1 finding
    --- stderr
    "#);
}

#[test]
fn check_of_paths_prints_json() {
    let folder = folder("permit (principal");
    fs::write(folder.path().join("good.cedar"), "permit (principal, action, resource);").unwrap();
    let json = |path| portcullis(&folder, &["policy", "check", path, "--format", "json"]);
    assert_snapshot!(shown(&json("policies")), @r#"
    exit 11
    {
      "findings": [
        {
          "code": "policy-syntax",
          "severity": "error",
          "message": "unexpected end of input",
          "file": "policies/p.cedar",
          "line": 1,
          "column": 18
        }
      ]
    }
    --- stderr
    "#);
    assert_snapshot!(shown(&json("good.cedar")), @r#"
    exit 11
    {
      "findings": [
        {
          "code": "policy-over-broad",
          "severity": "warning",
          "message": "`good.cedar:1` permits everybody to call every tool of every server",
          "file": "good.cedar",
          "line": 1,
          "column": 1,
          "help": "say who (`principal in Portcullis::Group::\"…\"`), what (`resource in Portcullis::Server::\"…\"`), or when (`when { … }`)"
        }
      ],
      "policies": 1,
      "revision": "dea26c63281e"
    }
    --- stderr
    "#);
    assert_snapshot!(shown(&json("nowhere.cedar")), @r#"
    exit 11
    {
      "findings": [
        {
          "code": "policy-unreadable",
          "severity": "error",
          "message": "cannot read nowhere.cedar: No such file or directory (os error 2)",
          "file": "nowhere.cedar",
          "help": "make the file or folder, or correct `paths` under `[policy]`"
        }
      ]
    }
    --- stderr
    "#);
}

#[test]
fn can_i_prints_the_decision_with_its_rules() {
    let folder = folder(POLICIES);
    let ask = |args: &[&str]| {
        let output = portcullis(&folder, &[&["policy", "can-i", "--as"], args].concat());
        shown(&output)
    };
    let reads = "readOnlyHint=true";
    assert_snapshot!(ask(&["ci-bot", "call_tool", "notes/read_note", "--hint", reads]), @r#"
    exit 0
    allowed: permitted by `readers-read`
      readers-read  policies/p.cedar:2
    --- stderr
    "#);
    assert_snapshot!(ask(&["ci-bot", "tools/call", "notes/delete_note", "--hint", "destructiveHint=true"]), @r#"
    exit 10
    denied: forbidden by `no-destruction`
      no-destruction  policies/p.cedar:10
        nothing is destroyed here
    --- stderr
    "#);
    assert_snapshot!(ask(&["ci-bot", "tools/call", "notes/read_note", "--hint", reads, "--args", r#"{"force": 1}"#]), @r#"
    exit 10
    denied: no policy permits it
    --- stderr
    "#);
    assert_snapshot!(ask(&["group:others", "call_tool", "notes/read_note", "--hint", reads]), @r#"
    exit 10
    denied: no policy permits it
    --- stderr
    "#);
    assert_snapshot!(ask(&["group:others", "--group", "readers", "call_tool", "notes/read_note", "--hint", reads]), @r#"
    exit 0
    allowed: permitted by `readers-read`
      readers-read  policies/p.cedar:2
    --- stderr
    "#);
    assert_snapshot!(ask(&["local:ann", "tools/list"]), @r#"
    exit 10
    denied: no policy permits it
    --- stderr
    "#);
    assert_snapshot!(ask(&["local:ann", "elicitation/create", "notes"]), @r#"
    exit 0
    allowed: permitted by `forms`
      forms  policies/p.cedar:15
    --- stderr
    "#);
}

#[test]
fn can_i_evaluates_at_the_given_time() {
    let folder = folder(
        "@id(\"office-hours\")\npermit (principal, action, resource)\n\
         when { context.now.toTime() >= duration(\"8h\") };\n",
    );
    for (time, code) in [("2026-11-23T07:59:59Z", 10), ("2026-11-23T08:00:00Z", 0)] {
        let asked = ["policy", "can-i", "--as", "ci-bot", "--at", time, "tools/list"];
        let output = portcullis(&folder, &asked);
        assert_eq!(output.status.code(), Some(code), "{time}: {output:?}");
    }
    let output =
        portcullis(&folder, &["policy", "can-i", "--as", "ci-bot", "--at", "8", "tools/list"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// `desk` listed its tools when it last ran, so their annotations are known.
#[test]
fn can_i_uses_the_last_listed_annotations() {
    let folder = folder(POLICIES);
    let ask = |tool: &str| {
        shown(&portcullis(&folder, &["policy", "can-i", "--as", "ci-bot", "tools/call", tool]))
    };
    assert_snapshot!(ask("notes/read_note"), @r#"
    exit 1
    --- stderr
    error: it depends on the tool's annotations, and its server has listed no tools to this proxy yet: run the server once (`portcullis tools ls`), or say them with `--hint`
    "#);
    let known = folder.path().join(".portcullis/known");
    fs::create_dir_all(&known).unwrap();
    let tools = serde_json::json!({
        "of": "", "revision": "2025-11-25", "greeting": {},
        "lists": { "tools/list": [
            { "name": "read_note", "annotations": { "readOnlyHint": true } },
            { "name": "delete_note" },
        ] },
        "members": { "tools/list": {} },
    });
    fs::write(known.join("notes.json"), tools.to_string()).unwrap();
    assert_snapshot!(ask("notes/read_note"), @r#"
    exit 0
    allowed: permitted by `readers-read`
      readers-read  policies/p.cedar:2
    --- stderr
    "#);
    assert_snapshot!(ask("notes/delete_note"), @r#"
    exit 10
    denied: forbidden by `no-destruction`
      no-destruction  policies/p.cedar:10
        nothing is destroyed here
    --- stderr
    "#);
    assert_snapshot!(ask("notes/read_notes"), @r#"
    exit 2
    --- stderr
    error: `notes` has no tool `read_notes`, by the list that it last gave: did you mean `read_note`?
    "#);
    // Also where somebody says what its annotations would be.
    let hinted = ["call_tool", "notes/read_notes", "--hint", "readOnlyHint=true"];
    let output =
        portcullis(&folder, &[&["policy", "can-i", "--as", "ci-bot"][..], &hinted].concat());
    let said = shown(&output);
    assert!(said.starts_with("exit 2\n") && said.contains("no tool `read_notes`"), "{said}");
}

#[test]
fn can_i_reports_disabled_anonymous_clients() {
    let folder = folder("@id(\"all\") permit (principal, action, resource);");
    let ask = || {
        let words = ["policy", "can-i", "--as", "anonymous", "tools/call", "notes/x"];
        shown(&portcullis(&folder, &words))
    };
    assert_snapshot!(ask(), @r#"
    exit 10
    denied: anonymous clients are off (`anonymous` under `[listen]`)
    --- stderr
    "#);
    let config = format!("{CONFIG}\n[listen]\nanonymous = true\n");
    fs::write(folder.path().join("portcullis.toml"), config).unwrap();
    assert!(ask().starts_with("exit 0\nallowed: permitted by `all`\n"), "{}", ask());
}

#[test]
fn can_i_parses_arguments_like_the_proxy() {
    let folder = folder("@id(\"all\") permit (principal, action, resource);");
    for (method, args, refused) in [
        ("tools/call", r#"{"force": true, "force": false}"#, true),
        ("tools/call", r#"{"force": true, "Force": false}"#, true),
        ("tools/call", r#"{"env": {"http_proxy": 1, "HTTP_PROXY": 2}}"#, false),
        ("tools/call", r#"{"env": {"A": 1, "A": 2}}"#, true),
        ("logging/setLevel", r#"{"Level": "info"}"#, true),
    ] {
        let target = if method == "tools/call" { "notes/x" } else { "notes" };
        let words = ["policy", "can-i", "--as", "ci-bot", method, target, "--args", args];
        let said = shown(&portcullis(&folder, &words));
        assert_eq!(said.starts_with("exit 2\n"), refused, "{args}: {said}");
        assert_eq!(said.contains("the proxy would refuse `--args`: "), refused, "{args}: {said}");
    }
}

#[test]
fn can_i_refuses_to_guess_missing_facts() {
    let folder = folder(
        r#"@id("all") permit (principal, action == Portcullis::Action::"call_tool", resource);
           @id("local") forbid (principal, action, resource == Portcullis::Tool::"notes/local")
           when { context.transport == "http" };
           @id("near") forbid (principal, action, resource == Portcullis::Tool::"notes/near")
           unless { context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8")) };
           @id("few") forbid (principal, action, resource == Portcullis::Tool::"notes/few")
           when { context.session_calls > 9 };
           @id("both") forbid (principal, action, resource == Portcullis::Tool::"notes/both")
           when { context.transport == "unix" && context.session_calls > 9 };
           @id("none") forbid (principal, action, resource == Portcullis::Tool::"notes/none")
           when { context.transport == "unix" && principal is Portcullis::Local };"#,
    );
    for (tool, options, expected) in [
        ("local", &[] as &[_], "say `--transport`\n"),
        ("local", &["--transport", "http"], "exit 10\n"),
        ("local", &["--transport", "stdio"], "exit 0\n"),
        ("near", &[], "say `--source-ip`\n"),
        ("near", &["--source-ip", "10.1.2.3"], "exit 0\n"),
        ("near", &["--source-ip", "192.0.2.1"], "exit 10\n"),
        ("near", &["--transport", "unix"], "exit 10\n"),
        ("few", &[], "say `--session-calls`\n"),
        ("few", &["--session-calls", "3"], "exit 0\n"),
        ("few", &["--session-calls", "10"], "exit 10\n"),
        ("both", &[], "say `--transport`, `--source-ip`, `--session-calls`\n"),
        ("both", &["--transport", "http"], "exit 0\n"),
        ("none", &[], "exit 0\n"),
        ("other", &[], "exit 0\n"),
    ] {
        let target = format!("notes/{tool}");
        let words = [&["policy", "can-i", "--as", "ci-bot", "tools/call", &target][..], options];
        let said = shown(&portcullis(&folder, &words.concat()));
        assert!(said.contains(expected), "{tool} {options:?}: {said}");
        assert_eq!(said.starts_with("exit 1\n"), expected.starts_with("say"), "{tool}: {said}");
    }
}

#[test]
fn can_i_decides_actions_of_the_proxy() {
    let folder = folder(
        r#"@id("out") permit (principal == Portcullis::Server::"notes",
               action == Portcullis::Action::"egress", resource == Portcullis::Host::"a.example:443");
           @id("asks") @approve("sure?") permit (principal == Portcullis::Server::"notes",
               action == Portcullis::Action::"egress", resource == Portcullis::Host::"b.example:443");"#,
    );
    let ask = |host: &str| {
        shown(&portcullis(&folder, &["policy", "can-i", "--as", "server:notes", "egress", host]))
    };
    assert_snapshot!(ask("a.example:443"), @r#"
    exit 0
    allowed: permitted by `out`
      out  policies/p.cedar:1
    --- stderr
    "#);
    assert_snapshot!(ask("a.example:80"), @r#"
    exit 10
    denied: no policy permits it
    --- stderr
    "#);
    assert!(ask("b.example:443").starts_with("exit 10\ndenied: `@approve` cannot be met"));
}

#[test]
fn can_i_decides_the_start_of_a_server() {
    let folder = folder(
        r#"@id("hours") permit (principal == Portcullis::Server::"notes",
               action == Portcullis::Action::"launch", resource)
           when { context.now.toTime() >= duration("8h") };
           @id("token") permit (principal == Portcullis::Server::"notes",
               action == Portcullis::Action::"deliver_secret",
               resource == Portcullis::Secret::"notes/TOKEN");"#,
    );
    let secrets = "secrets = { TOKEN = { from = \"env:A\" }, OTHER = { from = \"env:B\" } }\n";
    fs::write(folder.path().join("portcullis.toml"), format!("{CONFIG}{secrets}")).unwrap();
    let ask = |words: &[&str]| {
        let words = [&["policy", "can-i", "--as", "server:notes"], words].concat();
        shown(&portcullis(&folder, &words))
    };
    assert_snapshot!(ask(&["launch", "--at", "2026-11-21T09:00:00Z"]), @r#"
    exit 0
    allowed: launch portcullis: permitted by `hours`
      hours  policies/p.cedar:1
    --- stderr
    "#);
    let early = ask(&["launch", "--at", "2026-11-21T07:00:00Z"]);
    assert!(
        early.starts_with("exit 10\ndenied: launch portcullis: no policy permits it"),
        "{early}"
    );
    let all = ask(&["deliver_secret"]);
    let other = "denied: deliver_secret OTHER: no policy permits it";
    assert!(all.starts_with("exit 10\n") && all.contains(other), "{all}");
    assert!(ask(&["deliver_secret", "TOKEN"]).starts_with("exit 0\nallowed"));
    for (words, why) in [
        (&["deliver_secret", "TOKENS"][..], "the server `notes` has no secret `TOKENS`"),
        (&["launch", "--explain"], "`--explain` cannot be used with `launch`"),
        (&["call_tool"], "a server has `launch`, `deliver_secret` and `egress`"),
    ] {
        let refused = ask(words);
        assert!(refused.starts_with("exit 2\n") && refused.contains(why), "{refused}");
    }
}

#[test]
fn policies_are_relative_to_the_config() {
    let folder = folder("@id(\"inner\") permit (principal, action, resource);");
    let outer = TempDir::new_in(folder.path()).unwrap();
    let config = folder.path().join("portcullis.toml");
    let config = config.to_str().unwrap();
    let ask = ["policy", "can-i", "-c", config, "--as", "ci-bot", "tools/list"];
    let output = portcullis(&outer, &ask);
    assert!(shown(&output).starts_with("exit 0\nallowed: permitted by `inner`\n"));
}

#[test]
fn can_i_prints_json() {
    let output = portcullis(
        &folder(POLICIES),
        &[
            "policy",
            "can-i",
            "--as",
            "ci-bot",
            "tools/call",
            "notes/x",
            "--format",
            "json",
            "--hint",
            "destructiveHint=true",
        ],
    );
    let mut answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(10));
    assert_eq!(answer["revision"].take().as_str().map(str::len), Some(12));
    assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap(), @r#"
    {
      "principal": "ci-bot",
      "action": "call_tool",
      "target": "notes/x",
      "allowed": false,
      "rules": [
        {
          "id": "no-destruction",
          "file": "policies/p.cedar",
          "line": 10,
          "reason": "nothing is destroyed here"
        }
      ],
      "revision": null,
      "errors": [],
      "explanation": "forbidden by `no-destruction`"
    }
    "#);
}

#[test]
fn invalid_can_i_requests_are_usage_errors() {
    let folder = folder(POLICIES);
    for (args, expected) in [
        (&["--as", "CI", "call_tool", "notes/x"] as &[_], "`--as`: `CI` is not a legal name"),
        (
            &["--as", "ci-bot", "call_tool", "notes"],
            "`call_tool` needs a target of the form SERVER/TOOL",
        ),
        (&["--as", "ci-bot", "call_tool", "notes__x"], "of the form SERVER/TOOL: write `notes/x`"),
        (&["--as", "ci-bot", "call_tool", "No/x"], "the server's name: `No` is not a legal name"),
        (
            &["--as", "ci-bot", "call_tool", "notes/x", "--args", "[1]"],
            "`--args` is not a JSON object",
        ),
        (&["--as", "ci-bot", "call_tool", "notes/x", "--hint", "destructive=1"], "the hints are "),
        (&["--as", "ci-bot", "sample"], "`sample` needs a target of the form SERVER"),
        // What is not there is no answer: in CI, neither yes nor no would be right.
        (
            &["--as", "ci-bo", "call_tool", "notes/x"],
            "there is no client `ci-bo`: did you mean `ci-bot`?",
        ),
        (&["--as", "clod", "call_tool", "notes/x"], "there is no client `clod`; `--as group:NAME`"),
        (&["--as", "ci-bot", "call_tool", "note/x"], "no server `note`: did you mean `notes`?"),
        (&["--as", "ci-bot", "tools/list", "desk"], "the config has no server `desk`\n"),
        (&["--as", "server:note", "egress", "a.example:443"], "no server `note`: did you mean"),
        (
            &["--as", "server:notes", "egress", "a.example"],
            "`egress` needs a target of the form HOST:PORT",
        ),
        (&["--as", "server:notes", "sample", "ci-bot"], "write `--as CLIENT sample SERVER`"),
        (&["--as", "plugin:none", "grant", "http"], "no plugin is called `none`"),
        (&["--as", "robot:x", "tools/list"], "write `client:NAME`"),
    ] {
        let output = portcullis(&folder, &[&["policy", "can-i"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
}

#[test]
fn can_i_with_invalid_policies_fails() {
    assert_snapshot!(run("permit (", &["policy", "can-i", "--as", "ci-bot", "tools/list"]), @r#"
    exit 1
    --- stderr
    policy-syntax

      × unexpected end of input
       ╭─[policies/p.cedar:1:9]
     1 │ permit (
       ╰────
    "#);
}

#[test]
fn cedar_schema_is_printed_verbatim() {
    let output = portcullis(&folder(""), &["schema", "cedar"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), portcullis_policy::SCHEMA);
}

#[test]
fn check_compares_policies_with_listed_tools() {
    let policies = r#"@id("old")
permit (principal is Portcullis::Local, action, resource)
when { resource in [Portcullis::Tool::"notes/read_note", Portcullis::Tool::"notes/red_note"] };

@id("writers")
permit (
  principal is Portcullis::Local,
  action == Portcullis::Action::"call_tool",
  resource in Portcullis::Server::"notes"
)
when { resource.claims.idempotent };
"#;
    let folder = folder(policies);
    let list = r#"[{"name": "read_note", "annotations": {"readOnlyHint": true}}]"#;
    for (name, text) in [
        ("list", list.to_owned()),
        ("result", format!(r#"{{"tools": {list}}}"#)),
        ("answer", format!(r#"{{"jsonrpc": "2.0", "id": 1, "result": {{"tools": {list}}}}}"#)),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let check = |file: &str| {
        let tools = format!("notes={file}");
        shown(&portcullis(&folder, &["policy", "check", "--tools", &tools]))
    };
    assert_snapshot!(check("list"), @r#"
    exit 11
    policy-unknown-tool

      ⚠ the server `notes` has no tool `red_note`
       ╭─[policies/p.cedar:3:58]
     2 │ permit (principal is Portcullis::Local, action, resource)
     3 │ when { resource in [Portcullis::Tool::"notes/read_note", Portcullis::Tool::"notes/red_note"] };
       ·                                                          ─────────────────┬────────────────
       ·                                                                           ╰── is not a tool of it
     4 │ 
       ╰────
      help: did you mean `notes/read_note`?
    policy-no-tool

      ⚠ `writers` holds for no known tool
        ╭─[policies/p.cedar:5:1]
      4 │     
      5 │ ╭─▶ @id("writers")
      6 │ │   permit (
      7 │ │     principal is Portcullis::Local,
      8 │ │     action == Portcullis::Action::"call_tool",
      9 │ │     resource in Portcullis::Server::"notes"
     10 │ │   )
     11 │ ├─▶ when { resource.claims.idempotent };
        · ╰──── matches none
        ╰────
      help: `--tools` names the file of what a server offers; correct this, or take it out
    2 findings
    --- stderr
    "#);
    assert_eq!(check("result"), check("list"));
    assert_eq!(check("answer"), check("list"));
    // What the operator states of a tool stands before what its server says.
    let stated = format!("{CONFIG}\n[servers.notes.tools.read_note]\nidempotent = true\n");
    fs::write(folder.path().join("portcullis.toml"), stated).unwrap();
    let checked = check("list");
    assert!(checked.contains("policy-unknown-tool"), "{checked}");
    assert!(!checked.contains("policy-no-tool"), "{checked}");
    fs::write(folder.path().join("portcullis.toml"), CONFIG).unwrap();
    assert_snapshot!(check("portcullis.toml"), @r#"
    exit 1
    --- stderr
    error: portcullis.toml does not hold a result of `tools/list`
      because: expected value at line 2 column 2
    "#);
}
