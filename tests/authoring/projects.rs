//! New projects in every language build a plugin that passes its own cases.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::run;

fn project(language: &str) {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let (code, out, err) = run(here, &["plugin", "new", "--lang", language, "no-marker"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("wrote no-marker/no-marker.test.yaml"), "{out}");

    let before = run(here, &["plugin", "test", "no-marker"]);
    assert_eq!(before.0, 11, "{before:?}");
    assert!(before.1.contains("`portcullis plugin build no-marker` makes it"), "{}", before.1);

    let (code, out, err) = run(here, &["plugin", "build", "no-marker"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.starts_with("no-marker 0.1.0\n"), "{out}");
    assert!(here.join("no-marker/target/no-marker.wasm").is_file(), "{out}");

    let (code, out, err) = run(here, &["plugin", "test", "no-marker"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("messages as expected"), "{out}");

    // The lines that it prints are those of a config.
    let (_, out, _) = run(here, &["plugin", "build", "no-marker", "--format", "json"]);
    let built: serde_json::Value = serde_json::from_str(&out).unwrap();
    let given = match language {
        "c" => "config = { max = 1000 }",
        _ => "config = { marker = \"secret\" }",
    };
    let entry = built["config"].as_str().unwrap();
    let entry: String = entry
        .lines()
        .map(|line| if line.starts_with("config = ") { given } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::create_dir(here.join("policies")).unwrap();
    fs::write(here.join("portcullis.toml"), entry).unwrap();
    let (code, out, err) = run(here, &["check"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn rust_project_builds_and_passes_its_cases() {
    project("rust");
}

#[test]
fn javascript_project_builds_and_passes_its_cases() {
    project("js");
}

#[test]
fn python_project_builds_and_passes_its_cases() {
    project("python");
}

#[test]
fn c_project_builds_and_passes_its_cases() {
    project("c");
}

#[test]
fn watched_project_is_built_and_tested_after_each_change() {
    let dir = tempfile::tempdir().unwrap();
    let new = ["plugin", "new", "--lang", "rust", "no-marker"];
    assert_eq!(run(dir.path(), &new).0, 0);
    let mut command = super::command(dir.path(), &["plugin", "build", "no-marker", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut line = |text: &str| out.find(|line| line.contains(text)).expect(text);
    let mut waits = || err.find(|line| line.contains("waiting for a change")).unwrap();
    line("built no-marker 0.1.0");
    line("messages as expected");
    waits();
    // A case that fails does not end it, nor does an error of the compiler.
    let cases = dir.path().join("no-marker/no-marker.test.yaml");
    let before = fs::read_to_string(&cases).unwrap();
    fs::write(&cases, before.replacen("expect: pass", "expect: refuse", 1)).unwrap();
    line("built no-marker 0.1.0");
    line("NOT as expected");
    waits();
    let source = dir.path().join("no-marker/src/lib.rs");
    let code = fs::read_to_string(&source).unwrap();
    fs::write(&source, "not Rust").unwrap();
    waits();
    fs::write(&source, code).unwrap();
    fs::write(&cases, before).unwrap();
    line("messages as expected");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn existing_folder_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("mine")).unwrap();
    fs::write(dir.path().join("mine/Cargo.toml"), "mine").unwrap();
    let (code, _, err) = run(dir.path(), &["plugin", "new", "--lang", "rust", "mine"]);
    assert_eq!(code, 1);
    assert!(err.contains("there is something at mine already"), "{err}");
    assert_eq!(fs::read_to_string(dir.path().join("mine/Cargo.toml")).unwrap(), "mine");

    for name in ["Mine", "my_plugin", "1st", "../mine", ""] {
        let (code, _, err) = run(dir.path(), &["plugin", "new", "--lang", "c", name]);
        assert_eq!(code, 1, "{name}");
        assert!(err.contains("is not a name of a plugin"), "{err}");
    }
}

#[test]
fn missing_build_tool_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (language, tool) in
        [("rust", "cargo"), ("js", "npm"), ("python", "python3"), ("c", "clang")]
    {
        let new = ["plugin", "new", "--lang", language, "plain", "--dir", language];
        assert_eq!(run(dir.path(), &new).0, 0);
        let mut build = super::command(dir.path(), &["plugin", "build", language]);
        let done = build.env("PATH", "/nowhere").output().unwrap();
        let err = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{err}");
        assert!(err.contains(&format!("{tool} is not installed")), "{err}");
        assert!(err.contains("install "), "{err}");
    }
}

#[test]
fn imports_beyond_the_contract_fail_the_build() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["plugin", "new", "--lang", "c", "nosy"]).0, 0);
    let source = dir.path().join("nosy/nosy.c");
    let asks = "__attribute__((import_module(\"wasi_snapshot_preview1\"), import_name(\"fd_write\")))\n\
                int fd_write(int, int, int, int);\n";
    let text = fs::read_to_string(&source).unwrap();
    let text = text.replace("max = 0;\n", "max = (size_t)fd_write(1, 0, 0, 0);\n");
    fs::write(
        &source,
        text.replace("#include <stdlib.h>\n", &format!("{asks}#include <stdlib.h>\n")),
    )
    .unwrap();
    let (code, out, err) = run(dir.path(), &["plugin", "build", "nosy"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("wasi"), "{err}");
    assert!(!Path::new(&dir.path().join("nosy/target/nosy.wasm")).exists());
}

#[test]
fn build_refuses_other_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = run(dir.path(), &["plugin", "build"]);
    assert_eq!(code, 1);
    assert!(err.contains("is not a plugin project"), "{err}");
}
