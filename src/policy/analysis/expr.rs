//! Conditions in a form that can be compared: what Portcullis knows the meaning of (types, entities
//! and their parents, and how conditions are put together), and the rest as texts that are equal or
//! not.

use std::collections::BTreeSet;

use serde_json::Value;

/// A variable of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Var {
    Principal,
    Action,
    Resource,
}

impl Var {
    /// Who asks, and of what.
    pub(super) const ASKED: [Self; 2] = [Self::Principal, Self::Resource];

    fn of(value: &Value) -> Option<Self> {
        match value.get("Var")?.as_str()? {
            "principal" => Some(Self::Principal),
            "action" => Some(Self::Action),
            "resource" => Some(Self::Resource),
            _ => None,
        }
    }
}

/// An entity by its type and id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Uid {
    pub(super) kind: String,
    pub(super) id: String,
}

impl Uid {
    fn of(value: &Value) -> Option<Self> {
        let entity = value.get("__entity").unwrap_or(value);
        let text = |key| entity.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self { kind: text("type")?, id: text("id")? })
    }

    /// The server that an entity is in, which its id begins with. Only what is on a server has one.
    pub(super) fn server(&self) -> Option<Self> {
        let on_server = matches!(
            self.kind.as_str(),
            "Portcullis::Tool"
                | "Portcullis::Prompt"
                | "Portcullis::Resource"
                | "Portcullis::ResourceTemplate"
        );
        let (server, _) = self.id.split_once('/').filter(|_| on_server)?;
        Some(Self { kind: "Portcullis::Server".to_owned(), id: server.to_owned() })
    }

    /// Whether all that an entity is in is known: clients are in groups that no policy tells of.
    fn has_known_parents(&self) -> bool {
        self.server().is_some() || self.kind == "Portcullis::Server"
    }
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expr {
    True,
    False,
    Is(Var, String),
    Eq(Var, Uid),
    /// In any of these, or one of them.
    In(Var, BTreeSet<Uid>),
    Not(Box<Expr>),
    And(BTreeSet<Expr>),
    Or(BTreeSet<Expr>),
    /// Anything else, as text.
    Other(String),
}

impl Expr {
    /// The condition of one of Cedar's, as JSON.
    pub(super) fn of(value: &Value) -> Self {
        let Some((operator, operand)) = value.as_object().and_then(|members| members.iter().next())
        else {
            return Self::other(value);
        };
        let side = |key: &str| operand.get(key).unwrap_or(&Value::Null);
        let (left, right) = (side("left"), side("right"));
        match operator.as_str() {
            "Value" if *operand == Value::Bool(true) => Self::True,
            "Value" if *operand == Value::Bool(false) => Self::False,
            "&&" => Self::and([Self::of(left), Self::of(right)]),
            "||" => Self::or([Self::of(left), Self::of(right)]),
            "!" => Self::of(side("arg")).negated(),
            "==" => Self::equal(left, right),
            "!=" => Self::equal(left, right).negated(),
            "in" => match (Var::of(left), uids(right)) {
                (Some(var), Some(uids)) => Self::In(var, uids),
                _ => Self::other(value),
            },
            "is" => match (Var::of(left), side("entity_type").as_str()) {
                (Some(var), Some(kind)) => {
                    let is = Self::Is(var, kind.to_owned());
                    match operand.get("in") {
                        None => is,
                        Some(parent) => match uids(parent) {
                            Some(uids) => Self::and([is, Self::In(var, uids)]),
                            None => Self::other(value),
                        },
                    }
                }
                _ => Self::other(value),
            },
            // One direction is enough.
            ">" => Self::other(&serde_json::json!({ "<": { "left": right, "right": left } })),
            ">=" => Self::other(&serde_json::json!({ "<=": { "left": right, "right": left } })),
            _ => Self::other(value),
        }
    }

    fn other(value: &Value) -> Self {
        Self::Other(value.to_string())
    }

    fn equal(left: &Value, right: &Value) -> Self {
        let entity = |value: &Value| {
            value.get("Value").filter(|v| v.get("__entity").is_some()).and_then(Uid::of)
        };
        match (Var::of(left), entity(right), Var::of(right), entity(left)) {
            (Some(var), Some(uid), ..) | (_, _, Some(var), Some(uid)) => Self::Eq(var, uid),
            _ => {
                let mut sides = [left.to_string(), right.to_string()];
                sides.sort();
                Self::Other(format!("{} == {}", sides[0], sides[1]))
            }
        }
    }

    pub(super) fn and(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = BTreeSet::new();
        for part in parts {
            match part {
                Self::True => {}
                Self::False => return Self::False,
                Self::And(parts) => all.extend(parts),
                part => {
                    all.insert(part);
                }
            }
        }
        match all.len() {
            0 => Self::True,
            1 => all.pop_first().unwrap_or(Self::True),
            _ => Self::And(all),
        }
    }

    pub(super) fn or(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut any = BTreeSet::new();
        for part in parts {
            match part {
                Self::False => {}
                Self::True => return Self::True,
                Self::Or(parts) => any.extend(parts),
                part => {
                    any.insert(part);
                }
            }
        }
        match any.len() {
            0 => Self::False,
            1 => any.pop_first().unwrap_or(Self::False),
            _ => Self::Or(any),
        }
    }

    pub(super) fn negated(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Not(inner) => *inner,
            Self::And(parts) => Self::or(parts.into_iter().map(Self::negated)),
            Self::Or(parts) => Self::and(parts.into_iter().map(Self::negated)),
            other => Self::Not(Box::new(other)),
        }
    }

    /// The condition where some of its parts are known to hold, or not to.
    pub(super) fn with(&self, known: &impl Fn(&Self) -> Option<bool>) -> Self {
        match known(self) {
            Some(true) => Self::True,
            Some(false) => Self::False,
            None => match self {
                Self::Not(inner) => inner.with(known).negated(),
                Self::And(parts) => Self::and(parts.iter().map(|part| part.with(known))),
                Self::Or(parts) => Self::or(parts.iter().map(|part| part.with(known))),
                other => other.clone(),
            },
        }
    }

    /// Whether the other holds wherever this one does. `false` where that is not known.
    pub(super) fn implies(&self, other: &Self) -> bool {
        if self == other {
            return true;
        }
        match (self, other) {
            (_, Self::True) | (Self::False, _) => true,
            (_, Self::And(parts)) => parts.iter().all(|part| self.implies(part)),
            (Self::Or(parts), _) => parts.iter().all(|part| part.implies(other)),
            (_, Self::Or(parts)) => parts.iter().any(|part| self.implies(part)),
            (Self::And(parts), _) => parts.iter().any(|part| part.implies(other)),
            (Self::Eq(one, uid), Self::In(two, uids)) => one == two && is_in(uid, uids),
            (Self::Eq(one, uid), Self::Is(two, kind)) => one == two && uid.kind == *kind,
            (Self::In(one, some), Self::In(two, more)) => {
                one == two && some.iter().all(|uid| is_in(uid, more))
            }
            (_, Self::Not(denied)) => match (self, &**denied) {
                (Self::Not(one), two) => two.implies(one),
                (Self::Eq(one, uid), Self::Eq(two, other)) => one == two && uid != other,
                (Self::Eq(one, uid), Self::Is(two, kind)) => one == two && uid.kind != *kind,
                (Self::Eq(one, uid), Self::In(two, uids)) => {
                    one == two && uid.has_known_parents() && !is_in(uid, uids)
                }
                (Self::Is(one, kind), Self::Is(two, other)) => one == two && kind != other,
                (Self::Is(one, kind), Self::Eq(two, uid)) => one == two && *kind != uid.kind,
                _ => false,
            },
            _ => false,
        }
    }
}

fn is_in(uid: &Uid, uids: &BTreeSet<Uid>) -> bool {
    uids.contains(uid) || uid.server().is_some_and(|server| uids.contains(&server))
}

/// One literal entity, or a set of them.
fn uids(value: &Value) -> Option<BTreeSet<Uid>> {
    let one = |value: &Value| {
        let entity = value.get("Value").unwrap_or(value);
        entity.get("__entity").is_some().then(|| Uid::of(entity)).flatten()
    };
    if let Some(uid) = one(value) {
        return Some(BTreeSet::from([uid]));
    }
    let elements = value.get("Set").or_else(|| value.get("Value"))?.as_array()?;
    elements.iter().map(one).collect()
}

/// Whether evaluating it could fail in a set that validates: by arithmetic, or by reading a text as
/// a value of another type.
pub(super) fn could_fail(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(operator, operand)| {
            let fails = match operator.as_str() {
                "+" | "-" | "*" | "neg" | "offset" | "durationSince" => true,
                "ip" | "decimal" | "datetime" | "duration" => {
                    let literal = |arg: &Value| arg.get("Value").is_some();
                    !operand.as_array().is_some_and(|args| args.iter().all(literal))
                }
                _ => false,
            };
            fails || could_fail(operand)
        }),
        Value::Array(items) => items.iter().any(could_fail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::*;

    fn condition(text: &str) -> Expr {
        let policy = format!("permit (principal, action, resource) when {{ {text} }};");
        let json = policy.parse::<Policy>().unwrap().to_json().unwrap();
        Expr::of(&json["conditions"][0]["body"])
    }

    #[test]
    fn what_implies_what() {
        let tool = r#"resource == Portcullis::Tool::"a/x""#;
        let on_a = r#"resource in Portcullis::Server::"a""#;
        let on_b = r#"resource in Portcullis::Server::"b""#;
        let group = r#"principal in Portcullis::Group::"g""#;
        let client = r#"principal == Portcullis::Client::"c""#;
        for (one, other, expected) in [
            ("principal.verified", "true", true),
            ("principal.verified", "principal.verified", true),
            ("principal.verified", "!principal.verified", false),
            ("!!principal.verified", "principal.verified", true),
            ("principal.verified && context.a", "context.a", true),
            ("context.a", "principal.verified && context.a", false),
            ("context.a", "principal.verified || context.a", true),
            ("context.a || context.b", "context.a", false),
            ("context.a || context.b", "context.b || context.c || context.a", true),
            ("!(context.a || context.b)", "!context.a", true),
            ("!context.a", "!(context.a && context.b)", true),
            ("context.n > 3", "3 < context.n", true),
            ("context.n == 3", "3 == context.n", true),
            ("context.n != 3", "!(context.n == 3)", true),
            (tool, on_a, true),
            (tool, on_b, false),
            (tool, &format!("!({on_b})"), true),
            (tool, &format!("!({on_a})"), false),
            (on_a, tool, false),
            (on_a, r#"resource in [Portcullis::Server::"a", Portcullis::Server::"b"]"#, true),
            (r#"resource in [Portcullis::Server::"a", Portcullis::Server::"b"]"#, on_a, false),
            (tool, "resource is Portcullis::Tool", true),
            (tool, "resource is Portcullis::Prompt", false),
            (tool, "!(resource is Portcullis::Prompt)", true),
            ("resource is Portcullis::Tool", "!(resource is Portcullis::Prompt)", true),
            ("principal is Portcullis::Client in Portcullis::Group::\"g\"", group, true),
            // A client may be in any group.
            (client, group, false),
            (client, &format!("!({group})"), false),
            (client, r#"!(principal == Portcullis::Client::"d")"#, true),
        ] {
            assert_eq!(condition(one).implies(&condition(other)), expected, "{one} => {other}");
        }
    }

    #[test]
    fn what_could_fail() {
        for (text, expected) in [
            ("context.n < 3", false),
            ("context.n + 1 < 3", true),
            (r#"context.ip.isInRange(ip("10.0.0.0/8"))"#, false),
            (r#"ip(context.args.getTag("/ip")).isLoopback()"#, true),
            (r#"context.now.toTime() < duration("6h")"#, false),
            (r#"context.now.offset(duration("6h")) < context.now"#, true),
        ] {
            let policy = format!("permit (principal, action, resource) when {{ {text} }};");
            let json = policy.parse::<Policy>().unwrap().to_json().unwrap();
            assert_eq!(could_fail(&json["conditions"]), expected, "{text}");
        }
    }
}
