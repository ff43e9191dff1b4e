//! Finds the policies that can matter to a request without evaluating all of them. Cedar evaluates
//! every policy of a set for every request.
//!
//! [`scope`] finds the policies whose scopes match, by the entities in them. The parts of their
//! conditions that do not read the call give the possible results before the call is known. The
//! rest is a [`Residual`]: the few policies that still depend on the call, and the results of the
//! others. Cedar evaluates every condition and every part of one.
//!
//! Invariants:
//! - Plain Cedar has the same decision, the same determining policies and the same errors. A policy
//!   that is left out is one that Cedar finds unsatisfied, and without an error.
//! - A cached value depends only on its key, and caches have bounded memory.
//!
//! Indexes are independent: policies that are decided separately have one index each.

mod keys;
mod residual;
mod scope;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use cedar_policy::{Effect, EntityUid, EvaluationError, Policy, PolicyId, Schema};
use cedar_policy_core::{
    ast::{Literal, SlotEnv, Value, ValueKind},
    evaluator::Evaluator,
    extensions::Extensions,
};
use serde_json::{Map, Value as Json};

use self::{
    keys::TagKeys,
    residual::{Class, PartialEvaluation, Residual},
    scope::{Bits, Scopes},
};
use super::{
    about::About,
    cache::{self, Answers, CachedSubject, RequestKey},
    conditions::{ContextUsage, Kind, Node, Uses},
    entities::{Frame, OWN, Vocabulary},
    request::{Action, Request},
    request_error::RequestError,
};

/// Index of a policy set.
pub(super) struct Index {
    /// The policies, by number.
    policies: Vec<Indexed>,
    scopes: Scopes,
    /// Results for all items of one kind on a server, by keys without names.
    classes: Answers<Arc<Class>>,
    evaluations: Answers<Arc<PartialEvaluation>>,
}

struct Indexed {
    id: PolicyId,
    effect: Effect,
    /// `None` if the policy has only a scope.
    condition: Option<Node>,
    /// Whether its known results before the call may differ between two items of the same kind and
    /// claims on the same server.
    individual: bool,
    /// The keys of arguments that it names.
    keys: TagKeys,
    /// The policy as written, for partial evaluation.
    policy: Policy,
    /// Whether it names a tool's own action.
    own: bool,
}

impl Indexed {
    /// The data that its condition reads.
    fn uses(&self) -> Uses {
        self.condition.as_ref().map(|condition| condition.uses).unwrap_or_default()
    }
}

/// Whether the results of a condition before the call depend on more of the resource than its
/// class: through a part that does not read the call, or through one about which Cedar's partial
/// evaluation may know more.
fn is_individual(node: &Node) -> bool {
    match &node.kind {
        _ if !node.uses.of_the_call() => node.uses.individual,
        Kind::Leaf { odd, .. } => *odd && node.uses.individual,
        kind => kind.parts().iter().any(is_individual),
    }
}

/// Results of an index for a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer<'i> {
    /// The satisfied policies.
    pub(super) permits: Vec<&'i PolicyId>,
    pub(super) forbids: Vec<&'i PolicyId>,
    /// The policies that failed, each with its failure.
    pub(super) failures: Vec<(&'i PolicyId, &'static str)>,
}

impl Answer<'_> {
    /// Merges the results of two requests, each policy once.
    fn join(&mut self, other: Self) {
        let Self { permits, forbids, failures } = other;
        for (all, more) in [(&mut self.permits, permits), (&mut self.forbids, forbids)] {
            let previous_len = all.len();
            all.extend(more);
            let mut at = 0;
            let mut seen: HashSet<&PolicyId> = all[..previous_len].iter().copied().collect();
            all.retain(|id| {
                at += 1;
                at <= previous_len || seen.insert(id)
            });
        }
        let mut seen: HashSet<_> = self.failures.iter().map(|(id, _)| *id).collect();
        self.failures.extend(failures.into_iter().filter(|(id, _)| seen.insert(id)));
    }

    /// Whether Cedar would return `Allow`, which ignores failures.
    pub(super) fn permitted(&self) -> bool {
        self.forbids.is_empty() && !self.permits.is_empty()
    }
}

impl About<'_> {
    /// The same request under the tool's own action, if it has one.
    pub(super) fn own(self, vocabulary: &Vocabulary) -> Option<Self> {
        let has = !self.own && vocabulary.has_own_action(self.action, &self.resource);
        has.then_some(Self { own: true, ..self })
    }
}

/// Schema and names, for requests to Cedar.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) schema: &'a Schema,
    pub(super) vocabulary: &'a Vocabulary,
}

impl Vocabulary {
    fn bits(&self, subject: &EntityUid, action: Action, own: bool, resource: &EntityUid) -> Bits {
        Bits {
            principal: self.bit(subject.type_name()),
            action: if own { OWN } else { 1 << action as u32 },
            resource: self.bit(resource.type_name()),
        }
    }
}

impl Index {
    pub(super) fn new(policies: &[&Policy], vocabulary: &Vocabulary) -> Self {
        let scopes = Scopes::new(policies, vocabulary);
        let policies = policies.iter().map(|policy| {
            // Without its text, which is not used again and would be parsed again.
            let policy = Policy::from(policy.as_ref().clone());
            let own = vocabulary.has_own_actions()
                && policy.entity_literals().iter().any(|uid| vocabulary.is_own_action(uid));
            let condition = Node::of(&policy);
            let mut keys = TagKeys::default();
            condition.iter().for_each(|condition| keys.add(condition));
            Indexed {
                id: policy.id().clone(),
                effect: policy.effect(),
                individual: condition.as_ref().is_some_and(is_individual),
                keys,
                condition,
                policy,
                own,
            }
        });
        Self {
            policies: policies.collect(),
            scopes,
            classes: cache::empty(),
            evaluations: cache::empty(),
        }
    }

    /// Cedar's results for a request. The call of a typed tool is two requests, and the results of
    /// both count.
    ///
    /// # Errors
    /// If the request cannot be evaluated by the policies that may apply.
    pub(super) fn decide(
        &self,
        terms: Terms<'_>,
        request: &Request<'_>,
    ) -> Result<Answer<'_>, RequestError> {
        let about = About::of(request);
        let cached = CachedSubject::of(&about.subject);
        let mut answer = self.answer(terms, cached, about, request)?;
        if let Some(own) = about.own(terms.vocabulary) {
            answer.join(self.answer(terms, cached, own, request)?);
        }
        Ok(answer)
    }

    fn answer(
        &self,
        terms: Terms<'_>,
        cached: CachedSubject<'_>,
        about: About<'_>,
        request: &Request<'_>,
    ) -> Result<Answer<'_>, RequestError> {
        let evaluation = self.evaluation(terms, cached, about)?;
        let Residual { permits, forbids, failures, open, reads, keys, entities, .. } =
            evaluation.residual();
        let mut answer = Answer {
            permits: permits.iter().map(|number| self.id(*number)).collect(),
            forbids: forbids.iter().map(|number| self.id(*number)).collect(),
            failures: failures.iter().map(|(number, why)| (self.id(*number), *why)).collect(),
        };
        if open.is_empty() {
            if reads.has(ContextUsage::INPUT) {
                terms.vocabulary.input(request)?;
            }
            return Ok(answer);
        }
        let base = if *entities { Some(evaluation.entities(terms, about)?.as_ref()) } else { None };
        let uids = evaluation.uids(terms, about);
        let (question, entities) =
            terms.vocabulary.question(uids, about.own, base, request, *reads)?;
        keys.check(request.args)?;
        // One evaluator for all policies, since it takes the request apart.
        let evaluator = Evaluator::new(question, &entities, Extensions::all_available());
        let no_slots = SlotEnv::new();
        for policy in open.iter().filter_map(|number| self.policies.get(*number as usize)) {
            let Some(condition) = &policy.condition else { continue };
            match holds(evaluator.interpret(condition.expr(), &no_slots)) {
                Ok(true) => match policy.effect {
                    Effect::Permit => answer.permits.push(&policy.id),
                    Effect::Forbid => answer.forbids.push(&policy.id),
                },
                Ok(false) => {}
                Err(why) => answer.failures.push((&policy.id, why)),
            }
        }
        Ok(answer)
    }

    /// Whether the policies could permit this in some circumstances, with some arguments, without a
    /// forbid and without a failure. The asker is the subject.
    ///
    /// # Errors
    /// If the schema does not have such a request.
    pub(super) fn could_allow(
        &self,
        terms: Terms<'_>,
        cached: CachedSubject<'_>,
        about: About<'_>,
    ) -> Result<bool, RequestError> {
        let evaluation = self.evaluation(terms, cached, about)?;
        let Residual { permitted, bearable, .. } = *evaluation.residual();
        let Some(own) = about.own(terms.vocabulary).filter(|_| bearable) else {
            return Ok(permitted && bearable);
        };
        let own = self.evaluation(terms, cached, own)?;
        Ok(own.residual().bearable && (permitted || own.residual().permitted))
    }

    /// The policies whose scopes match a request.
    pub(super) fn met(
        &self,
        vocabulary: &Vocabulary,
        about: About<'_>,
        frame: &Frame,
    ) -> impl Iterator<Item = &PolicyId> {
        let [subject, action, resource] = frame.uids();
        let principal = self.scopes.of(subject, frame.entities());
        let resources = self.scopes.of(resource, frame.entities());
        let bits = vocabulary.bits(subject, about.action, about.own, resource);
        let met = self.scopes.met(&principal, &resources, action, bits);
        met.into_iter().map(|number| self.id(number))
    }

    /// The data that any of the policies reads.
    pub(super) fn reads(&self) -> ContextUsage {
        let policies = self.policies.iter();
        policies.fold(ContextUsage::default(), |all, policy| all | policy.uses().reads)
    }

    /// The data that policies read which may apply to this request.
    ///
    /// # Errors
    /// If the schema does not have such a request.
    pub(super) fn context_usage(
        &self,
        terms: Terms<'_>,
        about: About<'_>,
    ) -> Result<ContextUsage, RequestError> {
        let cached = CachedSubject::of(&about.subject);
        let reads = self.evaluation(terms, cached, about)?.residual().reads;
        match about.own(terms.vocabulary) {
            Some(own) => Ok(reads | self.evaluation(terms, cached, own)?.residual().reads),
            None => Ok(reads),
        }
    }

    /// Checks that the policies that may apply read the argument keys as the server may. A decision
    /// includes this check.
    ///
    /// # Errors
    /// If they may read them differently.
    pub(super) fn check_keys(
        &self,
        terms: Terms<'_>,
        about: About<'_>,
        args: Option<&Map<String, Json>>,
    ) -> Result<(), RequestError> {
        let evaluation = self.evaluation(terms, CachedSubject::of(&about.subject), about)?;
        Ok(evaluation.residual().keys.check(args)?)
    }

    fn evaluation(
        &self,
        terms: Terms<'_>,
        cached: CachedSubject<'_>,
        about: About<'_>,
    ) -> Result<Arc<PartialEvaluation>, RequestError> {
        let request_key = RequestKey::of(cached, about.action, &about.resource);
        let request_key = if about.own { request_key.own() } else { request_key };
        if let Some(evaluation) = self.evaluations.get(&request_key) {
            return Ok(evaluation);
        }
        let nameless = request_key.nameless();
        let class = match self.classes.get(&nameless) {
            Some(class) => class,
            None => {
                let class = Arc::new(Class::new(self, terms, about)?);
                self.classes.insert(nameless.key(), Arc::clone(&class));
                class
            }
        };
        let evaluation = Arc::new(PartialEvaluation::new(self, terms, about, class)?);
        self.evaluations.insert(request_key.key(), Arc::clone(&evaluation));
        Ok(evaluation)
    }

    fn id(&self, number: u32) -> &PolicyId {
        &self.policies[number as usize].id
    }
}

/// The value of a condition: Cedar's evaluator returns any value, but it must be a Bool.
fn holds(result: Result<Value, EvaluationError>) -> Result<bool, &'static str> {
    match result {
        Ok(Value { value: ValueKind::Lit(Literal::Bool(value)), .. }) => Ok(value),
        Ok(_) => Err(NOT_OF_ITS_TYPE),
        Err(error) => Err(problem(&error)),
    }
}

const NOT_OF_ITS_TYPE: &str = "a value is not of the type it needs";

/// Description of a failure, without any value: Cedar's own texts quote their input, which may be
/// an argument.
pub(super) fn problem(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::EntityDoesNotExist(_) => "it asks for an entity that is not there",
        EvaluationError::EntityAttrDoesNotExist(_) | EvaluationError::RecordAttrDoesNotExist(_) => {
            "it asks for an attribute or tag that is not there"
        }
        EvaluationError::TypeError(_) => NOT_OF_ITS_TYPE,
        EvaluationError::IntegerOverflow(_) => "an integer overflows",
        EvaluationError::FailedExtensionFunctionExecution(_) => {
            "a value cannot be read as the decimal, address, datetime or duration it should be"
        }
        EvaluationError::RecursionLimit(_) => "it is nested too deeply",
        _ => "it cannot be evaluated",
    }
}
