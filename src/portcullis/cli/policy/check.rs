//! `portcullis policy check`: lists errors and suspicious parts of policies.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ArgAction;
use serde::{Deserialize, Serialize};

use super::{count, inventory, load, note_absent_servers, source};
use crate::cli::{Context, Exit};
use portcullis_policy::{Finding, Inventory, KnownTool, Revision, Source, Stated};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::names::ServerName;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Files and folders, instead of the config's
    paths: Vec<PathBuf>,
    /// A JSON file with the `tools/list` result of a server; repeatable
    #[arg(long, value_name = "SERVER=FILE", value_parser = tools_of, action = ArgAction::Append)]
    tools: Vec<(ServerName, PathBuf)>,
}

pub(super) fn tools_of(text: &str) -> Result<(ServerName, PathBuf), String> {
    let (server, file) = text.split_once('=').ok_or("write SERVER=FILE")?;
    let server = server.parse().map_err(|error| format!("{error}"))?;
    Ok((server, PathBuf::from(file)))
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
pub fn check(Check { paths, tools }: &Check, ctx: &Context) -> anyhow::Result<Exit> {
    let (engine, mut inventory, stated) = if paths.is_empty() {
        let loaded = ctx.load()?;
        let stated = Stated::of(loaded.config.tools());
        (load(source(&loaded)), inventory(&loaded), Some(stated))
    } else {
        (load(Source::Paths(paths.clone())), Inventory::default(), None)
    };
    for (server, file) in tools {
        inventory.tools.push((server.clone(), read_tools(server, file, stated.as_ref())?));
    }
    let (findings, status) = match &engine {
        Err(findings) => (findings.clone(), None),
        Ok(engine) => {
            let status = engine.status().borrow().clone();
            let looks = engine.analyse(&inventory);
            note_absent_servers(&engine.absent_servers(&inventory), ctx);
            (status.warnings.iter().cloned().chain(looks).collect(), Some(status))
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

/// Tools in a file with a server's response to `tools/list`, with the claims that policies see. The
/// operator's claims about a tool take precedence over the server's.
pub(super) fn read_tools(
    server: &ServerName,
    file: &Path,
    stated: Option<&Stated>,
) -> anyhow::Result<Vec<KnownTool>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut tools = listed(&text)
        .with_context(|| format!("{} does not hold a result of `tools/list`", file.display()))?;
    for tool in &mut tools {
        if let Some(claims) = stated.and_then(|stated| stated.claims(server, &tool.name)) {
            tool.claims = claims;
        }
    }
    Ok(tools)
}

/// Tools of a list: the response, its result, or only the list.
fn listed(text: &str) -> serde_json::Result<Vec<KnownTool>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Saved {
        Answer { result: Result },
        Result(Result),
        List(Vec<Tool>),
    }

    #[derive(Deserialize)]
    struct Result {
        tools: Vec<Tool>,
    }

    #[derive(Deserialize)]
    struct Tool {
        name: String,
        #[serde(default)]
        annotations: serde_json::Map<String, serde_json::Value>,
    }

    let tools = match serde_json::from_str(text)? {
        Saved::Answer { result } | Saved::Result(result) => result.tools,
        Saved::List(tools) => tools,
    };
    let to_known_tool = |Tool { name, annotations }| KnownTool {
        name,
        claims: Claims::from_hints(|hint| annotations.get(hint)?.as_bool()),
    };
    Ok(tools.into_iter().map(to_known_tool).collect())
}
