//! What docs/reference/conformance.md says of a run.

use std::path::Path;

use crate::suite::Place;

/// What a run must find.
pub struct Listed {
    /// How many checks succeed at least.
    pub succeed: usize,
    /// The checks that cannot.
    pub failing: Vec<Place>,
}

/// What is said of the suite of `revision` where the server is one of `server`.
pub fn listed(root: &Path, revision: &str, server: &str, reached: &str) -> Listed {
    let page = std::fs::read_to_string(root.join("docs/reference/conformance.md")).unwrap();
    let mut succeed = None;
    let mut failing = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| 20")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [suite, with, third, fourth, fifth] = cells[..] else {
            panic!("a row of docs/reference/conformance.md without five cells: {row}");
        };
        if (suite, with) != (revision, server) {
            continue;
        }
        // A scenario and its check in one table, and a way and a number in the other.
        match (third.strip_prefix('`'), fourth.strip_prefix('`')) {
            (Some(scenario), Some(check)) => {
                assert!(
                    !fifth.is_empty(),
                    "a row of docs/reference/conformance.md without a reason: {row}"
                );
                failing.push((scenario.trim_matches('`').into(), check.trim_matches('`').into()));
            }
            _ if third == reached => succeed = fourth.parse().ok(),
            _ => {}
        }
    }
    let succeed = succeed.unwrap_or_else(|| {
        panic!("docs/reference/conformance.md has no row of {revision} | {server} | {reached}")
    });
    Listed { succeed, failing }
}
