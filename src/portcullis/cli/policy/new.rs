//! `portcullis policy new`: prints policy templates.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{
    cli::{Context, Exit, Reports, Usage, principal::PrincipalArgs},
    manage::new_files::{self, NewFile},
};
use portcullis_policy_tools::{
    Days, Filling, FolderPath, RateText, Rendered, Template, ToolName, make,
};
use portcullis_protocol::names::ServerName;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct New {
    /// The template
    #[arg(value_enum)]
    template: Template,
    #[command(flatten)]
    principal: PrincipalArgs,
    /// Write a policy for this server; repeatable
    #[arg(long = "server", value_name = "SERVER", required = true)]
    servers: Vec<ServerName>,
    /// Apply the policy to this tool of each server; repeatable
    #[arg(long = "tool", value_name = "TOOL")]
    tools: Vec<ToolName>,
    /// The folder for `one-folder`
    #[arg(long, value_name = "PATH")]
    folder: Option<FolderPath>,
    /// The rate for `rate-limit`
    #[arg(long, value_name = "CALLS/TIME", default_value = "60/1m")]
    rate: RateText,
    /// The hours for `working-hours`, UTC
    #[arg(long, value_name = "FROM-TO", default_value = "8-18", value_parser = hours)]
    hours: (u8, u8),
    /// The days of the week for `working-hours`, such as `mon-fri`. Default: each day
    #[arg(long, value_name = "FROM-TO")]
    days: Option<Days>,
    /// Write TEMPLATE-SERVER.cedar and TEMPLATE-SERVER.test.yaml, and if the template permits calls
    /// also connect-PRINCIPAL.cedar and connect-PRINCIPAL.test.yaml, to this folder instead of
    /// standard output
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

fn hours(text: &str) -> Result<(u8, u8), String> {
    let hours =
        text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match hours {
        Some((from, to)) if 0 < from && from < to && to < 24 => Ok((from, to)),
        _ => Err("write FROM-TO, hours from 1 to 23, such as 8-18".to_owned()),
    }
}

/// Runs the verb.
pub fn new(options: &New, ctx: &Context) -> anyhow::Result<Exit> {
    let filling = filling(options).map_err(|problem| Usage(problem.to_owned()))?;
    let rendered = make(options.template, &filling).map_err(|findings| {
        Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
    })?;
    let Some(dir) = &options.dir else {
        let files = rendered.iter().flat_map(Rendered::files);
        let texts = files.map(|(name, text, comment)| format!("{comment} ---- {name}\n\n{text}"));
        ctx.verbatim(&texts.collect::<Vec<_>>().join("\n"))?;
        return Ok(Exit::Ok);
    };
    let planned = new_files::plan(dir, &rendered)?;
    new_files::create(&planned.new)?;
    for path in &planned.kept {
        ctx.line(format!("kept {}", path.display()))?;
    }
    for NewFile { path, .. } in &planned.new {
        ctx.line(format!("wrote {}", path.display()))?;
    }
    Ok(Exit::Ok)
}

/// The values of the options, or why the template cannot be filled with them.
fn filling(options: &New) -> Result<Filling, &'static str> {
    let New { template, servers, tools, folder, rate, hours, days, .. } = options;
    let principal = options.principal.principal();
    match (template.needs_principal(), &principal) {
        (true, None) => return Err("name the principal: `--group`, `--client` or `--local-user`"),
        (false, Some(_)) => {
            return Err("the template applies to a server: omit `--group`, `--client` and \
                        `--local-user`");
        }
        _ => {}
    }
    match (template.needs_tools(), tools.is_empty()) {
        (true, true) => return Err("name the tools: `--tool TOOL`"),
        (false, false) => return Err("the template applies to all tools: omit `--tool`"),
        _ => {}
    }
    match (template.needs_folder(), folder) {
        (true, None) => return Err("name the folder: `--folder PATH`"),
        (false, Some(_)) => return Err("the template applies to no folder: omit `--folder`"),
        _ => {}
    }
    if servers.iter().collect::<BTreeSet<_>>().len() < servers.len() {
        return Err("name each server once");
    }
    Ok(Filling {
        principal,
        servers: servers.clone(),
        tools: tools.clone(),
        folder: folder.clone(),
        rate: rate.clone(),
        hours: *hours,
        days: days.unwrap_or(Days::ALL),
    })
}
