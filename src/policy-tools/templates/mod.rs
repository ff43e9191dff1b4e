//! Templates of policies for common purposes, with their cases.

use std::path::Path;

use super::format::format;
use portcullis_policy::Finding;
use portcullis_protocol::{
    names::{ClientName, Group, ServerName},
    obligations::Obligations,
};

/// A common purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// Permit read-only tools, resources and prompts
    ReadOnly,
    /// Permit certain tools
    NamedTools,
    /// Permit certain tools if their argument `path` is in one folder
    OneFolder,
    /// Permit all tools up to a rate
    RateLimit,
    /// Permit certain tools; each call needs the approval of a person
    ApproveTools,
    /// Permit all tools; destructive ones need the approval of a person
    ApproveDestructive,
    /// Permit the server; deny open-world tools of other servers to a session that used it
    NoTaintedData,
    /// Permit certain tools to this principal and deny them to all others
    OneTeam,
    /// Deny certain tools
    DenyTools,
    /// Deny the server outside certain hours and days of the week (UTC)
    WorkingHours,
    /// Permit the start of the server with the full hardened profile
    Launch,
    /// Deny the server connections to other hosts
    NoNetwork,
}

/// The principal of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyPrincipal {
    Group(Group),
    Client(ClientName),
    /// The user who runs the proxy.
    LocalUser(UserName),
}

/// Values for a template.
#[derive(Debug, Clone)]
pub struct Filling {
    /// `None` for a template that does not need one.
    pub principal: Option<PolicyPrincipal>,
    pub servers: Vec<ServerName>,
    /// Names of tools, without the proxy's prefix.
    pub tools: Vec<ToolName>,
    /// The folder, for a template that needs one.
    pub folder: Option<FolderPath>,
    pub rate: RateText,
    /// The first hour, and the hour after the last one.
    pub hours: (u8, u8),
    pub days: Days,
}

/// Days of the week, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    /// 1 is Monday.
    first: usize,
    last: usize,
}

/// The days as the command line has them, and as comments do.
const WEEK: [(&str, &str); 7] = [
    ("mon", "Monday"),
    ("tue", "Tuesday"),
    ("wed", "Wednesday"),
    ("thu", "Thursday"),
    ("fri", "Friday"),
    ("sat", "Saturday"),
    ("sun", "Sunday"),
];

impl Days {
    /// The whole week.
    pub const ALL: Self = Self { first: 1, last: WEEK.len() };

    fn values(self) -> Values {
        let Self { first, last } = self;
        // Monday was 2026-01-05.
        let date = |day: usize| format!("{:02}", 4 + day);
        let mut values = vec![("DAY", date(first))];
        let name = |day: usize| WEEK.get(day - 1).map_or("", |(_, name)| name);
        let off = (1..=WEEK.len()).find(|day| !(first..=last).contains(day));
        let (other, on, row) = match off {
            None => Default::default(),
            Some(off) => (
                format!(", and on days other than {} to {}", name(first), name(last)),
                format!("context.weekday >= {first} && context.weekday <= {last} && "),
                format!(
                    "      - {{ name: on another day, context: {{ now: \"2026-01-{}T{{{{BEGIN}}}}:00Z\" }}, \
                     by: {{{{TEAM}}}}-working-hours-{{{{SERVER}}}} }}\n",
                    date(off)
                ),
            ),
        };
        values.extend([("OTHER_DAYS", other), ("ON_DAYS", on), ("DAY_OFF", row)]);
        values
    }
}

impl std::str::FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let day = |text: &str| WEEK.iter().position(|(short, _)| *short == text).map(|at| at + 1);
        let days = text.split_once('-').and_then(|(from, to)| Some((day(from)?, day(to)?)));
        match days {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err("write FROM-TO, two of mon, tue, wed, thu, fri, sat and sun in this order, such as \
                      mon-fri"
                .to_owned()),
        }
    }
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

/// Name of a user of this machine, in characters that need no escapes in Cedar or YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName(String);

impl std::fmt::Display for UserName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

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

/// Absolute path of a folder, in characters without a meaning in Cedar's patterns or YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderPath(String);

impl std::str::FromStr for FolderPath {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let part = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(plain);
        match path.strip_prefix('/') {
            Some(parts) if parts.split('/').all(part) => Ok(Self(path.to_owned())),
            _ => Err(FOLDER_HELP.to_owned()),
        }
    }
}

const FOLDER_HELP: &str = "write an absolute path without `.`, `..` or a slash at the end; its names \
                           have letters, digits, `_`, `-` and `.`";

/// Text of a `@rate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateText(String);

impl std::str::FromStr for RateText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = Obligations::default().take("rate", text).is_ok();
        if legal && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err("write a number and a time of up to 31 days, such as 60/1m".to_owned())
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
    /// Whether other templates and servers use the same files.
    pub shared: bool,
}

impl Rendered {
    /// Both files: the name, the text, and the beginning of a comment.
    pub fn files(&self) -> [(String, &str, &'static str); 2] {
        [
            (format!("{}.cedar", self.name), self.policies.as_str(), "//"),
            (format!("{}.test.yaml", self.name), self.cases.as_str(), "#"),
        ]
    }
}

/// Name, policies and cases of a template.
type Texts = (&'static str, &'static str, &'static str);

macro_rules! texts {
    ($name:literal) => {
        ($name, include_str!(concat!($name, ".cedar")), include_str!(concat!($name, ".test.yaml")))
    };
}

/// Policy for the connections of a principal.
const CONNECT: Texts = texts!("connect");

impl Template {
    /// Whether it applies to a principal, not to the server itself.
    pub fn needs_principal(self) -> bool {
        !matches!(self, Self::Launch | Self::NoNetwork)
    }

    /// Whether it applies to certain tools.
    pub fn needs_tools(self) -> bool {
        matches!(
            self,
            Self::NamedTools
                | Self::OneFolder
                | Self::ApproveTools
                | Self::OneTeam
                | Self::DenyTools
        )
    }

    /// Whether it applies to one folder.
    pub fn needs_folder(self) -> bool {
        self == Self::OneFolder
    }

    /// Whether it permits use of the server, which needs a connection to the proxy.
    fn permits_use(self) -> bool {
        self.needs_principal() && !matches!(self, Self::DenyTools | Self::WorkingHours)
    }

    fn texts(self) -> Texts {
        match self {
            Self::ReadOnly => texts!("read-only"),
            Self::NamedTools => texts!("named-tools"),
            Self::OneFolder => texts!("one-folder"),
            Self::RateLimit => texts!("rate-limit"),
            Self::ApproveTools => texts!("approve-tools"),
            Self::ApproveDestructive => texts!("approve-destructive"),
            Self::NoTaintedData => texts!("no-tainted-data"),
            Self::OneTeam => texts!("one-team"),
            Self::DenyTools => texts!("deny-tools"),
            Self::WorkingHours => texts!("working-hours"),
            Self::Launch => texts!("launch"),
            Self::NoNetwork => texts!("no-network"),
        }
    }
}

/// The text for each `{{KEY}}` of a template.
type Values = Vec<(&'static str, String)>;

impl PolicyPrincipal {
    fn values(&self) -> Values {
        let (kind, scope, name) = match self {
            Self::Group(group) => ("group", "principal in Portcullis::Group", group.as_str()),
            Self::Client(client) => ("client", "principal == Portcullis::Client", client.as_str()),
            Self::LocalUser(UserName(user)) => {
                ("local", "principal == Portcullis::Local", user.as_str())
            }
        };
        vec![
            ("STRANGER", unlike("some-stranger", [name])),
            ("TEAM_SCOPE", format!("{scope}::\"{name}\"")),
            ("TEAM_PARTY", format!("{kind}:{name}")),
            ("TEAM_KIND", kind.to_owned()),
            ("TEAM", name.to_owned()),
        ]
    }
}

impl Filling {
    /// The values for one server.
    fn values(&self, server: &ServerName) -> Values {
        let each = |write: &dyn Fn(&str) -> String| {
            let tools: Vec<_> = self.tools.iter().map(|ToolName(tool)| write(tool)).collect();
            tools.join(", ")
        };
        let (from, to) = self.hours;
        let RateText(rate) = &self.rate;
        // Before the others, because their text contains keys.
        let mut values = self.days.values();
        values.extend([
            ("SERVER", server.to_string()),
            ("OTHER_SERVER", unlike("another-server", self.servers.iter().map(ServerName::as_str))),
            (
                "OTHER_TOOL",
                unlike("some-other-tool", self.tools.iter().map(|ToolName(tool)| tool.as_str())),
            ),
            ("TOOLS", each(&|tool| format!("Portcullis::Tool::\"{server}/{tool}\""))),
            ("TOOL_NAMES", each(&|tool| format!("{server}/{tool}"))),
            ("RATE", rate.clone()),
            ("FROM", from.to_string()),
            ("TO", to.to_string()),
            ("EARLY", format!("{:02}:59", from.saturating_sub(1))),
            ("BEGIN", format!("{from:02}:00")),
            ("LATE", format!("{to:02}:00")),
            ("LAST", format!("{:02}:59", to.saturating_sub(1))),
        ]);
        if let Some(FolderPath(folder)) = &self.folder {
            let last = folder.rsplit('/').next();
            values.push(("OTHER_FOLDER", unlike("some-other-folder", last)));
            values.push(("FOLDER", folder.clone()));
        }
        values.extend(self.principal.iter().flat_map(PolicyPrincipal::values));
        values
    }
}

/// A name for cases that differs from the names in use.
fn unlike<'a>(name: &str, used: impl IntoIterator<Item = &'a str>) -> String {
    let used: Vec<&str> = used.into_iter().collect();
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| !used.contains(&name.as_str())).unwrap_or_else(|| name.to_owned())
}

fn fill(text: &str, values: &[(&str, String)]) -> String {
    values
        .iter()
        .fold(text.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
}

fn render(
    name: String,
    (_, policies, cases): Texts,
    values: &[(&str, String)],
    shared: bool,
) -> Result<Rendered, Vec<Finding>> {
    let policies = format(Path::new(&format!("{name}.cedar")), &fill(policies, values))?;
    Ok(Rendered { name, policies, cases: fill(cases, values), shared })
}

/// The policy that lets a principal connect, with its cases. Templates that permit the use of a
/// server have the same pair.
///
/// # Errors
/// If the result is not valid Cedar, which is a fault of the template.
pub fn connect(principal: &PolicyPrincipal) -> Result<Rendered, Vec<Finding>> {
    let values = principal.values();
    render(fill("connect-{{TEAM_KIND}}-{{TEAM}}", &values), CONNECT, &values, true)
}

/// Fills a template: one pair of files for each server, after a pair for connections if it permits
/// the use of a server.
///
/// # Errors
/// If the result is not valid Cedar, which is a fault of the template.
pub fn make(template: Template, filling: &Filling) -> Result<Vec<Rendered>, Vec<Finding>> {
    let mut pairs = Vec::new();
    // In files of their own: in the files of two servers, `policy check` would report a duplicate.
    if let Some(principal) = filling.principal.as_ref().filter(|_| template.permits_use()) {
        pairs.push(connect(principal)?);
    }
    let texts = template.texts();
    for server in &filling.servers {
        let name = format!("{}-{server}", texts.0);
        pairs.push(render(name, texts, &filling.values(server), false)?);
    }
    Ok(pairs)
}
