//! `portcullis policy check`: everything that is wrong, or looks wrong, with policies.

use std::path::PathBuf;

use serde::Serialize;

use super::{count, load, sources};
use crate::{
    cli::{Context, Exit},
    policy::{Finding, Revision},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Files and folders, instead of those of the config
    paths: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
}

/// Runs the verb.
pub fn check(Check { paths }: &Check, ctx: &Context) -> anyhow::Result<Exit> {
    let mut servers = None;
    let engine = if paths.is_empty() {
        let loaded = ctx.load()?;
        let engine = load(&sources(&loaded));
        servers = Some(loaded.config.servers);
        engine
    } else {
        load(paths)
    };
    let (findings, status) = match &engine {
        Err(findings) => (findings.clone(), None),
        Ok(engine) => {
            let status = engine.status().borrow().clone();
            let unknown = servers.map(|servers| engine.unknown_servers(servers.keys()));
            let findings = status.warnings.iter().cloned().chain(unknown.into_iter().flatten());
            (findings.collect(), Some(status))
        }
    };
    let policies = status.as_ref().map(|status| status.policies);
    if ctx.is_json() {
        let revision = status.map(|status| status.revision);
        ctx.json(&Checked { findings: &findings, policies, revision })?;
    } else {
        for finding in &findings {
            ctx.diagnostic(finding)?;
        }
        match (policies, findings.len()) {
            (Some(0), 0) => ctx.line("0 policies: nothing can be listed or called")?,
            (Some(policies), 0) => {
                ctx.line(format!("{}: no findings", count(policies, "policy", "policies")))?
            }
            (_, found) => ctx.line(count(found, "finding", "findings"))?,
        }
    }
    Ok(if findings.is_empty() { Exit::Ok } else { Exit::Findings })
}
