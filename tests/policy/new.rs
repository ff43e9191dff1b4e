//! `portcullis policy new`: each template validates, is formatted, and passes its own cases.

use super::*;

const TOOLS: &[&str] = &["--tool", "read_note", "--tool", "add_note"];
const GROUP: &[&str] = &["--group", "ops"];
const CLIENT: &[&str] = &["--client", "ci-bot"];
const LOCAL: &[&str] = &["--local-user", "ann"];

/// A template, its options, and the name of its files for connections.
type Template = (&'static str, &'static [&'static [&'static str]], Option<&'static str>);

/// Each template with its options and the name of its files for connections, if it has some.
const TEMPLATES: &[Template] = &[
    ("read-only", &[GROUP], Some("connect-group-ops")),
    ("named-tools", &[CLIENT, TOOLS], Some("connect-client-ci-bot")),
    ("one-folder", &[LOCAL, TOOLS, &["--folder", "/srv/work"]], Some("connect-local-ann")),
    ("rate-limit", &[GROUP, &["--rate", "1000/24h"]], Some("connect-group-ops")),
    ("approve-tools", &[CLIENT, TOOLS], Some("connect-client-ci-bot")),
    ("approve-destructive", &[LOCAL], Some("connect-local-ann")),
    ("no-tainted-data", &[GROUP], Some("connect-group-ops")),
    ("one-team", &[CLIENT, TOOLS], Some("connect-client-ci-bot")),
    ("one-team", &[LOCAL, TOOLS], Some("connect-local-ann")),
    ("deny-tools", &[GROUP, TOOLS], None),
    ("working-hours", &[CLIENT], None),
    ("working-hours", &[GROUP, &["--days", "mon-fri"]], None),
    ("working-hours", &[LOCAL, &["--days", "tue-sun", "--hours", "9-17"]], None),
    ("launch", &[], None),
    ("no-network", &[], None),
];

#[test]
fn every_template_passes_its_cases() {
    for &(template, options, connect) in TEMPLATES {
        let folder = folder("");
        fs::remove_file(folder.path().join("policies/p.cedar")).unwrap();
        let ran = |args: &[&str]| shown(&portcullis(&folder, args));
        let new = |servers: &[&str]| {
            let new = ["policy", "new", template, "--dir", "policies"];
            let options = options.concat();
            ran(&[&new[..], servers, &options[..]].concat())
        };
        let made = new(&["--server", "notes", "--server", "mail"]);
        assert!(made.starts_with("exit 0\n"), "{template} {options:?}: {made}");
        for server in ["notes", "mail"] {
            assert!(
                made.contains(&format!("wrote policies/{template}-{server}.cedar\n")),
                "{made}"
            );
        }
        for verb in [
            &["fmt", "--check", "policies"] as &[_],
            &["check", "policies"],
            &["test", "--fail-under", "100", "policies"],
        ] {
            let ran = ran(&[&["policy"], verb].concat());
            assert!(ran.starts_with("exit 0\n"), "{template} {options:?}: {ran}");
        }
        // An existing file is not overwritten, and then no other file is written.
        let again = new(&["--server", "files", "--server", "mail"]);
        assert!(again.starts_with("exit 1\n"), "{again}");
        assert!(!folder.path().join(format!("policies/{template}-files.cedar")).exists());
        // The files for connections serve every server.
        let third = new(&["--server", "files"]);
        assert!(third.starts_with("exit 0\n"), "{third}");
        match connect {
            Some(name) => {
                assert!(third.contains(&format!("kept policies/{name}.cedar\n")), "{third}")
            }
            None => assert!(!third.contains("kept"), "{third}"),
        }
    }
}

/// The names in the cases are not those of the operator's own entities.
#[test]
fn templates_for_entities_with_the_names_of_cases_pass_their_cases() {
    let tools = ["--tool", "some-other-tool", "--tool", "some-other-tool-2"];
    for &(template, options, _) in TEMPLATES {
        let folder = folder("");
        fs::remove_file(folder.path().join("policies/p.cedar")).unwrap();
        let ran = |args: &[&str]| shown(&portcullis(&folder, args));
        let mut args = vec!["policy", "new", template, "--dir", "policies"];
        args.extend(["--server", "another-server", "--server", "another-server-2"]);
        if options.contains(&TOOLS) {
            args.extend(tools);
        }
        if template == "one-folder" {
            args.extend(["--folder", "/srv/some-other-folder"]);
        }
        if !["launch", "no-network"].contains(&template) {
            args.extend(["--client", "some-stranger"]);
        }
        let made = ran(&args);
        assert!(made.starts_with("exit 0\n"), "{template}: {made}");
        let tested = ran(&["policy", "test", "policies"]);
        assert!(tested.starts_with("exit 0\n"), "{template}: {tested}");
    }
}

#[test]
fn template_is_printed_with_its_cases() {
    let folder = folder("");
    let new = |args: &[&str]| shown(&portcullis(&folder, &[&["policy", "new"], args].concat()));
    let one_team = ["one-team", "--group", "ops", "--server", "notes"];
    assert_snapshot!(new(&[&one_team[..], &["--tool", "delete_note"]].concat()), @r#"
    exit 0
    // ---- connect-group-ops.cedar

    // Lets ops connect and request lists. A list contains only what other policies permit.

    @id("connect-group-ops")
    permit (
      principal in Portcullis::Group::"ops",
      action == Portcullis::Action::"connect",
      resource
    );

    # ---- connect-group-ops.test.yaml

    cases:
      - name: the principal connects
        as: group:ops
        do: [initialize, tools/list]
        expect: allow
        by: connect-group-ops

      - name: other principals are denied
        as: [client:some-stranger, anonymous]
        do: [initialize, tools/list]
        expect: deny
        by: []

    // ---- one-team-notes.cedar

    // Only ops may call these tools, whatever other policies permit.

    @id("ops-call-on-notes")
    permit (
      principal in Portcullis::Group::"ops",
      action == Portcullis::Action::"call_tool",
      resource in Portcullis::Server::"notes"
    )
    when { resource in [Portcullis::Tool::"notes/delete_note"] };

    @id("only-ops-call-on-notes")
    @reason("only ops may call this tool")
    forbid (
      principal,
      action == Portcullis::Action::"call_tool",
      resource in Portcullis::Server::"notes"
    )
    when { resource in [Portcullis::Tool::"notes/delete_note"] }
    unless { principal in Portcullis::Group::"ops" };

    # ---- one-team-notes.test.yaml

    cases:
      - name: the team calls the tools
        as: group:ops
        call: [notes/delete_note]
        expect: allow
        by: ops-call-on-notes

      - name: other principals are denied
        as: [client:some-stranger, anonymous]
        call: [notes/delete_note]
        expect: deny
        by: only-ops-call-on-notes

      - name: other principals do not see the tools
        as: [client:some-stranger, anonymous]
        call: [notes/delete_note]
        expect: hidden
    --- stderr
    "#);
    assert_snapshot!(new(&["launch", "--server", "notes"]), @r#"
    exit 0
    // ---- launch-notes.cedar

    // Permits the start of `notes` with the full hardened profile. If its config deviates from the
    // profile, list the deviations instead: `["mounts"].containsAll(resource.deviations)`.

    @id("launch-notes")
    permit (
      principal == Portcullis::Server::"notes",
      action == Portcullis::Action::"launch",
      resource
    )
    when { resource.deviations.isEmpty() };

    # ---- launch-notes.test.yaml

    cases:
      - name: a start with the full profile is permitted
        as: server:notes
        expect: allow
        by: launch-notes
        each:
          - { launch: { runtime: container, name: any } }
          - { launch: { runtime: sandbox, name: any } }

      - name: other starts are denied
        expect: deny
        by: []
        each:
          - { as: server:notes, launch: { runtime: container, name: any, deviations: [mounts] } }
          - { as: server:another-server, launch: { runtime: container, name: any } }
    --- stderr
    "#);
}

#[test]
fn options_that_a_template_cannot_use_are_refused() {
    let folder = folder("");
    let new = |args: &[&str]| {
        let args = [&["policy", "new", "--server", "notes"], args].concat();
        shown(&portcullis(&folder, &args))
    };
    for (args, problem) in [
        (&["one-team", "--group", "ops"] as &[&str], "name the tools: `--tool TOOL`"),
        (
            &["read-only", "--group", "ops", "--tool", "a"],
            "the template applies to all tools: omit `--tool`",
        ),
        (&["read-only"], "name the principal: `--group`, `--client` or `--local-user`"),
        (
            &["launch", "--group", "ops"],
            "the template applies to a server: omit `--group`, `--client` and `--local-user`",
        ),
        (&["one-folder", "--group", "ops", "--tool", "a"], "name the folder: `--folder PATH`"),
        (
            &["read-only", "--group", "ops", "--folder", "/srv"],
            "the template applies to no folder: omit `--folder`",
        ),
        (&["launch", "--server", "notes"], "name each server once"),
    ] {
        assert_eq!(new(args), format!("exit 2\n--- stderr\nerror: {problem}\n"));
    }
    for args in [
        &["read-only", "--group", "ops", "--client", "ci-bot"] as &[&str],
        &["read-only", "--local-user", "a\"b"],
        &["one-folder", "--group", "ops", "--tool", "a", "--folder", "/srv/../etc"],
        &["one-folder", "--group", "ops", "--tool", "a", "--folder", "/srv/*"],
        &["rate-limit", "--group", "ops", "--rate", "often"],
        &["working-hours", "--group", "ops", "--days", "fri-mon"],
        &["working-hours", "--group", "ops", "--days", "monday-friday"],
    ] {
        let refused = new(args);
        assert!(refused.starts_with("exit 2\n--- stderr\nerror: "), "{args:?}: {refused}");
    }
    assert_snapshot!(new(&["working-hours", "--client", "ci-bot", "--hours", "18-8"]), @r#"
    exit 2
    --- stderr
    error: invalid value '18-8' for '--hours <FROM-TO>': write FROM-TO, hours from 1 to 23, such as 8-18

    For more information, try '--help'.
    "#);
}
