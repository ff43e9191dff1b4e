//! Records made of exchanges: what is taken over, what is cut, what is kept as a digest only.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Claimed, Decision, Era, Event, Omission, PolicyInput, Rule, Transport, Who,
    limits::{DETAIL, LABEL, NAME, URI, WORDS, bare_uri, bound, clip},
    shape,
    v1::{
        AnswerKind, Call, Direction, EventRecord, Finding, Grounds, Intent, Kept, Outcome, Record,
        Refusal, Refused, Shape, Target, Timing,
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

// Most that is kept of a list.
const LABELS: usize = 16;
/// Rules that a record names.
pub const RULES: usize = 16;
const FINDINGS: usize = 16;
/// Requests that plugins made, beside them. More is not possible for one plugin.
const REQUESTS: usize = 128;
const GROUPS: usize = 16;
const STAGES: usize = 32;
/// Members of a list in an event.
pub const MEMBERS: usize = 64;
/// Bytes of the largest result whose shape is told.
const SHAPED: usize = 1 << 20;

/// What the chain decided on, beyond the exchange.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ruling<'a> {
    /// The rules that decided for letting it pass. Those of a refusal are taken from it.
    pub rules: &'a [refusal::Rule],
    /// What interceptors saw.
    pub findings: &'a [exchange::Finding],
    /// The revision of the policies that decided.
    pub policy_revision: Option<&'a str>,
    /// The digest of the image that the server runs from.
    pub image: Option<&'a str>,
    /// The time that each stage took. A stage may stand several times.
    pub stages: &'a [(String, Duration)],
    /// The labels that there were when policies decided. Where none decided: those of the exchange.
    pub labels: Option<&'a BTreeSet<String>>,
}

/// How an exchange that had an intent ended.
#[derive(Debug, Clone, Copy)]
pub enum Conclusion<'a> {
    /// The answer, if it has one, was handed to the asker.
    Delivered,
    /// The answer was refused.
    Refused(&'a refusal::Refusal),
    /// The server gave no usable answer.
    Failed(&'a refusal::Refusal),
    /// The asker stopped waiting.
    Cancelled,
}

/// What is known of a message that was refused before it became an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub id: DecisionId,
    pub at: Timestamp,
    pub transport: exchange::Transport,
    pub client_addr: Option<SocketAddr>,
    /// Who it is, where identity was settled.
    pub principal: Option<&'a Principal>,
    /// The message, of which size and digest are recorded.
    pub message: Option<&'a [u8]>,
}

impl Intent {
    /// That this exchange is allowed and about to leave.
    pub fn of(exchange: &Exchange, ruling: Ruling<'_>, key: &DigestKey) -> Self {
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

    /// With the arguments, where a policy has them kept.
    pub fn keeping(mut self, arguments: Option<Kept>) -> Self {
        self.arguments = arguments;
        self
    }
}

impl Outcome {
    /// What came of this exchange. `server` is the time that the server took. The digest of the
    /// response is of [`Exchange::response`] as it is now.
    pub fn of(
        exchange: &Exchange,
        ruling: Ruling<'_>,
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

    /// With the result, where a policy has it kept.
    pub fn keeping(mut self, result: Option<Kept>) -> Self {
        self.result = result;
        self
    }
}

impl Refused {
    /// That this exchange was refused before it left.
    pub fn of(
        exchange: &Exchange,
        refusal: &refusal::Refusal,
        ruling: Ruling<'_>,
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

    /// With the arguments, where a policy has them kept.
    pub fn keeping(mut self, arguments: Option<Kept>) -> Self {
        self.arguments = arguments;
        self
    }

    /// That a message was refused before it became an exchange.
    pub fn on_arrival(arrival: Arrival<'_>, refusal: &refusal::Refusal, key: &DigestKey) -> Self {
        let (call, omitted) = stranger(&arrival);
        Self {
            call,
            decision: Decision::Refused,
            refusal: refused(refusal),
            grounds: grounds(Ruling::default(), Some(refusal), omitted),
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
    fn of(exchange: &Exchange, ruling: Ruling<'_>, groups: usize) -> Self {
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
    /// That this happened now.
    pub fn now(what: impl Into<Event>) -> Self {
        let mut what = what.into();
        let content = what.content_mut();
        content.shorten(MEMBERS);
        content.texts(&mut |text| *text = bound(text, WORDS));
        Self { id: DecisionId::next(), at: Timestamp::now(), what }
    }
}

impl Who {
    /// This principal, over this transport and from this address.
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

/// What is known of a message that is none yet, and how many groups were left out.
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

/// The call, and how many labels and groups were left out.
fn call(exchange: &Exchange, ruling: Ruling<'_>) -> (Call, u32) {
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

/// The groups, and how many were left out.
fn groups(principal: &Principal) -> (Vec<String>, u32) {
    let shown = principal.groups.iter().take(GROUPS).map(|group| clip(group.as_str(), LABEL));
    (shown.collect(), count(principal.groups.len().saturating_sub(GROUPS)))
}

pub fn era(revision: exchange::Revision) -> Era {
    if revision.is_modern() { Era::Modern } else { Era::Legacy }
}

fn timing(exchange: &Exchange, ruling: Ruling<'_>, server: Option<Duration>) -> Timing {
    let mut stages = BTreeMap::<&str, Duration>::new();
    for (name, took) in ruling.stages {
        if stages.len() < STAGES || stages.contains_key(name.as_str()) {
            *stages.entry(name).or_default() += *took;
        }
    }
    Timing {
        total_us: micros(exchange.started.elapsed()),
        server_us: server.map(micros),
        stages_us: stages
            .into_iter()
            .map(|(name, took)| (clip(name, NAME), micros(took)))
            .filter(|(_, took)| *took > 0)
            .collect(),
    }
}

fn transport(transport: exchange::Transport) -> Transport {
    match transport {
        exchange::Transport::Http => Transport::Http,
        exchange::Transport::Unix => Transport::Unix,
        exchange::Transport::Stdio => Transport::Stdio,
        exchange::Transport::Cli => Transport::Cli,
    }
}

fn grounds(ruling: Ruling<'_>, refusal: Option<&refusal::Refusal>, omitted: u32) -> Grounds {
    let refusing = refusal.map_or(&[][..], |refusal| refusal.rules.as_slice());
    // Whom a plugin told of a message comes first and is counted apart: else it could have as much
    // else to say as there is room for.
    let (requests, findings): (Vec<_>, Vec<_>) =
        ruling.findings.iter().partition(|finding| finding.is_request());
    let left_out =
        requests.len().saturating_sub(REQUESTS) + findings.len().saturating_sub(FINDINGS);
    // A rule that permits and is the reason of the refusal, too (`@approve`), stands there once.
    let permitting = ruling.rules.iter().filter(|permit| !refusing.contains(permit));
    let permitting = permitting.map(|permit| Rule { overruled: refusal.is_some(), ..rule(permit) });
    let mut rules: Vec<_> = refusing.iter().map(rule).chain(permitting).collect();
    let more_rules = rules.len().saturating_sub(RULES);
    rules.truncate(RULES);
    Grounds {
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
        asks: rule.obligations.asked().into_iter().map(str::to_owned).collect(),
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

/// The shape of the arguments; where the method has none by that name, of its parameters.
fn shape_of(exchange: &Exchange, key: &DigestKey, grounds: &mut Grounds) -> Shape {
    let arguments = exchange.request.value().get("arguments").filter(|value| value.is_object());
    let value = arguments.unwrap_or(exchange.request.value());
    let (mut shape, omitted) = shape::of(value, names(exchange, Schema::Input), key);
    if arguments.is_none() {
        // The protocol's own, the same in every message.
        shape.retain(|place, _| place != "/_meta" && !place.starts_with("/_meta/"));
    }
    grounds.omitted = grounds.omitted.saturating_add(omitted);
    shape
}

/// The shape of a result or an error, and how many members were left out.
fn result_shape(exchange: &Exchange, answer: &Answer, key: &DigestKey) -> (Shape, u32) {
    let text = answer.payload().raw();
    if text.len() > SHAPED {
        return Default::default();
    }
    let mut text = serde_json::Deserializer::from_slice(text);
    shape::of(&mut text, names(exchange, Schema::Output), key)
}

/// The names that a schema of the called tool declares.
fn names(exchange: &Exchange, which: Schema) -> Option<&HashSet<String>> {
    match &exchange.target {
        exchange::Target::Tool { tool: Some(tool), .. } => Some(tool.names(which, shape::declared)),
        _ => None,
    }
}
