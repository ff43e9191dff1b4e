//! `portcullis policy`: the workbench for policies, one file a verb.

mod can_i;
mod check;
mod fmt;
mod new;
mod test;

use std::{collections::BTreeSet, path::PathBuf};

use super::{Context, Exit};
use crate::{
    config::{Config, Loaded},
    identity::Store,
    policy::{Engine, Finding, Known},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Check policies and list every finding
    Check(check::Check),
    /// Format policies, keeping their comments
    Fmt(fmt::Fmt),
    /// Run the cases beside policies (`NAME.test.yaml`)
    Test(test::Test),
    /// Print a policy for a common wish, with its cases
    New(new::New),
    /// Ask whether a client may do something, and which rules say so
    CanI(can_i::CanI),
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Check(check) => check::check(&check, ctx),
        Verb::Fmt(fmt) => fmt::fmt(&fmt, ctx),
        Verb::Test(options) => test::test(&options, ctx),
        Verb::New(options) => new::new(&options, ctx),
        Verb::CanI(question) => can_i::can_i(&question, ctx),
    }
}

/// The config's policies, wherever the program runs.
fn sources(loaded: &Loaded) -> Vec<PathBuf> {
    loaded.config.policy.paths.iter().map(|path| loaded.base.join(path)).collect()
}

/// What the config knows of whom and what policies speak.
pub(super) fn known(config: &Config) -> Known {
    // Clients that cannot be read are unknown; `portcullis check` says why.
    let added = Store::within(&config.state_dir).read().ok();
    let clients = added.as_ref().map(|added| {
        let clients: BTreeSet<_> = config.clients.keys().chain(added.keys()).cloned().collect();
        clients
    });
    let groups = added.as_ref().map(|added| {
        let written = config.clients.values().flat_map(|client| &client.groups);
        let groups: BTreeSet<_> =
            written.chain(added.values().flat_map(|client| &client.groups)).cloned().collect();
        groups
    });
    Known {
        servers: Some(config.servers.keys().cloned().collect()),
        clients,
        groups,
        anonymous: Some(config.listen.anonymous),
        tools: Vec::new(),
    }
}

/// Loads with names relative to the working folder, so that they can be opened from there.
fn load(paths: &[PathBuf]) -> Result<Engine, Vec<Finding>> {
    let here = std::env::current_dir().unwrap_or_default();
    Engine::load(paths, &here).map_err(|diagnostics| diagnostics.findings().to_vec())
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
