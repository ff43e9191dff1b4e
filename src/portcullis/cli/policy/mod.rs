//! `portcullis policy`: development tools for policies, one file per command.

mod bundle;
mod can_i;
mod check;
mod diff;
mod explain;
mod fmt;
mod learn;
mod new;
mod replay;
mod test;

use std::{collections::BTreeSet, path::PathBuf};

use super::{Context, Exit, Reports, cases::count};
use portcullis_config::Loaded;
use portcullis_policy::{Engine, Finding, Inventory, Revision, Source};
use portcullis_protocol::identity::Store;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Check policies and list all findings
    Check(check::Check),
    /// Format policies, keeping their comments
    Fmt(fmt::Fmt),
    /// Run the test cases of policies (`NAME.test.yaml`)
    Test(test::Test),
    /// Print a policy template with its test cases
    New(new::New),
    /// Evaluate whether a principal may perform an action, and print the deciding rules
    CanI(can_i::CanI),
    /// Explain a recorded decision: policies that matched or nearly matched, and their input
    Explain(explain::Args),
    /// Evaluate recorded calls with these policies, and print the decisions that change
    #[command(after_long_help = super::audit::LANGUAGE)]
    Replay(replay::Args),
    /// Propose policies that permit exactly the recorded calls, with test cases
    #[command(after_long_help = super::audit::LANGUAGE)]
    Learn(learn::Args),
    /// Print which policies differ between two sets, and which clients gain or lose which tools
    Diff(diff::Args),
    /// Sign and verify bundles: signed folders of policies
    Bundle(bundle::Args),
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Check(check) => check::check(&check, ctx),
        Verb::Fmt(fmt) => fmt::fmt(&fmt, ctx),
        Verb::Test(options) => test::test(&options, ctx),
        Verb::New(options) => new::new(&options, ctx),
        Verb::CanI(args) => can_i::can_i(args, ctx).await,
        Verb::Explain(args) => explain::run(args, ctx).await,
        Verb::Replay(args) => replay::run(args, ctx).await,
        Verb::Learn(args) => learn::run(args, ctx).await,
        Verb::Diff(args) => diff::run(args, ctx).await,
        Verb::Bundle(args) => bundle::run(args, ctx),
    }
}

/// The config's policies, with paths that are valid in any working folder.
fn source(loaded: &Loaded) -> Source {
    Source::of(&loaded.config.policy, &loaded.config.state_dir).from_base(&loaded.base)
}

/// Names in the config that policies can refer to.
pub(super) fn inventory(loaded: &Loaded) -> Inventory {
    let config = &loaded.config;
    // Clients that cannot be read are unknown; `portcullis check` reports why.
    let added = Store::in_state_dir(&config.state_dir).read().ok();
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
    Inventory {
        servers: Some(config.servers.keys().chain(loaded.disabled.keys()).cloned().collect()),
        clients,
        groups,
        anonymous: Some(config.listen.anonymous),
        tools: Vec::new(),
    }
}

/// Notes which servers policies name that the config lacks.
pub(super) fn note_absent_servers(absent: &BTreeSet<String>, ctx: &Context) {
    if !absent.is_empty() {
        let names: Vec<_> = absent.iter().map(|name| format!("`{name}`")).collect();
        ctx.note(format!(
            "note: policies name servers that the config does not have: {}",
            names.join(", ")
        ));
    }
}

/// Loads policies with names relative to the working folder, so that they can be opened from there.
fn load(source: Source) -> Result<Engine, Vec<Finding>> {
    let here = std::env::current_dir().unwrap_or_default();
    Engine::open(source, &here).map_err(|diagnostics| diagnostics.findings().to_vec())
}

/// Policies of these paths; without paths, those of the config.
fn engine(paths: &[PathBuf], ctx: &Context) -> anyhow::Result<Engine> {
    let source = match paths {
        [] => source(&ctx.load()?),
        paths => Source::Paths(paths.to_vec()),
    };
    Ok(load(source).map_err(reports)?)
}

/// Revision of the config's policies as a proxy computes it: with names relative to the config.
fn in_force(ctx: &Context) -> anyhow::Result<Revision> {
    let loaded = ctx.load()?;
    let engine =
        Engine::open(Source::of(&loaded.config.policy, &loaded.config.state_dir), &loaded.base)
            .map_err(|diagnostics| anyhow::anyhow!("{diagnostics}"))?;
    Ok(engine.revision())
}

fn reports(findings: Vec<Finding>) -> Reports {
    Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
}
