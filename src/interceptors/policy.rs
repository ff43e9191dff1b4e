//! Evaluates the Cedar policies for messages in both directions, and filters lists. Refuses with
//! `policy-denied`, and with `invalid-params` if policies cannot be evaluated.
//!
//! Every method is decided, except the protocol's housekeeping: `ping`,
//! `notifications/initialized`, `notifications/cancelled` and `notifications/progress`. These carry
//! no content: they concern the connection, or an exchange that was decided when it began. They
//! pass the chain and are recorded like other messages.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value};

use portcullis_chain::{Decision, Fault, Hooks, Interceptor, Verdict};
use portcullis_policy::{
    Action, Circumstances, Engine, Outcome, Request, Resource, Shadow, Stated, Subject, View,
    client_action, is_housekeeping, server_action,
};
use portcullis_protocol::claims::{Claimant, Claims};
use portcullis_protocol::{
    exchange::{Answer, Definition, Direction, Effect, Exchange, Finding, Method, Phase, Target},
    identity::Principal,
    names::ServerName,
    obligations::{Keep, Obligations},
    refusal::{Code, Refusal, Rule},
};

mod obligations;

/// Text for the agent if no policy provides one.
const NOT_PERMITTED: &str = "not permitted by policy";

/// Interceptor that evaluates policies.
#[derive(Debug)]
pub struct PolicyGate {
    engine: Arc<Engine>,
    /// The operator's annotations of tools, from the present config.
    stated: ArcSwap<Stated>,
    hooks: Hooks,
}

/// What one principal could use.
#[derive(Clone, Copy)]
pub struct PolicyVisibility<'a> {
    gate: &'a PolicyGate,
    view: View<'a>,
}

/// Entry of a list, by its name on its server.
#[derive(Debug, Clone, Copy)]
pub enum Listed<'a> {
    Tool(&'a Definition),
    Prompt { server: &'a ServerName, name: &'a str },
    Resource { server: &'a ServerName, uri: &'a str },
    Template { server: &'a ServerName, uri: &'a str },
}

/// Treatment of a message.
#[derive(Debug)]
enum Disposition<'a> {
    Housekeeping,
    Decide(Question<'a>),
}

/// Policy input: principal, action, resource and arguments.
#[derive(Debug)]
struct Question<'a> {
    subject: Subject<'a>,
    action: Action,
    resource: Resource<'a>,
    method: &'a str,
    args: Option<&'a Map<String, Value>>,
    /// Text that contains `args`.
    written: &'a [u8],
}

/// Reason why policies cannot be evaluated for a message.
#[derive(Debug)]
enum InputError {
    /// The sender's error, with a text for the sender.
    Invalid(String),
    /// An internal error: the exchange contradicts itself.
    Fault(Fault),
}

impl PolicyGate {
    /// Gate with this engine. The operator's annotations of a tool replace the server's claims.
    pub fn new(engine: Arc<Engine>, stated: Stated) -> Self {
        let stated = ArcSwap::from_pointee(stated);
        Self { engine, stated, hooks: Hooks::every(&[Phase::Request, Phase::Response]) }
    }

    /// Sets the annotations of a new config.
    pub fn state(&self, stated: Stated) {
        self.stated.store(Arc::new(stated));
    }

    /// Policy engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What this principal could use, by the policies at the time of each query.
    pub fn sight<'a>(&'a self, principal: &'a Principal) -> PolicyVisibility<'a> {
        PolicyVisibility { gate: self, view: self.engine.view(Subject::Client(principal)) }
    }
}

impl PolicyVisibility<'_> {
    /// Whether a list may show this entry to this principal: whether any circumstances permit its
    /// use. Each use is decided separately.
    pub fn visible(&self, entry: Listed<'_>) -> bool {
        let (action, resource) = match entry {
            Listed::Tool(tool) => {
                (Action::CallTool, self.gate.of_tool(&tool.server, &tool.name, Some(tool)))
            }
            Listed::Prompt { server, name } => {
                (Action::GetPrompt, Resource::Prompt { server, name })
            }
            Listed::Resource { server, uri } => {
                (Action::ReadResource, Resource::Resource { server, uri })
            }
            Listed::Template { server, uri } => {
                (Action::SeeTemplate, Resource::Template { server, uri })
            }
        };
        self.view.could_allow(action, &resource)
    }

    /// Whether this principal could complete arguments of a prompt.
    pub fn completes(&self, server: &ServerName, name: &str) -> bool {
        self.view.could_allow(Action::Complete, &Resource::Prompt { server, name })
    }

    /// Whether a merged list may contain a server's items: whether this principal could connect to
    /// that server.
    pub fn lists(&self, server: &ServerName) -> bool {
        self.view.could_allow(Action::Connect, &Resource::Server(server))
    }

    /// Whether this principal could call a tool of which only the name is known, whatever the
    /// server claims. Checked before a server is started to look for the tool.
    pub fn may_be_callable(&self, server: &ServerName, name: &str) -> bool {
        let could = |claims| {
            self.view.could_allow(Action::CallTool, &Resource::Tool { server, name, claims })
        };
        if let Some(claims) = self.gate.stated.load().claims(server, name) {
            return could(claims);
        }
        (0..16_u8).any(|bits| {
            let bit = |n: u8| bits & (1 << n) != 0;
            could(Claims {
                read_only: bit(0),
                destructive: bit(1),
                idempotent: bit(2),
                open_world: bit(3),
                by: Claimant::Server,
            })
        })
    }
}

impl PolicyGate {
    fn of_tool<'a>(
        &self,
        server: &'a ServerName,
        name: &'a str,
        tool: Option<&Definition>,
    ) -> Resource<'a> {
        let stated = self.stated.load().claims(server, name);
        let claims = stated.unwrap_or_else(|| tool.map(Claims::from).unwrap_or_default());
        Resource::Tool { server, name, claims }
    }

    fn decide(&self, exchange: &Exchange, phase: Phase, question: Question<'_>) -> Verdict {
        let mut outcome = self.engine.decide(&Request {
            subject: question.subject,
            action: question.action,
            resource: question.resource,
            args: question.args,
            written: question.written,
            circumstances: Circumstances {
                method: question.method,
                transport: Some(exchange.transport),
                revision: Some(exchange.revision),
                now: exchange.at,
                source_ip: exchange.client_addr.map(|address| address.ip()),
                session_calls: exchange.session_calls,
                labels: &exchange.labels,
            },
        });
        let (revision, allowed) = (outcome.revision, outcome.allowed);
        let shadows = std::mem::take(&mut outcome.shadows);
        let mut verdict = match allowed {
            true => permit(exchange, outcome.rules),
            false => Verdict::refuse(refusal(outcome, question.action)),
        };
        let shadows = shadows.into_iter().map(|shadow| unenforced(shadow, allowed, phase));
        verdict.findings.extend(shadows);
        verdict.by(revision)
    }

    /// Server requests inside a result (multi-round-trip requests of 2026-07-28, the error of
    /// required URL elicitations in 2025-11-25): each is decided like a separate request.
    fn decide_answer(&self, exchange: &Exchange) -> Result<Verdict, Fault> {
        let requests: Vec<InputRequest> = match &exchange.response {
            None => return Ok(Verdict::pass()),
            Some(Answer::Result(result)) => {
                serde_json::from_slice::<InputRequiredResult>(result.raw())
                    .map_err(|_| Fault("`inputRequests` of the result is malformed".into()))?
                    .input_requests
                    .map(|requests| requests.into_values().collect())
                    .unwrap_or_default()
            }
            Some(Answer::Error(error)) => match error.value().pointer("/data/elicitations") {
                None => Vec::new(),
                Some(elicitations) => elicitations
                    .as_array()
                    .and_then(|all| all.iter().map(elicitation).collect())
                    .ok_or_else(|| Fault("`elicitations` of the error is malformed".into()))?,
            },
        };
        let mut verdict = Verdict::pass();
        for request in requests {
            let server = exchange.server.as_ref().ok_or_else(no_server)?;
            if Method::new(&request.method).passes_for_known() {
                let words = "a method in `inputRequests` differs from a known method only in case or look-alike characters";
                return Err(Fault(words.into()));
            }
            let mut decided = self.decide(
                exchange,
                Phase::Response,
                Question {
                    subject: Subject::Server(server),
                    action: server_action(&request.method, false),
                    resource: Resource::Client(&exchange.principal),
                    method: &request.method,
                    args: request.params.as_ref(),
                    written: exchange.payload(Phase::Response).raw(),
                },
            );
            verdict.findings.append(&mut decided.findings);
            if matches!(decided.decision, Decision::Refuse(_)) {
                return Ok(Verdict { findings: verdict.findings, ..decided });
            }
            if let Some(rule) = decided.rules.iter().find(|rule| changes(rule)) {
                let words = "policy attaches obligations that only apply to separate requests, not to a request inside a result";
                let refusal = Refusal::new(Code::PolicyDenied, words).rule(rule.clone());
                let refused = Verdict::refuse(refusal.detail(
                    "`@approve`, `@redact`, `@rate`, `@label` and `@secrets` cannot be applied to a server request inside a result",
                ));
                return Ok(Verdict { findings: verdict.findings, ..refused });
            }
            // The request is inside the response.
            verdict.rules.extend(decided.rules.into_iter().map(|rule| Rule {
                obligations: Arc::new(Obligations {
                    keep: Keep { arguments: false, result: rule.obligations.keep.arguments },
                    ..Obligations::default()
                }),
                ..rule
            }));
            verdict.revision = decided.revision;
        }
        Ok(verdict)
    }
}

impl PolicyGate {
    fn passage<'a>(&self, exchange: &'a Exchange) -> Result<Disposition<'a>, InputError> {
        let from_client = exchange.direction == Direction::ClientToServer;
        if is_housekeeping(exchange.method.as_str(), exchange.notification, from_client) {
            return Ok(Disposition::Housekeeping);
        }
        let params = match exchange.request.value() {
            Value::Null => None,
            Value::Object(params) => Some(params),
            _ => return Err(invalid("`params` must be an object")),
        };
        let method = exchange.method.as_str();
        let question = match exchange.direction {
            Direction::ClientToServer => {
                let (action, resource, args) = self.policy_input(exchange, params)?;
                Question {
                    subject: Subject::Client(&exchange.principal),
                    action,
                    resource,
                    method,
                    args,
                    written: exchange.request.raw(),
                }
            }
            Direction::ServerToClient => Question {
                subject: Subject::Server(server(exchange)?),
                action: server_action(method, exchange.notification),
                resource: Resource::Client(&exchange.principal),
                method,
                args: params,
                written: exchange.request.raw(),
            },
        };
        Ok(Disposition::Decide(question))
    }

    /// Policy input of a client's message. Names come from `params`, because those are forwarded to
    /// the server, and must equal those that the router used.
    fn policy_input<'a>(
        &self,
        exchange: &'a Exchange,
        params: Params<'a>,
    ) -> Result<(Action, Resource<'a>, Params<'a>), InputError> {
        let action = client_action(exchange.method.as_str(), exchange.notification);
        let (resource, args) = match action {
            Action::CallTool => {
                let name = text(params, "name")?;
                let tool = match &exchange.target {
                    Target::Tool { name: found, tool } if found == name => tool.as_deref(),
                    _ => return Err(astray()),
                };
                (self.of_tool(server(exchange)?, name, tool), arguments(params)?)
            }
            Action::AccessTask => match &exchange.target {
                Target::Tool { name, tool } => {
                    (self.of_tool(server(exchange)?, name, tool.as_deref()), params)
                }
                _ => return Err(astray()),
            },
            Action::GetPrompt => {
                let name = text(params, "name")?;
                match &exchange.target {
                    Target::Prompt { name: found, .. } if found == name => {}
                    _ => return Err(astray()),
                }
                (Resource::Prompt { server: server(exchange)?, name }, arguments(params)?)
            }
            Action::ReadResource | Action::SubscribeResource => {
                let uri = text(params, "uri")?;
                match &exchange.target {
                    Target::Resource { uri: found } if found == uri => {}
                    _ => return Err(astray()),
                }
                (Resource::Resource { server: server(exchange)?, uri }, params)
            }
            Action::Complete => {
                let reference =
                    params.and_then(|params| params.get("ref")).and_then(Value::as_object);
                let server = server(exchange)?;
                let resource = match text(reference, "type")? {
                    "ref/prompt" => Resource::Prompt { server, name: text(reference, "name")? },
                    "ref/resource" => Resource::Template { server, uri: text(reference, "uri")? },
                    _ => return Err(invalid("`ref.type` must be `ref/prompt` or `ref/resource`")),
                };
                (resource, params)
            }
            _ => (exchange.server.as_ref().map_or(Resource::Proxy, Resource::Server), params),
        };
        Ok((action, resource, args))
    }
}

/// Elicitation in an error, as a separate request.
fn elicitation(params: &Value) -> Option<InputRequest> {
    Some(InputRequest {
        method: Method::ELICIT.to_owned(),
        params: Some(params.as_object()?.clone()),
    })
}

/// Part of a result with requests to the client.
#[derive(Debug, Deserialize)]
struct InputRequiredResult {
    #[serde(rename = "inputRequests", default)]
    input_requests: Option<BTreeMap<String, InputRequest>>,
}

#[derive(Debug, Deserialize)]
struct InputRequest {
    method: String,
    #[serde(default)]
    params: Option<Map<String, Value>>,
}

#[async_trait]
impl Interceptor for PolicyGate {
    fn name(&self) -> &str {
        "policy"
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.hooks.wants(method, phase)
    }

    fn reads_labels(&self) -> bool {
        true
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        if phase == Phase::Response {
            let verdict = self.decide_answer(exchange)?;
            return Ok(match verdict.decision {
                Decision::Pass => obligations::of_answer(exchange, verdict),
                _ => verdict,
            });
        }
        match self.passage(exchange) {
            Ok(Disposition::Housekeeping) => Ok(Verdict::pass()),
            Ok(Disposition::Decide(question)) => Ok(self.decide(exchange, phase, question)),
            Err(InputError::Invalid(why)) => {
                Ok(Verdict::refuse(Refusal::new(Code::InvalidParams, why)))
            }
            Err(InputError::Fault(fault)) => Err(fault),
        }
    }
}

/// Whether a rule has an obligation that cannot be applied to a part of a response.
fn changes(rule: &Rule) -> bool {
    let Obligations { approve, redact, rate, labels, secrets, .. } = &*rule.obligations;
    approve.is_some()
        || rate.is_some()
        || !redact.is_empty()
        || !labels.is_empty()
        || !secrets.is_empty()
}

/// Verdict that permits a message, with its obligations.
fn permit(exchange: &Exchange, rules: Vec<Rule>) -> Verdict {
    let mut verdict = obligations::of_request(exchange, &rules);
    verdict.labels.extend(rules.iter().flat_map(|rule| rule.obligations.labels.iter().cloned()));
    verdict.rules = rules;
    verdict
}

fn refusal(outcome: Outcome, action: Action) -> Refusal {
    // A failed policy has no text for the agent: it may be a permit with a reason for permitting.
    let reason = outcome.rules.iter().find_map(|rule| rule.reason.as_deref());
    let message = reason.filter(|_| outcome.errors.is_empty()).unwrap_or(NOT_PERMITTED).to_owned();
    let detail =
        format!("{}: {} (policies {})", action.as_str(), outcome.explain(), outcome.revision);
    let refusal = Refusal::new(Code::PolicyDenied, message).detail(detail);
    Refusal { rules: outcome.rules, ..refusal }
}

/// Finding about what policies in shadow mode would have decided.
fn unenforced(shadow: Shadow, allowed: bool, phase: Phase) -> Finding {
    let (effect, message) = match (allowed, shadow.problem) {
        (true, None) => (Effect::WouldRefuse, "a policy in shadow forbids it".to_owned()),
        (true, Some(problem)) => {
            (Effect::WouldRefuse, format!("a policy in shadow fails on it: {problem}"))
        }
        (false, _) => (Effect::WouldPermit, "a policy in shadow permits it".to_owned()),
    };
    Finding { interceptor: "policy".to_owned(), phase, rule: shadow.rule, message, effect }
}

fn no_server() -> Fault {
    Fault("the message needs a server, but none is known".into())
}

fn invalid(message: &str) -> InputError {
    InputError::Invalid(message.to_owned())
}

type Params<'a> = Option<&'a Map<String, Value>>;

fn server(exchange: &Exchange) -> Result<&ServerName, InputError> {
    exchange.server.as_ref().ok_or_else(|| InputError::Fault(no_server()))
}

fn astray() -> InputError {
    InputError::Fault(Fault(
        "`params` name a different target than the message was routed to".into(),
    ))
}

fn text<'a>(params: Params<'a>, key: &str) -> Result<&'a str, InputError> {
    params
        .and_then(|params| params.get(key))
        .and_then(Value::as_str)
        .ok_or_else(|| invalid(&format!("`{key}` must be a string")))
}

fn arguments<'a>(params: Params<'a>) -> Result<Params<'a>, InputError> {
    match params.and_then(|params| params.get("arguments")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(arguments)) => Ok(Some(arguments)),
        Some(_) => Err(invalid("`arguments` must be an object")),
    }
}

#[cfg(test)]
mod tests;
