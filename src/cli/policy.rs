//! `portcullis policy`: checks policies and asks them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::ArgAction;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Context, Exit, Reports, Usage};
use crate::{
    config::{Config, Loaded},
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind, Store},
    interceptors::policy::{client_action, server_action},
    names::{Group, ServerName},
    policy::{
        Action, Circumstances, Claims, Engine, Finding, Outcome, Request, Resource, Revision,
        Subject,
    },
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Check policies and list every finding
    Check {
        /// Files and folders, instead of those of the config
        paths: Vec<PathBuf>,
    },
    /// Ask whether a client may do something, and which rules say so
    CanI(CanI),
}

#[derive(Debug, clap::Args)]
struct CanI {
    /// Who asks: a client's name, `local:USER` or `anonymous`
    #[arg(long = "as", value_name = "CLIENT")]
    client: String,
    /// A group of the client, beside those that it has; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<Group>,
    /// An action (`call_tool`) or a method (`tools/call`)
    #[arg(value_name = "ACTION")]
    action: String,
    /// SERVER/TOOL, SERVER/PROMPT, SERVER/URI, or only SERVER; nothing for all servers at once
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The arguments, as a JSON object
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// A hint of the tool's annotations: `readOnlyHint=true`; may be given several times
    #[arg(long = "hint", value_name = "NAME=BOOL", value_parser = hint, action = ArgAction::Append)]
    hints: Vec<(String, bool)>,
    /// What `context.method` is, where ACTION is not a method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
}

const HINTS: [&str; 4] = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];

fn hint(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=true or NAME=false")?;
    if !HINTS.contains(&name) {
        return Err(format!("the hints are {}", HINTS.join(", ")));
    }
    let value = value.parse().map_err(|_| format!("`{value}` is neither `true` nor `false`"))?;
    Ok((name.to_owned(), value))
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Check { paths } => check(&paths, ctx),
        Verb::CanI(question) => can_i(&question, ctx),
    }
}

/// The config's policies, wherever the program runs.
fn sources(loaded: &Loaded) -> Vec<PathBuf> {
    loaded.config.policy.paths.iter().map(|path| loaded.base.join(path)).collect()
}

/// Loads with names relative to the working folder, so that they can be opened from there.
fn load(paths: &[PathBuf]) -> Result<Engine, Vec<Finding>> {
    let here = std::env::current_dir().unwrap_or_default();
    Engine::load(paths, &here).map_err(|diagnostics| diagnostics.findings().to_vec())
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    findings: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
}

fn check(paths: &[PathBuf], ctx: &Context) -> anyhow::Result<Exit> {
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

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    principal: String,
    action: &'a str,
    target: Option<&'a str>,
    #[serde(flatten)]
    outcome: &'a Outcome,
    /// The sentence of the text format.
    explanation: String,
}

fn can_i(question: &CanI, ctx: &Context) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let engine = load(&sources(&loaded))
        .map_err(|findings| Reports(findings.into_iter().map(|f| Box::new(f) as _).collect()))?;
    let principal = principal(question, &loaded.config)?;
    let (action, method) = action(question);
    let target = Target::parse(action, question.target.as_deref())?;
    let args: Option<Map<String, Value>> = match &question.args {
        Some(json) => Some(
            serde_json::from_str(json)
                .map_err(|error| Usage(format!("`--args` is no JSON object: {error}")))?,
        ),
        None => None,
    };
    let claims = Claims::from_hints(|name| {
        question.hints.iter().rev().find(|(hint, _)| hint == name).map(|(_, value)| *value)
    });
    let (subject, resource) = target.sides(&principal, claims);
    let outcome = engine.decide(&Request {
        subject,
        action,
        resource,
        args: args.as_ref(),
        written: question.args.as_deref().unwrap_or_default().as_bytes(),
        circumstances: Circumstances {
            method: &method,
            transport: Some(Transport::Http),
            revision: Some(exchange::Revision::LATEST_LEGACY),
            now: jiff::Timestamp::now(),
            source_ip: None,
            session_calls: 0,
            labels: &BTreeSet::new(),
        },
    });
    print(question, &principal, action, &outcome, ctx)?;
    Ok(if outcome.allowed { Exit::Ok } else { Exit::Denied })
}

fn print(
    question: &CanI,
    principal: &Principal,
    action: Action,
    outcome: &Outcome,
    ctx: &Context,
) -> anyhow::Result<()> {
    let target = question.target.as_deref();
    if ctx.is_json() {
        ctx.json(&Answer {
            principal: principal.name(),
            action: action.as_str(),
            target,
            outcome,
            explanation: outcome.explain(),
        })?;
        return Ok(());
    }
    let verdict = if outcome.allowed { "allowed" } else { "denied" };
    ctx.line(format!("{verdict}: {}", outcome.explain()))?;
    for rule in &outcome.rules {
        let file = rule.file.as_deref().unwrap_or(Path::new("")).display();
        let line = rule.line.map(|line| format!(":{line}")).unwrap_or_default();
        ctx.line(format!("  {}  {file}{line}", rule.id))?;
        if let Some(reason) = &rule.reason {
            ctx.line(format!("    {reason}"))?;
        }
    }
    if action == Action::CallTool && question.hints.is_empty() {
        ctx.note(
            "asked as for a tool without annotations, which counts as destructive and open-world; \
             `--hint` gives others",
        );
    }
    Ok(())
}

fn principal(question: &CanI, config: &Config) -> anyhow::Result<Principal> {
    let mut groups = question.groups.clone();
    let kind = match (question.client.as_str(), question.client.strip_prefix("local:")) {
        ("anonymous", _) => PrincipalKind::Anonymous,
        (_, Some(user)) => PrincipalKind::Local { user: user.to_owned() },
        (name, None) => {
            let name = name.parse().map_err(|error| Usage(format!("`--as`: {error}")))?;
            let added = Store::within(&config.state_dir).read()?;
            groups.extend(added.get(&name).into_iter().flat_map(|client| client.groups.clone()));
            let written = config.clients.get(&name);
            groups.extend(written.into_iter().flat_map(|client| client.groups.clone()));
            PrincipalKind::Client(name)
        }
    };
    let verified = kind != PrincipalKind::Anonymous;
    Ok(Principal { kind, groups, verified, key: None })
}

/// The action that is asked for, and what `context.method` is.
fn action(question: &CanI) -> (Action, String) {
    let asked = question.action.as_str();
    let named = Action::ALL.iter().copied().find(|action| action.as_str() == asked);
    let (action, method) = match named {
        Some(action) => (action, usual_method(action)),
        None => {
            let notification = asked.starts_with("notifications/");
            match server_action(asked, notification) {
                action @ (Action::Sample | Action::Elicit | Action::ListRoots) => (action, asked),
                _ => (client_action(asked, notification), asked),
            }
        }
    };
    (action, question.method.as_deref().unwrap_or(method).to_owned())
}

/// The method of an action that has one, or the first of several.
fn usual_method(action: Action) -> &'static str {
    use exchange::Method;
    match action {
        Action::Connect => Method::INITIALIZE,
        Action::CallTool => Method::TOOLS_CALL,
        Action::FollowTask => Method::TASK[0],
        Action::GetPrompt => Method::PROMPTS_GET,
        Action::Complete => Method::COMPLETE,
        Action::ReadResource => Method::RESOURCES_READ,
        Action::SubscribeResource => "resources/subscribe",
        Action::SeeTemplate => Method::TEMPLATES_LIST,
        Action::Sample => Method::SAMPLE,
        Action::Elicit => Method::ELICIT,
        Action::ListRoots => Method::ROOTS_LIST,
        Action::NotifyServer
        | Action::OtherMethod
        | Action::NotifyClient
        | Action::OtherServerMethod
        | Action::Launch
        | Action::HandSecret
        | Action::Reach
        | Action::Grant => "",
    }
}

/// What the question is about, with what the command line says of it.
enum Target<'a> {
    Proxy,
    Server(ServerName),
    Tool(ServerName, &'a str),
    Prompt(ServerName, &'a str),
    Resource(ServerName, &'a str),
    Template(ServerName, &'a str),
    /// The server that asks the client.
    Asker(ServerName),
}

impl<'a> Target<'a> {
    fn parse(action: Action, text: Option<&'a str>) -> anyhow::Result<Self> {
        let server = |name: &str| {
            name.parse::<ServerName>().map_err(|error| Usage(format!("the server's name: {error}")))
        };
        let missing = |what: &str| Usage(format!("`{}` is asked of {what}", action.as_str()));
        let on_server = |what: &str| {
            let (name, rest) = text.and_then(|text| text.split_once('/')).ok_or(missing(what))?;
            anyhow::Ok((server(name)?, rest))
        };
        Ok(match action {
            Action::Connect | Action::NotifyServer | Action::OtherMethod => match text {
                Some(name) => Self::Server(server(name)?),
                None => Self::Proxy,
            },
            Action::CallTool | Action::FollowTask => {
                let (server, name) = on_server("SERVER/TOOL")?;
                Self::Tool(server, name)
            }
            Action::GetPrompt => {
                let (server, name) = on_server("SERVER/PROMPT")?;
                Self::Prompt(server, name)
            }
            Action::ReadResource | Action::SubscribeResource => {
                let (server, uri) = on_server("SERVER/URI")?;
                Self::Resource(server, uri)
            }
            Action::SeeTemplate => {
                let (server, uri) = on_server("SERVER/TEMPLATE")?;
                Self::Template(server, uri)
            }
            Action::Complete => match on_server("SERVER/PROMPT or SERVER/TEMPLATE")? {
                (server, uri) if uri.contains("://") => Self::Template(server, uri),
                (server, name) => Self::Prompt(server, name),
            },
            Action::Sample
            | Action::Elicit
            | Action::ListRoots
            | Action::NotifyClient
            | Action::OtherServerMethod => {
                Self::Asker(server(text.ok_or(missing("a client, by a SERVER"))?)?)
            }
            Action::Launch | Action::HandSecret | Action::Reach | Action::Grant => {
                let what = format!("`{}` is no client's to ask for", action.as_str());
                return Err(Usage(what).into());
            }
        })
    }

    fn sides<'s>(
        &'s self,
        principal: &'s Principal,
        claims: Claims,
    ) -> (Subject<'s>, Resource<'s>) {
        let client = Subject::Client(principal);
        match self {
            Self::Proxy => (client, Resource::Proxy),
            Self::Server(server) => (client, Resource::Server(server)),
            Self::Tool(server, name) => (client, Resource::Tool { server, name, claims }),
            Self::Prompt(server, name) => (client, Resource::Prompt { server, name }),
            Self::Resource(server, uri) => (client, Resource::Resource { server, uri }),
            Self::Template(server, uri) => (client, Resource::Template { server, uri }),
            Self::Asker(server) => (Subject::Server(server), Resource::Client(principal)),
        }
    }
}
