//! Policies that let clients use an added server.

use std::{collections::BTreeSet, path::Path};

use super::planned_server::PlannedServer;
use crate::{
    cli::{Reports, Usage, principal::PrincipalArgs},
    manage::new_files::{NewFile, plan},
};
use portcullis_policy_tools::{Days, Filling, PolicyPrincipal, Template, ToolName, make};
use portcullis_protocol::names::Group;

/// Options about the clients of an added server.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ClientOptions {
    #[command(flatten)]
    principal: PrincipalArgs,
    /// What they may do
    #[arg(long, value_enum, default_value_t = Permit::ReadOnly)]
    permit: Permit,
    /// Let them call this tool and no other; repeatable
    #[arg(long = "tool", value_name = "TOOL", conflicts_with = "permit")]
    call: Vec<ToolName>,
}

/// What clients may do with an added server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Permit {
    /// Call tools that the server declares read-only, and read resources and prompts
    ReadOnly,
    /// Call all tools; each call of a tool that may be destructive waits for the approval of a person
    ApproveDestructive,
    /// Call all tools, at most 60 times a minute
    RateLimit,
    /// Nothing: only the start of the server is permitted
    Nothing,
}

/// A policy for the clients of added servers.
#[derive(Debug)]
pub(in crate::cli) struct ClientPolicy {
    template: Template,
    principal: PolicyPrincipal,
    tools: Vec<ToolName>,
    /// Whether the same command connects a client.
    connects_one: bool,
}

impl ClientOptions {
    /// The group of the clients.
    ///
    /// # Errors
    /// [`Usage`]: the default group is invalid, which is a fault of the program.
    pub fn group(&self) -> Result<Group, Usage> {
        match &self.principal.group {
            Some(group) => Ok(group.clone()),
            None => crate::cli::AGENTS.parse().map_err(|error| Usage(format!("{error}"))),
        }
    }

    /// The policy; `None` if clients get no permissions. `connects_one`: whether the same command
    /// connects a client.
    ///
    /// # Errors
    /// [`Usage`]: the default group is invalid, which is a fault of the program.
    pub fn policy(&self, connects_one: bool) -> Result<Option<ClientPolicy>, Usage> {
        let Self { principal, permit, call } = self;
        let template = match (permit, call.is_empty()) {
            (_, false) => Template::NamedTools,
            (Permit::ReadOnly, _) => Template::ReadOnly,
            (Permit::ApproveDestructive, _) => Template::ApproveDestructive,
            (Permit::RateLimit, _) => Template::RateLimit,
            (Permit::Nothing, _) => return Ok(None),
        };
        let principal = match principal.principal() {
            Some(principal) => principal,
            None => PolicyPrincipal::Group(self.group()?),
        };
        Ok(Some(ClientPolicy { template, principal, tools: call.clone(), connects_one }))
    }
}

impl ClientPolicy {
    /// The clients, for messages.
    pub(super) fn clients(&self) -> String {
        match &self.principal {
            PolicyPrincipal::Group(group) => format!("Clients of the group `{group}`"),
            PolicyPrincipal::Client(client) => format!("The client `{client}`"),
            PolicyPrincipal::LocalUser(user) => format!("The local user `{user}`"),
        }
    }

    /// The command that connects such a client; `None` for the local user, or if this one does.
    pub(super) fn connects(&self) -> Option<String> {
        match &self.principal {
            PolicyPrincipal::Group(group) if !self.connects_one => {
                Some(format!("portcullis client connect claude-code --group {group}"))
            }
            _ => None,
        }
    }

    /// Adds the files of new servers to the plan. Files that several servers use are new once.
    ///
    /// # Errors
    /// A file exists already.
    pub(super) fn add_files(
        &self,
        folder: &Path,
        planned: &mut [PlannedServer],
    ) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for one in planned.iter_mut().filter(|one| one.replaced.is_none()) {
            let filling = Filling {
                principal: Some(self.principal.clone()),
                servers: vec![one.server.name.parse()?],
                tools: self.tools.clone(),
                folder: None,
                rate: "60/1m".parse().map_err(Usage)?,
                hours: (8, 18),
                days: Days::ALL,
            };
            let rendered = make(self.template, &filling).map_err(|findings| {
                Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect())
            })?;
            let mut files = plan(folder, &rendered)?;
            files.new.retain(|file| {
                let is_new = seen.insert(file.path.clone());
                if !is_new {
                    files.kept.push(file.path.clone());
                }
                is_new
            });
            one.client_files = files;
        }
        Ok(())
    }
}

/// The policies among files: not their cases.
pub(super) fn policies_of(files: &[NewFile]) -> impl Iterator<Item = &NewFile> {
    files.iter().filter(|file| file.path.extension().is_some_and(|end| end == "cedar"))
}
