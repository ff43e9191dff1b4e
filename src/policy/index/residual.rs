//! The policies of a set that matter to one request, before its call is known.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use cedar_policy::{Effect, Entities, Policy, PolicyId, PolicySet};
use cedar_policy_core::{
    ast::{Expr, SlotEnv},
    evaluator::Evaluator,
    extensions::Extensions,
};

use super::{
    Index, Terms, holds,
    keys::NamedKeys,
    scope::{Bits, Slots},
};
use crate::{
    about::About,
    cache::CachedSize,
    conditions::{ContextUsage, Kind, Outcomes},
    context::{self, Uids},
    entities::Base,
    request_error::RequestError,
};

/// The policies that matter to a request, by number.
#[derive(Debug, Default)]
pub(super) struct Residual {
    /// Satisfied for every call.
    pub(super) permits: Vec<u32>,
    pub(super) forbids: Vec<u32>,
    /// Failing for every call.
    pub(super) failures: Vec<(u32, &'static str)>,
    /// Policies that depend on the call.
    pub(super) open: Vec<u32>,
    /// The circumstances that these read.
    pub(super) reads: ContextUsage,
    /// The keys of arguments that they name.
    pub(super) keys: NamedKeys,
    /// Whether they read anything else.
    pub(super) entities: bool,
    /// Whether a policy may permit some call.
    pub(super) permitted: bool,
    /// Whether there may be a call that no policy forbids or fails on.
    pub(super) bearable: bool,
}

/// Results that are equal for all items of one kind on a server with the same claims.
pub(super) struct Class {
    base: Base,
    principal: Slots,
    bits: Bits,
    /// The results of all policies except the individual ones.
    results: Vec<(u32, PartialResult)>,
    /// The policies that read more of the resource.
    individual: Vec<u32>,
    residual: Arc<Residual>,
}

/// Cached results for one request.
pub(super) struct PartialEvaluation {
    class: Arc<Class>,
    residual: Arc<Residual>,
    uids: OnceLock<Uids>,
    entities: OnceLock<Entities>,
}

/// Result of a policy with a matching scope before the call is known.
#[derive(Debug, Clone, Copy)]
enum PartialResult {
    /// Satisfied for every call.
    Satisfied,
    Failed(&'static str),
    /// Depends on the call. `odd` if Cedar's partial evaluation may know more about it.
    Open {
        outcomes: Outcomes,
        odd: bool,
    },
}

/// Evaluates the known part of a request with Cedar.
struct PartialEvaluator<'a> {
    index: &'a Index,
    terms: Terms<'a>,
    about: About<'a>,
    base: &'a Base,
    /// Built on first use: most requests are answered without it.
    partial_request: OnceLock<(cedar_policy::Request, Entities)>,
}

impl Class {
    pub(super) fn new(
        index: &Index,
        terms: Terms<'_>,
        about: About<'_>,
    ) -> Result<Self, RequestError> {
        let About { action, resource, own, .. } = about;
        let base = terms.vocabulary.base(about, terms.schema)?;
        let scopes = &index.scopes;
        let principal = scopes.of(&base.subject, &base.entities);
        let uid = terms.vocabulary.resource_uid(&resource);
        let bits = terms.vocabulary.bits(&base.subject, action, own, &uid);
        let holders = match &base.holder {
            Some(server) => {
                let above = base.entities.ancestors(server).into_iter().flatten();
                scopes.above(std::iter::once(server).chain(above))
            }
            None => scopes.of(&uid, &base.entities),
        };
        let met = scopes.met(&principal, &holders, &base.action, bits);
        let (individual, shared) = met.into_iter().partition::<Vec<_>, _>(|number| {
            base.holder.is_some() && index.policies[*number as usize].individual
        });
        let evaluator =
            PartialEvaluator { index, terms, about, base: &base, partial_request: OnceLock::new() };
        let results = evaluator.results(&shared)?;
        let residual = Arc::new(evaluator.residual(&results, &[]));
        drop(evaluator);
        Ok(Self { base, principal, bits, results, individual, residual })
    }
}

impl CachedSize for Class {
    fn weight(&self) -> u64 {
        // Its entities, then its policies.
        4096 + 64 * (self.results.len() + self.individual.len()) as u64
    }
}

impl PartialEvaluation {
    pub(super) fn new(
        index: &Index,
        terms: Terms<'_>,
        about: About<'_>,
        class: Arc<Class>,
    ) -> Result<Self, RequestError> {
        let mut own = class.individual.clone();
        if class.base.holder.is_some() {
            let uid = terms.vocabulary.resource_uid(&about.resource);
            let slots: Slots = index.scopes.own(&uid).collect();
            let action = &class.base.action;
            own.extend(index.scopes.met(&class.principal, &slots, action, class.bits));
        }
        if own.is_empty() {
            let residual = Arc::clone(&class.residual);
            let (uids, entities) = (OnceLock::new(), OnceLock::new());
            return Ok(Self { class, residual, uids, entities });
        }
        let base = &class.base;
        let evaluator =
            PartialEvaluator { index, terms, about, base, partial_request: OnceLock::new() };
        let results = evaluator.results(&own)?;
        let residual = Arc::new(evaluator.residual(&class.results, &results));
        let entities = OnceLock::new();
        if let Some((_, created)) = evaluator.partial_request.into_inner() {
            let _ = entities.set(created);
        }
        Ok(Self { class, residual, uids: OnceLock::new(), entities })
    }

    pub(super) fn residual(&self) -> &Residual {
        &self.residual
    }

    /// All entities except the arguments.
    pub(super) fn entities(
        &self,
        terms: Terms<'_>,
        about: About<'_>,
    ) -> Result<&Entities, RequestError> {
        if let Some(entities) = self.entities.get() {
            return Ok(entities);
        }
        let entities = terms.vocabulary.entities(&self.class.base, &about.resource)?;
        Ok(self.entities.get_or_init(|| entities))
    }

    /// Principal, action and resource.
    pub(super) fn uids(&self, terms: Terms<'_>, about: About<'_>) -> Uids {
        let created = self.uids.get_or_init(|| {
            let Base { subject, action, .. } = &self.class.base;
            let resource = terms.vocabulary.resource_uid(&about.resource);
            context::uids([subject.clone(), action.clone(), resource])
        });
        created.clone()
    }
}

impl CachedSize for PartialEvaluation {
    fn weight(&self) -> u64 {
        let Residual { permits, forbids, failures, open, keys, .. } = &*self.residual;
        let policies = permits.len() + forbids.len() + 5 * failures.len() + open.len();
        // A shared value counts for each of its users: the estimate may be too high, never too low.
        4 * policies as u64 + keys.weight()
    }
}

impl PartialEvaluator<'_> {
    /// The results of these policies, without those that cannot matter.
    fn results(&self, numbers: &[u32]) -> Result<Vec<(u32, PartialResult)>, RequestError> {
        let mut results = Vec::new();
        for number in numbers {
            // The failure of a closed part. A condition that is one closed part fails with it.
            let mut why = None;
            let mut broken = None;
            let mut odd = false;
            let policy = &self.index.policies[*number as usize];
            let outcomes = policy.condition.as_ref().map(|condition| {
                condition.outcomes(&mut |part| {
                    if part.uses.of_the_call() {
                        odd |= matches!(part.kind, Kind::Leaf { odd: true, .. });
                        return None;
                    }
                    Some(match self.evaluate(part.expr()) {
                        Ok(Ok(value)) => Outcomes::certain(value),
                        Ok(Err(problem)) => {
                            why = Some(problem);
                            Outcomes::FAILED
                        }
                        Err(error) => {
                            broken = Some(error);
                            Outcomes::FAILED
                        }
                    })
                })
            });
            let outcomes = outcomes.unwrap_or(Outcomes::SATISFIED);
            if let Some(error) = broken {
                return Err(error);
            }
            let result = match (outcomes, why) {
                (Outcomes { satisfied: false, failed: false, .. }, _) => continue,
                (Outcomes { unsatisfied: false, failed: false, .. }, _) => PartialResult::Satisfied,
                (Outcomes { satisfied: false, unsatisfied: false, .. }, Some(why))
                    if policy.uses().reads == ContextUsage::default() =>
                {
                    PartialResult::Failed(why)
                }
                (outcomes, _) => PartialResult::Open { outcomes, odd },
            };
            results.push((*number, result));
        }
        Ok(results)
    }

    fn evaluate(&self, part: &Expr) -> Result<Result<bool, &'static str>, RequestError> {
        let (question, entities) = self.partial_request()?;
        let extensions = Extensions::all_available();
        let evaluator = Evaluator::new(question.as_ref().clone(), entities.as_ref(), extensions);
        Ok(holds(evaluator.interpret(part, &SlotEnv::new())))
    }

    fn partial_request(&self) -> Result<&(cedar_policy::Request, Entities), RequestError> {
        if let Some(partial_request) = self.partial_request.get() {
            return Ok(partial_request);
        }
        let vocabulary = self.terms.vocabulary;
        let partial_request = vocabulary.before_the_call(self.base, &self.about.resource)?;
        Ok(self.partial_request.get_or_init(|| partial_request))
    }

    /// Merges results, some of a class and some of one request.
    fn residual(&self, class: &[(u32, PartialResult)], own: &[(u32, PartialResult)]) -> Residual {
        let all = || class.iter().chain(own).copied();
        let mut residual = Residual::default();
        let mut all_odd = Vec::new();
        for (number, result) in all() {
            let policy = &self.index.policies[number as usize];
            let uses = policy.uses();
            if self.about.own && (policy.own || uses.reads.has(ContextUsage::INPUT)) {
                // It only applies to calls that fit the tool's type; others are refused.
                residual.reads |= ContextUsage::INPUT;
            }
            match (result, policy.effect) {
                (PartialResult::Satisfied, Effect::Permit) => residual.permits.push(number),
                (PartialResult::Satisfied, Effect::Forbid) => residual.forbids.push(number),
                (PartialResult::Failed(why), _) => residual.failures.push((number, why)),
                (PartialResult::Open { odd, .. }, _) => {
                    residual.open.push(number);
                    residual.reads |= match self.about.own {
                        true => uses.reads,
                        // There is no input.
                        false => uses.reads.without(ContextUsage::INPUT),
                    };
                    residual.keys.add(&policy.keys);
                    residual.entities |= uses.entities;
                    if odd {
                        all_odd.push(&policy.policy);
                    }
                }
            }
        }
        let possible = |refined: &_| self.possible(all(), refined);
        (residual.permitted, residual.bearable) = possible(&HashMap::new());
        // If a call may be decided twice, the other request may be the one that is permitted.
        let matters = residual.permitted || self.terms.vocabulary.has_own_actions();
        if matters && residual.bearable && !all_odd.is_empty() {
            (residual.permitted, residual.bearable) = match self.refine(&all_odd) {
                Ok(refined) => possible(&refined),
                Err(error) => {
                    tracing::error!(action = self.about.action.as_str(), "not shown: {error}");
                    (false, false)
                }
            };
        }
        residual
    }

    /// Whether a call may be permitted, and whether one may be not refused.
    fn possible(
        &self,
        mut results: impl Iterator<Item = (u32, PartialResult)> + Clone,
        refined: &HashMap<PolicyId, Outcomes>,
    ) -> (bool, bool) {
        let outcomes = |(number, result): (u32, PartialResult)| {
            let policy = &self.index.policies[number as usize];
            let outcomes = match result {
                PartialResult::Satisfied => Outcomes::SATISFIED,
                PartialResult::Failed(_) => Outcomes::FAILED,
                PartialResult::Open { outcomes, .. } => {
                    refined.get(&policy.id).copied().unwrap_or(outcomes)
                }
            };
            (policy.effect, outcomes)
        };
        // Every policy must have a result that does not refuse.
        let bearable = |(effect, outcomes): (Effect, Outcomes)| match effect {
            Effect::Permit => outcomes.satisfied || outcomes.unsatisfied,
            Effect::Forbid => outcomes.unsatisfied,
        };
        let permits =
            |(effect, outcomes): (Effect, Outcomes)| effect == Effect::Permit && outcomes.satisfied;
        let permitted = results.clone().map(outcomes).any(permits);
        (permitted, results.all(|s| bearable(outcomes(s))))
    }

    /// Results of Cedar's partial evaluation for these policies.
    fn refine(&self, odd: &[&Policy]) -> Result<HashMap<PolicyId, Outcomes>, RequestError> {
        let policies = PolicySet::from_policies(odd.iter().map(|policy| (*policy).clone()))
            .map_err(|_| RequestError::SchemaMismatch("policies"))?;
        let (_, entities) = self.partial_request()?;
        let Terms { schema, vocabulary } = self.terms;
        let (request, entities) =
            vocabulary.open_question(self.base, &self.about.resource, entities, schema)?;
        let response = policies
            .tpe(&request, &entities, schema)
            .map_err(|_| RequestError::SchemaMismatch("partial question"))?;
        let certain = |value| move |id: &PolicyId| (id.clone(), Outcomes::certain(value));
        let satisfied = response.true_permits().chain(response.true_forbids());
        let unsatisfied = response.false_permits().chain(response.false_forbids());
        let failed = response.error_permits().chain(response.error_forbids());
        Ok(satisfied
            .map(certain(true))
            .chain(unsatisfied.map(certain(false)))
            .chain(failed.map(|id| (id.clone(), Outcomes::FAILED)))
            .collect())
    }
}
