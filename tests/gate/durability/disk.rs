//! Disks that are full, read-only, slow or broken: calls are refused with a stable code and reach
//! no server. They continue without a restart as soon as the disk works.

use std::{collections::BTreeSet, path::PathBuf};

use fuser::Errno;
use serde_json::{Value, json};

use super::{
    UNAVAILABLE, all_records,
    faulty::{Disk, Faults},
    sound,
    traffic::{CallOutcome, Caller, Witness},
    tree::Cut,
};
use crate::support::{
    agent::code_of,
    gate::{Gate, Setup, Written},
    in_time, until,
};

/// More than the store keeps free.
const ROOM: u64 = 512 << 20;

/// A proxy whose audit log is on a disk that fails on demand.
struct Rig {
    // Before the folder that it is in.
    disk: Disk,
    witness: Witness,
    gate: Gate,
    caller: Caller,
    answered: Vec<String>,
}

async fn config(more: &str) -> (Disk, Witness, Written) {
    let (witness, url) = Witness::serve().await;
    let written = Setup::new(&format!(
        "[servers.witness]\nurl = \"{url}\"\n[audit]\ndir = \"{{folder}}/disk/audit\"\n{more}"
    ))
    .write();
    let at: PathBuf = written.path("disk");
    std::fs::create_dir(&at).unwrap();
    (Disk::new(&at, ROOM), witness, written)
}

impl Rig {
    async fn new(more: &str) -> Self {
        let (disk, witness, written) = config(more).await;
        let gate = written.start().await;
        let caller = Caller::new(&gate.url("/mcp"));
        let mut rig = Self { disk, witness, gate, caller, answered: Vec::new() };
        rig.answers().await;
        rig
    }

    /// A call is made and answered.
    async fn answers(&mut self) {
        let (mark, came) = self.caller.call().await;
        assert_eq!(came, CallOutcome::Answer, "{:#?}", self.gate.log());
        self.answered.push(mark);
    }

    /// Calls are refused because they cannot be recorded, and reach no server.
    async fn refuses(&self) {
        for _ in 0..3 {
            let (mark, came) = self.caller.call().await;
            assert_eq!(came, CallOutcome::Refusal(UNAVAILABLE.into()), "{:#?}", self.gate.log());
            assert!(!self.witness.seen().contains(&mark), "a call went out unrecorded");
        }
    }

    /// The disk is well again: calls are answered without a restart.
    async fn recovers(&mut self) {
        let back = until("calls to be answered again", async || match self.caller.call().await {
            (mark, CallOutcome::Answer) => Some(mark),
            (_, CallOutcome::Refusal(code)) if code == UNAVAILABLE => None,
            other => panic!("{other:?}"),
        });
        self.answered.push(back.await);
        for _ in 0..3 {
            self.answers().await;
        }
    }

    /// All that clients and the server know of is on record, also after the power went.
    async fn check(mut self) {
        let written = self.gate.kill_9().await;
        self.disk.power_cut(Cut::Everything);
        let marks = sound(&written, "disk/audit").await;
        for mark in &self.answered {
            assert_eq!(marks.get(mark).map(Vec::len), Some(2), "{mark} was answered");
        }
        for mark in self.witness.seen() {
            assert!(marks.contains_key(&mark), "{mark} went out unrecorded");
        }
        let gate = written.start().await;
        let (_, came) = Caller::new(&gate.url("/mcp")).call().await;
        assert_eq!(came, CallOutcome::Answer);
        gate.stop().await;
    }
}

#[tokio::test]
async fn disk_below_the_reserve_refuses_calls_and_recovers() {
    let mut rig = Rig::new("").await;
    rig.disk.leave(1 << 20);
    rig.refuses().await;
    rig.disk.leave(ROOM);
    rig.recovers().await;
    rig.check().await;
}

#[tokio::test]
async fn full_disk_refuses_calls_and_recovers() {
    let mut rig = Rig::new("").await;
    for full in [Errno::ENOSPC, Errno::EDQUOT] {
        rig.disk.set(Faults { writes: Some(full), ..Faults::default() });
        rig.refuses().await;
        rig.disk.set(Faults::default());
        rig.recovers().await;
    }
    rig.check().await;
}

#[tokio::test]
async fn read_only_disk_refuses_calls_and_recovers() {
    let mut rig = Rig::new("").await;
    let read_only = Some(Errno::EROFS);
    rig.disk.set(Faults { writes: read_only, syncs: read_only, ..Faults::default() });
    rig.refuses().await;
    rig.disk.set(Faults::default());
    rig.recovers().await;
    rig.check().await;
}

#[tokio::test]
async fn failed_sync_is_never_acknowledged() {
    let mut rig = Rig::new("").await;
    for _ in 0..3 {
        rig.disk.set(Faults { syncs: Some(Errno::EIO), ..Faults::default() });
        rig.refuses().await;
        rig.disk.set(Faults::default());
        rig.recovers().await;
    }
    rig.check().await;
}

#[tokio::test]
async fn slow_sync_refuses_calls_and_recovers() {
    let mut rig = Rig::new("deadline-ms = 300").await;
    rig.disk.set(Faults { hold: true, ..Faults::default() });
    let first = {
        let caller = rig.caller.clone();
        tokio::spawn(async move { caller.call().await })
    };
    rig.disk.holding().await;
    // This one's intent is in the commit that hangs; those behind it are not even begun.
    let (mark, came) = in_time("the first call", first).await.unwrap();
    assert_eq!(came, CallOutcome::Refusal(UNAVAILABLE.into()));
    assert!(!rig.witness.seen().contains(&mark));
    rig.refuses().await;
    rig.disk.set(Faults::default());
    rig.recovers().await;
    rig.check().await;
}

#[tokio::test]
async fn unrecorded_outcome_is_not_delivered() {
    let rig = Rig::new("").await;
    rig.witness.hold();
    let caller = rig.caller.clone();
    let call = tokio::spawn(async move { caller.call().await });
    rig.witness.holding().await;
    let broken = Some(Errno::EIO);
    rig.disk.set(Faults { writes: broken, syncs: broken, ..Faults::default() });
    rig.witness.release();
    let (mark, came) = in_time("the call", call).await.unwrap();
    assert_eq!(came, CallOutcome::Refusal(UNAVAILABLE.into()));
    assert!(rig.witness.seen().contains(&mark), "the server has done it");
    rig.disk.set(Faults::default());
    // `check` finds at least the intent of it.
    rig.check().await;
}

#[tokio::test]
async fn pass_mode_continues_with_a_loud_warning() {
    let mut rig = Rig::new("on-failure = \"pass\"").await;
    let broken = Some(Errno::EIO);
    rig.disk.set(Faults { writes: broken, syncs: broken, ..Faults::default() });
    let mut unrecorded = Vec::new();
    for _ in 0..3 {
        let (mark, came) = rig.caller.call().await;
        assert_eq!(came, CallOutcome::Answer);
        assert!(rig.witness.seen().contains(&mark));
        unrecorded.push(mark);
    }
    let loud = |line: &str| line.contains("calls continue without an audit record");
    rig.gate.logged("loud words", loud).await;
    let line = rig.gate.log().into_iter().find(|line| loud(line)).unwrap();
    assert!(line.contains("ERROR"), "{line}");
    rig.disk.set(Faults::default());
    let counted = until("the log to say what it misses", async || {
        rig.caller.call().await;
        let records = rig.gate.records(&[]).await;
        records.into_iter().find(|record| record["event"] == "records-dropped")
    });
    let counted = counted.await;
    // Also those that came before the disk was tried again.
    for kind in ["intents", "outcomes"] {
        assert!(counted[kind].as_u64().is_some_and(|missed| missed >= 3), "{counted:#}");
    }
    let written = rig.gate.kill_9().await;
    rig.disk.power_cut(Cut::Everything);
    let marks = sound(&written, "disk/audit").await;
    assert!(unrecorded.iter().all(|mark| !marks.contains_key(mark)));
    assert!(rig.answered.iter().all(|mark| marks[mark].len() == 2));
}

#[tokio::test]
async fn unwritable_log_prevents_the_start() {
    let (disk, _, written) = config("").await;
    let read_only = Some(Errno::EROFS);
    disk.set(Faults { writes: read_only, syncs: read_only, ..Faults::default() });
    let ended = written.cli(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:#?}");
    assert!(ended.stderr.contains("disk/audit"), "{ended:#?}");
    disk.set(Faults::default());
    written.start().await.stop().await;
}

#[tokio::test]
async fn proxy_without_file_handles_refuses_unrecordable_calls() {
    let mut rig = Rig::new("").await;
    let pid = rig.gate.pid();
    // The next one that is opened would be this.
    let close_all_others = || {
        let open: BTreeSet<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        limit(pid, (0..).find(|handle| !open.contains(handle)).unwrap());
    };
    // More than a file of commits takes, over the connections that there are.
    let mut refused = 0;
    for calls in 0..2500 {
        // A handle that was open for a moment only leaves room for one more.
        if calls % 500 == 0 && refused == 0 {
            close_all_others();
        }
        match rig.caller.call().await {
            (mark, CallOutcome::Answer) => rig.answered.push(mark),
            // Also one that was made, whose outcome needed the file: `check` finds its intent.
            (_, CallOutcome::Refusal(code)) if code == UNAVAILABLE => refused += 1,
            other => panic!("{other:?}: {:#?}", rig.gate.log()),
        }
    }
    assert!(refused > 0, "no new file was needed");
    limit(pid, 4096);
    rig.recovers().await;
    rig.check().await;
}

#[tokio::test]
async fn client_changes_need_a_record() {
    let mut rig = Rig::new("").await;
    assert_eq!(rig.gate.cli(&["client", "add", "ann"]).await.code, Some(0));
    rig.disk.leave(1 << 20);
    for args in [["client", "add", "bob"], ["client", "rm", "ann"]] {
        let ended = rig.gate.cli(&args).await;
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(ended.stderr.contains("so it is not done"), "{ended:#?}");
        assert!(ended.stdout.is_empty(), "{ended:#?}");
    }
    let listed = rig.gate.cli(&["client", "ls", "--format", "json"]).await.expect(0);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    assert_eq!(listed[0]["client"], "ann");
    rig.disk.leave(ROOM);
    rig.recovers().await;
    assert_eq!(rig.gate.cli(&["client", "rm", "ann"]).await.code, Some(0));
    rig.check().await;
}

#[tokio::test]
async fn pass_mode_does_not_apply_to_commands() {
    let (disk, _, written) = config("on-failure = \"pass\"").await;
    let written = written.start().await.stop().await;
    disk.leave(1 << 20);
    let ended = written.cli(&["client", "add", "bob"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:#?}");
    assert!(ended.stderr.contains("so it is not done"), "{ended:#?}");
    disk.leave(ROOM);
    assert_eq!(written.cli(&["client", "add", "bob"]).await.code, Some(0));
    sound(&written, "disk/audit").await;
}

#[tokio::test]
async fn every_policy_revision_is_recorded_before_its_decisions() {
    let mut rig = Rig::new("deadline-ms = 300").await;
    let policies = rig.gate.path("policies/gate.cedar");
    rig.disk.set(Faults { hold: true, ..Faults::default() });
    for count in 2..=3_usize {
        let text = "permit (principal, action, resource);\n".repeat(count);
        std::fs::write(&policies, text).unwrap();
        until("the policies to be loaded again", async || {
            let loaded = |line: &&String| line.contains("policies reloaded");
            (rig.gate.log().iter().filter(loaded).count() >= count - 1).then_some(())
        })
        .await;
    }
    rig.refuses().await;
    rig.disk.set(Faults::default());
    rig.recovers().await;
    let records = all_records(&rig.gate).await;
    let mut known = BTreeSet::new();
    let mut counts = Vec::new();
    for record in &records {
        let revision = |name: &str| record[name].as_str().map(str::to_owned);
        if record["event"] == "policy-loaded" {
            known.insert(revision("revision").unwrap());
            counts.push(record["policies"].as_u64().unwrap());
        }
        if record["record"] == "intent" {
            assert!(known.contains(&revision("policy_revision").unwrap()), "{record:#}");
        }
    }
    counts.dedup();
    // And the one that lets servers be started.
    assert_eq!(counts, [2, 3, 4], "{records:#?}");
    rig.check().await;
}

/// A server that leaves a sign where it is started, and no more.
const SIGNS: &str = r#"
    [servers.signs]
    command = ["sh", "-c", "echo $TOKEN >> /out/started"]
    runtime = "sandbox"
    mounts = ["{folder}/out:/out:rw"]
    secrets = { TOKEN = { from = "env:SIGNS_TOKEN" } }
"#;

#[tokio::test]
async fn unrecordable_launch_is_neither_started_nor_connected() {
    let token = ["a", "token", "of", "signs"].join("-");
    let (witness, url) = Witness::serve().await;
    let written = Setup::new(&format!(
        "[servers.witness]\nurl = \"{url}\"\nheaders = {{ X-Token = {{ from = \
         \"env:SIGNS_TOKEN\" }} }}\n{SIGNS}\n[audit]\ndir = \"{{folder}}/disk/audit\""
    ))
    .env("SIGNS_TOKEN", &token)
    .file("out/none", "")
    .write();
    let (at, started) = (written.path("disk"), written.path("out/started"));
    std::fs::create_dir(&at).unwrap();
    // The sandbox has a user of its own.
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(written.path("out"), anybody).unwrap();
    let mut disk = Disk::new(&at, ROOM);
    let gate = written.start().await;
    let (agent, caller) = (gate.modern(), Caller::new(&gate.url("/mcp")));
    disk.leave(1 << 20);
    for _ in 0..3 {
        let refused = agent.call("signs__any", json!({})).await.unwrap_err();
        assert_eq!(code_of(&refused), UNAVAILABLE, "{refused:#}");
        assert_eq!(caller.call().await.1, CallOutcome::Refusal(UNAVAILABLE.into()));
    }
    assert!(!started.exists(), "it was started unrecorded");
    assert_eq!(witness.messages(), 0, "it was connected to unrecorded");
    disk.leave(ROOM);
    // No pause was held against them: the next call starts them.
    until("calls to be answered again", async || match caller.call().await.1 {
        CallOutcome::Answer => Some(()),
        CallOutcome::Refusal(code) if code == UNAVAILABLE => None,
        other => panic!("{other:?}"),
    })
    .await;
    let ended = agent.call("signs__any", json!({})).await.unwrap_err();
    assert_eq!(code_of(&ended), "server-unavailable", "{ended:#}");
    assert_eq!(std::fs::read_to_string(&started).unwrap().lines().next(), Some(&token[..]));
    until("the client to be on record", async || {
        let records = gate.records(&[]).await;
        records.into_iter().find(|record| record["event"] == "client-seen")
    })
    .await;
    let missed = until("the log to say what it misses", async || {
        let records = gate.records(&[]).await;
        records.into_iter().find(|record| record["event"] == "records-dropped")
    });
    let missed = missed.await;
    assert!(missed["events"].as_u64().is_some_and(|missed| missed >= 6), "{missed:#}");
    assert!(missed["refusals"].as_u64().is_some_and(|missed| missed >= 6), "{missed:#}");
    assert_eq!((&missed["intents"], &missed["outcomes"]), (&json!(0), &json!(0)));
    let written = gate.kill_9().await;
    disk.power_cut(Cut::Everything);
    sound(&written, "disk/audit").await;
    // What joins them is on each, and the start itself is behind what it needed.
    let records = all_records(&written).await;
    let of = |server: &str, event: &str| {
        let is = |record: &&Value| record["event"] == event && record["server"] == server;
        records.iter().rfind(is).unwrap_or_else(|| panic!("no {event} of {server}: {records:#?}"))
    };
    for (server, events) in [
        (
            "witness",
            &["server-launching", "egress-opened", "secrets-delivered", "server-launched"][..],
        ),
        ("signs", &["server-launching", "secrets-delivered", "server-launch-failed"][..]),
    ] {
        let all: Vec<_> = events.iter().map(|event| of(server, event)).collect();
        assert!(all.iter().all(|record| record["launch"] == all[0]["launch"]), "{all:#?}");
        assert!(all.is_sorted_by_key(|record| record["seq"].as_u64()), "{all:#?}");
    }
}

/// Sets how many file handles another process may have.
fn limit(pid: i32, handles: u64) {
    let status = std::process::Command::new("prlimit")
        .args([format!("--pid={pid}"), format!("--nofile={handles}:")])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
