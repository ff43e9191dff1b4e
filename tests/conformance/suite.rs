//! One run of the suite, and what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use crate::support::root;

/// The revisions that the suite has requirements for.
pub const LEGACY: &str = "2025-11-25";
pub const MODERN: &str = "2026-07-28";

/// A run takes ten seconds. Reached only where something hangs in every scenario.
const PATIENCE: Duration = Duration::from_secs(300);

/// One check that a scenario made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    id: String,
    description: String,
    status: Status,
    error_message: Option<String>,
    #[serde(default)]
    details: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Status {
    Success,
    /// What the specification says SHOULD be. The server does it, so the proxy has to.
    Warning,
    Failure,
    Skipped,
    Info,
}

/// What a run found.
pub struct Report {
    /// What it ran against, for messages.
    run: String,
    /// By scenario.
    checks: BTreeMap<String, Vec<Check>>,
    output: String,
}

impl Report {
    /// Runs what `revision` requires, and what is reported but not required, against this URL.
    pub async fn of(url: &str, revision: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("conformance.").tempdir().unwrap();
        let results = folder.path().to_str().unwrap();
        let (code, output) =
            conformance(&["server", "--url", url, "--requirements", revision, "-o", results]).await;
        let checks =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| read(&entry.unwrap().path()));
        let report = Self { run: format!("{revision} at {url}"), checks: checks.collect(), output };
        let missing: Vec<_> = scenarios(revision)
            .await
            .into_iter()
            .filter(|scenario| !report.checks.contains_key(scenario))
            .collect();
        assert!(
            matches!(code, Some(0 | 1)) && missing.is_empty(),
            "{}: the suite ended with {code:?}, without {missing:?}:\n{}",
            report.run,
            report.output
        );
        report
    }

    /// Exactly these checks (scenario and id) fail.
    pub fn expect_failing(&self, listed: &[(String, String)]) {
        let mut unlisted = String::new();
        let mut failing = BTreeSet::new();
        for (scenario, checks) in &self.checks {
            for check in checks {
                if !matches!(check.status, Status::Failure | Status::Warning) {
                    continue;
                }
                failing.insert((scenario.clone(), check.id.clone()));
                if listed.iter().any(|(s, id)| s == scenario && *id == check.id) {
                    continue;
                }
                let mut details = check.details.to_string();
                details.truncate(details.floor_char_boundary(1500));
                unlisted += &format!(
                    "\n{:?} {scenario}:{} ({})\n    {}\n    {details}",
                    check.status,
                    check.id,
                    check.description,
                    check.error_message.as_deref().unwrap_or("no message"),
                );
            }
        }
        let stale: Vec<_> = listed.iter().filter(|listed| !failing.contains(listed)).collect();
        assert!(
            unlisted.is_empty() && stale.is_empty(),
            "{}\nlisted in docs/conformance.md, and does not fail: {stale:?}\n\
             fails, and is not listed there:{unlisted}\nthe suite said:\n{}",
            self.run,
            self.output
        );
        let passed = self.checks.values().flatten().filter(|check| check.status == Status::Success);
        println!("{}: {} passed, {} failed", self.run, passed.count(), failing.len());
    }
}

/// The checks of one scenario: `server-NAME-TIME/checks.json`, the time being that of
/// `2026-07-28T00-00-00-000Z`.
fn read(folder: &Path) -> (String, Vec<Check>) {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let name = name.strip_prefix("server-").expect("a scenario of a server");
    let scenario = &name[..name.len() - "-2026-07-28T00-00-00-000Z".len()];
    let checks = std::fs::read_to_string(folder.join("checks.json")).unwrap();
    (scenario.to_owned(), serde_json::from_str(&checks).unwrap())
}

/// The scenarios of servers that a run for this revision must have.
async fn scenarios(revision: &str) -> BTreeSet<String> {
    let (code, output) = conformance(&["list", "--requirements", revision]).await;
    assert_eq!(code, Some(0), "{output}");
    let mut of_servers = false;
    let mut found = BTreeSet::new();
    for line in output.lines() {
        match line.trim().strip_prefix("- ") {
            // In sections of their own if required, and otherwise marked.
            Some(scenario) => match scenario.strip_suffix(" [server]") {
                Some(scenario) => _ = found.insert(scenario.to_owned()),
                None if of_servers && !scenario.contains(' ') => {
                    found.insert(scenario.to_owned());
                }
                None => {}
            },
            None if !line.trim().is_empty() => of_servers = line.starts_with("Server scenarios"),
            None => {}
        }
    }
    assert!(found.len() > 30, "{output}");
    found
}

/// Runs the suite's command to its end, and returns its exit code and all that it said.
async fn conformance(args: &[&str]) -> (Option<i32>, String) {
    let modules: PathBuf = root().join("tests/conformance/suite/node_modules");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let node = modules.join(format!("node-linux-{arch}/bin/node"));
    assert!(node.exists(), "{} is not there: `tests/setup/conformance`", node.display());
    let mut command = Command::new(node);
    command.arg(modules.join("@modelcontextprotocol/conformance/dist/index.js")).args(args);
    command.stdin(Stdio::null()).env_remove("http_proxy").env("NO_COLOR", "1");
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output.unwrap_or_else(|_| panic!("conformance {args:?} took too long")).unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
