//! What the audit log costs to write, to keep and to verify.

mod device;
mod fill;
mod verified;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use portcullis_audit::{Audit, Options};

use self::device::Device;
use self::fill::Calendar;
use bench::process::own_cpu;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Records in the store that is asked
    #[arg(long, default_value_t = 10_000_000)]
    records: u64,
    /// Days that they are spread over
    #[arg(long, default_value_t = 10)]
    days: u32,
    /// Records that one producer writes alone
    #[arg(long, default_value_t = 2_000)]
    alone: u64,
    /// Producers of the other measurement
    #[arg(long, default_value_t = 128)]
    producers: usize,
    /// Seconds of it
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The folder of the store. One that is there is asked and not filled again. Default: a new one
    /// in the folder of this program, removed at the end
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    // Not in /tmp, which may be memory: records go to a disk.
    let scratch = tempfile::Builder::new().prefix("audit-").tempdir_in(folder)?;
    let store = args.store.clone().unwrap_or_else(|| scratch.path().join("filled"));
    println!("| what | |\n|---|---|");
    appends(args, scratch.path())?;
    let calendar = Calendar::new(args.days);
    if store.join("segments").is_dir() {
        eprintln!("{} is there and is asked as it is", store.display());
    } else {
        let began = Instant::now();
        let before = own_cpu()?;
        fill::fill(&store, args.records, &calendar)?;
        let took = began.elapsed();
        let cpu = (own_cpu()? - before).as_secs_f64() * 1e6 / args.records as f64;
        row("filled", format!("{} records in {:.0} s", args.records, took.as_secs_f64()));
        row("CPU time of a record, all told", format!("{cpu:.1} µs"));
    }
    let [records, index, rest] = sizes(&store)?;
    let of = |bytes: u64| bytes as f64 / args.records as f64;
    row(
        "bytes on disk a record",
        format!(
            "{:.0}: {:.0} records, {:.0} index, {:.1} rest",
            of(records + index + rest),
            of(records),
            of(index),
            of(rest)
        ),
    );
    verified::verified(&store, args.records)
}

fn row(what: &str, value: String) {
    println!("| {what} | {value} |");
}

/// What a record costs whoever waits for it.
fn appends(args: &Args, scratch: &Path) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let dir = scratch.join("appends");
    let options = Options { deadline: PATIENCE, ..Options::default() };
    let audit = Audit::open_with(&dir, options)?;
    // In turns with the disk alone, so that both have the same load beside them.
    let (mut device, mut times) = (Device::new(scratch)?, Vec::new());
    for _ in 0..10 {
        device.measure(args.alone / 10)?;
        let calls = args.alone / 10;
        let took = runtime.block_on(fill::one_after_the_other(&audit, calls))?;
        times.extend(took);
    }
    row("an intent, alone, p50 / p99", quantiles(&mut times));
    row(
        "`fdatasync` of the device in the same run: a file that grows",
        quantiles(&mut device.grown),
    );
    row("… and one that was written before", quantiles(&mut device.written));
    let before = own_cpu()?;
    let time = Duration::from_secs_f64(args.seconds);
    let (records, took) = runtime.block_on(fill::at_once(&audit, args.producers, time))?;
    let cpu = (own_cpu()? - before).as_secs_f64() * 1e6 / records as f64;
    row(
        &format!("durable intents by {} producers", args.producers),
        format!(
            "{:.0} a second, {cpu:.1} µs of CPU time each",
            records as f64 / took.as_secs_f64()
        ),
    );
    Ok(())
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |q: f64| {
        let place = (times.len() as f64 * q) as usize;
        times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    };
    format!("{:.0} / {:.0} µs", at(0.5), at(0.99))
}

/// Bytes on disk: of the records, of the index, of all else.
fn sizes(dir: &Path) -> io::Result<[u64; 3]> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sizes = [0; 3];
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let metadata = fs::metadata(&path)?;
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let of = if path.components().any(|part| part.as_os_str() == "index") {
                1
            } else if name == "records" || name.starts_with("wal-") {
                0
            } else {
                2
            };
            sizes[of] += metadata.blocks() * 512;
        }
    }
    Ok(sizes)
}
