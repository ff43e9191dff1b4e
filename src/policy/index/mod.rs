//! The policies that can matter to a question, found without walking all of them: Cedar evaluates
//! every policy of a set for every question.
//!
//! [`scope`] finds the policies whose scopes a question meets, by what they name. Their conditions'
//! parts that do not look at the call say what each of them can come to before the call is known.
//! What is left is a [`Residual`]: the few policies that still depend on the call, and what the
//! others came to. Both are Cedar's words: it evaluates every condition, and every part of one.
//!
//! Invariants:
//! - Of a question, plain Cedar has the same decision, the same determining policies and the same
//!   errors. A policy that is left out is one that Cedar finds unsatisfied, and without an error.
//! - What is kept depends on nothing but its key, and takes bounded memory.
//!
//! An index knows nothing of other indexes: policies that are to be decided apart have one each.

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
    residual::{Class, Known, Residual},
    scope::{Bits, Scopes},
};
use super::{
    cache::{self, Answers, Asker, Asking},
    conditions::{ContextUsage, Kind, Node, Uses},
    entities::{Frame, OWN, Unaskable, Vocabulary},
    request::{Action, Request, Resource, Subject},
};

/// A set of policies, ready to be asked.
pub(super) struct Index {
    /// By their numbers.
    policies: Vec<Indexed>,
    scopes: Scopes,
    /// What holds for all that a server has of one kind, by keys without names.
    classes: Answers<Arc<Class>>,
    known: Answers<Arc<Known>>,
}

struct Indexed {
    id: PolicyId,
    effect: Effect,
    /// None where the scope is all that it has.
    condition: Option<Node>,
    /// Whether what is known of it before the call may differ between two things of the same kind
    /// and claims on the same server.
    individual: bool,
    /// The arguments that it names.
    keys: TagKeys,
    /// As it was written, for partial evaluation.
    policy: Policy,
    /// Whether it names a tool's own action.
    own: bool,
}

impl Indexed {
    /// What its condition looks at.
    fn uses(&self) -> Uses {
        self.condition.as_ref().map(|condition| condition.uses).unwrap_or_default()
    }
}

/// Whether what a condition comes to before the call is known looks at more of the resource than its
/// class: by a part that does not depend on the call, or by one of which Cedar's partial evaluation
/// may know more.
fn is_individual(node: &Node) -> bool {
    match &node.kind {
        _ if !node.uses.of_the_call() => node.uses.individual,
        Kind::Leaf { odd, .. } => *odd && node.uses.individual,
        kind => kind.parts().iter().any(is_individual),
    }
}

/// What an index says of a question.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer<'i> {
    /// The satisfied policies.
    pub(super) permits: Vec<&'i PolicyId>,
    pub(super) forbids: Vec<&'i PolicyId>,
    /// The policies that failed, and of what.
    pub(super) failures: Vec<(&'i PolicyId, &'static str)>,
}

impl Answer<'_> {
    /// What either question came to, each policy once.
    fn join(&mut self, other: Self) {
        let Self { permits, forbids, failures } = other;
        for (all, more) in [(&mut self.permits, permits), (&mut self.forbids, forbids)] {
            let known = all.len();
            all.extend(more);
            let mut at = 0;
            let mut seen: HashSet<&PolicyId> = all[..known].iter().copied().collect();
            all.retain(|id| {
                at += 1;
                at <= known || seen.insert(id)
            });
        }
        let mut seen: HashSet<_> = self.failures.iter().map(|(id, _)| *id).collect();
        self.failures.extend(failures.into_iter().filter(|(id, _)| seen.insert(id)));
    }

    /// Whether Cedar would say `Allow`: it takes no notice of failures.
    pub(super) fn permitted(&self) -> bool {
        self.forbids.is_empty() && !self.permits.is_empty()
    }
}

/// What a question is about, without its circumstances and arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) action: Action,
    pub(super) resource: Resource<'a>,
    /// Whether the tool's own action is asked about, and not the one of all tools.
    pub(super) own: bool,
}

impl<'a> About<'a> {
    pub(super) fn of(request: &Request<'a>) -> Self {
        let Request { subject, action, resource, .. } = *request;
        Self { subject, action, resource, own: false }
    }

    /// The same under the tool's own action, where it has one.
    pub(super) fn own(self, vocabulary: &Vocabulary) -> Option<Self> {
        let has = !self.own && vocabulary.has_own_action(self.action, &self.resource);
        has.then_some(Self { own: true, ..self })
    }
}

/// What an index needs to put questions to Cedar.
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
            // Without its text, which is not looked at again and would be parsed again.
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
            known: cache::empty(),
        }
    }

    /// What Cedar says of a question. The call of a typed tool is two questions, and what policies
    /// come to of either counts.
    ///
    /// # Errors
    /// Where it cannot be put to the policies that it concerns.
    pub(super) fn decide(
        &self,
        terms: Terms<'_>,
        request: &Request<'_>,
    ) -> Result<Answer<'_>, Unaskable> {
        let about = About::of(request);
        let asker = Asker::of(&about.subject);
        let mut answer = self.answer(terms, asker, about, request)?;
        if let Some(own) = about.own(terms.vocabulary) {
            answer.join(self.answer(terms, asker, own, request)?);
        }
        Ok(answer)
    }

    fn answer(
        &self,
        terms: Terms<'_>,
        asker: Asker<'_>,
        about: About<'_>,
        request: &Request<'_>,
    ) -> Result<Answer<'_>, Unaskable> {
        let known = self.known(terms, asker, about)?;
        let Residual { permits, forbids, failures, open, reads, keys, entities, .. } =
            known.concern();
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
        let base = if *entities { Some(known.entities(terms, about)?.as_ref()) } else { None };
        let uids = known.uids(terms, about);
        let (question, entities) =
            terms.vocabulary.question(uids, about.own, base, request, *reads)?;
        keys.check(request.args)?;
        // One for all of them: it takes the question apart.
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

    /// Whether the policies could permit this in some circumstances, with some arguments, none
    /// forbidding it and none failing. The asker is the subject.
    ///
    /// # Errors
    /// Where the schema has no such question.
    pub(super) fn could_allow(
        &self,
        terms: Terms<'_>,
        asker: Asker<'_>,
        about: About<'_>,
    ) -> Result<bool, Unaskable> {
        let known = self.known(terms, asker, about)?;
        let Residual { permitted, bearable, .. } = *known.concern();
        let Some(own) = about.own(terms.vocabulary).filter(|_| bearable) else {
            return Ok(permitted && bearable);
        };
        let own = self.known(terms, asker, own)?;
        Ok(own.concern().bearable && (permitted || own.concern().permitted))
    }

    /// The policies whose scopes a question meets.
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

    /// What any of the policies looks at.
    pub(super) fn reads(&self) -> ContextUsage {
        let policies = self.policies.iter();
        policies.fold(ContextUsage::default(), |all, policy| all | policy.uses().reads)
    }

    /// What those look at that may matter to this.
    ///
    /// # Errors
    /// Where the schema has no such question.
    pub(super) fn asked(
        &self,
        terms: Terms<'_>,
        about: About<'_>,
    ) -> Result<ContextUsage, Unaskable> {
        let asker = Asker::of(&about.subject);
        let reads = self.known(terms, asker, about)?.concern().reads;
        match about.own(terms.vocabulary) {
            Some(own) => Ok(reads | self.known(terms, asker, own)?.concern().reads),
            None => Ok(reads),
        }
    }

    /// Whether the policies that may matter to this take its argument keys as the server may. A
    /// decision checks that itself.
    ///
    /// # Errors
    /// Where they may not.
    pub(super) fn check_keys(
        &self,
        terms: Terms<'_>,
        about: About<'_>,
        args: Option<&Map<String, Json>>,
    ) -> Result<(), Unaskable> {
        let known = self.known(terms, Asker::of(&about.subject), about)?;
        Ok(known.concern().keys.check(args)?)
    }

    fn known(
        &self,
        terms: Terms<'_>,
        asker: Asker<'_>,
        about: About<'_>,
    ) -> Result<Arc<Known>, Unaskable> {
        let asking = Asking::of(asker, about.action, &about.resource);
        let asking = if about.own { asking.own() } else { asking };
        if let Some(known) = self.known.get(&asking) {
            return Ok(known);
        }
        let nameless = asking.nameless();
        let class = match self.classes.get(&nameless) {
            Some(class) => class,
            None => {
                let class = Arc::new(Class::new(self, terms, about)?);
                self.classes.insert(nameless.key(), Arc::clone(&class));
                class
            }
        };
        let known = Arc::new(Known::new(self, terms, about, class)?);
        self.known.insert(asking.key(), Arc::clone(&known));
        Ok(known)
    }

    fn id(&self, number: u32) -> &PolicyId {
        &self.policies[number as usize].id
    }
}

/// What a condition came to: as Cedar's evaluator has it, it must be a Bool.
fn holds(result: Result<Value, EvaluationError>) -> Result<bool, &'static str> {
    match result {
        Ok(Value { value: ValueKind::Lit(Literal::Bool(value)), .. }) => Ok(value),
        Ok(_) => Err(NOT_OF_ITS_TYPE),
        Err(error) => Err(problem(&error)),
    }
}

const NOT_OF_ITS_TYPE: &str = "a value is not of the type it needs";

/// What went wrong, without any value: Cedar's own texts quote what they were given, and that may
/// be an argument.
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
