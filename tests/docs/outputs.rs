//! Outputs that the docs show below a command, if they are the same on every machine.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;

use crate::{
    commands,
    pages::{self, Page, root},
};

fn page(path: &str) -> Page {
    pages::all().into_iter().find(|page| page.path == path).unwrap()
}

/// What a command of the docs prints, standard output first.
fn printed(folder: &Path, command: &str) -> String {
    let ours = cargo_bin!("portcullis");
    let path = format!("{}:{}", ours.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).current_dir(folder).env("PATH", path).env("NO_COLOR", "1");
    let output = shell.env_remove("PORTCULLIS_CONFIG").output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Runs the commands of a block and compares what is shown below each. Notes on standard error may
/// follow what is shown.
#[track_caller]
fn compare(folder: &Path, block: &pages::Block) {
    for shown in commands::of_console(&block.text) {
        let printed = printed(folder, &shown.command);
        let shows = shown.output.trim_end();
        assert!(!shows.is_empty(), "`{}` shows nothing", shown.command);
        assert!(printed.starts_with(shows), "`{}` prints\n{printed}", shown.command);
    }
}

#[test]
fn first_policy_of_the_readme_decides_as_shown() {
    let page = page("README.md");
    let policy = page.blocks.iter().find(|block| block.language == "cedar").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let digest = "0".repeat(64);
    let config = format!(
        "[servers.git]\nimage = \"registry.example/mcp-git@sha256:{digest}\"\nmounts = [\"./repo:/repo\"]\n"
    );
    fs::write(folder.path().join("portcullis.toml"), config).unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::create_dir(folder.path().join("repo")).unwrap();
    fs::write(folder.path().join("policies/main.cedar"), &policy.text).unwrap();
    printed(folder.path(), "portcullis client add claude --group agents");
    let asked = page.blocks.iter().find(|block| block.text.contains("can-i --as claude")).unwrap();
    // `tools ls` shows nothing that could be compared: nothing runs here.
    let (text, _) = asked.text.split_once("$ portcullis tools ls").unwrap();
    compare(
        folder.path(),
        &pages::Block {
            text: text.to_owned(),
            language: String::new(),
            info: String::new(),
            line: asked.line,
        },
    );
}

#[test]
fn documented_chain_matches_the_output_of_check() {
    let page = page("docs/concepts/pipeline.md");
    let find = |text: &str| page.blocks.iter().find(|block| block.text.contains(text)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let entries = &find("use = \"rate-limit\"").text;
    fs::write(folder.path().join("portcullis.toml"), entries).unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    compare(folder.path(), find("chain: rate-limit, policy"));
}

#[test]
fn documented_filter_error_matches_the_output() {
    let page = page("docs/reference/audit-queries.md");
    let block = page.blocks.iter().find(|block| block.info == "audit-filter").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("portcullis.toml"), "").unwrap();
    let wrong = "portcullis audit query 'client = ci-bot and decison = refused'";
    let lines =
        |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    let printed = printed(folder.path(), wrong);
    let without_blanks: Vec<_> = lines(&printed).into_iter().filter(|l| !l.is_empty()).collect();
    let shown: Vec<_> = lines(&block.text).into_iter().filter(|l| !l.is_empty()).collect();
    assert_eq!(without_blanks, shown, "{printed}");
}

/// The table of the export, which a test beside the export writes into its page.
pub fn is_the_export_table(page: &Page) -> Result<(), String> {
    let test = fs::read_to_string(root().join("src/audit/export/format/tests/docs.rs")).unwrap();
    let holds = test.contains(&page.path) && test.contains("```sql");
    holds.then_some(()).ok_or_else(|| "no test holds this table against the export's".into())
}
