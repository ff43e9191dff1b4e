//! `portcullis policy explain`, `replay`, `diff` and `learn`, with recorded calls.

use portcullis_protocol::refusal::Code;
use serde_json::{Value, json};

use super::{
    recorded::{Called, look, record, record_start},
    *,
};

#[test]
fn explain_shows_the_condition_with_its_values() {
    let folder = folder(POLICIES);
    let forced = || Called::new("ci-bot", "read_note").args(json!({ "force": true })).refused();
    let ids = record(&folder, &[forced().keeping(), forced(), Called::new("dev", "read_note")]);
    let explain = |at: usize| look(&folder, &["policy", "explain", &ids[at].to_string()]);
    assert_snapshot!(explain(0), @r#"
    exit 0
    [id] was refused
      who       Portcullis::Client::"ci-bot"
      what      call_tool Portcullis::Tool::"notes/read_note"
      policies  [revision]: refused

    permit readers-read does not hold  policies/p.cedar:2
      is not so:  policies/p.cedar:8
        unless { context.args.hasTag("/force") }
      context.args.getTag("/force") is "true"

    forbid no-destruction does not hold  policies/p.cedar:10
      is not so:  policies/p.cedar:13
        resource.claims.destructive
      resource.claims.destructive is false
    --- stderr
    the record does not say which policies decided: this explains revision [revision]
    "#);
    assert_snapshot!(explain(1), @r#"
    exit 0
    [id] was refused
      who       Portcullis::Client::"ci-bot"
      what      call_tool Portcullis::Tool::"notes/read_note"
      policies  [revision]: unknown: too little of it is on record

    permit readers-read may hold  policies/p.cedar:2
      is not known:  policies/p.cedar:8
        unless { context.args.hasTag("/force") }
      context.args.getTag("/force") is boolean, not kept

    forbid no-destruction does not hold  policies/p.cedar:10
      is not so:  policies/p.cedar:13
        resource.claims.destructive
      resource.claims.destructive is false
    --- stderr
    the record does not say which policies decided: this explains revision [revision]
    "#);
    let nobody = "01960f8e-3b5a-7c60-9c1e-2f6b1f3d9a77";
    assert_snapshot!(look(&folder, &["policy", "explain", nobody]), @r#"
    exit 1
    --- stderr
    error: there is no record of the decision [id]
    "#);
    let state = folder.path().join("state");
    let id = ids[0].to_string();
    let json = portcullis(
        &folder,
        &["policy", "explain", &id, "--format", "json", "--state-dir", state.to_str().unwrap()],
    );
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["was"], "refused");
    assert_eq!(json["arguments_known"], true);
    assert_eq!(json["explanation"]["policies"][0]["result"], "unmet");
    assert_eq!(json["explanation"]["policies"][0]["condition"]["values"][0]["value"], "\"true\"");
}

#[test]
fn can_i_explains_its_decision() {
    assert_snapshot!(
        run(
            POLICIES,
            &["policy", "can-i", "--as", "group:strangers", "tools/call", "notes/add_note", "--explain",
              "--hint", "readOnlyHint=true"],
        ),
        @r#"
    exit 10
    denied: no policy permits it
      who       Portcullis::Client::"someone"
      what      call_tool Portcullis::Tool::"notes/add_note"
      policies  2e059db53ee2: refused

    forbid no-destruction does not hold  policies/p.cedar:10
      is not so:  policies/p.cedar:13
        resource.claims.destructive
      resource.claims.destructive is false

    permit readers-read is for another principal  policies/p.cedar:2
      asks for: principal in Portcullis::Group::"readers"
    --- stderr
    "#
    );
}

#[test]
fn diff_shows_gained_and_lost_permissions() {
    let folder = folder(POLICIES);
    fs::write(
        folder.path().join("new.cedar"),
        r#"
permit (
  principal in Portcullis::Group::"readers",
  action == Portcullis::Action::"call_tool",
  resource == Portcullis::Tool::"notes/read_note"
)
unless { context.args.hasTag("/force") };

@id("ann")
permit (
  principal == Portcullis::Local::"ann",
  action == Portcullis::Action::"call_tool",
  resource in Portcullis::Server::"notes"
);
"#,
    )
    .unwrap();
    fs::write(
        folder.path().join("tools.json"),
        r#"[{"name": "read_note", "annotations": {"readOnlyHint": true}}, {"name": "delete_note"}]"#,
    )
    .unwrap();
    let diff = |args: &[&str]| look(&folder, &[&["policy", "diff"], args].concat());
    assert_snapshot!(diff(&["new.cedar", "--tools", "notes=tools.json"]), @r#"
    exit 11
    added: permit `new.cedar:2`  new.cedar:2
    added: permit `ann`  new.cedar:9
    removed: permit `readers-read`  policies/p.cedar:2
    removed: forbid `no-destruction`  policies/p.cedar:10
    removed: permit `forms`  policies/p.cedar:15
    CLIENT         TOOL               NOW               BEFORE  POLICIES NOW  POLICIES BEFORE
    ci-bot         notes/*            lost              if …    none          no-destruction, readers-read
    ci-bot         notes/read_note    other conditions  if …    new.cedar:2   readers-read
    group readers  notes/*            lost              if …    none          no-destruction, readers-read
    group readers  notes/read_note    other conditions  if …    new.cedar:2   readers-read
    local:ann      notes/*            gained            no      ann           no-destruction
    local:ann      notes/delete_note  gained            no      ann           no-destruction
    local:ann      notes/read_note    gained            no      ann           none
    5 policies changed; 7 differences among 5 principals and 3 tools
    --- stderr
    "#);
    record(&folder, &[Called::new("dev", "sweep")]);
    assert_snapshot!(diff(&["policies", "new.cedar", "--recorded"]), @r#"
    exit 11
    added: permit `new.cedar:2`  new.cedar:2
    added: permit `ann`  new.cedar:9
    removed: permit `readers-read`  policies/p.cedar:2
    removed: forbid `no-destruction`  policies/p.cedar:10
    removed: permit `forms`  policies/p.cedar:15
    CLIENT         TOOL             NOW               BEFORE  POLICIES NOW  POLICIES BEFORE
    ci-bot         notes/*          lost              if …    none          no-destruction, readers-read
    ci-bot         notes/read_note  other conditions  if …    new.cedar:2   no-destruction, readers-read
    ci-bot         notes/sweep      lost              if …    none          readers-read
    dev            notes/*          lost              if …    none          no-destruction, readers-read
    dev            notes/read_note  other conditions  if …    new.cedar:2   no-destruction, readers-read
    dev            notes/sweep      lost              if …    none          readers-read
    group readers  notes/*          lost              if …    none          no-destruction, readers-read
    group readers  notes/read_note  other conditions  if …    new.cedar:2   no-destruction, readers-read
    group readers  notes/sweep      lost              if …    none          readers-read
    local:ann      notes/*          gained            no      ann           no-destruction
    local:ann      notes/read_note  gained            no      ann           no-destruction
    local:ann      notes/sweep      gained            no      ann           none
    5 policies changed; 12 differences among 6 principals and 3 tools
    --- stderr
    "#);
    assert_snapshot!(diff(&["policies", "policies/p.cedar"]), @r#"
    exit 0
    no policy changed; 0 differences among 4 principals and 1 tool
    --- stderr
    "#);
}

#[test]
fn diff_shows_which_policies_changed() {
    let folder = folder(
        r#"
@id("office-hours")
forbid (principal, action, resource in Portcullis::Server::"notes")
unless { context.now.toTime() < duration("18h") };

@id("gone")
permit (principal, action == Portcullis::Action::"connect", resource);

permit (principal, action == Portcullis::Action::"launch", resource);
"#,
    );
    fs::create_dir(folder.path().join("new")).unwrap();
    fs::write(
        folder.path().join("new/p.cedar"),
        r#"
// Another layout, and a new comment.
permit (
  principal,
  action == Portcullis::Action::"launch",
  resource
);

@id("office-hours")
forbid (principal, action, resource in Portcullis::Server::"notes")
unless { context.now.toTime() < duration("20h") };

@id("new")
forbid (principal, action, resource == Portcullis::Tool::"notes/delete_note");
"#,
    )
    .unwrap();
    assert_snapshot!(look(&folder, &["policy", "diff", "new"]), @r#"
    exit 11
    added: forbid `new`  new/p.cedar:13
    removed: permit `gone`  policies/p.cedar:6
    changed: forbid `office-hours`  new/p.cedar:9, before policies/p.cedar:2
      - unless { context.now.toTime() < duration("18h") };
      + unless { context.now.toTime() < duration("20h") };
    3 policies changed; 0 differences among 3 principals and 2 tools
    --- stderr
    "#);
    let json = look(&folder, &["policy", "diff", "new", "--format", "json"]);
    for text in [r#""kind": "changed""#, r#""id": "office-hours""#, r#""effect": "forbid""#] {
        assert!(json.contains(text), "{json}");
    }
}

#[test]
fn replay_shows_changed_and_undecidable_calls() {
    let folder = folder(POLICIES);
    record(
        &folder,
        &[
            Called::new("ci-bot", "read_note"),
            Called::new("ci-bot", "read_note"),
            Called::new("ci-bot", "add_note").args(json!({ "path": "/a" })),
            Called::new("ci-bot", "add_note").args(json!({ "path": "/a" })).keeping(),
            Called::new("dev", "read_note").refused(),
            Called { read_only: false, ..Called::new("ci-bot", "delete_note") }.refused(),
        ],
    );
    let path = folder.path().join("new.cedar");
    fs::write(
        &path,
        r#"
@id("devs-read")
permit (principal == Portcullis::Client::"dev", action == Portcullis::Action::"call_tool", resource);

@id("bots-add-below-a")
permit (
  principal == Portcullis::Client::"ci-bot",
  action == Portcullis::Action::"call_tool",
  resource == Portcullis::Tool::"notes/add_note"
)
when { context.args.hasTag("/path") && context.args.getTag("/path") like "/a*" };
"#,
    )
    .unwrap();
    assert_snapshot!(look(&folder, &["policy", "replay", "--policies", "new.cedar"]), @r#"
    exit 11
    6 recorded calls: 2 the same, 2 would be refused, 1 would be allowed, 1 unknown
    NOW      WAS      CALLS  CLIENT  ACTION     TARGET           POLICIES                     EXAMPLE
    refused  allowed  2      ci-bot  call_tool  notes/read_note  none permits it              [id]
    allowed  refused  1      dev     call_tool  notes/read_note  devs-read                    [id]
    unknown  allowed  1      ci-bot  call_tool  notes/add_note   depends on bots-add-below-a  [id]
    --- stderr
    "#);
    assert_snapshot!(look(&folder, &["policy", "replay", "--since", "1h", "--client", "dev"]), @r#"
    exit 0
    1 recorded call: 0 the same, 0 would be refused, 0 would be allowed, 1 unknown
    NOW      WAS      CALLS  CLIENT  ACTION     TARGET           POLICIES                 EXAMPLE
    unknown  refused  1      dev     call_tool  notes/read_note  depends on readers-read  [id]
    --- stderr
    "#);
}

#[test]
fn explain_begins_with_the_recorded_rule() {
    let folder = folder(POLICIES);
    let ids = record(
        &folder,
        &[Called {
            read_only: false,
            by: Some("no-destruction"),
            ..Called::new("ci-bot", "delete_note").refused()
        }],
    );
    let explained = look(&folder, &["policy", "explain", &ids[0].to_string()]);
    let expected = "exit 0\n[id] was refused\n  \
                    recorded  no-destruction  policies/p.cedar:10\n            \
                    nothing is destroyed here\n  who       ";
    assert!(explained.starts_with(expected), "{explained}");
}

#[test]
fn explain_shows_why_a_launch_was_refused() {
    let folder = folder(POLICIES);
    let detail = "launch notes:1: no policy permits it (policies 2e059db53ee2)";
    let ids = record(
        &folder,
        &[Called {
            start: Some((Code::PolicyDenied, detail)),
            ..Called::new("ci-bot", "read_note")
        }],
    );
    let id = ids[0].to_string();
    assert_snapshot!(look(&folder, &["policy", "explain", &id]), @r#"
    exit 0
    [id] was refused, since its server may not be started
      refused   launch notes:1: no policy permits it (policies [revision])
    --- stderr
    policies were not asked about the message itself; `portcullis server inspect notes` says what its start takes, and which policies decide that
    "#);
    let json = look(&folder, &["policy", "explain", &id, "--format", "json"]);
    assert!(json.contains(r#""start_refused": "launch notes:1: no policy permits it"#), "{json}");
}

#[test]
fn replay_skips_calls_whose_launch_was_refused() {
    let folder = folder(POLICIES);
    record(
        &folder,
        &[
            Called {
                start: Some((
                    Code::PolicyDenied,
                    "launch notes:1: no policy permits it (policies 2e059db53ee2)",
                )),
                ..Called::new("ci-bot", "read_note")
            },
            // A plugin refused this start, not a policy, whatever its text.
            Called {
                start: Some((Code::PluginRefused, "launch is a forbidden word")),
                ..Called::new("ci-bot", "read_note")
            },
            Called::new("dev", "read_note").refused(),
        ],
    );
    fs::write(folder.path().join("all.cedar"), "permit (principal, action, resource);").unwrap();
    let replay = look(&folder, &["policy", "replay", "--policies", "all.cedar"]);
    assert!(
        replay.contains(
            "2 recorded calls: 0 the same, 0 would be refused, 1 would be allowed, 1 unknown"
        ),
        "{replay}"
    );
    assert!(replay.contains("decision"), "{replay}");
}

#[test]
fn learned_policies_allow_only_recorded_allowed_calls() {
    let folder = folder(POLICIES);
    record(
        &folder,
        &[
            Called::new("ci-bot", "read_note"),
            Called::new("ci-bot", "read_note"),
            Called::new("ci-bot", "list \"all\""),
            Called::new("local:ann", "read_note"),
            Called { read_only: false, ..Called::new("local:ann", "delete_note") },
            Called::new("dev", "read_note").refused(),
            Called { read_only: false, ..Called::new("ci-bot", "delete_note") }.refused(),
        ],
    );
    let without = look(&folder, &["policy", "learn"]);
    assert!(without.contains("no start of `notes` is on record in this time"), "{without}");
    assert!(!without.contains("Server::\"notes\",\n  action"), "{without}");
    record_start(&folder, "notes");
    // Nobody used this one.
    record_start(&folder, "mail");
    assert_snapshot!(look(&folder, &["policy", "learn"]), @r#"
    exit 0
    // Proposed from 5 recorded calls that were allowed
    // ([day] to [day]).
    // Each client may do just what it did, by name; arguments are not limited. Read it, widen it to
    // groups, narrow it with conditions, then put it beside what must hold for all.

    // It starts as recorded, and not from another file.
    @id("notes/launch")
    permit (
      principal == Portcullis::Server::"notes",
      action == Portcullis::Action::"launch",
      resource
    )
    when
    {
      resource.runtime == "sandbox" &&
      resource.name == "notes-server" &&
      resource has digest &&
      resource.digest == "sha256:00" &&
      ["egress"].containsAll(resource.deviations)
    };

    // It gets these secrets.
    @id("notes/secrets")
    permit (
      principal == Portcullis::Server::"notes",
      action == Portcullis::Action::"deliver_secret",
      resource
    )
    when { resource in [Portcullis::Secret::"notes/TOKEN"] };

    // It connects to these hosts.
    @id("notes/egress")
    permit (
      principal == Portcullis::Server::"notes",
      action == Portcullis::Action::"egress",
      resource
    )
    when { resource.name == "api.example.com" && resource.port == 443 };

    // ---- ci-bot ----

    // It connects to the servers that it used, and lists what they offer.
    @id("ci-bot/connect-servers")
    permit (
      principal == Portcullis::Client::"ci-bot",
      action == Portcullis::Action::"connect",
      resource == Portcullis::Server::"notes"
    );

    // call_tool of notes: 3 recorded.
    //   read_note 2, claims to be read-only
    //   list \"all\" 1, claims to be read-only
    @id("ci-bot/notes/call_tool")
    permit (
      principal == Portcullis::Client::"ci-bot",
      action == Portcullis::Action::"call_tool",
      resource is Portcullis::Tool in Portcullis::Server::"notes"
    )
    when
    {
      resource in [Portcullis::Tool::"notes/list \"all\"",
       Portcullis::Tool::"notes/read_note"]
    };

    // ---- local:ann ----

    // It connects to the servers that it used, and lists what they offer.
    @id("local:ann/connect-servers")
    permit (
      principal == Portcullis::Local::"ann",
      action == Portcullis::Action::"connect",
      resource == Portcullis::Server::"notes"
    );

    // call_tool of notes: 2 recorded.
    //   delete_note 1, counts as destructive
    //   read_note 1, claims to be read-only
    @id("local:ann/notes/call_tool")
    permit (
      principal == Portcullis::Local::"ann",
      action == Portcullis::Action::"call_tool",
      resource is Portcullis::Tool in Portcullis::Server::"notes"
    )
    when
    {
      resource in [Portcullis::Tool::"notes/delete_note",
       Portcullis::Tool::"notes/read_note"]
    };
    --- stderr
    "#);
    assert_snapshot!(look(&folder, &["policy", "learn", "--output", "learned.cedar"]), @r#"
    exit 0
    7 policies from 5 recorded calls: learned.cedar, with cases in learned.test.yaml
    --- stderr
    "#);
    let again = look(&folder, &["policy", "learn", "--output", "learned.cedar"]);
    assert!(again.starts_with("exit 1"), "files of others are left alone: {again}");
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "check", "learned.cedar"])), @r#"
    exit 0
    7 policies: no findings
    --- stderr
    "#);
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "test", "learned.test.yaml"])), @r#"
    exit 0
    learned.test.yaml: 15 requests as expected
    --- stderr
    "#);
    assert_snapshot!(look(&folder, &["policy", "replay", "--policies", "learned.cedar"]), @r#"
    exit 0
    7 recorded calls: 7 the same, 0 would be refused, 0 would be allowed, 0 unknown
    --- stderr
    "#);
    let learned = fs::read_to_string(folder.path().join("learned.cedar")).unwrap();
    let learned = self::folder(&learned);
    let mut config = CONFIG.replace("[servers.notes]", "[servers.other]");
    config = config.replace("[clients.ci-bot]", "[clients.dev]") + CONFIG;
    for (number, client) in ["ci-bo", "ci-bot-2", "ann"].iter().enumerate() {
        config += &format!("[clients.{client}]\nkey-hash = \"sha256:{number:064x}\"\n");
    }
    config = config.replacen(KEY_HASH, &"1".repeat(64), 1) + "[listen]\nanonymous = true\n";
    fs::write(learned.path().join("portcullis.toml"), config).unwrap();
    let can = |who: &str, method: &str, what: &str| {
        shown(&portcullis(&learned, &["policy", "can-i", "--as", who, method, what]))
    };
    for (who, method, what) in [
        ("ci-bot", "tools/call", "notes/read_note"),
        ("ci-bot", "tools/call", "notes/list \"all\""),
        ("local:ann", "tools/call", "notes/delete_note"),
    ] {
        let said = can(who, method, what);
        assert!(said.starts_with("exit 0\nallowed"), "{who} {method} {what}: {said}");
    }
    // Other programs, secrets and hosts are not permitted.
    let cases = r#"policies: policies/p.cedar
cases:
  - name: starts
    as: server:notes
    each:
      - { launch: { runtime: sandbox, name: notes-server, digest: "sha256:00", deviations: [egress] }, expect: allow }
      - { launch: { runtime: sandbox, name: notes-server, digest: "sha256:01" }, expect: deny }
      - { launch: { runtime: sandbox, name: other-server, digest: "sha256:00" }, expect: deny }
      - { launch: { runtime: sandbox, name: notes-server, digest: "sha256:00", deviations: [mounts] }, expect: deny }
      - { deliver: { name: TOKEN, source: env, delivery: env }, expect: allow }
      - { deliver: { name: OTHER, source: env, delivery: env }, expect: deny }
      - { egress: "api.example.com:443", expect: allow }
      - { egress: "api.example.com:80", expect: deny }
      - { egress: "evil.example.com:443", expect: deny }
"#;
    fs::write(learned.path().join("starts.test.yaml"), cases).unwrap();
    assert_snapshot!(shown(&portcullis(&learned, &["policy", "test", "starts.test.yaml"])), @r#"
    exit 0
    starts.test.yaml: 9 requests as expected
    --- stderr
    "#);
    // Other clients of the same name's beginning, other kinds of client, other tools, spellings and
    // servers, and other methods with the same thing.
    for (who, method, what) in [
        ("dev", "tools/call", "notes/read_note"),
        ("ci-bo", "tools/call", "notes/read_note"),
        ("ci-bot-2", "tools/call", "notes/read_note"),
        ("local:ci-bot", "tools/call", "notes/read_note"),
        ("ann", "tools/call", "notes/delete_note"),
        ("anonymous", "tools/call", "notes/read_note"),
        ("ci-bot", "tools/call", "notes/delete_note"),
        ("ci-bot", "tools/call", "notes/add_note"),
        ("ci-bot", "tools/call", "notes/Read_note"),
        ("ci-bot", "tools/call", "notes/read_note "),
        ("ci-bot", "tools/call", "notes/read_note/x"),
        ("ci-bot", "tools/call", "notes/list"),
        ("ci-bot", "tools/call", "other/read_note"),
        ("local:ann", "tools/call", "notes/list \"all\""),
        ("ci-bot", "prompts/get", "notes/read_note"),
        ("ci-bot", "resources/read", "notes/read_note"),
    ] {
        let said = can(who, method, what);
        assert!(said.starts_with("exit 10\ndenied"), "{who} {method} {what}: {said}");
    }
}

#[test]
fn calls_with_obligations_are_not_learned() {
    let folder = folder(POLICIES);
    let under =
        |tool, name, text| Called { under: Some((name, text)), ..Called::new("ci-bot", tool) };
    record(
        &folder,
        &[
            Called::new("ci-bot", "read_note"),
            under("delete_note", "approve", "may it?"),
            under("delete_note", "approve", "may it?"),
            under("send", "redact", "/ssn"),
            under("list", "rate", "10/1m"),
            under("look", "note", "a note bounds nothing"),
        ],
    );
    let text = look(&folder, &["policy", "learn"]);
    for tool in ["notes/read_note", "notes/look"] {
        assert!(text.contains(&format!("Portcullis::Tool::\"{tool}\"")), "{text}");
    }
    for tool in ["notes/delete_note", "notes/send", "notes/list"] {
        assert!(!text.contains(&format!("Portcullis::Tool::\"{tool}\"")), "{text}");
    }
    for told in [
        "not learned from 4 calls that passed under an obligation",
        "2 of ci-bot: call_tool notes/delete_note (@approve)",
        "1 of ci-bot: call_tool notes/send (@redact)",
        "1 of ci-bot: call_tool notes/list (@rate)",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}
