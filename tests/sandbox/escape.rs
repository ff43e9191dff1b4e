//! The attempts of the container tests, made from the sandbox.

#[path = "../container/escape/host.rs"]
mod host;
#[expect(dead_code, reason = "where attempts succeed is a matter of containers")]
#[path = "../container/escape/table.rs"]
mod table;

use std::collections::BTreeMap;

use portcullis_runtime::process::LaunchSpec;

use crate::{
    harness::{mount, probe_server, run, spec},
    is_root,
};
use host::Host;
use table::{ROWS, is_as_expected};

/// The attempt that ends all of the sandbox.
const LAST: &str = "memory";

fn attempts(host: &Host, names: &[&str]) -> LaunchSpec {
    let probe = probe_server().display().to_string();
    let mut spec = spec(&[&[probe.as_str(), "--attempts"], names].concat());
    spec.command.extend(host.told());
    spec.mounts = vec![mount(host.folder.path(), "/data", false)];
    spec.resources.memory_mib = 128;
    spec
}

#[tokio::test]
async fn every_attempt_is_refused() {
    let host = Host::new(&probe_server(), &std::env::temp_dir(), "172.17.0.1".into());
    let rows = || ROWS.iter().filter(|row| row.name != LAST);
    let names: Vec<&str> = rows().map(|row| row.name).collect();
    let ran = run(&attempts(&host, &names)).await;
    assert_eq!(ran.exit.code, 0, "{ran:?}");
    let found: BTreeMap<String, String> = serde_json::from_str(&ran.stdout).unwrap();
    let wrong: Vec<String> = rows()
        .filter(|row| {
            !found.get(row.name).is_some_and(|outcome| is_as_expected(outcome, row.sandbox))
        })
        .map(|row| format!("{}: {:?}, not {}", row.name, found.get(row.name), row.sandbox.0))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    // An ordinary user has no control group, and what stands in for it looks now and then.
    if is_root() {
        let ran = run(&attempts(&host, &[LAST])).await;
        match ran.exit.reason {
            Some(reason) => assert!(
                reason.contains(
                    "more than its limit of 128 MiB of \
                memory"
                ),
                "{reason}"
            ),
            // The attempt is a process of its own, so its parent may tell before all of it is ended.
            None => assert!(ran.stdout.contains(r#""memory": "SIGKILL""#), "{}", ran.stdout),
        }
    }
}
