//! What to keep the audit log in: the same records, producers and promises in four (five) stores.
//!
//! `cargo run --release` in this folder. Everything is written below `--dir`, which must be on the
//! disk that is asked about.

mod files;
mod record;
mod stores;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use nix::time::{ClockId, clock_gettime};
use record::{Random, Record};
use stores::{ALL, Kind, Store};
use tokio::sync::{mpsc, oneshot};

/// Records of one commit at most.
const BATCH: usize = 1024;

#[derive(Debug, Parser)]
struct Args {
    /// Where the stores are made
    #[arg(long, default_value = "target/stores")]
    dir: PathBuf,
    /// Stores; may be given several times. Default: all
    #[arg(long = "store", value_enum)]
    stores: Vec<Kind>,
    /// Records written by many producers
    #[arg(long, default_value_t = 200_000)]
    records: u64,
    /// Records written by one
    #[arg(long, default_value_t = 2_000)]
    alone: u64,
    #[arg(long, default_value_t = 128)]
    producers: usize,
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// The process that is killed: writes to this store and prints what was acknowledged
    #[arg(long, hide = true)]
    victim: Option<PathBuf>,
}

type Job = (Record, oneshot::Sender<u64>);

/// One thread that commits for all.
fn write(
    mut store: Box<dyn Store>,
    mut next: u64,
    mut queue: mpsc::Receiver<Job>,
    times: &mut Vec<Duration>,
) -> anyhow::Result<Box<dyn Store>> {
    while let Some((record, reply)) = queue.blocking_recv() {
        let (mut records, mut replies) = (vec![record], vec![reply]);
        while records.len() < BATCH
            && let Ok((record, reply)) = queue.try_recv()
        {
            records.push(record);
            replies.push(reply);
        }
        for record in &mut records {
            record.seq = next;
            next += 1;
        }
        let began = Instant::now();
        store.commit(&records)?;
        times.push(began.elapsed());
        for (record, reply) in records.iter().zip(replies) {
            // A producer may have ended.
            let _ = reply.send(record.seq);
        }
    }
    Ok(store)
}

struct Run {
    store: Box<dyn Store>,
    rate: f64,
    commits: Vec<Duration>,
    cpu: Duration,
}

/// `producers` tasks that each wait for their record before they send the next.
fn run(
    store: Box<dyn Store>,
    from: u64,
    records: u64,
    producers: usize,
    acknowledged: Option<&(dyn Fn(u64) + Sync)>,
) -> anyhow::Result<Run> {
    let (jobs, queue) = mpsc::channel::<Job>(1024);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let (began, cpu) = (Instant::now(), cpu()?);
    let left = Arc::new(std::sync::atomic::AtomicU64::new(records));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut commits = Vec::new();
            write(store, from, queue, &mut commits).map(|store| (store, commits))
        });
        let acks = acknowledged.is_some().then(|| {
            let (acks, seen) = std::sync::mpsc::channel();
            scope.spawn(move || {
                for seq in seen {
                    if let Some(tell) = acknowledged {
                        tell(seq)
                    }
                }
            });
            acks
        });
        for producer in 0..producers {
            let (jobs, left, acks) = (jobs.clone(), left.clone(), acks.clone());
            runtime.spawn(async move {
                let mut random = Random::new(producer as u64 + 1);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    let (reply, answer) = oneshot::channel();
                    if jobs.send((record::make(&mut random), reply)).await.is_err() {
                        return;
                    };
                    let Ok(seq) = answer.await else { return };
                    if let Some(acks) = &acks {
                        let _ = acks.send(seq);
                    }
                }
            });
        }
        drop((jobs, acks));
        let (store, commits) =
            writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let rate = records as f64 / began.elapsed().as_secs_f64();
        Ok(Run { store, rate, commits, cpu: self::cpu()? - cpu })
    })
}

fn cpu() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort_unstable();
    let at = (times.len() as f64 * q) as usize;
    times.get(at.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6)
}

/// What the disk takes for 900 bytes and a sync: at the end of a file, and over what was written.
fn device(dir: &Path) -> anyhow::Result<[Vec<Duration>; 2]> {
    let path = dir.join("device");
    let mut times = [Vec::new(), Vec::new()];
    let file = File::create(&path)?;
    for times in &mut times {
        for i in 0..500_u64 {
            let began = Instant::now();
            file.write_all_at(&[7; 900], i * 900)?;
            file.sync_data()?;
            times.push(began.elapsed());
        }
    }
    fs::remove_file(path)?;
    Ok(times)
}

fn disk(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { disk(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(bytes)
}

/// Counts the records, which must be whole and in order.
fn count(store: &dyn Store) -> anyhow::Result<u64> {
    let (mut next, mut wrong) = (0, None);
    store.scan(&mut |line| {
        if record::seq(line) != Some(next) && wrong.is_none() {
            wrong = Some(next);
        }
        next += 1;
    })?;
    ensure!(wrong.is_none(), "record {wrong:?} is not where it should be");
    Ok(next)
}

fn measure(kind: Kind, args: &Args) -> anyhow::Result<()> {
    let dir = args.dir.join(format!("{kind:?}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&args.dir)?;
    let [mut append, mut over] = device(&args.dir)?;
    // Alone first: the store is small, as the log of a quiet day.
    let alone = run(stores::open(kind, &dir)?, 0, args.alone, 1, None)?;
    let [more, more_over] = device(&args.dir)?;
    append.extend(more);
    over.extend(more_over);
    let (alone_cpu, mut alone_commits) =
        (alone.cpu.as_secs_f64() * 1e6 / args.alone as f64, alone.commits);
    let many = run(alone.store, args.alone, args.records, args.producers, None)?;
    let commits = many.commits.len();
    let mut store = many.store;
    let before = cpu()?;
    store.settle()?;
    let many_cpu = (many.cpu + (cpu()? - before)).as_secs_f64() * 1e6 / args.records as f64;
    drop(store);
    let total = args.records + args.alone;
    let bytes = disk(&dir)?;
    let mut store = stores::open(kind, &dir)?;
    let began = Instant::now();
    ensure!(count(&*store)? == total, "{kind:?}: records are missing");
    let scan = total as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let dropped = if store.drop_before(total / 2)? {
        let took = began.elapsed();
        drop(store);
        let back = 100.0 * (1.0 - disk(&dir)? as f64 / bytes as f64);
        format!("{:.2} s ({back:.0}% of the disk back)", took.as_secs_f64())
    } else {
        drop(store);
        "by folder only".into()
    };
    let began = Instant::now();
    fs::remove_dir_all(&dir)?;
    let folder = began.elapsed().as_secs_f64() * 1e3;
    let kills = kill(kind, args)?;
    println!(
        "| {kind:?} | {:.0} | {:.0} | {:.0} / {:.0} | {:.0} / {:.0}, over {:.0} / {:.0} | {many_cpu:.0} | {alone_cpu:.0} | {:.0} | {:.0} | {dropped} | {folder:.0} ms | {kills} | {:.0} |",
        many.rate,
        alone.rate,
        quantile(&mut alone_commits, 0.5),
        quantile(&mut alone_commits, 0.99),
        quantile(&mut append, 0.5),
        quantile(&mut append, 0.99),
        quantile(&mut over, 0.5),
        quantile(&mut over, 0.99),
        bytes as f64 / total as f64,
        scan,
        args.records as f64 / commits.max(1) as f64,
    );
    Ok(())
}

/// Kills a process that writes, again and again on one store.
fn kill(kind: Kind, args: &Args) -> anyhow::Result<String> {
    let dir = args.dir.join(format!("{kind:?}-killed"));
    let _ = fs::remove_dir_all(&dir);
    let (mut lost, mut unopened, mut acknowledged) = (0, 0, 0);
    for kill in 0..args.kills {
        let name = clap::ValueEnum::to_possible_value(&kind).context("a name")?;
        let mut victim = Command::new(std::env::current_exe()?)
            .args(["--store", name.get_name(), "--victim"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()?;
        let done = AtomicBool::new(false);
        let lines = BufReader::new(victim.stdout.take().context("its output")?).lines();
        let mut most = None;
        for (at, line) in lines.map_while(Result::ok).enumerate() {
            // The last line may be torn: it ends with a dot.
            most = most.max(line.strip_suffix('.').and_then(|n| n.parse::<u64>().ok()));
            if at == 500 + kill * 997 && !done.swap(true, Ordering::Relaxed) {
                victim.kill()?;
            }
        }
        victim.wait()?;
        let opened = std::panic::catch_unwind(|| stores::open(kind, &dir).and_then(|s| count(&*s)));
        match opened {
            Ok(Ok(count)) => {
                acknowledged = most.map_or(0, |m| m + 1);
                lost += acknowledged.saturating_sub(count);
            }
            other => {
                eprintln!("{kind:?}: {other:?}");
                unopened += 1;
                let _ = fs::remove_dir_all(&dir);
            }
        }
    }
    let _ = fs::remove_dir_all(&dir);
    Ok(format!(
        "{} kills, {acknowledged} acknowledged, {lost} lost, {unopened} not opened",
        args.kills
    ))
}

fn victim(kind: Kind, dir: &Path) -> anyhow::Result<()> {
    let store = stores::open(kind, dir)?;
    let next = count(&*store)?;
    let tell = |seq: u64| {
        let _ = writeln!(std::io::stdout().lock(), "{seq}.");
    };
    run(store, next, u64::MAX, 32, Some(&tell))?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let kinds = if args.stores.is_empty() { ALL.to_vec() } else { args.stores.clone() };
    if let Some(dir) = &args.victim {
        return victim(kinds[0], dir);
    }
    println!(
        "| store | records/s, {} producers | 1 producer | commit alone p50 / p99 µs | fdatasync p50 / p99 µs | CPU µs a record | alone | disk B a record | scan records/s | delete half | folder away | kill -9 | records a commit |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        args.producers
    );
    for kind in kinds {
        measure(kind, &args)?;
    }
    Ok(())
}
