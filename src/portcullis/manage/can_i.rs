//! Evaluation of one request with the policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    InvalidInput,
    server_facts::{PartDecision, ServerFacts},
    servers::{configured, launcher, signatures},
};
use portcullis_config::{Config, Loaded};
use portcullis_interceptors::{InterceptorEntry, InterceptorKind};
use portcullis_policy::{
    Action, Circumstances, Engine, Explanation, Outcome, Request, Resource, Stated, Subject,
    Target, Unknown, Verdict, worded_action,
};
use portcullis_policy_tools::CasePrincipal;
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    codec::{Text, check},
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind, Store},
    names::{ClientName, Group, ServerName},
    tool_names::SEPARATOR,
};
use portcullis_upstream::kept_tools;

/// Hints of a tool's annotations.
pub const HINTS: [&str; 4] = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];

/// Question about one request.
#[derive(Debug)]
pub struct Question {
    /// The principal, as `--as` names it.
    pub principal: String,
    /// Additional groups of a client.
    pub groups: Vec<Group>,
    /// An action or a method.
    pub action: String,
    /// The target in the form of the action; `None` for all servers at once.
    pub target: Option<String>,
    /// The arguments, as a JSON object.
    pub args: Option<String>,
    /// Hints of the tool's annotations; of repeated ones, the last counts.
    pub hints: Vec<(String, bool)>,
    /// Value of `context.method`, if `action` is not a method.
    pub method: Option<String>,
    /// Value of `context.transport`.
    pub transport: Option<Transport>,
    /// Value of `context.source_ip`.
    pub source_ip: Option<IpAddr>,
    /// Value of `context.session_calls`.
    pub session_calls: Option<u64>,
    /// Time of the request; `None`: now.
    pub at: Option<jiff::Timestamp>,
    /// Whether the answer has an explanation of each policy.
    pub explain: bool,
}

/// Answer to a [`Question`].
#[derive(Debug, Serialize)]
pub struct Answer {
    /// Name of the principal.
    pub principal: String,
    /// The action.
    pub action: &'static str,
    /// The target of the question.
    pub target: Option<String>,
    /// The decision.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The decision as a sentence.
    pub explanation: String,
    /// Explanation of each policy, if the question requests it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Explanation>,
    /// Origin of the tool's annotations, for a tool.
    #[serde(skip)]
    pub origin: Option<Origin>,
}

/// The form SERVER/NAME of a name in merged lists.
fn own_name(text: &str, config: &Config) -> Option<String> {
    config.servers.iter().find_map(|(server, settings)| {
        let prefix = settings.prefix.as_deref().unwrap_or(server.as_str());
        let name = text.strip_prefix(prefix)?.strip_prefix(SEPARATOR)?;
        Some(format!("{server}/{name}"))
    })
}

/// Evaluates one request with the policies of `engine`, as the proxy with this config would.
///
/// # Errors
/// The question is invalid ([`InvalidInput`]), the clients cannot be read, or the answer depends on
/// facts that the question leaves open.
pub fn answer(question: &Question, config: &Config, engine: &Engine) -> anyhow::Result<Answer> {
    let requester = Requester::of(question, config)?;
    let (action, method) = worded_action(&question.action);
    let method = question.method.as_deref().unwrap_or(method);
    let args: Option<Map<String, Value>> = match &question.args {
        Some(json) => Some(arguments(json, action, config)?),
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
    let answer = |outcome, explanation, why, origin| Answer {
        principal: requester.name(),
        action: action.as_str(),
        target: question.target.clone(),
        outcome,
        explanation,
        why,
        origin,
    };
    let now = question.at.unwrap_or_else(jiff::Timestamp::now);
    let principal = match &requester {
        Requester::Client(principal) => principal,
        Requester::Server(_) | Requester::Plugin(_) => {
            let sides = requester.own_sides(action, question)?;
            let request = request(sides, Circumstances::own(now));
            let outcome = engine.decide(&request);
            let explanation = outcome.explain_alone();
            let outcome = Outcome { allowed: outcome.permits_alone(), ..outcome };
            let why = question.explain.then(|| explained(engine, &request));
            return Ok(answer(outcome, explanation, why, None));
        }
    };
    let target = Target::parse(action, question.target.as_deref()).map_err(|error| {
        let own = question.target.as_deref().and_then(|text| own_name(text, config));
        InvalidInput(match own {
            Some(own) => format!("{error}: write `{own}`"),
            None => error.to_string(),
        })
    })?;
    if let Some(server) = target.server() {
        known_server(server, config)?;
    }
    let listen = &config.listen;
    let is_beyond = question.source_ip.is_some_and(|address| !address.to_canonical().is_loopback());
    let is_off = !listen.anonymous || is_beyond && !listen.anonymous_beyond_loopback;
    if principal.kind == PrincipalKind::Anonymous && is_off {
        let revision = engine.revision();
        let (rules, errors, shadows) = (Vec::new(), Vec::new(), Vec::new());
        let outcome = Outcome { allowed: false, rules, revision, errors, shadows };
        let explanation = "anonymous clients are off (`anonymous` under `[listen]`)".to_owned();
        return Ok(answer(outcome, explanation, None, None));
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
    let (claims, origin) = claims(question, &target, config)?;
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
    let why = question.explain.then(|| explained(engine, &of(claims)));
    let explanation = outcome.explain();
    Ok(answer(outcome, explanation, why, origin))
}

/// Decisions about the parts of a server's start that a question is about: the launch, or its
/// secrets (all, or the target). `None` if the question is about something else.
///
/// # Errors
/// The server, the secret or an option is invalid ([`InvalidInput`]), the server's profile is
/// invalid, or policies cannot be loaded.
pub async fn start_parts(
    question: &Question,
    loaded: &Loaded,
) -> anyhow::Result<Option<Vec<PartDecision>>> {
    let (action, _) = worded_action(&question.action);
    let name = question.principal.strip_prefix("server:");
    let Some(name) = name.filter(|_| matches!(action, Action::Launch | Action::DeliverSecret))
    else {
        return Ok(None);
    };
    let name: ServerName =
        name.parse().map_err(|error| InvalidInput(format!("`--as`: {error}")))?;
    known_server(&name, &loaded.config)?;
    if question.explain {
        let message = format!(
            "`--explain` cannot be used with `{}`: `portcullis server inspect {name}` lists the \
             deviations that policies see",
            action.as_str()
        );
        return Err(InvalidInput(message).into());
    }
    let settings = configured(loaded, &name)?;
    let mut launcher = launcher(loaded).await;
    launcher.signatures = signatures(loaded)?;
    let facts = ServerFacts::of(loaded, &launcher, &name, settings, question.at).await?;
    let parts =
        facts.decisions.map_err(|why| anyhow::anyhow!("policies cannot be loaded: {why}"))?;
    let asked: Vec<_> = parts
        .into_iter()
        .filter(|part| part.action == action.as_str())
        .filter(|part| {
            action == Action::Launch
                || question.target.as_ref().is_none_or(|target| part.target == *target)
        })
        .collect();
    if asked.is_empty() {
        let secret = question.target.as_deref().map(|target| format!(" `{target}`"));
        let message = format!("the server `{name}` has no secret{}", secret.unwrap_or_default());
        return Err(InvalidInput(message).into());
    }
    Ok(Some(asked))
}

impl Question {
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
fn arguments(
    json: &str,
    action: Action,
    config: &Config,
) -> Result<Map<String, Value>, InvalidInput> {
    let args = serde_json::from_str(json)
        .map_err(|error| InvalidInput(format!("`--args` is not a JSON object: {error}")))?;
    let message = match action {
        Action::CallTool | Action::GetPrompt => format!("{{\"params\":{{\"arguments\":{json}}}}}"),
        _ => format!("{{\"params\":{json}}}"),
    };
    check(message.as_bytes(), Text::Message, config.limits.request_caps())
        .map_err(|flaw| InvalidInput(format!("the proxy would refuse `--args`: {flaw}")))?;
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
pub enum Origin {
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
    fn of(question: &Question, config: &Config) -> anyhow::Result<Self> {
        let word = question.principal.as_str();
        let who = match word {
            word if word == "anonymous" || word.contains(':') => CasePrincipal::parse(word)
                .map_err(|error| InvalidInput(format!("`--as`: {error}")))?,
            name => {
                let name =
                    name.parse().map_err(|error| InvalidInput(format!("`--as`: {error}")))?;
                CasePrincipal::Client { name, groups: Vec::new() }
            }
        };
        let (kind, mut groups) = match who {
            CasePrincipal::Server(name) => {
                known_server(&name, config)?;
                return Ok(Self::Server(name));
            }
            CasePrincipal::Plugin(name) => {
                let is_plugin =
                    |entry: &&InterceptorEntry| matches!(entry.kind, InterceptorKind::Plugin(_));
                let mut plugins = config.interceptors.iter().filter(is_plugin);
                if !plugins.any(|entry| entry.name() == name) {
                    return Err(
                        InvalidInput(format!("`--as`: no plugin is called `{name}`")).into()
                    );
                }
                return Ok(Self::Plugin(name));
            }
            CasePrincipal::Anonymous => (PrincipalKind::Anonymous, Vec::new()),
            CasePrincipal::Local { user, groups } => (PrincipalKind::Local { user }, groups),
            // Any client in a group.
            CasePrincipal::Client { name, groups } if !groups.is_empty() => {
                (PrincipalKind::Client(name), groups)
            }
            CasePrincipal::Client { name, .. } => {
                let added = Store::in_state_dir(&config.state_dir).read()?;
                let groups = match (added.get(&name), config.clients.get(&name)) {
                    (None, None) => {
                        let all = config.clients.keys().chain(added.keys());
                        return Err(InvalidInput(format!(
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
        question: &'a Question,
    ) -> Result<(Subject<'a>, Resource<'a>), InvalidInput> {
        let target = question.target.as_deref();
        let resource = match (self, action) {
            (_, Action::Egress) => {
                let parsed = target.and_then(|target| {
                    let (name, port) = target.rsplit_once(':')?;
                    Some(Resource::Host { name, port: port.parse().ok()? })
                });
                parsed.ok_or_else(|| {
                    InvalidInput("`egress` needs a target of the form HOST:PORT".to_owned())
                })?
            }
            (Self::Plugin(_), Action::Grant) => {
                let function = target.ok_or_else(|| {
                    InvalidInput("`grant` is asked of a function, such as `http`".to_owned())
                })?;
                Resource::Grant(function)
            }
            _ => {
                return Err(InvalidInput(format!(
                    "a server or a plugin has no action `{}`: a server has `launch`, \
                     `deliver_secret` and `egress`, a plugin `grant` and `egress`. For a request of \
                     a server to a client, write `--as CLIENT {} SERVER`",
                    question.action,
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
fn known_server(server: &ServerName, config: &Config) -> Result<(), InvalidInput> {
    if config.servers.contains_key(server) {
        return Ok(());
    }
    let near = near(server.as_str(), config.servers.keys().map(ServerName::as_str));
    Err(InvalidInput(format!("the config has no server `{server}`{near}")))
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
    question: &Question,
    target: &Target,
    config: &Config,
) -> Result<(Claims, Option<Origin>), InvalidInput> {
    let Some((server, tool)) = target.tool() else { return Ok((Claims::default(), None)) };
    let listed = kept_tools(&config.state_dir, server);
    let named = |definition: &&Value| definition["name"] == tool;
    let definition = listed.as_ref().map(|listed| listed.iter().find(named));
    if let (Some(listed), Some(None)) = (&listed, definition) {
        let names = listed.iter().filter_map(|definition| definition["name"].as_str());
        return Err(InvalidInput(format!(
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
