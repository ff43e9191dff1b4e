//! Attempts to escape from a running server's container, each refused; and the same attempts
//! without the protection, which succeed. `table.rs` lists them all.

mod control;
mod docs;
mod host;
mod other;
pub mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use portcullis_runtime::{mount::Mount, process::LaunchSpec};

use crate::support::{engine, probe, run, spec};
use host::Host;
use table::{Control, ROWS, With, is_as_expected};

type Outcomes = BTreeMap<String, String>;

/// Half as much again is what the probe tries to take.
const MEMORY_MIB: u64 = 128;

fn host() -> Host {
    Host::new(probe(), Path::new(env!("CARGO_TARGET_TMPDIR")), control::gateway())
}

/// A launch at the defaults but for less memory and one folder, in which there is what a careless
/// operator leaves in one.
async fn launch(host: &Host) -> LaunchSpec {
    let engine = engine().await;
    let mut spec = spec(engine.pack(probe()).await.unwrap(), &["--attempts"]);
    spec.command.extend(host.told());
    spec.mounts = vec![Mount {
        source: host.folder.path().to_owned(),
        target: "/data".into(),
        writable: false,
    }];
    spec.resources.memory_mib = MEMORY_MIB;
    spec
}

async fn outcomes(spec: &LaunchSpec) -> Outcomes {
    let ran = run(&engine().await, spec).await;
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {} {:?}", ran.stdout, ran.stderr, ran.exit))
}

#[tokio::test]
async fn every_attempt_is_refused() {
    let host = host();
    let found = outcomes(&launch(&host).await).await;
    assert!(found.len() >= 25);
    assert!(found.values().all(|outcome| outcome != "ok"));
    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(names, ROWS.iter().map(|row| row.name).collect(), "attempts that no row is about");
    let wrong: Vec<String> = ROWS
        .iter()
        .filter(|row| !is_as_expected(&found[row.name], row.container))
        .map(|row| format!("{}: {}, not {}", row.name, found[row.name], row.container.0))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A server that runs as root gains nothing except root's files.
#[tokio::test]
async fn every_attempt_of_root_is_refused() {
    let host = host();
    let mut spec = launch(&host).await;
    spec.hardening.user = Some("0:0".into());
    let found = outcomes(&spec).await;
    // What it is already.
    let open = found.iter().filter(|(_, outcome)| *outcome == "ok").map(|(name, _)| name);
    assert_eq!(open.collect::<Vec<_>>(), ["become-root"]);
}

/// The same attempts in containers that the engine creates with its own settings.
#[tokio::test]
async fn every_attempt_succeeds_without_its_protection() {
    let host = host();
    let image = engine().await.pack(probe()).await.unwrap();
    let mut wrong = Vec::new();
    let mut worked = 0;
    for with in With::ALL {
        let rows: Vec<_> = ROWS.iter().filter(|row| row.control.with() == Some(with)).collect();
        let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        let found = control::outcomes(&image, with, &names, &host).await;
        for row in rows {
            match (row.control, found[row.name].as_str()) {
                (_, "ok") => worked += 1,
                (Control::Or(_, lacking), outcome) if outcome == lacking => {}
                (_, outcome) => wrong.push(format!("{} ({}): {outcome}", row.name, with.words())),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(worked >= 50, "only {worked} succeeded anywhere");
}
