//! Inspection of a policy set: the result of each policy for a request, with the reason. If parts
//! of the request are unknown, the possible results. Slower than [`Engine::decide`](crate::Engine::decide), for people who
//! ask before or after a call; the results are the same.
//!
//! Invariants:
//! - Cedar's own evaluator evaluates every part of a condition.
//! - Unknown data is never guessed: a part that reads it may be true or false.

mod condition;
mod explain;
mod scope;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cedar_policy::{
    Effect, Entities, EntityUid, EvalResult, Expression, PolicyId, eval_expression,
};

pub use self::explain::{
    Candidate, Condition, Explanation, PolicyResult, ReadValue, Side, Verdict,
};
use super::{
    about::About,
    cache::{CachedSubject, Key, RequestKey},
    conditions::{ContextUsage, Node, Outcomes, Scope, Uses},
    engine::{Engine, Set},
    entities::Frame,
    load::Revision,
    request::Request,
    request_error::RequestError,
};
use portcullis_protocol::refusal::Rule;

/// Maximum number of requests with cached matching policies.
const KEPT: usize = 20_000;

/// The unknown part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Everything is known.
    Nothing,
    /// Everything but the arguments is known.
    Arguments,
    /// Only principal, action and resource are known.
    Circumstances,
    /// As before, and the claims of the tool are unknown too.
    Claims,
    /// Everything is known except these circumstances.
    Of { transport: bool, source_ip: bool, session_calls: bool },
}

/// The data of a request that is hidden from conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HiddenData {
    context: ContextUsage,
    claims: bool,
}

impl HiddenData {
    const ARGUMENTS: Self = Self { context: ContextUsage::ARGUMENTS, claims: false };

    fn of(unknown: Unknown) -> Self {
        let none = ContextUsage::default();
        let context = match unknown {
            Unknown::Nothing => none,
            Unknown::Arguments => ContextUsage::ARGUMENTS,
            Unknown::Circumstances | Unknown::Claims => ContextUsage::ALL,
            Unknown::Of { transport, source_ip, session_calls } => {
                let of = |members, unknown| if unknown { members } else { none };
                of(ContextUsage::TRANSPORT, transport)
                    | of(ContextUsage::SOURCE_IP, source_ip)
                    | of(ContextUsage::SESSION_CALLS, session_calls)
            }
        };
        Self { context, claims: unknown == Unknown::Claims }
    }

    fn arguments(self) -> bool {
        self.context.has(ContextUsage::ARGUMENTS)
    }

    fn and_arguments(self) -> Self {
        Self { context: self.context | ContextUsage::ARGUMENTS, ..self }
    }

    /// Whether an expression with these uses cannot be evaluated.
    fn from(self, uses: Uses) -> bool {
        uses.values.has(self.context) || (self.claims && uses.claims)
    }
}

/// Predicted decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    pub verdict: Verdict,
    /// The policies that decide; if the decision is unknown, those that it depends on.
    pub rules: Vec<Rule>,
}

/// A policy set, ready for inspection.
pub struct Inspector {
    set: Arc<Set>,
    policies: Vec<Inspected>,
    numbers: HashMap<PolicyId, usize>,
    met: HashMap<Key, Arc<MatchedPolicies>>,
}

struct Inspected {
    rule: Rule,
    effect: Effect,
    scope: Scope,
    condition: Option<Node>,
}

/// The policies in force whose scopes match a request, with their results as far as these can be
/// reused.
struct MatchedPolicies {
    frame: Arc<Frame>,
    /// Numbers of the policies, each with its results for unknown arguments, or `None` if it
    /// depends on the circumstances.
    policies: Vec<(usize, Option<Outcomes>)>,
}

/// A request in Cedar's form, with all of its known data.
struct Query {
    question: cedar_policy::Request,
    entities: Entities,
}

impl Query {
    /// The value of an expression of type Bool; `None` if it fails.
    fn holds(&self, expression: &Expression) -> Option<bool> {
        match self.value(expression) {
            Some(EvalResult::Bool(value)) => Some(value),
            _ => None,
        }
    }

    fn value(&self, expression: &Expression) -> Option<EvalResult> {
        eval_expression(&self.question, &self.entities, expression).ok()
    }
}

impl Engine {
    /// Inspector of the set in use.
    pub fn inspect(&self) -> Inspector {
        Inspector::new(self.current_set())
    }
}

impl Inspector {
    fn new(set: Arc<Set>) -> Self {
        let mut policies: Vec<_> = set
            .loaded
            .policies
            .policies()
            .filter_map(|policy| {
                let rule = set.loaded.rules.get(policy.id())?.clone();
                let condition = Node::of(policy);
                Some(Inspected {
                    rule,
                    effect: policy.effect(),
                    scope: Scope::of(policy),
                    condition,
                })
            })
            .collect();
        policies.sort_by(|a, b| (&a.rule.file, a.rule.line).cmp(&(&b.rule.file, b.rule.line)));
        let numbers = policies.iter().enumerate();
        let numbers = numbers.map(|(number, of)| (PolicyId::new(&of.rule.id), number)).collect();
        Self { set, policies, numbers, met: HashMap::new() }
    }

    /// Revision of the inspected set.
    pub fn revision(&self) -> Revision {
        self.set.loaded.revision
    }

    /// Predicts the decision. Policies in shadow mode do not count.
    pub fn judge(&mut self, request: &Request<'_>, unknown: Unknown) -> Explained {
        let hidden = HiddenData::of(unknown);
        let refused = Explained { verdict: Verdict::Refused, rules: Vec::new() };
        let about = About::of(request);
        // Each policy with its results for either request.
        let mut all: BTreeMap<usize, Outcomes> = BTreeMap::new();
        let mut doubt = Vec::new();
        for about in std::iter::once(about).chain(self.set.own(about)) {
            let Ok(found) = self.outcomes(about, request, hidden) else { return refused };
            if hidden.arguments() && self.set.needs_input(about) {
                // Arguments that do not fit the tool's type would be refused.
                doubt = found.iter().map(|(number, _)| *number).collect();
            }
            for (number, outcomes) in found {
                let other = all.entry(number).or_insert(Outcomes::UNSATISFIED);
                *other = other.either(outcomes);
            }
        }
        let mut tally = CombinedResult::default();
        for (number, outcomes) in all {
            tally.add(number, self.policies[number].effect, outcomes);
        }
        tally.may_be_against.extend(doubt);
        let (verdict, numbers) = tally.conclude();
        let rules = numbers.into_iter().map(|number| self.policies[number].rule.clone());
        Explained { verdict, rules: rules.collect() }
    }

    /// The results of the policies in force whose scopes match.
    fn outcomes(
        &mut self,
        about: About<'_>,
        request: &Request<'_>,
        hidden: HiddenData,
    ) -> Result<Vec<(usize, Outcomes)>, RequestError> {
        let met = self.met(about, request, hidden)?;
        let mut query = None;
        let mut found = Vec::new();
        for (number, known) in &met.policies {
            let policy = &self.policies[*number];
            let outcomes = match (known, &policy.condition) {
                (_, None) => Outcomes::SATISFIED,
                (Some(outcomes), Some(condition))
                    if hidden == HiddenData::ARGUMENTS
                        || !hidden.and_arguments().from(condition.uses) =>
                {
                    *outcomes
                }
                (_, Some(condition)) => {
                    if query.is_none() {
                        query = Some(self.put(&met.frame, about, request, hidden)?);
                    }
                    let Some(query) = &query else { continue };
                    condition.seen(hidden, &mut |expression| query.holds(expression))
                }
            };
            found.push((*number, outcomes));
        }
        if !hidden.arguments() {
            self.set.fit(about, request)?;
        }
        Ok(found)
    }

    /// The body of a policy in a normal form, without layout, names and annotations.
    pub fn body(&self, rule: &Rule) -> Option<String> {
        let policy = self.policies.iter().find(|policy| policy.rule.id == rule.id)?;
        let sides = [Side::Principal, Side::Action, Side::Resource];
        let scope = sides.map(|side| policy.scope.wants(side)).join(", ");
        let condition = policy.condition.as_ref().map(Node::normal).unwrap_or_default();
        Some(format!("{} ({scope}) {condition}", policy.effect))
    }

    /// Whether a policy that may apply reads arguments. Arguments that cannot be represented are
    /// then refused.
    pub fn reads_arguments(&self, request: &Request<'_>) -> bool {
        self.set.reads_arguments(request)
    }

    fn put(
        &self,
        frame: &Frame,
        about: About<'_>,
        request: &Request<'_>,
        hidden: HiddenData,
    ) -> Result<Query, RequestError> {
        let mut reads = self.set.reads;
        if hidden.arguments() {
            // Unknown arguments do not have a type either.
            reads = reads.without(ContextUsage::INPUT);
        }
        let put = |reads| self.set.put(frame, request, reads);
        let (question, entities) = match put(reads) {
            Err(_) => {
                // Data that no applicable policy reads may be missing.
                if !self.set.needs_input(about) {
                    reads = reads.without(ContextUsage::INPUT);
                }
                if !self.reads_arguments(request) {
                    reads = reads.without(ContextUsage::ARGUMENTS);
                }
                put(reads)?
            }
            Ok(put) => put,
        };
        Ok(Query { question, entities })
    }

    fn met(
        &mut self,
        about: About<'_>,
        request: &Request<'_>,
        hidden: HiddenData,
    ) -> Result<Arc<MatchedPolicies>, RequestError> {
        let request_key =
            RequestKey::of(CachedSubject::of(&about.subject), about.action, &about.resource);
        let key = if about.own { request_key.own() } else { request_key }.key();
        if let Some(met) = self.met.get(&key) {
            return Ok(Arc::clone(met));
        }
        let frame = Arc::new(self.set.frame(about)?);
        let met = self.set.met(about, &frame);
        let mut numbers: Vec<_> = met.filter_map(|id| self.numbers.get(id)).copied().collect();
        numbers.sort_unstable();
        let circumstances = ContextUsage::ALL.without(ContextUsage::ARGUMENTS);
        let mut bare = None;
        let mut policies = Vec::new();
        for number in numbers {
            let outcomes = match &self.policies[number].condition {
                None => Some(Outcomes::SATISFIED),
                Some(condition) if condition.uses.values.has(circumstances) => None,
                Some(condition) => {
                    if bare.is_none() {
                        let hidden = hidden.and_arguments();
                        bare = Some(self.put(&frame, about, request, hidden)?);
                    }
                    let evaluate = bare.as_ref();
                    Some(condition.seen(HiddenData::ARGUMENTS, &mut |expression| {
                        evaluate.and_then(|query| query.holds(expression))
                    }))
                }
            };
            policies.push((number, outcomes));
        }
        let met = Arc::new(MatchedPolicies { frame, policies });
        if self.met.len() >= KEPT {
            self.met.clear();
        }
        self.met.insert(key, Arc::clone(&met));
        Ok(met)
    }
}

/// Combined result of the policies.
#[derive(Default)]
struct CombinedResult {
    permits: Vec<usize>,
    /// Policies that forbid or fail.
    against: Vec<usize>,
    may_permit: Vec<usize>,
    may_be_against: Vec<usize>,
}

impl CombinedResult {
    fn add(&mut self, number: usize, effect: Effect, outcomes: Outcomes) {
        let Outcomes { satisfied, unsatisfied, failed } = outcomes;
        let against = failed || (satisfied && effect == Effect::Forbid);
        let certain = match effect {
            Effect::Permit => !unsatisfied && !satisfied,
            Effect::Forbid => !unsatisfied,
        };
        match (against, certain) {
            (true, true) => self.against.push(number),
            (true, false) => self.may_be_against.push(number),
            (false, _) => {}
        }
        if effect == Effect::Permit && satisfied {
            let certain = !unsatisfied && !failed;
            if certain { self.permits.push(number) } else { self.may_permit.push(number) }
        }
    }

    fn conclude(self) -> (Verdict, Vec<usize>) {
        if !self.against.is_empty() {
            return (Verdict::Refused, self.against);
        }
        if self.permits.is_empty() && self.may_permit.is_empty() {
            return (Verdict::Refused, self.may_be_against);
        }
        if self.may_be_against.is_empty() && !self.permits.is_empty() {
            return (Verdict::Allowed, self.permits);
        }
        // A permit that may not hold matters only if no other one holds.
        let mut open = self.may_be_against;
        if self.permits.is_empty() {
            open.extend(self.may_permit);
        }
        open.sort_unstable();
        open.dedup();
        (Verdict::Unknown, open)
    }
}

fn text(uid: &EntityUid) -> String {
    uid.to_string()
}
