//! One run of the suite, and what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use crate::{listed::Listed, support::root};

/// The revisions that the suite has requirements for.
pub const LEGACY: &str = "2025-11-25";
pub const MODERN: &str = "2026-07-28";

/// A run takes ten seconds. Reached only where something hangs in every scenario.
const PATIENCE: Duration = Duration::from_secs(300);

/// The scenario that the suite itself always skips.
const SKIPPED: &str = "tasks-status-notifications";

/// The scenarios that wait for something for 200 to 600 ms and no longer. On a machine that had
/// other things to do then, they fail, and not when they are run again. No other is.
const TIMED: [&str; 2] = ["server-stateless", "tools-call-with-logging"];

/// How many may be run again, over all runs: more are no chance.
const MOST_AGAIN: usize = 2;

/// How many were.
static AGAIN: AtomicUsize = AtomicUsize::new(0);

/// Checks that are made only where an answer is a stream. Whether it is depends on how long a call
/// takes, so they are not counted among those that succeed. They may not fail either.
const OF_STREAMS: [&str; 4] = [
    "server-sse-priming-event",
    "server-sse-retry-field",
    "server-sse-disconnect-resume",
    "server-sse-streams-functional",
];

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
    /// Not made, since the server does not claim to have what is checked. It does.
    Skipped,
    /// Told, and neither good nor bad.
    Info,
}

impl Check {
    fn succeeds(&self) -> bool {
        matches!(self.status, Status::Success | Status::Info)
    }

    /// What a person needs to know of its failure.
    fn text(&self) -> String {
        let mut details = self.details.to_string();
        details.truncate(details.floor_char_boundary(1500));
        let message = self.error_message.as_deref().unwrap_or("no message");
        format!("{:?} ({})\n    {message}\n    {details}", self.status, self.description)
    }
}

/// A scenario and the id of a check in it.
pub type Place = (String, String);

/// What a run found.
pub struct Report {
    /// What it ran against, for messages.
    run: String,
    /// By scenario.
    checks: BTreeMap<String, Vec<Check>>,
    output: String,
}

impl Report {
    /// Runs what `revision` requires, and what is reported but not required, against this URL, and
    /// expects what is listed.
    pub async fn expect(url: &str, revision: &str, listed: &Listed) {
        let mut report = Self::of_all(url, revision).await;
        let late = report.unlisted(&listed.failing);
        let why = |check: &Check| check.error_message.clone().unwrap_or_default();
        let late: BTreeMap<_, _> = late
            .into_iter()
            .filter(|((scenario, _), _)| TIMED.contains(&scenario.as_str()))
            .map(|((scenario, id), check)| (scenario, (id, why(check))))
            .collect();
        for (scenario, (id, why)) in late {
            report.tell(&format!("{scenario} is run again, for its {id}: {why}"));
            let again = AGAIN.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(again <= MOST_AGAIN, "too many are late:\n{}", report.output);
            report.run_again(&scenario, url, revision).await;
        }
        report.judge(listed);
    }

    /// Runs what `revision` requires, and what is reported but not required, against this URL.
    pub async fn of_all(url: &str, revision: &str) -> Self {
        let report = Self::of(url, &["--requirements", revision]).await;
        let missing: Vec<_> = scenarios(revision)
            .await
            .into_iter()
            .filter(|scenario| !report.checks.contains_key(scenario))
            .collect();
        assert!(missing.is_empty(), "{}: not run: {missing:?}\n{}", report.run, report.output);
        report
    }

    /// Writes a line that is seen where the test passes, too. What macros print is not.
    pub fn tell(&mut self, line: &str) {
        let line = format!("{}: {line}\n", self.run);
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        self.output += &line;
    }

    /// Runs the scenarios again that wait for a short time only, and failed.
    pub async fn run_timed_again(&mut self, url: &str, revision: &str) {
        for scenario in TIMED {
            if self.checks.get(scenario).is_some_and(|all| !all.iter().all(Check::succeeds)) {
                self.tell(&format!("{scenario} is run again"));
                self.run_again(scenario, url, revision).await;
            }
        }
    }

    /// Replaces the checks of one scenario.
    pub async fn run_again(&mut self, scenario: &str, url: &str, revision: &str) {
        let again = Self::of(url, &["--scenario", scenario, "--spec-version", revision]).await;
        self.checks.extend(again.checks);
        self.output += &again.output;
    }

    /// The checks that succeed directly and not here, with text about each. A check that is made
    /// several times is worse if more of its runs do not succeed.
    pub fn worse_than(&self, direct: &Self) -> Vec<(Place, String)> {
        let mut worse = Vec::new();
        for (scenario, checks) in self.checks.iter().filter(|(name, _)| *name != SKIPPED) {
            let directly = &direct.checks[scenario];
            let ids: BTreeSet<_> =
                checks.iter().chain(directly).map(|check| check.id.as_str()).collect();
            for id in ids {
                let here: Vec<_> = checks.iter().filter(|check| check.id == id).collect();
                let there: Vec<_> = directly.iter().filter(|check| check.id == id).collect();
                let bad = |all: &[&Check]| all.iter().filter(|check| !check.succeeds()).count();
                let made = there.iter().any(|check| check.status == Status::Success);
                // A direct run that fails can end before a check that the proxy's run reaches.
                let reached = !there.is_empty() || directly.iter().all(Check::succeeds);
                let text = match here.iter().find(|check| !check.succeeds()) {
                    Some(failed) if reached && bad(&here) > bad(&there) => failed.text(),
                    None if here.is_empty()
                        && made
                        && bad(&there) == 0
                        && !OF_STREAMS.contains(&id) =>
                    {
                        "not made".into()
                    }
                    _ => continue,
                };
                worse.push(((scenario.clone(), id.into()), format!("{scenario}:{id}: {text}")));
            }
        }
        worse
    }

    /// How many checks succeed, and how many fail.
    pub fn numbers(&self) -> (usize, usize) {
        let passed = self.checks.values().flatten().filter(|check| {
            check.status == Status::Success && !OF_STREAMS.contains(&check.id.as_str())
        });
        (passed.count(), self.failing().count())
    }

    async fn of(url: &str, which: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("conformance.").tempdir().unwrap();
        let results = folder.path().to_str().unwrap();
        let args = [&["server", "--url", url, "-o", results], which].concat();
        let (code, output) = conformance(&args).await;
        assert!(matches!(code, Some(0 | 1)), "{url}: the suite ended with {code:?}:\n{output}");
        let checks =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| read(&entry.unwrap().path()));
        Self { run: format!("{which:?} at {url}"), checks: checks.collect(), output }
    }

    /// Every check that does not succeed.
    fn failing(&self) -> impl Iterator<Item = (Place, &Check)> {
        let all = self.checks.iter().filter(|(scenario, _)| *scenario != SKIPPED);
        all.flat_map(|(scenario, checks)| {
            checks
                .iter()
                .filter(|check| !check.succeeds())
                .map(move |check| ((scenario.clone(), check.id.clone()), check))
        })
    }

    fn unlisted(&self, listed: &[Place]) -> BTreeMap<Place, &Check> {
        self.failing().filter(|(place, _)| !listed.contains(place)).collect()
    }

    fn judge(&self, Listed { succeed, failing: listed }: &Listed) {
        let mut unlisted = String::new();
        for ((scenario, id), check) in self.unlisted(listed) {
            unlisted += &format!("\n{scenario}:{id}: {}", check.text());
        }
        let failing: BTreeSet<_> = self.failing().map(|(place, _)| place).collect();
        let stale: Vec<_> = listed.iter().filter(|listed| !failing.contains(listed)).collect();
        assert!(
            unlisted.is_empty() && stale.is_empty(),
            "{}\nlisted in docs/reference/conformance.md, and does not fail: {stale:?}\n\
             fails, and is not listed there:{unlisted}\nthe suite said:\n{}",
            self.run,
            self.output
        );
        let (passed, _) = self.numbers();
        println!("{}: {passed} passed, {} failed", self.run, failing.len());
        assert!(passed >= *succeed, "{}: {passed} passed, and {succeed} did before", self.run);
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

fn modules() -> PathBuf {
    root().join("tests/conformance/suite/node_modules")
}

/// The Node.js that the suite needs.
pub fn node() -> PathBuf {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let node = modules().join(format!("node-linux-{arch}/bin/node"));
    assert!(node.exists(), "{} is not there: `tests/setup/conformance`", node.display());
    node
}

/// Runs the suite's command to its end, and returns its exit code and all that it said.
async fn conformance(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(node());
    command.arg(modules().join("@modelcontextprotocol/conformance/dist/index.js")).args(args);
    command.stdin(Stdio::null()).env_remove("http_proxy").env("NO_COLOR", "1");
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output.unwrap_or_else(|_| panic!("conformance {args:?} took too long")).unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
