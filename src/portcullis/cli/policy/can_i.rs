//! `portcullis policy can-i`: evaluates one request with the policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use clap::ArgAction;
use serde::{Deserialize as _, Serialize, de::IntoDeserializer as _};
use serde_json::{Map, Value};

use super::{explain, load, reports, source};
use crate::cli::{Context, Exit, Usage};
use portcullis_config::Config;
use portcullis_interceptors::{InterceptorEntry, InterceptorKind};
use portcullis_policy::{
    Action, Circumstances, Engine, Explanation, Outcome, Request, Resource, Stated, Subject,
    Target, Unknown, Verdict, worded_action,
};
use portcullis_policy_tools::Who;
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    codec::{Text, check},
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind, Store},
    names::{ClientName, Group, ServerName},
};
use portcullis_upstream::kept_tools;

#[derive(Debug, clap::Args)]
pub struct CanI {
    /// The principal: a client's name, `group:NAME` (any client in that group), `local:USER`,
    /// `anonymous`; for actions of the proxy `server:NAME` or `plugin:NAME`
    #[arg(long = "as", value_name = "PARTY")]
    party: String,
    /// An additional group of the client; repeatable
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<Group>,
    /// An action (`call_tool`) or a method (`tools/call`)
    #[arg(value_name = "ACTION")]
    action: String,
    /// The target: SERVER/TOOL, SERVER/PROMPT, SERVER/URI or SERVER; default: all servers at once.
    /// For `egress`: HOST:PORT; for `grant`: the function
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The arguments, as a JSON object
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// A hint of the tool's annotations, such as `readOnlyHint=true`; repeatable
    #[arg(long = "hint", value_name = "NAME=BOOL", value_parser = hint, action = ArgAction::Append)]
    hints: Vec<(String, bool)>,
    /// Value of `context.method`, if ACTION is not a method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Value of `context.transport`: `http`, `unix`, `stdio` or `cli`
    #[arg(long, value_name = "TRANSPORT", value_parser = transport)]
    transport: Option<Transport>,
    /// Value of `context.source_ip`
    #[arg(long, value_name = "ADDRESS")]
    source_ip: Option<IpAddr>,
    /// Value of `context.session_calls`
    #[arg(long, value_name = "NUMBER")]
    session_calls: Option<u64>,
    /// Explain the result of each policy that matches or nearly matches
    #[arg(long)]
    explain: bool,
}

fn transport(text: &str) -> Result<Transport, serde::de::value::Error> {
    Transport::deserialize(text.into_deserializer())
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

#[derive(Debug, Serialize)]
struct Answer<'a> {
    principal: String,
    action: &'a str,
    target: Option<&'a str>,
    #[serde(flatten)]
    outcome: &'a Outcome,
    /// Sentence of the text format.
    explanation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a Explanation>,
}

impl Answer<'_> {
    fn exit(&self) -> Exit {
        if self.outcome.allowed { Exit::Ok } else { Exit::Denied }
    }
}

/// Runs the verb.
pub fn can_i(question: &CanI, ctx: &Context) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let engine = load(source(&loaded)).map_err(reports)?;
    let requester = Requester::of(question, &loaded.config)?;
    let (action, method) = worded_action(&question.action);
    let method = question.method.as_deref().unwrap_or(method);
    let args: Option<Map<String, Value>> = match &question.args {
        Some(json) => Some(arguments(json, action, &loaded.config)?),
        None => None,
    };
    let labels = BTreeSet::new();
    let written = question.args.as_deref().unwrap_or_default().as_bytes();
    let request = |(subject, resource), circumstances| Request {
        subject,
        action,
        resource,
        args: args.as_ref(),
        written,
        circumstances,
    };
    let now = jiff::Timestamp::now();
    let principal = match &requester {
        Requester::Client(principal) => principal,
        Requester::Server(_) | Requester::Plugin(_) => {
            let sides = requester.own_sides(action, question)?;
            let request = request(sides, Circumstances::own(now));
            let outcome = engine.decide(&request);
            let explanation = outcome.explain_alone();
            let outcome = Outcome { allowed: outcome.permits_alone(), ..outcome };
            let why = question.explain.then(|| explained(&engine, &request));
            let answer = Answer {
                principal: requester.name(),
                action: action.as_str(),
                target: question.target.as_deref(),
                outcome: &outcome,
                explanation,
                why: why.as_ref(),
            };
            print(&answer, None, ctx)?;
            return Ok(answer.exit());
        }
    };
    let target = Target::parse(action, question.target.as_deref())
        .map_err(|error| Usage(error.to_string()))?;
    if let Some(server) = target.server() {
        known_server(server, &loaded.config)?;
    }
    let listen = &loaded.config.listen;
    let is_beyond = question.source_ip.is_some_and(|address| !address.to_canonical().is_loopback());
    let is_off = !listen.anonymous || is_beyond && !listen.anonymous_beyond_loopback;
    if principal.kind == PrincipalKind::Anonymous && is_off {
        let revision = engine.revision();
        let (rules, errors, shadows) = (Vec::new(), Vec::new(), Vec::new());
        let answer = Answer {
            principal: requester.name(),
            action: action.as_str(),
            target: question.target.as_deref(),
            outcome: &Outcome { allowed: false, rules, revision, errors, shadows },
            explanation: "anonymous clients are off (`anonymous` under `[listen]`)".to_owned(),
            why: None,
        };
        print(&answer, None, ctx)?;
        return Ok(answer.exit());
    }
    let circumstances = Circumstances {
        method,
        transport: Some(question.transport.unwrap_or(Transport::Http)),
        revision: Some(exchange::Revision::LATEST_LEGACY),
        now,
        source_ip: question.source_ip,
        session_calls: question.session_calls.unwrap_or_default(),
        labels: &labels,
    };
    let of = |claims| request(target.sides(principal, claims), circumstances);
    let (claims, origin) = claims(question, &target, &loaded.config)?;
    let outcome = engine.decide(&of(claims));
    if origin == Some(Origin::Unknown)
        && all_claims().any(|claims| engine.decide(&of(claims)).allowed != outcome.allowed)
    {
        anyhow::bail!(
            "it depends on the tool's annotations, and its server has listed no tools to this proxy \
             yet: run the server once (`portcullis tools ls`), or say them with `--hint`"
        );
    }
    let claimed: Vec<Claims> = match origin {
        Some(Origin::Unknown) => all_claims().collect(),
        _ => vec![claims],
    };
    let mut inspector = engine.inspect();
    let missing = question.missing(|unknown| {
        claimed
            .iter()
            .any(|claims| inspector.judge(&of(*claims), unknown).verdict == Verdict::Unknown)
    });
    if !missing.is_empty() {
        anyhow::bail!("it depends on where the message comes from: say {}", missing.join(", "));
    }
    let why = question.explain.then(|| explained(&engine, &of(claims)));
    let answer = Answer {
        principal: requester.name(),
        action: action.as_str(),
        target: question.target.as_deref(),
        outcome: &outcome,
        explanation: outcome.explain(),
        why: why.as_ref(),
    };
    print(&answer, origin, ctx)?;
    Ok(answer.exit())
}

impl CanI {
    /// Options that are missing and on which the answer depends. `depends` returns whether it
    /// depends on the given unknown options.
    fn missing(&self, mut depends: impl FnMut(Unknown) -> bool) -> Vec<&'static str> {
        const OPTIONS: [&str; 3] = ["`--transport`", "`--source-ip`", "`--session-calls`"];
        // Only an HTTP client has an address.
        let addressed = self.transport.is_none_or(|transport| transport == Transport::Http);
        let unsaid = [
            self.transport.is_none(),
            self.source_ip.is_none() && addressed,
            self.session_calls.is_none(),
        ];
        let mut depends = |[transport, source_ip, session_calls]: [bool; 3]| {
            depends(Unknown::Of { transport, source_ip, session_calls })
        };
        if !depends(unsaid) {
            return Vec::new();
        }
        let mut missing: Vec<usize> = (0..OPTIONS.len()).filter(|at| unsaid[*at]).collect();
        let alone =
            missing.iter().copied().filter(|at| depends([0, 1, 2].map(|other| other == *at)));
        let alone: Vec<usize> = alone.collect();
        // If the answer depends only on several options together, all are named.
        if !alone.is_empty() {
            missing = alone;
        }
        missing.into_iter().map(|at| OPTIONS[at]).collect()
    }
}

/// Arguments, parsed with the proxy's limits for a message.
fn arguments(json: &str, action: Action, config: &Config) -> Result<Map<String, Value>, Usage> {
    let args = serde_json::from_str(json)
        .map_err(|error| Usage(format!("`--args` is no JSON object: {error}")))?;
    let message = match action {
        Action::CallTool | Action::GetPrompt => format!("{{\"params\":{{\"arguments\":{json}}}}}"),
        _ => format!("{{\"params\":{json}}}"),
    };
    check(message.as_bytes(), Text::Message, config.limits.request_caps())
        .map_err(|flaw| Usage(format!("the proxy would refuse `--args`: {flaw}")))?;
    Ok(args)
}

fn explained(engine: &Engine, request: &Request<'_>) -> Explanation {
    engine.inspect().explain(request, Unknown::Nothing, &BTreeMap::new())
}

/// Principal of the request.
enum Requester {
    Client(Principal),
    Server(ServerName),
    Plugin(String),
}

/// Origin of the annotations with which a tool is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// From `[servers.NAME.tools.TOOL]` or `--hint`.
    Given,
    /// From the server's last list.
    Listed,
    /// No list is stored. The tool counts as a tool without annotations.
    Unknown,
}

impl Requester {
    /// # Errors
    /// The config has no such principal.
    fn of(question: &CanI, config: &Config) -> anyhow::Result<Self> {
        let word = question.party.as_str();
        let who = match word {
            word if word == "anonymous" || word.contains(':') => {
                Who::parse(word).map_err(|error| Usage(format!("`--as`: {error}")))?
            }
            name => {
                let name = name.parse().map_err(|error| Usage(format!("`--as`: {error}")))?;
                Who::Client { name, groups: Vec::new() }
            }
        };
        let (kind, mut groups) = match who {
            Who::Server(name) => {
                known_server(&name, config)?;
                return Ok(Self::Server(name));
            }
            Who::Plugin(name) => {
                let is_plugin =
                    |entry: &&InterceptorEntry| matches!(entry.kind, InterceptorKind::Plugin(_));
                let mut plugins = config.interceptors.iter().filter(is_plugin);
                if !plugins.any(|entry| entry.name() == name) {
                    return Err(Usage(format!("`--as`: no plugin is called `{name}`")).into());
                }
                return Ok(Self::Plugin(name));
            }
            Who::Anonymous => (PrincipalKind::Anonymous, Vec::new()),
            Who::Local { user, groups } => (PrincipalKind::Local { user }, groups),
            // Any client in a group.
            Who::Client { name, groups } if !groups.is_empty() => {
                (PrincipalKind::Client(name), groups)
            }
            Who::Client { name, .. } => {
                let added = Store::within(&config.state_dir).read()?;
                let groups = match (added.get(&name), config.clients.get(&name)) {
                    (None, None) => {
                        let all = config.clients.keys().chain(added.keys());
                        return Err(Usage(format!(
                            "there is no client `{name}`{}; `--as group:NAME` asks for some client \
                             in a group",
                            near(name.as_str(), all.map(ClientName::as_str))
                        ))
                        .into());
                    }
                    (added, written) => {
                        let added = added.into_iter().flat_map(|client| client.groups.clone());
                        let written = written.into_iter().flat_map(|client| client.groups.clone());
                        added.chain(written).collect()
                    }
                };
                (PrincipalKind::Client(name), groups)
            }
        };
        groups.extend(question.groups.clone());
        let verified = kind != PrincipalKind::Anonymous;
        Ok(Self::Client(Principal { kind, groups, verified, key: None }))
    }

    fn name(&self) -> String {
        match self {
            Self::Client(principal) => principal.name(),
            Self::Server(name) => format!("server:{name}"),
            Self::Plugin(name) => format!("plugin:{name}"),
        }
    }

    /// Principal and resource of an action that the proxy performs for a server or a plugin.
    fn own_sides<'a>(
        &'a self,
        action: Action,
        question: &'a CanI,
    ) -> Result<(Subject<'a>, Resource<'a>), Usage> {
        let target = question.target.as_deref();
        let resource = match (self, action) {
            (Self::Server(name), Action::Launch | Action::DeliverSecret) => {
                return Err(Usage(format!(
                    "`portcullis server inspect {name}` says whether it may start and be handed its \
                     secrets, and by which policies"
                )));
            }
            (_, Action::Egress) => {
                let parsed = target.and_then(|target| {
                    let (name, port) = target.rsplit_once(':')?;
                    Some(Resource::Host { name, port: port.parse().ok()? })
                });
                parsed.ok_or_else(|| {
                    Usage("`egress` needs a target of the form HOST:PORT".to_owned())
                })?
            }
            (Self::Plugin(_), Action::Grant) => {
                let function = target.ok_or_else(|| {
                    Usage("`grant` is asked of a function, such as `http`".to_owned())
                })?;
                Resource::Grant(function)
            }
            _ => {
                return Err(Usage(format!(
                    "`{}` is not asked for a server or a plugin: `egress` and, for a plugin, `grant` \
                     are. What a server asks of a client is `--as CLIENT {} SERVER`",
                    action.as_str(),
                    action.as_str()
                )));
            }
        };
        let subject = match self {
            Self::Server(name) => Subject::Server(name),
            Self::Plugin(name) => Subject::Plugin(name),
            Self::Client(principal) => Subject::Client(principal),
        };
        Ok((subject, resource))
    }
}

/// # Errors
/// The config has no such server.
fn known_server(server: &ServerName, config: &Config) -> Result<(), Usage> {
    if config.servers.contains_key(server) {
        return Ok(());
    }
    let near = near(server.as_str(), config.servers.keys().map(ServerName::as_str));
    Err(Usage(format!("the config has no server `{server}`{near}")))
}

/// Suggestion of a similar name, as the end of a sentence.
fn near<'n>(name: &str, all: impl Iterator<Item = &'n str>) -> String {
    let near = all.map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    let near = near.filter(|(distance, _)| *distance <= 2.max(name.len() / 3));
    near.map(|(_, known)| format!(": did you mean `{known}`?")).unwrap_or_default()
}

/// Claims about a tool, and their origin. Empty for other targets.
///
/// # Errors
/// The server's stored list lacks this tool.
fn claims(
    question: &CanI,
    target: &Target,
    config: &Config,
) -> Result<(Claims, Option<Origin>), Usage> {
    let Some((server, tool)) = target.tool() else { return Ok((Claims::default(), None)) };
    let listed = kept_tools(&config.state_dir, server);
    let named = |definition: &&Value| definition["name"] == tool;
    let definition = listed.as_ref().map(|listed| listed.iter().find(named));
    if let (Some(listed), Some(None)) = (&listed, definition) {
        let names = listed.iter().filter_map(|definition| definition["name"].as_str());
        return Err(Usage(format!(
            "`{server}` has no tool `{tool}`, by the list that it last gave{}",
            near(tool, names)
        )));
    }
    if let Some(stated) = Stated::of(config.tools()).claims(server, tool) {
        return Ok((stated, Some(Origin::Given)));
    }
    let hinted = |name: &str| {
        let hints = question.hints.iter().rev();
        hints.clone().find(|(hint, _)| hint == name).map(|(_, value)| *value)
    };
    if !question.hints.is_empty() {
        return Ok((Claims::from_hints(hinted), Some(Origin::Given)));
    }
    let Some(definition) = definition.flatten() else {
        return Ok((Claims::default(), Some(Origin::Unknown)));
    };
    let hint = |name: &str| definition["annotations"][name].as_bool();
    Ok((Claims::from_hints(hint), Some(Origin::Listed)))
}

/// All combinations of claims that a server may make about a tool.
fn all_claims() -> impl Iterator<Item = Claims> {
    (0..1_u8 << HINTS.len()).map(|bits| {
        Claims::from_hints(|name| {
            let at = HINTS.iter().position(|hint| *hint == name)?;
            Some(bits & 1 << at != 0)
        })
    })
}

fn print(answer: &Answer<'_>, origin: Option<Origin>, ctx: &Context) -> anyhow::Result<()> {
    if ctx.is_json() {
        ctx.json(answer)?;
        return Ok(());
    }
    let Answer { outcome, explanation, why, .. } = answer;
    let verdict = if outcome.allowed { "allowed" } else { "denied" };
    ctx.line(format!("{verdict}: {explanation}"))?;
    for rule in &outcome.rules {
        let file = rule.file.as_deref().unwrap_or(Path::new("")).display();
        let line = rule.line.map(|line| format!(":{line}")).unwrap_or_default();
        ctx.line(format!("  {}  {file}{line}", rule.id))?;
        if let Some(reason) = &rule.reason {
            ctx.line(format!("    {reason}"))?;
        }
    }
    let would = if outcome.allowed { "refuse" } else { "permit" };
    for shadow in &outcome.shadows {
        let problem = shadow.problem.as_ref().map(|problem| format!(": {problem}"));
        let problem = problem.unwrap_or_default();
        ctx.line(format!("in shadow, `{}` would {would} it{problem}", shadow.rule.id))?;
    }
    if let Some(why) = why {
        explain::print(why, ctx)?;
    }
    if origin == Some(Origin::Unknown) {
        ctx.note(
            "the tool's annotations are not known, since its server has listed no tools to this \
             proxy yet; whatever they are, the answer is the same",
        );
    }
    Ok(())
}
