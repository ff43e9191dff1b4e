//! `portcullis policy new`: each template validates, is formatted, and passes its own cases.

use super::*;

#[test]
fn every_template_passes_its_cases() {
    for template in
        ["read-only", "approve-destructive", "no-tainted-data", "working-hours", "one-team"]
    {
        for party in [["--group", "ops"], ["--client", "ci-bot"]] {
            let folder = folder("");
            fs::remove_file(folder.path().join("policies/p.cedar")).unwrap();
            let ran = |args: &[&str]| shown(&portcullis(&folder, args));
            let new = ["policy", "new", template, "--server", "notes", "--dir", "policies"];
            let tools = ["--tool", "read_note", "--tool", "add_note"];
            let made = ran(&[&new[..], &tools, &party].concat());
            assert!(made.starts_with("exit 0\n"), "{made}");
            for verb in [
                &["fmt", "--check", "policies"] as &[_],
                &["check", "policies"],
                &["test", "--fail-under", "100", "policies"],
            ] {
                let ran = ran(&[&["policy"], verb].concat());
                assert!(ran.starts_with("exit 0\n"), "{template} {party:?}: {ran}");
            }
            // What is there is not overwritten.
            let again = ran(&[&new[..], &tools, &party].concat());
            assert!(again.starts_with("exit 1\n"), "{again}");
        }
    }
}

#[test]
fn template_is_printed_with_its_cases() {
    let folder = folder("");
    let new = |args: &[&str]| shown(&portcullis(&folder, &[&["policy", "new"], args].concat()));
    let one_team = ["one-team", "--group", "ops", "--server", "notes"];
    assert_snapshot!(new(&[&one_team[..], &["--tool", "delete_note"]].concat()), @r#"
    exit 0
    // ---- one-team.cedar

    // ops, and nobody else, may call these tools, whatever other policies permit.

    @id("ops-call")
    permit (
      principal in Portcullis::Group::"ops",
      action == Portcullis::Action::"call_tool",
      resource in Portcullis::Server::"notes"
    )
    when { resource in [Portcullis::Tool::"notes/delete_note"] };

    @id("only-ops-call")
    @reason("this tool is for ops")
    forbid (
      principal,
      action == Portcullis::Action::"call_tool",
      resource in Portcullis::Server::"notes"
    )
    when { resource in [Portcullis::Tool::"notes/delete_note"] }
    unless { principal in Portcullis::Group::"ops" };

    # ---- one-team.test.yaml

    cases:
      - name: they call
        as: group:ops
        call: [notes/delete_note]
        expect: allow
        by: ops-call

      - name: others do not
        as: [client:some-stranger, local:ann, anonymous]
        call: [notes/delete_note]
        expect: deny
        by: only-ops-call

      - name: what others see
        as: [client:some-stranger, local:ann, anonymous]
        call: [notes/delete_note]
        expect: hidden
    --- stderr
    "#);
    assert_snapshot!(new(&one_team), @r#"
    exit 2
    --- stderr
    error: say which tools: `--tool TOOL`
    "#);
    let hours = ["working-hours", "--client", "ci-bot", "--server", "notes", "--hours", "18-8"];
    assert_snapshot!(new(&hours), @r#"
    exit 2
    --- stderr
    error: invalid value '18-8' for '--hours <FROM-TO>': write FROM-TO, hours from 1 to 23, such as 8-18

    For more information, try '--help'.
    "#);
}
