//! The sides of a policy's scope that match a request.

use cedar_policy::{ActionConstraint, Entities, EntityUid};

use super::explain::Side;
use crate::conditions::{Constraint, Scope};

impl Constraint {
    fn meets(&self, uid: &EntityUid, entities: &Entities) -> bool {
        let is_in = |group| uid == group || entities.is_ancestor_of(group, uid);
        match self {
            Self::Any => true,
            Self::Is(kind) => uid.type_name() == kind,
            Self::Eq(one) => uid == one,
            Self::In(group) => is_in(group),
            Self::IsIn(kind, group) => uid.type_name() == kind && is_in(group),
        }
    }

    /// The entity in the constraint.
    pub(super) fn names(&self) -> Option<&EntityUid> {
        match self {
            Self::Any | Self::Is(_) => None,
            Self::Eq(uid) | Self::In(uid) | Self::IsIn(_, uid) => Some(uid),
        }
    }

    /// Its text, after `principal` or `resource`.
    fn text(&self) -> String {
        match self {
            Self::Any => String::new(),
            Self::Is(kind) => format!("is {kind}"),
            Self::Eq(uid) => format!("== {uid}"),
            Self::In(uid) => format!("in {uid}"),
            Self::IsIn(kind, uid) => format!("is {kind} in {uid}"),
        }
    }
}

impl Scope {
    /// The sides that do not match a request.
    pub(super) fn off(
        &self,
        subject: &EntityUid,
        action: &EntityUid,
        resource: &EntityUid,
        entities: &Entities,
    ) -> Vec<Side> {
        let is_in = |group| action == group || entities.is_ancestor_of(group, action);
        let acts = match &self.action {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(one) => action == one,
            ActionConstraint::In(groups) => groups.iter().any(is_in),
        };
        let sides = [
            (self.principal.meets(subject, entities), Side::Principal),
            (acts, Side::Action),
            (self.resource.meets(resource, entities), Side::Resource),
        ];
        sides.into_iter().filter_map(|(met, side)| (!met).then_some(side)).collect()
    }

    /// The constraint of a side, as written.
    pub(super) fn wants(&self, side: Side) -> String {
        match side {
            Side::Principal => format!("principal {}", self.principal.text()),
            Side::Resource => format!("resource {}", self.resource.text()),
            Side::Action => match &self.action {
                ActionConstraint::Any => "action".to_owned(),
                ActionConstraint::Eq(uid) => format!("action == {uid}"),
                ActionConstraint::In(uids) => {
                    let uids: Vec<_> = uids.iter().map(EntityUid::to_string).collect();
                    format!("action in [{}]", uids.join(", "))
                }
            },
        }
    }
}
