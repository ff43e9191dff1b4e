//! `kill -9` under load: acknowledged records survive.

use std::{
    collections::HashSet,
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use portcullis_audit::{Audit, Unavailable, record::Kind};
use portcullis_protocol::names::DecisionId;

use crate::common::{DEADLINE, call, find, intent, open, outcome, query};

const STORE: &str = "PORTCULLIS_TEST_AUDIT_STORE";
const KILLS: usize = 20;

/// Not an independent test: the process that the others start and kill. It writes as fast as it can
/// and prints the id of every acknowledged intent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer() {
    let Some(store) = env::var_os(STORE) else { return };
    let audit = open(Path::new(&store));
    let producers = (0..16).map(|_| {
        let audit = audit.clone();
        tokio::spawn(async move {
            loop {
                let call = call();
                intent(&audit, &call).await.unwrap();
                writeln!(std::io::stdout().lock(), "acknowledged {}", call.id).unwrap();
                outcome(&audit, &call).await.unwrap();
            }
        })
    });
    futures_util::future::join_all(producers).await;
}

pub struct Writer {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Writer {
    pub fn start(store: &Path) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "crash::writer", "--nocapture"])
            .env(STORE, store)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The ids of acknowledged intents; none any more once the process is dead.
    pub fn acknowledged(&mut self) -> impl Iterator<Item = DecisionId> {
        self.lines.by_ref().map_while(Result::ok).filter_map(|line| {
            // The last line may be torn, and the first stands behind what the harness prints.
            line.split_once("acknowledged ").and_then(|(_, id)| id.parse().ok())
        })
    }

    /// Kills it and returns what else it had acknowledged.
    pub fn kill(mut self) -> Vec<DecisionId> {
        self.process.kill().unwrap();
        let rest = self.acknowledged().collect();
        self.process.wait().unwrap();
        rest
    }
}

async fn ids_on_record(audit: &Audit) -> HashSet<DecisionId> {
    let intents = find(audit, query("kind = intent")).await;
    intents.iter().map(|entry| entry.record.id()).collect()
}

#[tokio::test]
async fn killed_process_loses_no_acknowledged_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = HashSet::new();
    for kill in 0..KILLS {
        let mut writer = Writer::start(dir.path());
        // A different place in the load each time.
        acknowledged.extend(writer.acknowledged().take(20 + kill * 37 % 400));
        acknowledged.extend(writer.kill());
        let audit = open(dir.path());
        assert_eq!(find(&audit, query("kind = event")).await, []);
        // The index of ids has them too.
        for id in acknowledged.iter().take(50) {
            let shown = audit.archive().show(*id).await.unwrap();
            assert_eq!(shown.entries().unwrap()[0].record.kind(), Kind::Intent);
        }
    }
    let audit = open(dir.path());
    let on_record = ids_on_record(&audit).await;
    let lost = acknowledged.difference(&on_record).count();
    assert_eq!(lost, 0, "of {} acknowledged", acknowledged.len());
    println!("{KILLS} kills, {} acknowledged, none lost", acknowledged.len());
}

#[tokio::test]
async fn store_lock_names_its_process_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(dir.path());
    assert!(writer.acknowledged().next().is_some());
    let locked = Audit::open(dir.path(), Duration::from_millis(50)).unwrap_err();
    assert_eq!(
        locked,
        Unavailable::Locked { dir: dir.path().into(), pid: Some(writer.process.id()) }
    );
    assert!(locked.to_string().contains("is used by another process (pid "));
    writer.kill();
    let audit = Audit::open(dir.path(), DEADLINE).unwrap();
    intent(&audit, &call()).await.unwrap();
}
