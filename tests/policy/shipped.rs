//! The shipped policies are formatted, have no findings, and pass their cases.

use std::path::{Path, PathBuf};

use super::*;

/// The folder of the sources.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A run in the folder of the sources.
fn run_here(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    shown(&command.args(args).current_dir(root()).env_clear().output().unwrap())
}

/// The files of policies in a folder of the sources, by their names there.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| Path::new(folder).join(entry.unwrap().file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "cedar"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn shipped_policies_are_formatted() {
    let ran = run_here(&["policy", "fmt", "--check", "policies", "examples/quickstart/policies"]);
    assert!(ran.starts_with("exit 0\n"), "{ran}");
}

#[test]
fn shipped_policies_have_no_findings() {
    let quickstart = "examples/quickstart/portcullis.toml";
    for args in [&["policies"] as &[_], &["-c", quickstart]] {
        let ran = run_here(&[&["policy", "check"], args].concat());
        assert!(ran.starts_with("exit 0\n"), "{args:?}: {ran}");
    }
    // Each stands alone.
    for file in files("policies") {
        let ran = run_here(&["policy", "check", file.to_str().unwrap()]);
        assert!(ran.starts_with("exit 0\n"), "{}: {ran}", file.display());
    }
}

#[test]
fn shipped_policies_beside_one_server_have_findings_about_it_only() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path();
    let config = "[servers.git]\ncommand = [\"git-server\"]\n";
    fs::write(dir.join("portcullis.toml"), config).unwrap();
    fs::create_dir(dir.join("policies")).unwrap();
    for file in files("policies") {
        fs::copy(root().join(&file), dir.join(&file)).unwrap();
    }
    let output = portcullis(&folder, &["policy", "check"]);
    let text = String::from_utf8_lossy(&output.stdout);
    // Groups without clients, which policies about `git` name; each once.
    let groups = text.lines().filter(|line| line.contains("no client is in the group")).count();
    assert!(text.ends_with(&format!("{groups} findings\n")) && groups <= 2, "{text}");
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(note.contains("servers that the config does not have: `browser`, `fetch`"), "{note}");

    let (clients, policy) = ("[clients.a]\nkey-hash = \"sha256:", "\"\n");
    let config =
        format!("{config}{clients}{KEY_HASH}{policy}groups = [\"readers\", \"operators\"]\n");
    fs::write(dir.join("portcullis.toml"), config).unwrap();
    let ran = shown(&portcullis(&folder, &["policy", "check"]));
    assert!(ran.starts_with("exit 0\n"), "{ran}");
}

#[test]
fn shipped_policies_pass_their_cases() {
    for (folder, args) in [
        ("policies", &["policies"] as &[_]),
        ("examples/quickstart/policies", &["-c", "examples/quickstart/portcullis.toml"]),
    ] {
        let ran = run_here(&[&["policy", "test", "--fail-under", "100"], args].concat());
        assert!(ran.starts_with("exit 0\n"), "{folder}: {ran}");
        for file in files(folder) {
            let cases = root().join(file.with_extension("test.yaml"));
            assert!(cases.is_file(), "{} has cases", file.display());
        }
    }
}
