//! The command line of the bench kit.

mod calls;
mod counts;
mod device;
mod fire;
mod report;
mod scale;
mod soak;
mod stall;

use std::process::ExitCode;

use bench::{echo, floor};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Measures what `tools/call` costs through portcullis")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Measure throughput, times, CPU time and memory beside a floor
    Calls(calls::Args),
    /// Count instructions and system calls of a call
    Counts(counts::Args),
    /// Measure the cost of a call with 10,000 tools, sessions or policies, and with 200 servers
    Scale(scale::Args),
    /// Measure a flooding client beside others, and calls at three times the capacity
    Fire(fire::Args),
    /// Run for long at half of the capacity, and fail if the proxy grows
    Soak(soak::Args),
    /// Measure all of the above except `soak`, and print tables or write them into the README
    Report(report::Args),
    /// Measure how heavy messages of one client delay another
    Stall(stall::Args),
    /// Run the echo server over streamable HTTP
    #[command(hide = true)]
    Serve {
        /// Tools in its list
        #[arg(long, default_value_t = 1)]
        tools: usize,
    },
    /// Run the echo server over standard input and output
    #[command(hide = true)]
    Stdio,
    /// Run a proxy that only parses and frames messages
    #[command(hide = true)]
    Floor {
        /// Port of the server. Default: the echo server over standard input and output
        #[arg(long)]
        upstream: Option<u16>,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: &Role) -> anyhow::Result<()> {
    let one = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let many = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match role {
        Role::Calls(args) => println!("{}", one()?.block_on(calls::run(args))?),
        Role::Counts(args) => println!("{}", one()?.block_on(counts::run(args))?),
        Role::Scale(args) => println!("{}", one()?.block_on(scale::run(args))?),
        Role::Fire(args) => println!("{}", one()?.block_on(fire::run(args))?),
        Role::Soak(args) => println!("{}", one()?.block_on(soak::run(args))?),
        Role::Report(args) => one()?.block_on(report::run(args))?,
        Role::Stall(args) => println!("{}", one()?.block_on(stall::run(args))?),
        Role::Serve { tools } => one()?.block_on(echo::http(*tools))?,
        Role::Stdio => echo::stdio()?,
        Role::Floor { upstream: Some(port) } => many()?.block_on(floor::http(*port))?,
        Role::Floor { upstream: None } => {
            let this = std::env::current_exe()?.display().to_string();
            many()?.block_on(floor::stdio(&[this, "stdio".into()]))?;
        }
    }
    Ok(())
}
