//! The audit log under faults of the machine: killed processes, power loss, clocks that go back,
//! and disks that are full, slow, read-only or broken.

mod crash;
mod disk;
mod faulty;
mod traffic;
mod tree;

use std::collections::BTreeMap;

use portcullis_audit::proof::verify;
use serde_json::Value;

use crate::support::gate::Written;

/// What a call is refused with that can't be recorded.
const UNAVAILABLE: &str = "audit-unavailable";

/// What must hold of every log that no proxy is using: it proves itself whole, its numbers have no
/// gap, its times never go back, and nothing was put aside. Returns the kinds of records of each
/// call, by its mark.
async fn sound(written: &Written, store: &str) -> BTreeMap<String, Vec<String>> {
    let request = verify::Request::of(written.path(store), Some(written.path("state")));
    let verified = tokio::task::spawn_blocking(move || verify::verify(&request));
    let report = verified.await.unwrap().unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert!(!written.path(store).join("quarantine").exists(), "something was put aside");
    let records = all_records(written).await;
    for (before, after) in records.iter().zip(records.iter().skip(1)) {
        let seq = |record: &Value| record["seq"].as_u64().unwrap();
        assert_eq!(seq(before) + 1, seq(after), "{before:#}\n{after:#}");
        let recorded = |record: &Value| -> jiff::Timestamp {
            record["recorded"].as_str().unwrap().parse().unwrap()
        };
        assert!(recorded(before) <= recorded(after), "{before:#}\n{after:#}");
    }
    let losses = ["segment-quarantined", "records-lost"];
    let lost = |record: &&Value| record["event"].as_str().is_some_and(|e| losses.contains(&e));
    assert_eq!(records.iter().find(lost), None);
    traffic::marks(&records)
}

/// The whole log, oldest first.
async fn all_records(written: &Written) -> Vec<Value> {
    let mut records: Vec<Value> = Vec::new();
    loop {
        let mut args = vec![
            "audit",
            "query",
            "--format",
            "json",
            "--intents",
            "--oldest-first",
            "--limit",
            "1000",
        ];
        let after = records.last().map(|record| record["seq"].to_string());
        if let Some(after) = &after {
            args.extend(["--after", after]);
        }
        let ended = written.cli(&args).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let before = records.len();
        for value in serde_json::Deserializer::from_str(&ended.stdout).into_iter::<Value>() {
            match value.unwrap() {
                Value::Array(page) => records.extend(page),
                record => records.push(record),
            }
        }
        if records.len() - before < 1000 {
            return records;
        }
    }
}
