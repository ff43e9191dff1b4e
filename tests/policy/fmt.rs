//! `portcullis policy fmt`.

use super::*;

const ROUGH: &str = r#"// The readers.


@id("a") permit(principal in Portcullis::Group::"readers",action,resource) // all of it
when { principal.verified };
"#;

#[test]
fn check_shows_the_changes_that_fmt_makes() {
    let folder = folder(ROUGH);
    fs::write(folder.path().join("policies/good.cedar"), "permit (principal, action, resource);\n")
        .unwrap();
    let file = folder.path().join("policies/p.cedar");
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "fmt", "--check", "policies"])), @r#"
    exit 11
    --- policies/p.cedar
    +++ policies/p.cedar (formatted)
    @@ -1,5 +1,9 @@
     // The readers.
     
    -
    -@id("a") permit(principal in Portcullis::Group::"readers",action,resource) // all of it
    +@id("a")
    +permit (
    +  principal in Portcullis::Group::"readers",
    +  action,
    +  resource
    +) // all of it
     when { principal.verified };
    1 of 2 files would change
    --- stderr
    "#);
    assert_eq!(fs::read_to_string(&file).unwrap(), ROUGH);
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "fmt"])), @r#"
    exit 0
    formatted policies/p.cedar
    1 of 2 files changed
    --- stderr
    "#);
    assert_snapshot!(fs::read_to_string(&file).unwrap(), @r#"
    // The readers.

    @id("a")
    permit (
      principal in Portcullis::Group::"readers",
      action,
      resource
    ) // all of it
    when { principal.verified };
    "#);
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "fmt", "--check"])), @r#"
    exit 0
    2 files: nothing to change
    --- stderr
    "#);
}

#[test]
fn standard_input_is_formatted_to_standard_output() {
    let folder = folder("");
    let fmt = |args: &[&str], text: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let args = [&["policy", "fmt", "-"], args].concat();
        shown(&command.args(args).current_dir(folder.path()).write_stdin(text).output().unwrap())
    };
    assert_snapshot!(fmt(&[], "permit(principal,action,resource); // x"), @r#"
    exit 0
    permit (principal, action, resource); // x
    --- stderr
    "#);
    assert_snapshot!(fmt(&["--check", "--format", "json"], "permit(principal,action,resource);"), @r#"
    exit 11
    {
      "findings": [],
      "files": [
        {
          "file": "<stdin>",
          "changed": true,
          "diff": "--- <stdin>\n+++ <stdin> (formatted)\n@@ -1 +1 @@\n-permit(principal,action,resource);\n\\ No newline at end of file\n+permit (principal, action, resource);\n"
        }
      ]
    }
    --- stderr
    "#);
    assert_snapshot!(fmt(&[], "permit(principal"), @r#"
    exit 1
    --- stderr
    policy-syntax

      × unexpected end of input
       ╭─[<stdin>:1:17]
     1 │ permit(principal
       ╰────
    "#);
}

#[test]
fn invalid_file_is_unchanged() {
    let folder = folder(ROUGH);
    let bad = folder.path().join("policies/bad.cedar");
    fs::write(&bad, "permit (principal,,").unwrap();
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "fmt"])), @r#"
    exit 11
    policy-syntax

      × unexpected token `,`
       ╭─[policies/bad.cedar:1:19]
     1 │ permit (principal,,
       ·                   ┬
       ·                   ╰── expected `)` or identifier
       ╰────
    formatted policies/p.cedar
    1 of 1 file changed
    --- stderr
    "#);
    assert_eq!(fs::read_to_string(&bad).unwrap(), "permit (principal,,");
}

#[test]
fn link_and_file_mode_are_kept() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let folder = folder("");
    let real = folder.path().join("real.cedar");
    let link = folder.path().join("policies/link.cedar");
    fs::write(&real, ROUGH).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&real, &link).unwrap();
    let output = portcullis(&folder, &["policy", "fmt", "policies/link.cedar"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read_to_string(&real).unwrap(), ROUGH);
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(folder.path().join("policies")).unwrap().count(), 2);
}
