//! `kill -9` of the real proxy during calls of real clients, and power loss.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use tokio::sync::watch;

use super::{
    UNAVAILABLE,
    faulty::Disk,
    sound,
    traffic::{CallOutcome, Caller, Witness},
    tree::Cut,
};
use crate::support::{
    gate::{Setup, Written},
    in_time,
};

/// How often proxies are killed, all stores together.
const KILLS: &str = "PORTCULLIS_KILLS";
/// Stores that are used at once.
const STORES: usize = 4;
/// Kills that a store lives through before another one takes its place. All of it is read after each
/// kill, so that one store for all would take a time that grows with the square of their number.
const LIVES: usize = 25;
/// Clients of one proxy.
const CLIENTS: usize = 6;

fn kills() -> usize {
    let asked = std::env::var(KILLS).ok();
    asked.map_or(100, |n| n.parse().unwrap_or_else(|_| panic!("{KILLS} is a number, not {n:?}")))
}

/// A store, the server behind its proxies, and what clients know of it.
struct Rig {
    witness: Witness,
    answered: Arc<Mutex<HashSet<String>>>,
    written: Option<Written>,
    /// The store's folder, beside the config.
    store: &'static str,
}

impl Rig {
    async fn new(store: &'static str) -> Self {
        let (witness, url) = Witness::serve().await;
        let written = Setup::new(&format!(
            "[servers.witness]\nurl = \"{url}\"\n[audit]\ndir = \"{{folder}}/{store}\""
        ))
        .write();
        Self { witness, answered: Arc::default(), written: Some(written), store }
    }

    /// Starts a proxy, lets clients call, and kills it once `calls` were answered.
    async fn kill_after(&mut self, calls: usize) {
        let gate = self.written.take().unwrap().start().await;
        let (told, mut count) = watch::channel(0);
        let told = Arc::new(told);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let caller = Caller::new(&gate.url("/mcp"));
                let (answered, told) = (self.answered.clone(), told.clone());
                tokio::spawn(async move {
                    loop {
                        match caller.call().await {
                            (mark, CallOutcome::Answer) => {
                                answered.lock().unwrap().insert(mark);
                                told.send_modify(|count| *count += 1);
                            }
                            // A disk that others keep busy for seconds: nobody was answered.
                            (_, CallOutcome::Refusal(code)) if code == UNAVAILABLE => {}
                            (_, CallOutcome::Nothing) => return,
                            (mark, CallOutcome::Refusal(code)) => panic!("{mark}: {code}"),
                        }
                    }
                })
            })
            .collect();
        let enough = in_time("answers", async {
            while *count.borrow_and_update() < calls {
                count.changed().await?;
            }
            Ok::<_, watch::error::RecvError>(())
        });
        assert!(enough.await.is_ok(), "all clients have ended: {:#?}", gate.log());
        self.written = Some(gate.kill_9().await);
        for client in clients {
            in_time("the clients' end", client).await.unwrap();
        }
    }

    /// Nothing that anybody knows of is missing.
    async fn check(&self) {
        let marks = sound(self.written.as_ref().unwrap(), self.store).await;
        for mark in self.answered.lock().unwrap().iter() {
            let kinds = marks.get(mark).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(kinds, ["intent", "outcome"], "the client has the answer of {mark}");
        }
        for mark in self.witness.seen() {
            let kinds = marks.get(&mark).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(kinds.first().map(String::as_str), Some("intent"), "a server saw {mark}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_proxy_loses_no_record_of_an_answered_call() {
    let (all, began) = (kills(), std::time::Instant::now());
    let next = AtomicUsize::new(0);
    let stores = (0..STORES).map(|_| async {
        let mut answered = 0;
        loop {
            let mut rig = Rig::new("state/audit").await;
            for _ in 0..LIVES {
                let kill = next.fetch_add(1, Ordering::Relaxed);
                if kill >= all {
                    break;
                }
                // Another place in the load each time; some have hardly begun.
                rig.kill_after(kill * 37 % 101).await;
                rig.check().await;
                if (kill + 1).is_multiple_of(100) {
                    println!("{} kills; {} s", kill + 1, began.elapsed().as_secs());
                }
            }
            // The next start works, too, and finds all in order.
            rig.written = Some(rig.written.take().unwrap().start().await.stop().await);
            rig.check().await;
            answered += rig.answered.lock().unwrap().len();
            if next.load(Ordering::Relaxed) >= all {
                return answered;
            }
        }
    });
    let answered: usize = join_all(stores).await.into_iter().sum();
    println!(
        "{all} kills, {answered} calls answered, all on record; {} s",
        began.elapsed().as_secs()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_loses_no_record_of_an_answered_call() {
    let mut rig = Rig::new("disk/audit").await;
    let at = rig.written.as_ref().unwrap().path("disk");
    std::fs::create_dir(&at).unwrap();
    let mut disk = Disk::new(&at, 512 << 20);
    for turn in 0..12_usize {
        rig.kill_after(turn * 29 % 83).await;
        let seed = 0x9e37_79b9 + turn as u64;
        disk.power_cut(if turn % 3 == 0 { Cut::Everything } else { Cut::Some(seed) });
        rig.check().await;
    }
    assert!(disk.syncs() > 0);
}
