//! A policy as far as it can be compared with others.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Effect, EntityUid, Policy, Schema};
use serde_json::Value;

use super::expr::{Expr, Uid, Var, could_fail};

/// What each action applies to, from the schema.
pub(super) struct Actions(BTreeMap<String, Applies>);

struct Applies {
    /// Itself and its groups.
    within: BTreeSet<String>,
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
            // A group of actions is no action.
            if principals.is_empty() || resources.is_empty() {
                continue;
            }
            let mut within: BTreeSet<_> =
                entities.ancestors(action).into_iter().flatten().map(name).collect();
            within.insert(name(action));
            actions.insert(name(action), Applies { within, principals, resources });
        }
        Some(Self(actions))
    }

    fn holds(&self, action: &str, condition: &Expr) -> Option<bool> {
        let within = &self.0.get(action)?.within;
        match condition {
            Expr::Eq(Var::Action, uid) => Some(uid.id == action),
            Expr::In(Var::Action, uids) => Some(uids.iter().any(|uid| within.contains(&uid.id))),
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
                Var::Action => &applies.within,
            })
            .map(String::as_str)
            .collect()
    }
}

/// A policy.
pub(super) struct Shape {
    pub(super) forbids: bool,
    /// The actions for which it can hold.
    pub(super) actions: BTreeSet<String>,
    /// What must hold beside: its scope and its conditions.
    pub(super) condition: Expr,
    /// Whether evaluating it could fail.
    pub(super) could_fail: bool,
    /// Whether it asks for more than a decision, by annotations.
    pub(super) obliges: bool,
    pub(super) reason: Option<String>,
}

impl Shape {
    /// `None` of what is not in force: a shadow decides nothing.
    pub(super) fn of(policy: &Policy, actions: &Actions) -> Option<Self> {
        if policy.annotation("mode").is_some() {
            return None;
        }
        let json = policy.to_json().ok()?;
        let mut parts = Vec::new();
        for (key, var) in
            [("principal", Var::Principal), ("action", Var::Action), ("resource", Var::Resource)]
        {
            parts.push(scope(json.get(key)?, var)?);
        }
        for condition in json.get("conditions")?.as_array()? {
            let body = Expr::of(condition.get("body")?);
            parts.push(match condition.get("kind")?.as_str()? {
                "when" => body,
                "unless" => body.negated(),
                _ => return None,
            });
        }
        let whole = Expr::and(parts);
        let possible: BTreeSet<String> = actions
            .0
            .keys()
            .filter(|action| whole.with(&|part| actions.holds(action, part)) != Expr::False)
            .cloned()
            .collect();
        let condition = within(&whole, actions, &possible);
        let plain = |key: &str| matches!(key, "id" | "reason");
        Some(Self {
            forbids: policy.effect() == Effect::Forbid,
            actions: possible,
            condition,
            // One for a tool's own action, or about typed input, refuses what is not of the type.
            could_fail: could_fail(json.get("conditions")?)
                || json.get("conditions")?.to_string().contains(r#""attr":"input""#)
                || policy.entity_literals().iter().any(is_own_action),
            obliges: policy.annotations().any(|(key, _)| !plain(key)),
            reason: policy.annotation("reason").map(str::to_owned),
        })
    }

    /// Whether this policy holds wherever the other does. `false` where that is not known.
    pub(super) fn covers(&self, other: &Self, actions: &Actions) -> bool {
        if other.actions.is_empty() || !other.actions.is_subset(&self.actions) {
            return false;
        }
        if Var::ASKED.iter().any(|var| other.kinds(*var, actions).is_empty()) {
            return false;
        }
        let mine = within(&self.condition, actions, &other.actions);
        let theirs = within(&other.condition, actions, &other.actions);
        // What the types of the request say already.
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

    /// The types that a variable may be of where it holds.
    pub(super) fn kinds<'a>(&self, var: Var, actions: &'a Actions) -> BTreeSet<&'a str> {
        let fits = |kind: &&str| {
            let is = Expr::Is(var, (*kind).to_owned());
            self.parts().all(|part| !is.implies(&part.clone().negated()))
        };
        actions.kinds(var, &self.actions).into_iter().filter(fits).collect()
    }

    /// The servers that the resource is in, where it holds for those of some servers alone.
    pub(super) fn servers(&self) -> Option<BTreeSet<String>> {
        let server = |uid: &Uid| {
            if uid.kind == "Portcullis::Server" {
                Some(uid.id.clone())
            } else {
                uid.server().map(|server| server.id)
            }
        };
        self.parts().find_map(|part| match part {
            Expr::Eq(Var::Resource, uid) => Some(BTreeSet::from([server(uid)?])),
            Expr::In(Var::Resource, uids) => uids.iter().map(server).collect(),
            _ => None,
        })
    }

    /// All that must hold.
    fn parts(&self) -> impl Iterator<Item = &Expr> {
        let (one, all) = match &self.condition {
            Expr::And(parts) => (None, Some(parts)),
            other => (Some(other), None),
        };
        one.into_iter().chain(all.into_iter().flatten())
    }
}

/// Whether it is the action of one tool, of which the file of its server's tools has the type. No
/// other has a `/` in its id.
pub(super) fn is_own_action(uid: &EntityUid) -> bool {
    uid.type_name().basename() == "Action" && uid.id().unescaped().contains('/')
}

/// The condition as it is for these actions.
fn within(condition: &Expr, actions: &Actions, among: &BTreeSet<String>) -> Expr {
    condition.with(&|part| {
        let mut held = among.iter().map(|action| actions.holds(action, part));
        let first = held.next()??;
        held.all(|other| other == Some(first)).then_some(first)
    })
}

fn scope(constraint: &Value, var: Var) -> Option<Expr> {
    let uid = |value: &Value| {
        let text = |key| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Uid { kind: text("type")?, id: text("id")? })
    };
    let all = |value: &Value| -> Option<BTreeSet<Uid>> {
        match (value.get("entity"), value.get("entities")) {
            (Some(one), _) => Some(BTreeSet::from([uid(one)?])),
            (None, Some(several)) => several.as_array()?.iter().map(uid).collect(),
            (None, None) => None,
        }
    };
    Some(match constraint.get("op")?.as_str()? {
        "All" => Expr::True,
        "==" => Expr::Eq(var, uid(constraint.get("entity")?)?),
        "in" => Expr::In(var, all(constraint)?),
        "is" => {
            let is = Expr::Is(var, constraint.get("entity_type")?.as_str()?.to_owned());
            match constraint.get("in") {
                None => is,
                Some(parent) => Expr::and([is, Expr::In(var, all(parent)?)]),
            }
        }
        _ => return None,
    })
}
