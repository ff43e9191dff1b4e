//! The comparable parts of a policy.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{ActionConstraint, Effect, EntityUid, Policy, Schema};

use super::expr::{Expr, Var, is_server, server_of};
use crate::conditions::{ContextUsage, Node, Scope, may_fail};

/// The principals and resources of each action, from the schema.
pub(super) struct Actions(BTreeMap<String, Applies>);

struct Applies {
    /// The action and its groups.
    groups: BTreeSet<String>,
    principals: BTreeSet<String>,
    resources: BTreeSet<String>,
}

impl Actions {
    pub(super) fn of(schema: &Schema) -> Option<Self> {
        let entities = schema.action_entities().ok()?;
        let name = |uid: &EntityUid| uid.id().unescaped().to_owned();
        let mut actions = BTreeMap::new();
        for action in schema.actions() {
            let principals: BTreeSet<_> =
                schema.principals_for_action(action)?.map(ToString::to_string).collect();
            let resources: BTreeSet<_> =
                schema.resources_for_action(action)?.map(ToString::to_string).collect();
            // A group of actions is not an action itself.
            if principals.is_empty() || resources.is_empty() {
                continue;
            }
            let mut groups: BTreeSet<_> =
                entities.ancestors(action).into_iter().flatten().map(name).collect();
            groups.insert(name(action));
            actions.insert(name(action), Applies { groups, principals, resources });
        }
        Some(Self(actions))
    }

    fn holds(&self, action: &str, condition: &Expr) -> Option<bool> {
        let groups = &self.0.get(action)?.groups;
        match condition {
            Expr::Eq(Var::Action, uid) => Some(uid.id().unescaped() == action),
            Expr::In(Var::Action, uids) => {
                Some(uids.iter().any(|uid| groups.contains(uid.id().unescaped())))
            }
            _ => None,
        }
    }

    fn kinds(&self, var: Var, actions: &BTreeSet<String>) -> BTreeSet<&str> {
        actions
            .iter()
            .filter_map(|action| self.0.get(action))
            .flat_map(|applies| match var {
                Var::Principal => &applies.principals,
                Var::Resource => &applies.resources,
                Var::Action => &applies.groups,
            })
            .map(String::as_str)
            .collect()
    }
}

/// A policy in comparable form.
pub(super) struct Shape {
    pub(super) forbids: bool,
    /// The actions for which it can hold.
    pub(super) actions: BTreeSet<String>,
    /// The further condition: its scope and its conditions.
    pub(super) condition: Expr,
    /// Whether evaluating it could fail.
    pub(super) could_fail: bool,
    /// Whether it has obligations.
    pub(super) obliges: bool,
    pub(super) reason: Option<String>,
}

impl Shape {
    /// `None` if it is in shadow mode, since it decides nothing then.
    pub(super) fn of(policy: &Policy, actions: &Actions) -> Option<Self> {
        if policy.annotation("mode").is_some() {
            return None;
        }
        let Scope { principal, action, resource } = Scope::of(policy);
        let condition = Node::of(policy);
        let full = Expr::and([
            Expr::side(Var::Principal, principal),
            match action {
                ActionConstraint::Any => Expr::True,
                ActionConstraint::Eq(uid) => Expr::Eq(Var::Action, uid),
                ActionConstraint::In(uids) => Expr::In(Var::Action, uids.into_iter().collect()),
            },
            Expr::side(Var::Resource, resource),
            condition.as_ref().map_or(Expr::True, Expr::of),
        ]);
        let possible: BTreeSet<String> = actions
            .0
            .keys()
            .filter(|action| full.with(&|part| actions.holds(action, part)) != Expr::False)
            .cloned()
            .collect();
        let plain = |key: &str| matches!(key, "id" | "reason");
        Some(Self {
            forbids: policy.effect() == Effect::Forbid,
            condition: restrict(&full, actions, &possible),
            actions: possible,
            // A policy on a tool's own action, or on typed input, refuses other arguments.
            could_fail: condition.is_some_and(|condition| {
                may_fail(condition.expr()) || condition.uses.reads.has(ContextUsage::INPUT)
            }) || policy.entity_literals().iter().any(is_own_action),
            obliges: policy.annotations().any(|(key, _)| !plain(key)),
            reason: policy.annotation("reason").map(str::to_owned),
        })
    }

    /// Whether this policy holds whenever the other one does. `false` if that is unknown.
    pub(super) fn covers(&self, other: &Self, actions: &Actions) -> bool {
        if other.actions.is_empty() || !other.actions.is_subset(&self.actions) {
            return false;
        }
        if Var::ASKED.iter().any(|var| other.kinds(*var, actions).is_empty()) {
            return false;
        }
        let mine = restrict(&self.condition, actions, &other.actions);
        let theirs = restrict(&other.condition, actions, &other.actions);
        // Parts that follow from the types of the request.
        let mine = mine.with(&|part| match part {
            Expr::Is(var, kind) => {
                let kinds = other.kinds(*var, actions);
                if kinds.iter().all(|one| *one == kind) {
                    Some(true)
                } else if kinds.contains(kind.as_str()) {
                    None
                } else {
                    Some(false)
                }
            }
            _ => None,
        });
        theirs.implies(&mine)
    }

    /// The types that a variable may have if the policy holds.
    pub(super) fn kinds<'a>(&self, var: Var, actions: &'a Actions) -> BTreeSet<&'a str> {
        let fits = |kind: &&str| {
            let is = Expr::Is(var, (*kind).to_owned());
            self.parts().all(|part| !is.implies(&part.clone().negated()))
        };
        actions.kinds(var, &self.actions).into_iter().filter(fits).collect()
    }

    /// The servers of the resource, if the policy only holds for those of some servers.
    pub(super) fn servers(&self) -> Option<BTreeSet<String>> {
        let server = |uid: &EntityUid| match is_server(uid) {
            true => Some(uid.id().unescaped().to_owned()),
            false => server_of(uid).map(str::to_owned),
        };
        self.parts().find_map(|part| match part {
            Expr::Eq(Var::Resource, uid) => Some(BTreeSet::from([server(uid)?])),
            Expr::In(Var::Resource, uids) => uids.iter().map(server).collect(),
            _ => None,
        })
    }

    /// The conjuncts of the condition.
    fn parts(&self) -> impl Iterator<Item = &Expr> {
        let (one, all) = match &self.condition {
            Expr::And(parts) => (None, Some(parts)),
            other => (Some(other), None),
        };
        one.into_iter().chain(all.into_iter().flatten())
    }
}

/// Whether it is the action of one tool, whose type is in the tools file of its server. Only such
/// an action has a `/` in its id.
pub(super) fn is_own_action(uid: &EntityUid) -> bool {
    uid.type_name().basename() == "Action" && uid.id().unescaped().contains('/')
}

/// The condition restricted to these actions.
fn restrict(condition: &Expr, actions: &Actions, among: &BTreeSet<String>) -> Expr {
    condition.with(&|part| {
        let mut held = among.iter().map(|action| actions.holds(action, part));
        let first = held.next()??;
        held.all(|other| other == Some(first)).then_some(first)
    })
}
