//! Finds the policies whose scopes match a request.

use std::collections::HashMap;

use cedar_policy::{ActionConstraint, Entities, EntityUid, Policy};

use crate::{
    conditions::{Constraint, Scope},
    entities::Vocabulary,
};

/// Slot of policies without a principal or without a resource.
const ANY: u32 = 0;

/// Numbers of policies, by the entities in their scopes.
pub(super) struct Scopes {
    /// Slots of the entities in scopes: that of `==`. The slot of `in` is the next one.
    slots: HashMap<EntityUid, u32>,
    /// By the slots of principal and resource. So of many policies that are each about one team or
    /// one tool, only the matching ones are visited.
    at: HashMap<(u32, u32), Vec<Candidate>>,
}

/// A policy with the parts of its scope that its slots do not express.
struct Candidate {
    policy: u32,
    /// Bits of actions.
    actions: u32,
    /// The own actions of tools that it names.
    own: Vec<EntityUid>,
    /// Bits of types.
    principals: u16,
    resources: u16,
}

/// The slots that match one side of a request.
pub(super) type Slots = Vec<u32>;

/// The types and the action of a request, as one bit each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    pub(super) principal: u16,
    pub(super) action: u32,
    pub(super) resource: u16,
}

impl Scopes {
    /// Takes policies in the order of their numbers.
    pub(super) fn new(policies: &[&Policy], vocabulary: &Vocabulary) -> Self {
        let mut scopes = Self { slots: HashMap::new(), at: HashMap::new() };
        for (policy, of) in (0..).zip(policies) {
            let Scope { principal, action, resource } = Scope::of(of);
            let (principal, principals) = scopes.register(principal, vocabulary);
            let (resource, resources) = scopes.register(resource, vocabulary);
            let actions = match &action {
                ActionConstraint::Any => u32::MAX,
                ActionConstraint::Eq(uid) => vocabulary.actions_of(|action, _| action == uid),
                ActionConstraint::In(uids) => vocabulary.actions_of(|action, groups| {
                    uids.iter().any(|uid| uid == action || groups.contains(uid))
                }),
            };
            let mut own = match action {
                ActionConstraint::Any => Vec::new(),
                ActionConstraint::Eq(uid) => vec![uid],
                ActionConstraint::In(uids) => uids,
            };
            own.retain(|uid| vocabulary.is_own_action(uid));
            let candidate = Candidate { policy, actions, own, principals, resources };
            scopes.at.entry((principal, resource)).or_default().push(candidate);
        }
        scopes
    }

    /// The slot of a constraint, and the types that it allows.
    fn register(&mut self, constraint: Constraint, vocabulary: &Vocabulary) -> (u32, u16) {
        match constraint {
            Constraint::Any => (ANY, u16::MAX),
            Constraint::Is(kind) => (ANY, vocabulary.bit(&kind)),
            Constraint::Eq(uid) => (self.slot(uid), u16::MAX),
            Constraint::In(uid) => (self.slot(uid) + 1, u16::MAX),
            Constraint::IsIn(kind, uid) => (self.slot(uid) + 1, vocabulary.bit(&kind)),
        }
    }

    fn slot(&mut self, uid: EntityUid) -> u32 {
        let next = self.slots.len() as u32 * 2 + 1;
        *self.slots.entry(uid).or_insert(next)
    }

    /// The slots of an entity, of its ancestors, and of no entity.
    pub(super) fn of(&self, uid: &EntityUid, entities: &Entities) -> Slots {
        let mut slots = self.above(entities.ancestors(uid).into_iter().flatten());
        slots.extend(self.own(uid));
        slots
    }

    /// The slots of an entity itself.
    pub(super) fn own(&self, uid: &EntityUid) -> impl Iterator<Item = u32> {
        self.slots.get(uid).into_iter().flat_map(|slot| [*slot, slot + 1])
    }

    /// The slots of the ancestors of an entity, and of no entity.
    pub(super) fn above<'u>(&self, ancestors: impl Iterator<Item = &'u EntityUid>) -> Slots {
        let named = ancestors.filter_map(|uid| self.slots.get(uid)).map(|slot| slot + 1);
        std::iter::once(ANY).chain(named).collect()
    }

    /// The policies with matching scopes, each once.
    pub(super) fn met(
        &self,
        principal: &[u32],
        resource: &[u32],
        action: &EntityUid,
        bits: Bits,
    ) -> Vec<u32> {
        let pairs = principal.iter().flat_map(|p| resource.iter().map(move |r| (*p, *r)));
        pairs
            .filter_map(|pair| self.at.get(&pair))
            .flatten()
            .filter(|candidate| {
                (candidate.actions & bits.action != 0 || candidate.own.contains(action))
                    && candidate.principals & bits.principal != 0
                    && candidate.resources & bits.resource != 0
            })
            .map(|candidate| candidate.policy)
            .collect()
    }
}
