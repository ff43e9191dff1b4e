//! Command line, one file per command. Commands call `manage` and
//! other crates, and print; they have no business logic.
//!
//! Data goes to standard output, everything else to standard error. Exit codes are [`Exit`].

mod add;
mod adding;
mod approve;
mod audit;
mod cases;
mod catalog;
mod check;
mod client;
mod completions;
mod config;
mod config_errors;
mod connect;
mod context;
mod doctor;
mod exit;
mod guard;
mod init;
mod output;
mod plugin;
mod policy;
mod principal;
mod profile;
mod proxy_client;
mod run;
mod schema;
mod secret;
mod server;
mod signing_keys;
mod start_failure;
mod status;
mod stop;
mod tools;

use std::{ffi::OsStr, io, process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::manage::run::PassedSockets;

pub use context::{Context, Format};
pub use exit::{Exit, Reports, Usage};
pub use output::{Progress, escape, escape_json};

/// Group of clients that new policies apply to by default.
const AGENTS: &str = "agents";

/// A policy-enforcing security proxy for the Model Context Protocol.
///
/// Exit codes: 0 ok or allowed, 1 failure, 2 usage, 10 denied, 11 a check found something.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: context::Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a gateway folder: a config, and a first policy with its cases
    Init(init::Args),
    /// Add a server and its policies: by name from a catalog, an image, a URL or a command
    Add(add::Args),
    /// Run the proxy
    Run(run::Args),
    /// Stop the running proxy, after its calls in flight
    Stop(stop::Args),
    /// Show the proxy, its servers, policies, audit log and clients
    Status(status::Args),
    /// Check config, policies and plugins, and list all findings
    Check(check::Args),
    /// Check this machine: container engine, sandbox, limits
    Doctor(doctor::Args),
    /// Connect a stdio client to a running proxy
    Connect(connect::Args),
    /// Filter a container engine's socket: only requests that Portcullis needs pass
    Guard(guard::Args),
    /// Print and set single values of the config
    #[command(subcommand)]
    Config(config::Verb),
    /// Manage clients and their keys
    #[command(subcommand)]
    Client(client::Verb),
    /// Manage servers
    #[command(subcommand)]
    Server(server::Verb),
    /// Manage catalogs of servers
    #[command(subcommand)]
    Catalog(catalog::Verb),
    /// Manage profiles: named sets of servers
    #[command(subcommand)]
    Profile(profile::Verb),
    /// Manage an encrypted store of secrets, and rotate the secrets of a server
    #[command(subcommand)]
    Secret(secret::Verb),
    /// List and call tools as a client
    Tools(tools::Args),
    /// Policies
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Create, build, test, sign and inspect plugins
    #[command(subcommand)]
    Plugin(plugin::Verb),
    /// List, approve and deny calls that wait for approval
    Approve(approve::Args),
    /// The audit log
    Audit(audit::Args),
    /// Print a schema
    Schema(schema::Args),
    /// Print the completions of a shell
    Completions(completions::Args),
}

/// Definition of the command line, for code that checks or documents commands without running them.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments and runs the verb.
pub fn main() -> ExitCode {
    if let Some(code) = before_runtime() {
        return code;
    }
    // Before a command reads a key: the proxy's memory has clients' keys, servers' secrets and the
    // keys that sign and encrypt.
    if let Err(error) = portcullis_foundation::process_memory::protect() {
        let error = anyhow::Error::new(error);
        return output::failure(&error.context("core dumps can't be switched off")).into();
    }
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap treats help and version as errors with a code and a stream of their own. If that
            // stream is closed, nothing can be reported.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if let Verb::Run(args) = &mut cli.verb {
        args.sockets = match PassedSockets::take() {
            Ok(sockets) => sockets,
            Err(error) => {
                let error = anyhow::Error::new(error);
                return output::failure(&error.context("a passed socket can't be used")).into();
            }
        };
    }
    let ctx = Context::new(cli.global);
    // TLS for remote servers; an error says that a provider is already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::allocator::return_pages();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return output::failure(&anyhow::Error::new(error)).into(),
    };
    let outcome = runtime.block_on(cli.verb.run(&ctx));
    // A read of standard input cannot be cancelled and must not delay the exit.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => output::failure(&error).into(),
    }
}

/// The async runtime.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Reads events after every eighth task, half a millisecond of work: the default
        // is for shorter tasks. A flood of one client then delays the requests of others less.
        .event_interval(8)
        .build()
}

/// Runs the hidden commands that must not have threads of a runtime around them: the launchers of
/// the sandbox and of a pod (which fork and confine themselves) and the example server (which has
/// its own small runtime).
fn before_runtime() -> Option<ExitCode> {
    let args: Vec<_> = std::env::args_os().skip(1).take(2).collect();
    match args.iter().map(|arg| arg.as_os_str()).collect::<Vec<&OsStr>>().as_slice() {
        [verb, ..] if *verb == "sandbox-exec" => Some(portcullis_runtime::sandbox::exec_main()),
        [verb, ..] if *verb == "pod-exec" => {
            let arguments: Vec<_> = std::env::args_os().skip(2).collect();
            Some(portcullis_runtime::sandbox::pod_main(&arguments))
        }
        [verb, name] if *verb == "example-server" && *name == "notes" => Some(example_notes()),
        _ => None,
    }
}

fn example_notes() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::new)
        .and_then(|runtime| {
            let outcome = runtime.block_on(notes_server::serve_stdio());
            runtime.shutdown_timeout(Duration::from_millis(100));
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::failure(&error).into(),
    }
}

impl Verb {
    async fn run(self, ctx: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Init(args) => init::run(args, ctx).await,
            Self::Add(args) => add::run(args, ctx).await,
            Self::Run(args) => run::run(args, ctx).await,
            Self::Stop(args) => stop::run(args, ctx).await,
            Self::Status(args) => status::run(args, ctx).await,
            Self::Check(args) => check::run(args, ctx).await,
            Self::Doctor(args) => doctor::run(args, ctx).await,
            Self::Connect(args) => connect::run(args, ctx).await,
            Self::Guard(args) => guard::run(args, ctx).await,
            Self::Config(verb) => config::run(verb, ctx).await,
            Self::Client(verb) => client::run(verb, ctx).await,
            Self::Server(verb) => server::run(verb, ctx).await,
            Self::Catalog(verb) => catalog::run(verb, ctx).await,
            Self::Profile(verb) => profile::run(verb, ctx).await,
            Self::Secret(verb) => secret::run(verb, ctx).await,
            Self::Tools(args) => tools::run(args, ctx).await,
            Self::Policy(verb) => policy::run(verb, ctx).await,
            Self::Plugin(verb) => plugin::run(verb, ctx).await,
            Self::Approve(args) => approve::run(args, ctx).await,
            Self::Audit(args) => audit::run(args, ctx).await,
            Self::Schema(args) => schema::run(args, ctx).await,
            Self::Completions(args) => completions::run(args, ctx).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn command_line_definition_is_consistent() {
        super::command().debug_assert();
    }
}
