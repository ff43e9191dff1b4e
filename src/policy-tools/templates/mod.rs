//! Templates of policies for common purposes, with their cases.

use super::format::format;
use portcullis_policy::Finding;
use portcullis_protocol::names::{ClientName, Group, ServerName};

/// A common purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// Permit read-only tools, resources and prompts
    ReadOnly,
    /// Permit all tools; destructive ones need the approval of a person
    ApproveDestructive,
    /// Deny open-world tools to a session that used the server
    NoTaintedData,
    /// Deny the server outside certain hours (UTC)
    WorkingHours,
    /// Permit certain tools to these principals only
    OneTeam,
}

/// The principals of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyPrincipal {
    Group(Group),
    Client(ClientName),
    /// A user of this machine, who uses the proxy's local socket.
    LocalUser(UserName),
}

/// Values for a template.
#[derive(Debug, Clone)]
pub struct Filling {
    pub principal: PolicyPrincipal,
    pub server: ServerName,
    /// Names of tools, without the proxy's prefix.
    pub tools: Vec<ToolName>,
    /// The first hour, and the hour after the last one.
    pub hours: (u8, u8),
}

/// Name of a tool, in the characters that MCP advises: no escapes in Cedar or YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolName(String);

impl std::str::FromStr for ToolName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
        if (1..=128).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err("a tool's name has 1 to 128 letters, digits, `_`, `-`, `.` and `/`".to_owned())
        }
    }
}

/// Name of a user of this machine, in the characters that `useradd` accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName(String);

impl std::str::FromStr for UserName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if (1..=32).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err("a user's name has 1 to 32 letters, digits, `_`, `-` and `.`".to_owned())
        }
    }
}

/// A policy file and its case file.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// Name of both files, without suffix.
    pub name: String,
    pub policies: String,
    pub cases: String,
}

impl Template {
    /// Whether it applies to certain tools.
    pub fn needs_tools(self) -> bool {
        self == Self::OneTeam
    }

    fn texts(self) -> (&'static str, &'static str, &'static str) {
        macro_rules! texts {
            ($name:literal) => {
                (
                    $name,
                    include_str!(concat!($name, ".cedar")),
                    include_str!(concat!($name, ".test.yaml")),
                )
            };
        }
        match self {
            Self::ReadOnly => texts!("read-only"),
            Self::ApproveDestructive => texts!("approve-destructive"),
            Self::NoTaintedData => texts!("no-tainted-data"),
            Self::WorkingHours => texts!("working-hours"),
            Self::OneTeam => texts!("one-team"),
        }
    }
}

/// Fills a template.
///
/// # Errors
/// If the result is not valid Cedar, which is a fault of the template.
pub fn make(template: Template, filling: &Filling) -> Result<Rendered, Vec<Finding>> {
    let (name, policies, cases) = template.texts();
    let (scope, party, principal) = match &filling.principal {
        PolicyPrincipal::Group(group) => (
            format!("principal in Portcullis::Group::\"{group}\""),
            format!("group:{group}"),
            group.as_str(),
        ),
        PolicyPrincipal::Client(client) => (
            format!("principal == Portcullis::Client::\"{client}\""),
            format!("client:{client}"),
            client.as_str(),
        ),
        PolicyPrincipal::LocalUser(UserName(user)) => {
            (format!("principal == Portcullis::Local::\"{user}\""), format!("local:{user}"), &**user)
        }
    };
    let each = |write: &dyn Fn(&str) -> String| {
        let tools: Vec<_> = filling.tools.iter().map(|ToolName(tool)| write(tool)).collect();
        tools.join(", ")
    };
    let server = &filling.server;
    let (from, to) = filling.hours;
    let values = [
        ("TEAM_SCOPE", scope),
        ("TEAM_PARTY", party),
        ("TEAM", principal.to_owned()),
        ("SERVER", server.to_string()),
        ("TOOLS", each(&|tool| format!("Portcullis::Tool::\"{server}/{tool}\""))),
        ("TOOL_NAMES", each(&|tool| format!("{server}/{tool}"))),
        ("FROM", from.to_string()),
        ("TO", to.to_string()),
        ("EARLY", format!("{:02}:59", from.saturating_sub(1))),
        ("BEGIN", format!("{from:02}:00")),
        ("LATE", format!("{to:02}:00")),
        ("LAST", format!("{:02}:59", to.saturating_sub(1))),
    ];
    let fill = |text: &str| {
        values.iter().fold(text.to_owned(), |text, (key, value)| {
            text.replace(&format!("{{{{{key}}}}}"), value)
        })
    };
    let name = format!("{name}-{server}");
    let file = format!("{name}.cedar");
    let policies = format(std::path::Path::new(&file), &fill(policies))?;
    Ok(Rendered { name, policies, cases: fill(cases) })
}
