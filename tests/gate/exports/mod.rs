//! Audit exports: every record arrives, despite failures of targets and proxy.

mod endpoint;
mod files;
mod one_shot;
mod postgres;
mod sink;
mod syslog;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    gate::{Gate, Written},
    until,
};

/// The notes server and streams of records.
fn exporting(exports: &str) -> crate::support::gate::Setup {
    crate::support::gate::Setup::notes().and(exports)
}

/// Makes so many calls.
async fn calls(gate: &Gate, count: usize) {
    let agent = gate.modern();
    for _ in 0..count {
        agent.call("notes__list_notes", json!({})).await.unwrap();
    }
}

/// All records of the store, by their numbers: the text of each.
async fn stored(written: &Written) -> BTreeMap<u64, String> {
    let ended = written.cli(&["audit", "export", "--format-out", "jsonl"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    by_seq(ended.stdout.lines())
}

/// Lines of records by their numbers. Whoever comes twice comes with the same bytes.
fn by_seq<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<u64, String> {
    let mut all = BTreeMap::new();
    for line in lines {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let seq = record["seq"].as_u64().unwrap();
        if let Some(before) = all.insert(seq, line.to_owned()) {
            assert_eq!(before, line, "two records of one number");
        }
    }
    all
}

/// Waits until everything that is on record has arrived, without a gap and byte for byte.
async fn arrives(gate: &Gate, arrived: impl AsyncFn() -> BTreeMap<u64, String>) {
    let wanted = stored(gate).await;
    assert!(!wanted.is_empty());
    until("all records to arrive", async || {
        let arrived = arrived().await;
        wanted.iter().all(|(seq, line)| arrived.get(seq) == Some(line)).then_some(())
    })
    .await;
    let arrived = arrived().await;
    let last = *arrived.keys().next_back().unwrap();
    assert_eq!(arrived.len() as u64, last + 1, "a gap in {:?}", arrived.keys());
}
