//! The scopes of policies.

use cedar_policy::{
    ActionConstraint, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint,
};

/// A policy's scope.
pub(crate) struct Scope {
    pub(crate) principal: Constraint,
    pub(crate) action: ActionConstraint,
    pub(crate) resource: Constraint,
}

impl Scope {
    pub(crate) fn of(policy: &Policy) -> Self {
        Self {
            principal: policy.principal_constraint().into(),
            action: policy.action_constraint(),
            resource: policy.resource_constraint().into(),
        }
    }
}

/// A constraint on a principal or a resource; both have the same forms.
pub(crate) enum Constraint {
    Any,
    Is(EntityTypeName),
    Eq(EntityUid),
    In(EntityUid),
    IsIn(EntityTypeName, EntityUid),
}

macro_rules! constraint_of {
    ($($side:ident)*) => { $(
        impl From<$side> for Constraint {
            fn from(constraint: $side) -> Self {
                match constraint {
                    $side::Any => Self::Any,
                    $side::Is(kind) => Self::Is(kind),
                    $side::Eq(uid) => Self::Eq(uid),
                    $side::In(uid) => Self::In(uid),
                    $side::IsIn(kind, uid) => Self::IsIn(kind, uid),
                }
            }
        }
    )* };
}

constraint_of!(PrincipalConstraint ResourceConstraint);
