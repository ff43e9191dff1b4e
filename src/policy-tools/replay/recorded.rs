//! Requests to policies, restored from records.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value};

use portcullis_audit::record::{
    self, Call, Claimed, DecisionBasis, Direction, Entry, KeptBody, Omission, Record, Shape,
};
use portcullis_policy::{
    Action, Circumstances, Explained, Explanation, Inspector, Request, Target, Unknown, Verdict,
    client_action, is_housekeeping, server_action,
};
use portcullis_protocol::claims::{Claimant, Claims};
use portcullis_protocol::{
    exchange::{Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::{DecisionId, ServerName},
    refusal::Code,
};

/// A recorded request with its decision.
#[derive(Debug)]
pub struct Recorded {
    /// Id of the decision.
    pub id: DecisionId,
    /// The verdict of the policies of that time.
    pub was: Verdict,
    /// Revision of those policies.
    pub revision: Option<String>,
    pub principal: Principal,
    pub action: Action,
    pub method: String,
    pub target: Target,
    pub claims: Claims,
    /// The arguments, if the record has all of them.
    args: Option<Map<String, Value>>,
    /// The types of the arguments by their JSON pointers.
    pub shape: Shape,
    /// Whether there were more arguments than policies can get.
    unshowable: bool,
    transport: Transport,
    spoken: Option<Revision>,
    at: Timestamp,
    source_ip: Option<std::net::IpAddr>,
    session_calls: u64,
    labels: BTreeSet<String>,
}

/// Why a record cannot be decided again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// Policies did not decide the message.
    NotDecided,
    /// Policies refused the launch of its server, so they did not decide the message.
    LaunchRefused,
    /// Policies decided it, but this data is not on record.
    Missing(&'static str),
}

impl Recorded {
    /// Restores the request of an intent or a refusal.
    ///
    /// # Errors
    /// If it has no request to policies, or too little of one.
    pub fn read(entry: &Entry) -> Result<Self, SkipReason> {
        let (call, input, grounds, stored, shape, was) = match &entry.record {
            Record::Intent(intent) => {
                let record::Intent { call, asked: input, grounds, arguments, shape, .. } =
                    &**intent;
                (call, input, grounds, arguments, shape, Verdict::Allowed)
            }
            Record::Refused(refused) if refused.refusal.code == Code::PolicyDenied.as_str() => {
                if is_of_a_start(&refused.refusal) {
                    return Err(SkipReason::LaunchRefused);
                }
                let record::Refused { call, asked: input, grounds, arguments, shape, .. } =
                    &**refused;
                (call, input, grounds, arguments, shape, Verdict::Refused)
            }
            Record::Refused(_) | Record::Outcome(_) | Record::Event(_) => {
                return Err(SkipReason::NotDecided);
            }
        };
        let from_client = call.direction == Direction::ClientToServer;
        let method = call.method.as_deref().ok_or(SkipReason::Missing("method"))?;
        if is_housekeeping(method, call.notification, from_client) {
            return Err(SkipReason::NotDecided);
        }
        let input = input.as_ref().ok_or(SkipReason::Missing("circumstances"))?;
        for (lack, what) in [
            (Omission::Groups, "groups"),
            (Omission::Labels, "labels"),
            (Omission::Method, "method"),
            (Omission::Target, "target"),
        ] {
            if input.lacks.contains(&lack) {
                return Err(SkipReason::Missing(what));
            }
        }
        let principal = principal(call).ok_or(SkipReason::Missing("principal"))?;
        let action = match from_client {
            true => client_action(method, call.notification),
            false => server_action(method, call.notification),
        };
        let target = target(action, call).ok_or(SkipReason::Missing("target"))?;
        let claims = match &input.claims {
            Some(claimed) => claims(claimed),
            None if matches!(target, Target::Tool(..)) => {
                return Err(SkipReason::Missing("claims"));
            }
            None => Claims::default(),
        };
        Ok(Self {
            id: call.id,
            was,
            revision: grounds.policy_revision.clone(),
            principal,
            action,
            method: method.to_owned(),
            args: arguments(action, call, grounds, stored.as_ref()),
            target,
            claims,
            shape: shape.clone(),
            unshowable: input.lacks.contains(&Omission::Arguments),
            transport: transport(call.transport),
            spoken: call.revision.as_deref().and_then(Revision::parse),
            at: call.at,
            source_ip: call.client_addr.map(|address| address.ip()),
            session_calls: input.session_calls,
            labels: input.labels.clone(),
        })
    }

    /// The data that is not on record.
    pub fn unknown(&self) -> Unknown {
        if self.args.is_some() { Unknown::Nothing } else { Unknown::Arguments }
    }

    /// The decision of these policies.
    pub fn judge(&self, inspector: &mut Inspector) -> Explained {
        if self.unshowable && self.put(|request| inspector.reads_arguments(request)) {
            return Explained { verdict: Verdict::Refused, rules: Vec::new() };
        }
        self.put(|request| inspector.judge(request, self.unknown()))
    }

    /// Explains the decision of these policies.
    pub fn explain(&self, inspector: &mut Inspector) -> Explanation {
        self.put(|request| inspector.explain(request, self.unknown(), &self.shape))
    }

    fn put<T>(&self, ask: impl FnOnce(&Request<'_>) -> T) -> T {
        let (subject, resource) = self.target.sides(&self.principal, self.claims);
        ask(&Request {
            subject,
            action: self.action,
            resource,
            args: self.args.as_ref(),
            // The record itself says whether every number could be represented.
            written: b"",
            circumstances: Circumstances {
                method: &self.method,
                transport: Some(self.transport),
                revision: self.spoken,
                now: self.at,
                source_ip: self.source_ip,
                session_calls: self.session_calls,
                labels: &self.labels,
            },
        })
    }
}

/// Whether policies refused a part of the server's launch, before they decided the message that
/// needed the server. Only the detail of the record shows it, by its first word, the action.
fn is_of_a_start(refusal: &record::Refusal) -> bool {
    let begins = |detail: &String| {
        let first = detail.split_once(' ').map(|(first, _)| first);
        [Action::Launch, Action::Egress, Action::DeliverSecret]
            .iter()
            .any(|act| first == Some(act.as_str()))
    };
    refusal.detail.as_ref().is_some_and(begins)
}

fn principal(call: &Call) -> Option<Principal> {
    let name = call.principal.as_deref()?;
    let kind = match name.strip_prefix("local:") {
        Some(user) => PrincipalKind::Local { user: user.to_owned() },
        // A client with this name has a key.
        None if name == "anonymous" && !call.verified => PrincipalKind::Anonymous,
        None => PrincipalKind::Client(name.parse().ok()?),
    };
    let groups = call.groups.iter().map(|group| group.parse().ok()).collect::<Option<_>>()?;
    Some(Principal { kind, groups, verified: call.verified, key: None })
}

fn target(action: Action, call: &Call) -> Option<Target> {
    let server = || call.server.as_ref()?.parse::<ServerName>().ok();
    Some(match (action, &call.target) {
        (Action::CallTool | Action::AccessTask, Some(record::Target::Tool(name))) => {
            Target::Tool(server()?, name.clone())
        }
        (Action::GetPrompt | Action::Complete, Some(record::Target::Prompt(name))) => {
            Target::Prompt(server()?, name.clone())
        }
        (Action::ReadResource | Action::SubscribeResource, Some(record::Target::Resource(uri))) => {
            Target::Resource(server()?, uri.clone())
        }
        (Action::Complete, Some(record::Target::Resource(uri))) => {
            Target::Template(server()?, uri.clone())
        }
        (Action::Connect | Action::NotifyServer | Action::OtherMethod, _) => match call.server {
            Some(_) => Target::Server(server()?),
            None => Target::Proxy,
        },
        (
            Action::Sample
            | Action::Elicit
            | Action::ListRoots
            | Action::NotifyClient
            | Action::OtherServerMethod,
            _,
        ) => Target::Requester(server()?),
        _ => return None,
    })
}

fn claims(claimed: &Claimed) -> Claims {
    let Claimed { read_only, destructive, idempotent, open_world, ref by } = *claimed;
    let by = if by == Claimant::Operator.as_str() { Claimant::Operator } else { Claimant::Server };
    Claims { read_only, destructive, idempotent, open_world, by }
}

fn transport(transport: record::Transport) -> Transport {
    match transport {
        record::Transport::Http => Transport::Http,
        record::Transport::Unix => Transport::Unix,
        record::Transport::Stdio => Transport::Stdio,
        record::Transport::Cli => Transport::Cli,
    }
}

/// The arguments as policies saw them, if the record certainly has exactly those: stored in full,
/// without redacted or replaced values.
fn arguments(
    action: Action,
    call: &Call,
    grounds: &DecisionBasis,
    stored: Option<&KeptBody>,
) -> Option<Map<String, Value>> {
    // For other messages policies see all `params`, and records omit `_meta`.
    if !matches!(action, Action::CallTool | Action::GetPrompt) {
        return None;
    }
    let replaced = grounds.findings.iter().any(|finding| {
        finding.phase == "request" && matches!(finding.effect.as_str(), "replaced" | "redacted")
    });
    let KeptBody { body: Some(Value::Object(body)), redacted: 0, cut: false, .. } = stored? else {
        return None;
    };
    if replaced || grounds.omitted > 0 {
        return None;
    }
    // Without arguments, the stored body is the parameters, which have the name of the target.
    let named = match &call.target {
        Some(record::Target::Tool(name) | record::Target::Prompt(name)) => name,
        _ => return None,
    };
    if body.get("name").is_some_and(|name| name == named) {
        return None;
    }
    Some(body.clone())
}
