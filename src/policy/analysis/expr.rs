//! Conditions in a comparable form. Portcullis knows the meaning of types, entities, their parents
//! and logical operators; everything else is text that is equal or not.

use std::collections::BTreeSet;

use cedar_policy::EntityUid;
use cedar_policy_core::ast::{self, BinaryOp, Expr as Cedar, ExprKind, Literal};

use crate::conditions::{Constraint, Kind, Node};

/// A variable of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Var {
    Principal,
    Action,
    Resource,
}

impl Var {
    /// Principal and resource.
    pub(super) const ASKED: [Self; 2] = [Self::Principal, Self::Resource];

    fn of(expr: &Cedar) -> Option<Self> {
        match expr.expr_kind() {
            ExprKind::Var(ast::Var::Principal) => Some(Self::Principal),
            ExprKind::Var(ast::Var::Action) => Some(Self::Action),
            ExprKind::Var(ast::Var::Resource) => Some(Self::Resource),
            _ => None,
        }
    }
}

/// The server of an entity, which is the beginning of its id. Only items of a server have one.
pub(super) fn server_of(uid: &EntityUid) -> Option<&str> {
    let on_server =
        matches!(uid.type_name().basename(), "Tool" | "Prompt" | "Resource" | "ResourceTemplate");
    let (server, _) = uid.id().unescaped().split_once('/').filter(|_| on_server)?;
    Some(server)
}

/// Whether all parents of an entity are known. The groups of a client are not in the policies.
fn has_known_parents(uid: &EntityUid) -> bool {
    server_of(uid).is_some() || is_server(uid)
}

pub(super) fn is_server(uid: &EntityUid) -> bool {
    uid.type_name().basename() == "Server"
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expr {
    True,
    False,
    Is(Var, String),
    Eq(Var, EntityUid),
    /// In any of these entities, or equal to one.
    In(Var, BTreeSet<EntityUid>),
    Not(Box<Expr>),
    And(BTreeSet<Expr>),
    Or(BTreeSet<Expr>),
    /// Any other condition, as text.
    Other(String),
}

impl Expr {
    /// The comparable form of a condition.
    pub(super) fn of(node: &Node) -> Self {
        match &node.kind {
            Kind::And(parts) => Self::and(parts.iter().map(Self::of)),
            Kind::Or(parts) => Self::or(parts.iter().map(Self::of)),
            Kind::Not(part) => Self::of(part).negated(),
            Kind::If(_) => Self::Other(node.expr().to_string()),
            Kind::Leaf { .. } => Self::leaf(node.expr()),
        }
    }

    /// The condition of one side of a scope.
    pub(super) fn side(var: Var, constraint: Constraint) -> Self {
        let member_of = |uid| Self::In(var, BTreeSet::from([uid]));
        match constraint {
            Constraint::Any => Self::True,
            Constraint::Is(kind) => Self::Is(var, kind.to_string()),
            Constraint::Eq(uid) => Self::Eq(var, uid),
            Constraint::In(uid) => member_of(uid),
            Constraint::IsIn(kind, uid) => {
                Self::and([Self::Is(var, kind.to_string()), member_of(uid)])
            }
        }
    }

    fn leaf(expr: &Cedar) -> Self {
        let form = match expr.expr_kind() {
            ExprKind::Lit(Literal::Bool(true)) => Some(Self::True),
            ExprKind::Lit(Literal::Bool(false)) => Some(Self::False),
            ExprKind::BinaryApp { op: BinaryOp::Eq, arg1, arg2 } => Some(Self::equal(arg1, arg2)),
            ExprKind::BinaryApp { op: BinaryOp::In, arg1, arg2 } => {
                Var::of(arg1).zip(uids(arg2)).map(|(var, uids)| Self::In(var, uids))
            }
            // One direction is enough.
            ExprKind::BinaryApp { op: BinaryOp::Less, arg1, arg2 } => Some(Self::less(arg1, arg2)),
            ExprKind::BinaryApp { op: BinaryOp::LessEq, arg1, arg2 } => {
                Some(Self::less(arg2, arg1).negated())
            }
            ExprKind::Is { expr, entity_type } => {
                Var::of(expr).map(|var| Self::Is(var, entity_type.to_string()))
            }
            _ => None,
        };
        form.unwrap_or_else(|| Self::Other(expr.to_string()))
    }

    fn less(left: &Cedar, right: &Cedar) -> Self {
        Self::Other(format!("({left}) < ({right})"))
    }

    fn equal(left: &Cedar, right: &Cedar) -> Self {
        match (Var::of(left), entity(right), Var::of(right), entity(left)) {
            (Some(var), Some(uid), ..) | (_, _, Some(var), Some(uid)) => Self::Eq(var, uid),
            _ => {
                let mut sides = [left.to_string(), right.to_string()];
                sides.sort();
                Self::Other(format!("({}) == ({})", sides[0], sides[1]))
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

    /// The condition simplified by parts that are known to be true or false.
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

    /// Whether the other one holds whenever this one does. `false` if that is unknown.
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
            (Self::Eq(one, uid), Self::Is(two, kind)) => one == two && is_of(uid, kind),
            (Self::In(one, some), Self::In(two, more)) => {
                one == two && some.iter().all(|uid| is_in(uid, more))
            }
            (_, Self::Not(denied)) => match (self, &**denied) {
                (Self::Not(one), two) => two.implies(one),
                (Self::Eq(one, uid), Self::Eq(two, other)) => one == two && uid != other,
                (Self::Eq(one, uid), Self::Is(two, kind)) => one == two && !is_of(uid, kind),
                (Self::Eq(one, uid), Self::In(two, uids)) => {
                    one == two && has_known_parents(uid) && !is_in(uid, uids)
                }
                (Self::Is(one, kind), Self::Is(two, other)) => one == two && kind != other,
                (Self::Is(one, kind), Self::Eq(two, uid)) => one == two && !is_of(uid, kind),
                _ => false,
            },
            _ => false,
        }
    }
}

fn is_of(uid: &EntityUid, kind: &str) -> bool {
    uid.type_name().to_string() == kind
}

fn is_in(uid: &EntityUid, uids: &BTreeSet<EntityUid>) -> bool {
    let names_server =
        |server| uids.iter().any(|uid| is_server(uid) && uid.id().unescaped() == server);
    uids.contains(uid) || server_of(uid).is_some_and(names_server)
}

fn entity(expr: &Cedar) -> Option<EntityUid> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::EntityUID(uid)) => Some(EntityUid::from((**uid).clone())),
        _ => None,
    }
}

/// One literal entity, or a set of them.
fn uids(expr: &Cedar) -> Option<BTreeSet<EntityUid>> {
    match expr.expr_kind() {
        ExprKind::Set(items) => items.iter().map(entity).collect(),
        _ => entity(expr).map(|uid| BTreeSet::from([uid])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(text: &str) -> Expr {
        let policy = format!("permit (principal, action, resource) when {{ {text} }};");
        Expr::of(&Node::of(&policy.parse().unwrap()).unwrap())
    }

    #[test]
    fn implications_are_found() {
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
            ("context.n <= 3", "!(context.n > 3)", true),
            ("context.n <= 3", "context.n < 3", false),
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
}
