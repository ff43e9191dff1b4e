//! Resolves references in a separate environment.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Result of resolving a reference.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Value(String),
    Failed(String),
}

impl Outcome {
    /// Error text, which must contain the given text.
    #[track_caller]
    pub fn failed(self, with: &str) -> String {
        match self {
            Self::Failed(error) if error.contains(with) => error,
            other => panic!("not `{with}`: {other:?}"),
        }
    }
}

/// Secret of a test.
pub fn value(rest: &str) -> String {
    ["hun", "ter", rest].concat()
}

/// Program that resolves a reference; `cargo test` builds it with the tests.
pub fn fetcher() -> String {
    let tests = std::env::current_exe().unwrap();
    let fetcher = tests.parent().unwrap().parent().unwrap().join("examples/fetch");
    assert!(fetcher.is_file(), "{}", fetcher.display());
    fetcher.to_str().unwrap().to_owned()
}

/// Resolves a reference with these variables in the environment.
pub fn fetch(reference: &str, env: &[(&str, String)]) -> Outcome {
    let env = env.iter().map(|(name, value)| (*name, value.as_str()));
    let done = Command::new(fetcher()).arg(reference).envs(env).output().unwrap();
    assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    let out = String::from_utf8(done.stdout).unwrap();
    match done.status.success() {
        true => Outcome::Value(out.strip_suffix('\n').unwrap().to_owned()),
        false => Outcome::Failed(out),
    }
}

/// Writes a shell script.
#[allow(dead_code)]
pub fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits until the condition holds.
#[allow(dead_code)]
#[track_caller]
pub fn until(limit: Duration, so: impl Fn() -> bool) {
    let end = Instant::now() + limit;
    while !so() {
        assert!(Instant::now() < end, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
