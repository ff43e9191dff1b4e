//! The checks that cannot succeed, as docs/conformance.md lists them.

use std::path::Path;

use crate::suite::{LEGACY, MODERN, Place};

/// Scenario and check id of what fails where the suite of `revision` meets a server of `era`.
pub fn failing(root: &Path, revision: &str, era: &str) -> Vec<Place> {
    let server = match era {
        "legacy" => LEGACY,
        "modern" => MODERN,
        // A server of both is no excuse.
        _ => return Vec::new(),
    };
    let page = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut listed = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| 20")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [suite, with, scenario, check, why] = cells[..] else {
            panic!("a row of docs/conformance.md without five cells: {row}");
        };
        assert!(!why.is_empty() && suite != with, "{row}");
        if suite == revision && with == server {
            listed.push((scenario.trim_matches('`').into(), check.trim_matches('`').into()));
        }
    }
    listed
}
