//! All measurements of the kit, written into its README.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use bench::proxy;
use clap::Parser;

use crate::{calls, counts, fire, scale, stall};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- results: written by `bench report` -->\n";
const END: &str = "<!-- end of results -->\n";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Write the tables into tests/bench/README.md. Default: print them
    #[arg(long)]
    write: bool,
    /// Measure everything once and briefly, to see whether the kit works
    #[arg(long)]
    quick: bool,
    /// The proxy. Default: `portcullis` beside this program
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// The arguments of a measurement as on its command line.
fn parsed<A: clap::Args>(args: &[&str], binary: &Option<PathBuf>) -> anyhow::Result<A> {
    #[derive(Parser)]
    struct Command<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    let mut all: Vec<std::ffi::OsString> = vec!["bench".into()];
    all.extend(args.iter().map(Into::into));
    if let Some(binary) = binary {
        all.extend(["--binary".into(), binary.into()]);
    }
    Ok(Command::try_parse_from(all)?.args)
}

/// Measures everything.
pub async fn run(args: &Args) -> anyhow::Result<()> {
    let binary = proxy::binary(args.binary.as_deref())?;
    let of = |full: &'static [&'static str], quick: &'static [&'static str]| {
        if args.quick { quick } else { full }
    };
    let brief = ["--rounds", "1", "--seconds", "0.2"].as_slice();
    let binary = &Some(binary);
    let mut text = format!("Measured on {}.\n", machine());
    let mut add = |title: &str, table: String| {
        eprintln!("{title} done");
        text.push_str(&format!("\n### {title}\n\n{table}"));
    };
    let counting = of(&[], &["--calls", "256", "--warm-up", "64"]);
    add("Instructions and system calls", counts::run(&parsed(counting, binary)?).await?);
    add("Throughput, times and CPU time", calls::run(&parsed(of(&[], brief), binary)?).await?);
    let fixed = of(
        &["--rate", "1000", "--bytes", "100", "--clients", "16"],
        &[
            "--rate",
            "100",
            "--bytes",
            "100",
            "--clients",
            "16",
            "--rounds",
            "1",
            "--seconds",
            "0.2",
        ],
    );
    add("At a fixed rate", calls::run(&parsed(fixed, binary)?).await?);
    add("Scale", scale::run(&parsed(of(&[], brief), binary)?).await?);
    add("Overload", fire::run(&parsed(of(&[], brief), binary)?).await?);
    let heavy = of(
        &["--at-once", "8", "--seconds", "5"],
        &["--at-once", "8", "--seconds", "0.2", "--message", "keys"],
    );
    add("Heavy messages of another client", stall::run(&parsed(heavy, binary)?).await?);
    if !args.write {
        println!("{text}");
        return Ok(());
    }
    let readme = fs::read_to_string(README).context(README)?;
    let (before, rest) = readme.split_once(BEGIN).context("the README has no place for results")?;
    let (_, after) = rest.split_once(END).context("the results in the README have no end")?;
    fs::write(README, format!("{before}{BEGIN}\n{}\n\n{END}{after}", text.trim_end()))?;
    Ok(())
}

/// The processor and the kernel.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}
