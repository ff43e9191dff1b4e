//! `portcullis policy new`: prints policy templates.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf};

use anyhow::Context as _;

use crate::cli::{Context, Exit, Reports, Usage};
use portcullis_policy_tools::{Filling, PolicyPrincipal, Template, ToolName, make};
use portcullis_protocol::names::{ClientName, Group, ServerName};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct New {
    /// The template
    #[arg(value_enum)]
    template: Template,
    /// Apply the policy to the clients of this group
    #[arg(long, value_name = "GROUP", required_unless_present = "client")]
    group: Option<Group>,
    /// For this client
    #[arg(long, value_name = "CLIENT", conflicts_with = "group")]
    client: Option<ClientName>,
    /// On this server
    #[arg(long, value_name = "SERVER")]
    server: ServerName,
    /// Apply the policy to this tool of the server; repeatable
    #[arg(long = "tool", value_name = "TOOL")]
    tools: Vec<ToolName>,
    /// The hours for `working-hours`, UTC
    #[arg(long, value_name = "FROM-TO", default_value = "8-18", value_parser = hours)]
    hours: (u8, u8),
    /// Write NAME.cedar and NAME.test.yaml to this folder instead of standard output
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
    let New { template, group, client, server, tools, hours, dir } = options;
    let principal = match (group, client) {
        (Some(group), _) => PolicyPrincipal::Group(group.clone()),
        (None, Some(client)) => PolicyPrincipal::Client(client.clone()),
        (None, None) => return Err(Usage("give `--group` or `--client`".to_owned()).into()),
    };
    if template.needs_tools() && tools.is_empty() {
        return Err(Usage("say which tools: `--tool TOOL`".to_owned()).into());
    }
    let (server, tools) = (server.clone(), tools.clone());
    let rendered = make(*template, &Filling { principal, server, tools, hours: *hours })
        .map_err(|findings| Reports(findings.into_iter().map(|f| Box::new(f) as _).collect()))?;
    let files = [
        (format!("{}.cedar", rendered.name), rendered.policies, "//"),
        (format!("{}.test.yaml", rendered.name), rendered.cases, "#"),
    ];
    for (at, (name, text, comment)) in files.iter().enumerate() {
        match dir {
            None => {
                let apart = if at == 0 { "" } else { "\n" };
                ctx.verbatim(&format!("{apart}{comment} ---- {name}\n\n{text}"))?;
            }
            Some(dir) => {
                let path = dir.join(name);
                // An existing file is never overwritten.
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .and_then(|mut file| file.write_all(text.as_bytes()))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                ctx.line(format!("wrote {}", path.display()))?;
            }
        }
    }
    Ok(Exit::Ok)
}
