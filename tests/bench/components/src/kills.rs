//! Servers, the proxy and the engine are killed, again and again, while clients go on: afterwards
//! nothing is left over, and whatever still runs answers.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use bench::{
    load::{Client, Endpoint},
    proxy::{self, Prepared, Processes},
};

use crate::ground::{Ground, pids};

/// How long until a call has to be answered after a kill.
const PATIENCE: Duration = Duration::from_secs(120);
/// What marks our sandboxed processes.
const MARK: &str = "BENCH_KILLS";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kills
    #[arg(long, default_value_t = 500)]
    kills: u32,
    /// What they are drawn by
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs until all kills are done, and fails where anything is left.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?.to_owned();
    let binary = proxy::binary(args.binary.as_deref())?;
    let mut ground = Ground::start()?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(&folder)?;
    let mark = uuid_like();
    let secrets = secret_folders();
    let body = format!(
        "[engine]\nhost = {:?}\n\n\
         [servers.boxed]\ncommand = [{this:?}, \"stdio\"]\nruntime = \"container\"\n\
         era = \"legacy\"\nwarm = 1\nsecrets = {{ TOKEN = {{ from = \"env:HOME\", as = \"file\" }} }}\n\n\
         [servers.bare]\ncommand = [{this:?}, \"stdio\"]\nruntime = \"sandbox\"\n\
         era = \"legacy\"\nwarm = 1\nenv = {{ {MARK} = {mark:?} }}\n",
        ground.host()
    );
    let prepared = Prepared::open(&binary, &scratch.path().join("proxy"), &body)?;
    let endpoints = [prepared.to("boxed"), prepared.to("bare")];
    let mut processes = Processes::default();
    prepared.run(&mut processes)?;
    for endpoint in &endpoints {
        answers(endpoint).await.context("before any kill")?;
    }
    ensure!(secret_folders().len() > secrets.len(), "secrets are kept where nobody looks here");
    let mut dice = Dice(args.seed);
    let mut done = [0; 4];
    let began = Instant::now();
    for at in 0..args.kills {
        // Now and then while calls are under way, or something is just being started.
        let calling = dice.below(2) == 0;
        let caller = calling.then(|| {
            let endpoint = endpoints[dice.below(2) as usize].clone();
            tokio::spawn(async move {
                if let Ok(mut client) = Client::connect(&endpoint, 100).await {
                    let _ = client.run(Duration::from_millis(300)).await;
                }
            })
        });
        tokio::time::sleep(Duration::from_millis(u64::from(dice.below(250)))).await;
        let what = match dice.below(100) {
            0..60 => {
                let boxed = ground.servers();
                let all: Vec<i32> = boxed.into_iter().chain(marked(&mark)).collect();
                if let Some(&pid) = all.get(dice.below(all.len().max(1) as u32) as usize) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                0
            }
            60..85 => {
                processes.kill();
                prepared.run(&mut processes)?;
                1
            }
            85..97 => {
                ground.kill_daemon()?;
                ground.begin()?;
                2
            }
            _ => {
                ground.lose_power()?;
                ground.begin()?;
                3
            }
        };
        done[what] += 1;
        if let Some(caller) = caller {
            let _ = caller.await;
        }
        if at % 10 == 9 {
            for endpoint in &endpoints {
                answers(endpoint).await.with_context(|| format!("after {} kills", at + 1))?;
            }
            eprintln!("{} of {}: {done:?}, {:.0?}", at + 1, args.kills, began.elapsed());
        }
    }
    for endpoint in &endpoints {
        answers(endpoint).await.context("after all kills")?;
    }
    // Killed once more, with all that runs, and started for the last time: then it stops in peace.
    processes.kill();
    prepared.run(&mut processes)?;
    drop(processes);
    // A daemon that is killed while it makes a container may leave that one's network namespace, which
    // it never takes away again, and nobody else could: no process is in it.
    let engines = ground.wait_until_bare_but(|left| left.contains("/netns/"))?;
    let sandboxes = marked(&mark);
    ensure!(sandboxes.is_empty(), "sandboxed processes are left: {sandboxes:?}");
    let left: Vec<_> = secret_folders().difference(&secrets).cloned().collect();
    ensure!(left.is_empty(), "folders of secrets are left: {left:?}");
    let [servers, proxy, daemon, power] = done;
    println!(
        "{} kills in {:.0} s: {servers} of servers, {proxy} of the proxy, {daemon} of the engine's \
         daemon, {power} of the engine with all its processes. Nothing of ours is left over; of the engine's own, {} network namespaces without a process.",
        args.kills,
        began.elapsed().as_secs_f64(),
        engines.len()
    );
    Ok(())
}

/// Waits until a call is answered, as a client would that tries again.
async fn answers(endpoint: &Endpoint) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let tried = async {
            let mut client = Client::connect(endpoint, 100).await?;
            client.call().await?;
            client.leave().await
        };
        match tokio::time::timeout(PATIENCE, tried).await.context("no answer at all")? {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Folders in memory that hold secrets.
fn secret_folders() -> BTreeSet<PathBuf> {
    let places = ["/run", "/dev/shm"];
    let mut found = BTreeSet::new();
    for place in places {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("portcullis-secrets-") {
                found.insert(entry.path());
            }
        }
    }
    found
}

fn marked(mark: &str) -> Vec<i32> {
    let mark = format!("{MARK}={mark}");
    let has = |pid: &i32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
    };
    pids().into_iter().filter(has).collect()
}

fn uuid_like() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("{}-{}", std::process::id(), now.unwrap_or_default().as_nanos())
}

/// Numbers that are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ (mixed >> 31)) % u64::from(most.max(1))).unwrap_or_default()
    }
}
