//! `portcullis policy new`: prints policy templates.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf};

use anyhow::{Context as _, bail};

use crate::cli::{Context, Exit, Reports, Usage};
use portcullis_policy_tools::{Filling, PolicyPrincipal, Template, ToolName, UserName, make};
use portcullis_protocol::names::{ClientName, Group, ServerName};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct New {
    /// The template
    #[arg(value_enum)]
    template: Template,
    /// Apply the policy to the clients of this group
    #[arg(long, value_name = "GROUP", group = "principal", required = true)]
    group: Option<Group>,
    /// Apply the policy to this client
    #[arg(long, value_name = "CLIENT", group = "principal")]
    client: Option<ClientName>,
    /// Apply the policy to this user of the machine, who uses `portcullis tools` and `connect`
    #[arg(long, value_name = "USER", group = "principal")]
    local_user: Option<UserName>,
    /// Write a policy for this server; repeatable
    #[arg(long = "server", value_name = "SERVER", required = true)]
    servers: Vec<ServerName>,
    /// Apply the policy to this tool of each server; repeatable
    #[arg(long = "tool", value_name = "TOOL")]
    tools: Vec<ToolName>,
    /// The hours for `working-hours`, UTC
    #[arg(long, value_name = "FROM-TO", default_value = "8-18", value_parser = hours)]
    hours: (u8, u8),
    /// Write TEMPLATE-SERVER.cedar and TEMPLATE-SERVER.test.yaml to this folder instead of standard
    /// output
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
    let New { template, group, client, local_user, servers, tools, hours, dir } = options;
    let group = group.clone().map(PolicyPrincipal::Group);
    let client = client.clone().map(PolicyPrincipal::Client);
    let local_user = local_user.clone().map(PolicyPrincipal::LocalUser);
    let Some(principal) = group.or(client).or(local_user) else {
        return Err(Usage("give `--group`, `--client` or `--local-user`".to_owned()).into());
    };
    if template.needs_tools() && tools.is_empty() {
        return Err(Usage("name the tools: `--tool TOOL`".to_owned()).into());
    }
    let mut files = Vec::new();
    for server in servers {
        let (principal, server, tools) = (principal.clone(), server.clone(), tools.clone());
        let filling = Filling { principal, server, tools, hours: *hours };
        let rendered = make(*template, &filling).map_err(|findings| {
            Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
        })?;
        files.push((format!("{}.cedar", rendered.name), rendered.policies, "//"));
        files.push((format!("{}.test.yaml", rendered.name), rendered.cases, "#"));
    }
    let Some(dir) = dir else {
        let texts = files.iter().map(|(name, text, comment)| format!("{comment} ---- {name}\n\n{text}"));
        ctx.verbatim(&texts.collect::<Vec<_>>().join("\n"))?;
        return Ok(Exit::Ok);
    };
    // An existing file is never overwritten, and then no other file is written.
    if let Some((name, ..)) = files.iter().find(|(name, ..)| dir.join(name).exists()) {
        bail!("{} exists already: delete it or write to another folder", dir.join(name).display());
    }
    for (name, text, _) in &files {
        let path = dir.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        ctx.line(format!("wrote {}", path.display()))?;
    }
    Ok(Exit::Ok)
}
