//! Builds records from exchanges: what is copied, truncated, or kept as a digest only.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use jiff::Timestamp;
use smol_str::SmolStr;

use super::{
    Claimed, ConnectedPrincipal, Decision, Era, Event, Omission, PolicyInput, Rule, Transport,
    limits::{DETAIL, ESCAPE, LABEL, NAME, URI, WORDS, bare_uri, bound, clip},
    shape,
    v1::{
        AnswerKind, Call, DecisionBasis, Direction, EventRecord, Finding, Intent, KeptBody,
        Outcome, Record, Refusal, Refused, Shape, Target, Timing,
    },
};
use crate::digest::{DigestKey, Domain};
use portcullis_protocol::{
    arguments,
    claims::Claims,
    exchange::{self, Answer, Exchange, Schema},
    identity::Principal,
    names::DecisionId,
    refusal,
};

// Maximum lengths of lists in a record.
const LABELS: usize = 16;
/// Maximum number of rules in a record.
pub const RULES: usize = 16;
const FINDINGS: usize = 16;
/// Maximum number of plugin requests, in addition. One plugin cannot make more.
const REQUESTS: usize = 128;
const GROUPS: usize = 16;
const STAGES: usize = 32;
/// Maximum number of members of a list in an event.
pub const MEMBERS: usize = 64;
/// Maximum bytes of a result whose shape is recorded.
const SHAPED: usize = 1 << 20;

/// Grounds of the chain's decision, beyond the exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecisionContext<'a> {
    /// Rules that permitted the message. Rules of a refusal are in the refusal.
    pub rules: &'a [refusal::Rule],
    /// Findings of interceptors.
    pub findings: &'a [exchange::Finding],
    /// Revision of the policies that decided.
    pub policy_revision: Option<&'a str>,
    /// Digest of the server's image.
    pub image: Option<&'a str>,
    /// Duration of each stage. A stage may occur several times.
    pub stages: &'a [(SmolStr, Duration)],
    /// Labels at the time of the policy decision. Without one, those of the exchange.
    pub labels: Option<&'a BTreeSet<String>>,
}

/// End of an exchange that had an intent.
#[derive(Debug, Clone, Copy)]
pub enum Conclusion<'a> {
    /// The response, if any, was delivered to the sender.
    Delivered,
    /// The response was refused.
    Refused(&'a refusal::Refusal),
    /// The server returned no valid response.
    Failed(&'a refusal::Refusal),
    /// The sender stopped waiting.
    Cancelled,
}

/// Known data of a message that was refused before it became an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub id: DecisionId,
    pub at: Timestamp,
    pub transport: exchange::Transport,
    pub client_addr: Option<SocketAddr>,
    /// Principal, if the identity was established.
    pub principal: Option<&'a Principal>,
    /// Message, recorded as size and digest.
    pub message: Option<&'a [u8]>,
}

impl Intent {
    /// Intent of this exchange, which is allowed and about to leave.
    pub fn of(exchange: &Exchange, ruling: DecisionContext<'_>, key: &DigestKey) -> Self {
        let (call, omitted) = call(exchange, ruling);
        let mut grounds = grounds(ruling, None, omitted);
        let shape = shape_of(exchange, key, &mut grounds);
        let asked = Some(PolicyInput::of(exchange, ruling, call.groups.len()));
        Self {
            call,
            decision: Decision::Allowed,
            grounds,
            asked,
            request: key.body(Domain::Request, exchange.request.raw()),
            shape,
            arguments: None,
        }
    }

    /// Adds the arguments, if a policy keeps them.
    pub fn keeping(mut self, arguments: Option<KeptBody>) -> Self {
        self.arguments = arguments;
        self
    }
}

impl Outcome {
    /// Outcome of this exchange. `server` is the time that the server took. The digest of the
    /// response is that of the current [`Exchange::response`].
    pub fn of(
        exchange: &Exchange,
        ruling: DecisionContext<'_>,
        conclusion: Conclusion<'_>,
        server: Option<Duration>,
        key: &DigestKey,
    ) -> Self {
        let (call, omitted) = call(exchange, ruling);
        let (decision, refusal) = match conclusion {
            Conclusion::Delivered => (Decision::Allowed, None),
            Conclusion::Refused(refusal) => (Decision::Refused, Some(refusal)),
            Conclusion::Failed(refusal) => (Decision::Failed, Some(refusal)),
            Conclusion::Cancelled => (Decision::Cancelled, None),
        };
        let mut grounds = grounds(ruling, refusal, omitted);
        let shape = exchange.response.as_ref().map(|answer| result_shape(exchange, answer, key));
        let (shape, omitted) = shape.unwrap_or_default();
        grounds.omitted = grounds.omitted.saturating_add(omitted);
        Self {
            call,
            decision,
            refusal: refusal.map(refused),
            grounds,
            answer: exchange.response.as_ref().map(|answer| match answer {
                Answer::Result(_) => AnswerKind::Result,
                Answer::Error(_) => AnswerKind::Error,
            }),
            response: exchange
                .response
                .as_ref()
                .map(|answer| key.body(Domain::Response, answer.payload().raw())),
            shape,
            result: None,
            timing: timing(exchange, ruling, server),
        }
    }

    /// Adds the result, if a policy keeps it.
    pub fn keeping(mut self, result: Option<KeptBody>) -> Self {
        self.result = result;
        self
    }
}

impl Refused {
    /// Record of this exchange, which was refused before it left.
    pub fn of(
        exchange: &Exchange,
        refusal: &refusal::Refusal,
        ruling: DecisionContext<'_>,
        key: &DigestKey,
    ) -> Self {
        let (call, omitted) = call(exchange, ruling);
        let mut grounds = grounds(ruling, Some(refusal), omitted);
        let shape = shape_of(exchange, key, &mut grounds);
        let asked = Some(PolicyInput::of(exchange, ruling, call.groups.len()));
        Self {
            call,
            decision: Decision::Refused,
            refusal: refused(refusal),
            grounds,
            asked,
            request: Some(key.body(Domain::Request, exchange.request.raw())),
            shape,
            arguments: None,
            timing: timing(exchange, ruling, None),
        }
    }

    /// Adds the arguments, if a policy keeps them.
    pub fn keeping(mut self, arguments: Option<KeptBody>) -> Self {
        self.arguments = arguments;
        self
    }

    /// Record of a message that was refused before it became an exchange.
    pub fn on_arrival(arrival: Arrival<'_>, refusal: &refusal::Refusal, key: &DigestKey) -> Self {
        let (call, omitted) = stranger(&arrival);
        Self {
            call,
            decision: Decision::Refused,
            refusal: refused(refusal),
            grounds: grounds(DecisionContext::default(), Some(refusal), omitted),
            asked: None,
            request: arrival.message.map(|text| key.body(Domain::Request, text)),
            shape: Shape::new(),
            arguments: None,
            timing: Timing::default(),
        }
    }
}

impl PolicyInput {
    /// Policy input of this exchange. `groups` is the number of its recorded groups.
    fn of(exchange: &Exchange, ruling: DecisionContext<'_>, groups: usize) -> Self {
        let claims = match &exchange.target {
            exchange::Target::Tool { tool, .. } => {
                Some(tool.as_deref().map(Claims::from).unwrap_or_default())
            }
            _ => None,
        };
        let labels = ruling.labels.unwrap_or(&exchange.labels);
        let cut_uri = match &exchange.target {
            exchange::Target::Resource { uri } => bare_uri(uri) != *uri,
            _ => false,
        };
        let request = &exchange.request;
        let lacks = [
            (!arguments::are_showable(request.value(), request.raw()), Omission::Arguments),
            (exchange.principal.groups.len() > groups, Omission::Groups),
            (labels.len() > LABELS, Omission::Labels),
            (cut_uri, Omission::Target),
        ];
        Self {
            claims: claims.map(Claimed::from),
            session_calls: exchange.session_calls,
            labels: labels.iter().take(LABELS).map(|label| bound(label, LABEL)).collect(),
            lacks: lacks.into_iter().filter_map(|(lacks, what)| lacks.then_some(what)).collect(),
        }
    }
}

impl EventRecord {
    /// Record of an event that happened now.
    pub fn now(what: impl Into<Event>) -> Self {
        let mut what = what.into();
        let content = what.content_mut();
        content.shorten(MEMBERS);
        content.texts(&mut |text| *text = bound(text, WORDS));
        Self { id: DecisionId::next(), at: Timestamp::now(), what }
    }
}

impl ConnectedPrincipal {
    /// User with this principal, transport and address.
    pub fn of(
        principal: &Principal,
        by: exchange::Transport,
        client_addr: Option<SocketAddr>,
    ) -> Self {
        Self {
            principal: principal.name(),
            verified: principal.verified,
            groups: groups(principal).0,
            key_id: principal.key.clone(),
            client_addr,
            transport: transport(by),
        }
    }
}

impl From<Intent> for Record {
    fn from(intent: Intent) -> Self {
        Self::Intent(Box::new(intent))
    }
}

impl From<Outcome> for Record {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(Box::new(outcome))
    }
}

impl From<Refused> for Record {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

impl From<EventRecord> for Record {
    fn from(event: EventRecord) -> Self {
        Self::Event(Box::new(event))
    }
}

fn count(members: usize) -> u32 {
    u32::try_from(members).unwrap_or(u32::MAX)
}

pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Call of a message that is not an exchange, and the number of omitted groups.
fn stranger(arrival: &Arrival<'_>) -> (Call, u32) {
    let (groups, omitted) = arrival.principal.map(groups).unwrap_or_default();
    let call = Call {
        id: arrival.id,
        at: arrival.at,
        principal: arrival.principal.map(|principal| clip(&principal.name(), NAME)),
        verified: arrival.principal.is_some_and(|principal| principal.verified),
        groups,
        key_id: arrival.principal.and_then(|principal| principal.key.clone()),
        client_addr: arrival.client_addr,
        transport: transport(arrival.transport),
        session: None,
        direction: Direction::ClientToServer,
        method: None,
        notification: false,
        era: None,
        revision: None,
        server: None,
        image: None,
        target: None,
        pin: None,
        labels: BTreeSet::new(),
        trace: None,
    };
    (call, omitted)
}

/// Call of an exchange, and the number of omitted labels and groups.
fn call(exchange: &Exchange, ruling: DecisionContext<'_>) -> (Call, u32) {
    let principal = Some(&*exchange.principal);
    let arrival = Arrival {
        id: exchange.id,
        at: exchange.at,
        transport: exchange.transport,
        client_addr: exchange.client_addr,
        principal,
        message: None,
    };
    let (stranger, omitted) = stranger(&arrival);
    let call = Call {
        session: exchange.session.as_ref().map(|session| session.prefix().to_owned()),
        direction: match exchange.direction {
            exchange::Direction::ClientToServer => Direction::ClientToServer,
            exchange::Direction::ServerToClient => Direction::ServerToClient,
        },
        method: Some(bound(exchange.method.as_str(), NAME)),
        notification: exchange.notification,
        era: Some(era(exchange.revision)),
        revision: Some(exchange.revision.as_str().to_owned()),
        server: exchange.server.as_ref().map(ToString::to_string),
        image: ruling.image.map(|image| clip(image, NAME)),
        target: match &exchange.target {
            exchange::Target::None => None,
            exchange::Target::Tool { name, .. } => Some(Target::Tool(bound(name, NAME))),
            exchange::Target::Prompt { name, .. } => Some(Target::Prompt(bound(name, NAME))),
            exchange::Target::Resource { uri } => {
                Some(Target::Resource(bound(bare_uri(uri).as_str(), URI)))
            }
        },
        pin: match &exchange.target {
            exchange::Target::Tool { tool: Some(tool), .. } => tool.pin().map(str::to_owned),
            _ => None,
        },
        labels: exchange.labels.iter().take(LABELS).map(|label| bound(label, LABEL)).collect(),
        trace: exchange.trace.as_deref().map(|trace| bound(trace, LABEL)),
        ..stranger
    };
    (call, omitted.saturating_add(count(exchange.labels.len().saturating_sub(LABELS))))
}

/// Groups of a principal, and the number of omitted ones.
fn groups(principal: &Principal) -> (Vec<String>, u32) {
    let shown = principal.groups.iter().take(GROUPS).map(|group| clip(group.as_str(), LABEL));
    (shown.collect(), count(principal.groups.len().saturating_sub(GROUPS)))
}

pub fn era(revision: exchange::Revision) -> Era {
    if revision.is_modern() { Era::Modern } else { Era::Legacy }
}

fn timing(exchange: &Exchange, ruling: DecisionContext<'_>, server: Option<Duration>) -> Timing {
    // Sums of a few stages, by a search that is quicker than a map.
    let mut stages: Vec<(&SmolStr, Duration)> = Vec::with_capacity(STAGES);
    for (name, took) in ruling.stages {
        if let Some((_, sum)) = stages.iter_mut().find(|(stage, _)| *stage == name) {
            *sum += *took;
        } else if stages.len() < STAGES {
            stages.push((name, *took));
        }
    }
    Timing {
        total_us: micros(exchange.started.elapsed()),
        server_us: server.map(micros),
        stages_us: stages
            .into_iter()
            .map(|(name, took)| (clip_name(name), micros(took)))
            .filter(|(_, took)| *took > 0)
            .collect(),
    }
}

/// Name of a stage, truncated. Most are short, and copied without an allocation.
fn clip_name(name: &SmolStr) -> SmolStr {
    if name.len() * ESCAPE <= NAME { name.clone() } else { clip(name, NAME).into() }
}

fn transport(transport: exchange::Transport) -> Transport {
    match transport {
        exchange::Transport::Http => Transport::Http,
        exchange::Transport::Unix => Transport::Unix,
        exchange::Transport::Stdio => Transport::Stdio,
        exchange::Transport::Cli => Transport::Cli,
    }
}

fn grounds(
    ruling: DecisionContext<'_>,
    refusal: Option<&refusal::Refusal>,
    omitted: u32,
) -> DecisionBasis {
    let refusing = refusal.map_or(&[][..], |refusal| refusal.rules.as_slice());
    // Requests of plugins come first and have their own limit: otherwise a plugin could push them
    // out with other findings.
    let (requests, findings): (Vec<_>, Vec<_>) =
        ruling.findings.iter().partition(|finding| finding.is_request());
    let left_out =
        requests.len().saturating_sub(REQUESTS) + findings.len().saturating_sub(FINDINGS);
    // A rule that both permits and refuses (`@approve`) is listed once.
    let permitting = ruling.rules.iter().filter(|permit| !refusing.contains(permit));
    let permitting = permitting.map(|permit| Rule { overruled: refusal.is_some(), ..rule(permit) });
    let mut rules: Vec<_> = refusing.iter().map(rule).chain(permitting).collect();
    let more_rules = rules.len().saturating_sub(RULES);
    rules.truncate(RULES);
    DecisionBasis {
        rules,
        findings: requests
            .into_iter()
            .take(REQUESTS)
            .chain(findings.into_iter().take(FINDINGS))
            .map(|finding| Finding {
                interceptor: clip(&finding.interceptor, NAME),
                phase: finding.phase.as_str().to_owned(),
                rule: rule(&finding.rule),
                message: bound(&finding.message, WORDS),
                effect: finding.effect.as_str().to_owned(),
            })
            .collect(),
        policy_revision: ruling.policy_revision.map(|revision| clip(revision, NAME)),
        omitted: omitted.saturating_add(count(more_rules)).saturating_add(count(left_out)),
    }
}

pub fn rule(rule: &refusal::Rule) -> Rule {
    Rule {
        id: clip(&rule.id, NAME),
        file: rule.file.as_ref().map(|file| clip(&file.to_string_lossy(), URI)),
        line: rule.line,
        reason: rule.reason.as_deref().map(|reason| clip(reason, WORDS)),
        asks: rule.obligations.annotations().into_iter().map(str::to_owned).collect(),
        overruled: false,
    }
}

fn refused(refusal: &refusal::Refusal) -> Refusal {
    Refusal {
        code: refusal.code.as_str().to_owned(),
        message: bound(&refusal.message, WORDS),
        detail: refusal.detail.as_deref().map(|detail| bound(detail, DETAIL)),
    }
}

/// Shape of the arguments, or of the parameters if the method has no arguments.
fn shape_of(exchange: &Exchange, key: &DigestKey, grounds: &mut DecisionBasis) -> Shape {
    let arguments = exchange.request.value().get("arguments").filter(|value| value.is_object());
    let value = arguments.unwrap_or(exchange.request.value());
    let (mut shape, omitted) = shape::of(value, names(exchange, Schema::Input), key);
    if arguments.is_none() {
        // The protocol's own members, the same in every message.
        shape.retain(|pointer, _| pointer != "/_meta" && !pointer.starts_with("/_meta/"));
    }
    grounds.omitted = grounds.omitted.saturating_add(omitted);
    shape
}

/// Shape of a result or an error, and the number of omitted members.
fn result_shape(exchange: &Exchange, answer: &Answer, key: &DigestKey) -> (Shape, u32) {
    let text = answer.payload().raw();
    if text.len() > SHAPED {
        return Default::default();
    }
    let mut text = serde_json::Deserializer::from_slice(text);
    shape::of(&mut text, names(exchange, Schema::Output), key)
}

/// Names that a schema of the called tool declares.
fn names(exchange: &Exchange, which: Schema) -> Option<&HashSet<String>> {
    match &exchange.target {
        exchange::Target::Tool { tool: Some(tool), .. } => Some(tool.names(which, shape::declared)),
        _ => None,
    }
}
