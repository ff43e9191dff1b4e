//! The plugin guide: its steps are followed with the real tools until the host loads the component,
//! and its cases pass on the plugin that they describe.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use assert_cmd::cargo::cargo_bin;

use crate::{
    commands,
    pages::{self, Page, root},
};

/// The pages that are followed, with the folder and the component that they make.
const GUIDES: [(&str, &str, &str); 4] = [
    ("docs/plugins/rust.md", "no-word", "target/wasm32-unknown-unknown/release/no_word.wasm"),
    ("docs/plugins/javascript.md", "transfers", "target/transfers.wasm"),
    ("docs/plugins/python.md", "passwords", "target/passwords.wasm"),
    ("docs/plugins/c.md", "no-delete", "no_delete.wasm"),
];

/// The page with the cases of `refunds`, an example of the tree.
const CASES: &str = "docs/plugins/testing.md";

/// Whether a test of this file follows the page.
pub fn is_followed(page: &Page) -> Result<(), String> {
    let followed = GUIDES.iter().any(|(path, ..)| *path == page.path) || page.path == CASES;
    followed
        .then_some(())
        .ok_or_else(|| "no test of tests/docs/plugins.rs follows this page".into())
}

/// The folder of built plugins. They are built once, when the first is asked for.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let status = Command::new(root().join("plugins/build")).status().unwrap();
        assert!(status.success(), "plugins/build failed");
        root().join("target/plugins")
    })
}

fn page(path: &str) -> Page {
    pages::all().into_iter().find(|page| page.path == path).unwrap()
}

/// Runs a script with the programs that the guide names, and says what it wrote.
fn shell(folder: &Path, script: &str) -> String {
    let ours = cargo_bin!("portcullis");
    let tools = root().join("target/guests/release");
    let path = [ours.parent().unwrap(), &tools].map(|folder| folder.display().to_string());
    let path = format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-e", "-c", script]).current_dir(folder).env("PATH", path);
    // The project is one of its own, and not of the workspace whose test this is.
    command.env_remove("CARGO_TARGET_DIR").env_remove("PORTCULLIS_CONFIG");
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{script}\n{said}");
    said
}

fn follow(path: &str) {
    let (_, name, component) = GUIDES.into_iter().find(|(page, ..)| *page == path).unwrap();
    built();
    let top = tempfile::tempdir().unwrap();
    symlink(root(), top.path().join("portcullis")).unwrap();
    let folder = top.path().join(name);
    let steps = page(path);
    let upto = steps.blocks.iter().position(|block| block.text.contains("[[interceptors]]"));
    for block in &steps.blocks[..upto.unwrap()] {
        match (block.language.as_str(), block.info.as_str()) {
            ("console", _) => {
                let commands = commands::of_console(&block.text).into_iter();
                let commands = commands.map(|shown| shown.command);
                let commands: Vec<_> = commands.filter(|command| !is_setup(command)).collect();
                let at = if folder.is_dir() { &folder } else { top.path() };
                shell(at, &commands.join("\n"));
                // What Rust's standard crates come to is built once for all tests.
                if path.ends_with("rust.md") && !folder.join("target").exists() {
                    symlink(root().join("target/guests"), folder.join("target")).unwrap();
                }
            }
            ("toml", "cargo") => manifest(&folder.join("Cargo.toml"), &block.text),
            (_, info) => {
                let file = folder.join(info.strip_prefix("file=").unwrap());
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, &block.text).unwrap();
            }
        }
    }
    let said = shell(&folder, &format!("portcullis plugin inspect --no-cost {component}"));
    assert!(said.contains(&name.replace('_', "-")), "{said}");
    let config = &steps.blocks[upto.unwrap()].text;
    fs::write(top.path().join("portcullis.toml"), config).unwrap();
    // A grant still needs a policy, and the digest is not pinned; all else has to be right.
    let said = shell(top.path(), "portcullis check --format json || true");
    assert!(!said.contains("config-"), "{said}");
}

/// What is installed once on a machine, which the tests' own set-up does.
fn is_setup(command: &str) -> bool {
    ["rustup ", "apt-get ", "cargo install "].iter().any(|setup| command.starts_with(setup))
}

/// Adds lines to a manifest: tables at its end, keys below `[package]`.
fn manifest(file: &Path, lines: &str) {
    let text = fs::read_to_string(file).unwrap();
    let text = match lines.starts_with('[') {
        true => format!("{text}\n{lines}"),
        false => text.replace("[package]\n", &format!("[package]\n{lines}")),
    };
    fs::write(file, text).unwrap();
}

#[test]
fn rust_guide_builds_a_plugin() {
    follow("docs/plugins/rust.md");
}

#[test]
fn javascript_guide_builds_a_plugin() {
    follow("docs/plugins/javascript.md");
}

#[test]
fn python_guide_builds_a_plugin() {
    follow("docs/plugins/python.md");
}

#[test]
fn c_guide_builds_a_plugin() {
    follow("docs/plugins/c.md");
}

/// The first block is a complete file; the others are additional cases for it.
#[test]
fn documented_cases_pass() {
    let page = page(CASES);
    let blocks = page.blocks.iter().filter(|block| block.info == "plugin-cases");
    let text: String = blocks.map(|block| format!("{}\n", block.text)).collect();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("refunds.test.yaml"), text).unwrap();
    let plugin = built().join("refunds.wasm");
    let test = format!("portcullis plugin test --plugin {} .", plugin.display());
    let said = shell(folder.path(), &test);
    assert!(said.contains("as expected") && !said.contains(" NOT "), "{said}");
}
