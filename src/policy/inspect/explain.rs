//! Explains a decision: the policies that matched, and those that nearly did.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf, sync::Arc};

use cedar_policy::{Effect, EntityUid};
use serde::Serialize;

use super::{CombinedResult, HiddenData, Inspected, Inspector, Query, Unknown, text};
use crate::{
    about::About,
    conditions::{Node, Outcomes},
    entities::Frame,
    load::Revision,
    request::Request,
    request_error::RequestError,
};
use portcullis_protocol::refusal::Rule;

/// Maximum number of characters shown of a value.
const SHOWN: usize = 200;
/// Maximum number of shown policies that miss by one side of their scope.
const NEAR: usize = 5;

/// Result of the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Allowed,
    Refused,
    /// Too little of the request is known.
    Unknown,
}

/// Explanation of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub verdict: Verdict,
    /// Revision of the explained set.
    pub revision: Revision,
    /// The principal as policies see it.
    pub principal: String,
    pub action: String,
    pub resource: String,
    /// The policies that decided or nearly did; the deciding ones first.
    pub policies: Vec<Candidate>,
    /// Number of further policies that miss by one side of their scope.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: usize,
    /// Why the request could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A policy that matched or nearly did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    #[serde(flatten)]
    pub rule: Rule,
    /// `permit` or `forbid`.
    pub effect: &'static str,
    /// Whether it is in shadow mode.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    #[serde(flatten)]
    pub standing: PolicyResult,
}

/// Result of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum PolicyResult {
    /// The policy matches.
    Matched {
        /// The values that its condition read.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        values: Vec<ReadValue>,
    },
    /// Its condition failed.
    Failed { condition: Condition },
    /// Its scope matches, but its condition does not hold.
    Unmet { condition: Condition },
    /// Its scope matches, but too little is known to evaluate its condition.
    Unknown { condition: Condition },
    /// One side of its scope does not match.
    Elsewhere { side: Side, wants: String },
}

/// A side of a policy's scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    Principal,
    Action,
    Resource,
}

impl Side {
    /// Its name in policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Action => "action",
            Self::Resource => "resource",
        }
    }
}

/// The part of a condition that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The text as written.
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    pub values: Vec<ReadValue>,
}

/// A value that a condition read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadValue {
    pub what: String,
    /// The value in Cedar's syntax. `None` if it is unknown or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why there is no value: `not there`, or what is known of a value that was not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
}

impl Explanation {
    /// Sets principal, action and resource. For a tool's own action, they are already set.
    fn name(&mut self, frame: &Frame) {
        let [subject, action, resource] = frame.uids();
        if frame.own() {
            self.action = format!("{} and {}", self.action, action.id().unescaped());
        }
        self.principal = text(subject);
        self.resource = text(resource);
    }
}

impl Inspector {
    /// Explains the decision on a request. `shape` has the types of unknown arguments, by their
    /// JSON pointers.
    pub fn explain(
        &mut self,
        request: &Request<'_>,
        unknown: Unknown,
        shape: &BTreeMap<String, Cow<'static, str>>,
    ) -> Explanation {
        let mut explanation = Explanation {
            verdict: Verdict::Refused,
            revision: self.revision(),
            principal: String::new(),
            action: request.action.as_str().to_owned(),
            resource: String::new(),
            policies: Vec::new(),
            more: 0,
            problem: None,
        };
        let hidden = HiddenData::of(unknown);
        let about = About::of(request);
        // Each request with all of its known data.
        let mut questions: Vec<(Arc<Frame>, Query)> = Vec::new();
        let mut doubt = false;
        for about in std::iter::once(about).chain(self.set.own(about)) {
            let put = self.met(about, request, hidden).and_then(|met| {
                explanation.name(&met.frame);
                Ok((Arc::clone(&met.frame), self.question(&met.frame, about, request, hidden)?))
            });
            match put {
                Ok(question) => questions.push(question),
                Err(error) => {
                    explanation.problem = Some(error.to_string());
                    return explanation;
                }
            }
            doubt |= hidden.arguments() && self.set.needs_input(about);
        }
        let mut tally = CombinedResult::default();
        let mut near = Vec::new();
        for (number, policy) in self.policies.iter().enumerate() {
            let mut found: Option<(PolicyResult, Outcomes)> = None;
            let mut least: Option<Vec<Side>> = None;
            for (frame, query) in &questions {
                let [subject, action, resource] = frame.uids();
                let off = policy.scope.off(subject, action, resource, frame.entities());
                if off.is_empty() {
                    let next = self.standing(policy, query, hidden, shape);
                    found = Some(match found {
                        None => next,
                        Some(before) => {
                            let outcomes = before.1.either(next.1);
                            let first = before.0.order() <= next.0.order();
                            (if first { before.0 } else { next.0 }, outcomes)
                        }
                    });
                } else if least.as_ref().is_none_or(|least| off.len() < least.len()) {
                    least = Some(off);
                }
            }
            if let Some((standing, outcomes)) = found {
                if !policy.rule.obligations.shadow {
                    tally.add(number, policy.effect, outcomes);
                    if doubt {
                        // Arguments that do not fit the tool's type would be refused.
                        tally.may_be_against.push(number);
                    }
                }
                explanation.policies.push(policy.near(standing));
                continue;
            }
            let (Some([side]), Some((frame, _))) = (least.as_deref(), questions.first()) else {
                continue;
            };
            let [subject, _, resource] = frame.uids();
            if policy.is_near(*side, resource) {
                let wants = policy.scope.wants(*side);
                let distance = strsim::damerau_levenshtein(
                    &wants,
                    &if *side == Side::Principal { text(subject) } else { text(resource) },
                );
                near.push((distance, policy.near(PolicyResult::Elsewhere { side: *side, wants })));
            }
        }
        explanation.verdict = tally.conclude().0;
        // Among matching policies forbids come first; then the order is by file and line.
        explanation.policies.sort_by_key(|near| {
            let holds = matches!(near.standing, PolicyResult::Matched { .. });
            (near.standing.order(), holds && near.effect == "permit")
        });
        near.sort_by_key(|(distance, _)| *distance);
        explanation.more = near.len().saturating_sub(NEAR);
        explanation.policies.extend(near.into_iter().take(NEAR).map(|(_, near)| near));
        explanation
    }

    /// A request with all of its known data.
    fn question(
        &self,
        frame: &Frame,
        about: About<'_>,
        request: &Request<'_>,
        hidden: HiddenData,
    ) -> Result<Query, RequestError> {
        if !hidden.arguments() {
            self.set.fit(about, request)?;
        }
        self.put(frame, about, request, hidden)
    }

    fn standing(
        &self,
        policy: &Inspected,
        query: &Query,
        hidden: HiddenData,
        shape: &BTreeMap<String, Cow<'static, str>>,
    ) -> (PolicyResult, Outcomes) {
        let Some(condition) = &policy.condition else {
            return (PolicyResult::Matched { values: Vec::new() }, Outcomes::SATISFIED);
        };
        let mut evaluate = |expression: &_| query.holds(expression);
        let outcomes = condition.seen(hidden, &mut evaluate);
        if outcomes == Outcomes::SATISFIED {
            let values = seen(condition, query, hidden, shape);
            return (PolicyResult::Matched { values }, outcomes);
        }
        let blamed = condition.to_blame(hidden, &mut evaluate).unwrap_or(condition);
        let (start, text) = blamed.written();
        let spans = &self.set.loaded.spans;
        let line = start.zip(spans.get(&cedar_policy::PolicyId::new(&policy.rule.id)));
        let condition = Condition {
            text,
            file: policy.rule.file.clone(),
            line: line.map(|(start, policy_span)| policy_span.file.position(start).0),
            values: seen(blamed, query, hidden, shape),
        };
        let standing = match outcomes {
            outcomes if outcomes.is_open() => PolicyResult::Unknown { condition },
            Outcomes { failed: true, .. } => PolicyResult::Failed { condition },
            _ => PolicyResult::Unmet { condition },
        };
        (standing, outcomes)
    }
}

impl PolicyResult {
    /// Sort key: the most relevant first.
    fn order(&self) -> u8 {
        match self {
            Self::Failed { .. } => 0,
            Self::Matched { .. } => 1,
            Self::Unknown { .. } => 2,
            Self::Unmet { .. } => 3,
            Self::Elsewhere { .. } => 4,
        }
    }
}

impl Inspected {
    fn near(&self, standing: PolicyResult) -> Candidate {
        Candidate {
            rule: self.rule.clone(),
            effect: match self.effect {
                Effect::Permit => "permit",
                Effect::Forbid => "forbid",
            },
            shadow: self.rule.obligations.shadow,
            standing,
        }
    }

    /// Whether this policy is worth showing although one side of its scope does not match.
    fn is_near(&self, side: Side, resource: &EntityUid) -> bool {
        let (principal, named) = (self.scope.principal.names(), self.scope.resource.names());
        match side {
            // It names who may, or may not.
            Side::Principal => self.effect == Effect::Permit,
            Side::Action => principal.is_some() && named.is_some(),
            // It names something of the same kind on the same server.
            Side::Resource => {
                let server = |uid: &EntityUid| {
                    let id = uid.id().unescaped().to_owned();
                    id.split_once('/').map_or(id.clone(), |(server, _)| server.to_owned())
                };
                let here = |uid: &EntityUid| server(uid) == server(resource);
                self.effect == Effect::Permit
                    && named.is_some_and(|uid| {
                        here(uid)
                            || (principal.is_some() && uid.type_name() != resource.type_name())
                    })
            }
        }
    }
}

/// The values that a part of a condition read.
fn seen(
    node: &Node,
    query: &Query,
    hidden: HiddenData,
    shape: &BTreeMap<String, Cow<'static, str>>,
) -> Vec<ReadValue> {
    let see = |value: super::condition::Value| {
        let (known, absent) = if hidden.from(value.uses) {
            let kind = value.pointer.as_ref().and_then(|pointer| shape.get(pointer));
            let kind =
                kind.map_or_else(|| "not kept".to_owned(), |kind| format!("{kind}, not kept"));
            (None, Some(kind))
        } else {
            match query.value(&value.expression) {
                Some(found) => (Some(shorten(&found.to_string())), None),
                None => (None, Some("not there".to_owned())),
            }
        };
        ReadValue { what: value.text, value: known, absent }
    };
    node.values().into_iter().map(see).collect()
}

/// The beginning of a value, on one line.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
