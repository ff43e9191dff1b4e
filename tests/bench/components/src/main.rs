//! What parts of portcullis cost, and what crowds and kills leave behind.

mod audit;
mod crowd;
#[path = "../../../gate/support/ground.rs"]
mod ground;
mod hardening;
mod harms;
mod kills;
mod plugin;
mod policy;
mod starts;

use bench::echo;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Measures parts of portcullis")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Measure writes, queries and the size of the audit log
    Audit(audit::Args),
    /// Measure decisions and filtered lists beside plain Cedar
    Policy(policy::Args),
    /// Measure how harmful plugins delay others
    Harms(harms::Args),
    /// Compare the confinement of servers with the engine's defaults and other gateways' flags
    Hardening(hardening::Args),
    /// Measure what a plugin adds to a message, and how long plugins take to load
    Plugin(plugin::Args),
    /// Measure starts of servers in containers beside `docker run -i`
    Starts(starts::Args),
    /// Open many sessions on many containers, and fail if the proxy leaks
    Crowd(crowd::Args),
    /// Kill servers, the proxy and the engine, and fail if anything is left
    Kills(kills::Args),
    /// Run the echo server over streamable HTTP
    #[command(hide = true)]
    Serve,
    /// Run the echo server over standard input and output
    #[command(hide = true)]
    Stdio,
}

fn main() -> anyhow::Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match &Cli::parse().role {
        Role::Audit(args) => audit::run(args),
        Role::Policy(args) => policy::run(args),
        Role::Harms(args) => runtime()?.block_on(harms::run(args)),
        Role::Hardening(args) => runtime()?.block_on(hardening::run(args)),
        Role::Plugin(args) => plugin::run(args),
        Role::Starts(args) => runtime()?.block_on(starts::run(args)),
        Role::Crowd(args) => runtime()?.block_on(crowd::run(args)),
        Role::Kills(args) => runtime()?.block_on(kills::run(args)),
        Role::Serve => runtime()?.block_on(echo::http(1)),
        Role::Stdio => echo::stdio(),
    }
}
