//! Conditions of policies, split where Cedar's evaluator branches: `&&`, `||`, `!` and `if`. All
//! analyses use this tree: [`index`](crate::index) finds what can matter before a call is known,
//! [`inspect`](crate::inspect) which part decided, and [`analysis`](crate::analysis) which
//! conditions imply others.
//!
//! Invariants:
//! - The tree consists of the expressions that Cedar evaluates. Cedar can evaluate each part of it
//!   separately.
//! - [`Node::outcomes`] has Cedar's order of evaluation: a part that is not reached cannot fail.

mod scope;
mod usage;

use cedar_policy::{Expression, Policy};
use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind, Literal, UnaryOp, Var};

pub(crate) use self::{
    scope::{Constraint, Scope},
    usage::{ContextUsage, Uses},
};

/// Maximum depth of the tree. A deeper expression is one part.
const DEPTH: usize = 64;

/// A condition, or a part of one with a Bool as its value.
pub(crate) struct Node {
    pub(crate) expression: Expression,
    pub(crate) uses: Uses,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    If(Box<[Node; 3]>),
    /// A part that is not split.
    Leaf {
        /// Whether it may fail in a valid policy.
        fallible: bool,
        /// Whether Cedar's partial evaluation may know more about it.
        odd: bool,
    },
}

/// Possible results of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) satisfied: bool,
    pub(crate) unsatisfied: bool,
    pub(crate) failed: bool,
}

impl Outcomes {
    const NONE: Self = Self { satisfied: false, unsatisfied: false, failed: false };
    pub(crate) const FAILED: Self = Self { failed: true, ..Self::NONE };
    pub(crate) const SATISFIED: Self = Self { satisfied: true, ..Self::NONE };
    pub(crate) const UNSATISFIED: Self = Self { unsatisfied: true, ..Self::NONE };

    pub(crate) fn certain(value: bool) -> Self {
        if value { Self::SATISFIED } else { Self::UNSATISFIED }
    }

    /// Whether more than one result is possible.
    pub(crate) fn is_open(self) -> bool {
        u8::from(self.satisfied) + u8::from(self.unsatisfied) + u8::from(self.failed) > 1
    }

    /// Continues with the next part: its results replace the result `on`, if that is possible.
    fn then(self, on: bool, next: impl FnOnce() -> Self) -> Self {
        let goes_on = if on { self.satisfied } else { self.unsatisfied };
        if !goes_on {
            return self;
        }
        let next = next();
        Self {
            satisfied: next.satisfied || (!on && self.satisfied),
            unsatisfied: next.unsatisfied || (on && self.unsatisfied),
            failed: next.failed || self.failed,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            satisfied: self.satisfied || other.satisfied,
            unsatisfied: self.unsatisfied || other.unsatisfied,
            failed: self.failed || other.failed,
        }
    }

    fn negated(self) -> Self {
        Self { satisfied: self.unsatisfied, unsatisfied: self.satisfied, failed: self.failed }
    }
}

impl Node {
    /// The conditions of a policy, joined by `&&`. `None` if the policy has only a scope.
    pub(crate) fn of(policy: &Policy) -> Option<Self> {
        policy.as_ref().non_scope_constraints().map(|expr| Self::at_depth(expr, DEPTH))
    }

    fn at_depth(expr: &Expr, depth: usize) -> Self {
        let below = depth.saturating_sub(1);
        let kind = match expr.expr_kind() {
            _ if depth == 0 => Kind::leaf(expr),
            ExprKind::And { .. } => Kind::And(chain(expr, true, below)),
            ExprKind::Or { .. } => Kind::Or(chain(expr, false, below)),
            ExprKind::UnaryApp { op: UnaryOp::Not, arg } => {
                Kind::Not(Box::new(Self::at_depth(arg, below)))
            }
            ExprKind::If { test_expr, then_expr, else_expr } => {
                let part = |expr| Self::at_depth(expr, below);
                Kind::If(Box::new([part(test_expr), part(then_expr), part(else_expr)]))
            }
            _ => Kind::leaf(expr),
        };
        let uses = match &kind {
            Kind::Leaf { .. } => Uses::of(expr),
            kind => kind.parts().iter().fold(Uses::default(), |uses, part| uses | part.uses),
        };
        Self { expression: expr.clone().into(), uses, kind }
    }

    pub(crate) fn expr(&self) -> &Expr {
        self.expression.as_ref()
    }

    /// Its possible results. `known` returns those of a part, if they are known. An unknown leaf
    /// may be true or false, and may fail if it is fallible.
    pub(crate) fn outcomes(&self, known: &mut dyn FnMut(&Self) -> Option<Outcomes>) -> Outcomes {
        if let Some(outcomes) = known(self) {
            return outcomes;
        }
        match &self.kind {
            Kind::And(nodes) => nodes.iter().fold(Outcomes::SATISFIED, |outcomes, node| {
                outcomes.then(true, || node.outcomes(known))
            }),
            Kind::Or(nodes) => nodes.iter().fold(Outcomes::UNSATISFIED, |outcomes, node| {
                outcomes.then(false, || node.outcomes(known))
            }),
            Kind::Not(node) => node.outcomes(known).negated(),
            Kind::If(parts) => {
                let [test, then, otherwise] = &**parts;
                let test = test.outcomes(known);
                let mut outcomes = Outcomes { failed: test.failed, ..Outcomes::NONE };
                if test.satisfied {
                    outcomes = outcomes.or(then.outcomes(known));
                }
                if test.unsatisfied {
                    outcomes = outcomes.or(otherwise.outcomes(known));
                }
                outcomes
            }
            Kind::Leaf { fallible, .. } => {
                Outcomes { satisfied: true, unsatisfied: true, failed: *fallible }
            }
        }
    }
}

impl Kind {
    fn leaf(expr: &Expr) -> Self {
        Self::Leaf { fallible: may_fail(expr), odd: !is_plain(expr, DEPTH) }
    }

    pub(crate) fn parts(&self) -> &[Node] {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes,
            Self::Not(node) => std::slice::from_ref(node),
            Self::If(nodes) => &**nodes,
            Self::Leaf { .. } => &[],
        }
    }
}

/// The operands of a chain of `&&` or `||`: one level for any length.
fn chain(expr: &Expr, and: bool, depth: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut left = vec![expr];
    while let Some(expr) = left.pop() {
        match (expr.expr_kind(), and) {
            (ExprKind::And { left: first, right }, true)
            | (ExprKind::Or { left: first, right }, false) => left.extend([&**right, first]),
            _ => nodes.push(Node::at_depth(expr, depth)),
        }
    }
    nodes
}

/// The direct parts of an expression. `None` if its form is unknown.
pub(crate) fn parts(expr: &Expr) -> Option<Vec<&Expr>> {
    Some(match expr.expr_kind() {
        ExprKind::Lit(_) | ExprKind::Var(_) => Vec::new(),
        ExprKind::If { test_expr, then_expr, else_expr } => vec![test_expr, then_expr, else_expr],
        ExprKind::And { left, right } | ExprKind::Or { left, right } => vec![left, right],
        ExprKind::UnaryApp { arg, .. } => vec![arg],
        ExprKind::BinaryApp { arg1, arg2, .. } => vec![arg1, arg2],
        ExprKind::ExtensionFunctionApp { args, .. } => args.iter().collect(),
        ExprKind::GetAttr { expr, .. }
        | ExprKind::HasAttr { expr, .. }
        | ExprKind::ExtHasAttr { expr, .. }
        | ExprKind::Like { expr, .. }
        | ExprKind::Is { expr, .. } => vec![expr],
        ExprKind::Set(items) => items.iter().collect(),
        ExprKind::Record(fields) => fields.values().collect(),
        _ => return None,
    })
}

/// Whether an expression may fail in a policy that is strictly valid: attributes and tags are
/// checked before they are read, and texts of addresses and times are literals. Arithmetic may
/// overflow, and an entity that a policy names may not exist.
pub(crate) fn may_fail(expr: &Expr) -> bool {
    expr.subexpressions().any(|part| match part.expr_kind() {
        ExprKind::BinaryApp { op, .. } => {
            matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul)
        }
        ExprKind::UnaryApp { op, .. } => matches!(op, UnaryOp::Neg),
        ExprKind::ExtensionFunctionApp { fn_name, args } => match fn_name.to_string().as_str() {
            "offset" | "durationSince" | "toDate" => true,
            "datetime" | "decimal" | "duration" | "ip" => !args.iter().all(is_literal),
            _ => false,
        },
        ExprKind::GetAttr { expr, .. } => !leads_from_variable(expr),
        _ => false,
    })
}

fn leads_from_variable(expr: &Expr) -> bool {
    match expr.expr_kind() {
        ExprKind::Var(_) => true,
        ExprKind::GetAttr { expr, .. }
        | ExprKind::BinaryApp { op: BinaryOp::GetTag, arg1: expr, .. } => leads_from_variable(expr),
        _ => false,
    }
}

/// Whether partial evaluation cannot know its value before the call: it compares data of the call,
/// read by its path, with a value that cannot fail.
fn is_plain(expr: &Expr, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    // Known values may fail.
    let of_the_call = |expr: &Expr| Uses::of(expr).of_the_call();
    match expr.expr_kind() {
        ExprKind::Lit(_) => true,
        ExprKind::GetAttr { expr, .. } => {
            matches!(expr.expr_kind(), ExprKind::Var(_)) || is_plain(expr, depth)
        }
        ExprKind::HasAttr { expr, attr } => {
            matches!(expr.expr_kind(), ExprKind::Var(Var::Context))
                && ContextUsage::of(attr) != ContextUsage::ALL
        }
        ExprKind::Like { expr, .. } => is_plain(expr, depth),
        ExprKind::Set(items) => items.iter().all(is_literal),
        ExprKind::UnaryApp { op: UnaryOp::IsEmpty, arg } => {
            of_the_call(arg) && is_plain(arg, depth)
        }
        ExprKind::ExtensionFunctionApp { fn_name, args } => {
            let plain = || args.iter().all(|arg| is_plain(arg, depth));
            match (fn_name.to_string().as_str(), args.len()) {
                // With a literal these cannot fail: validation has parsed it.
                ("datetime" | "decimal" | "duration" | "ip", _) => args.iter().all(is_literal),
                ("offset" | "durationSince", _) | (_, 1) => args.iter().any(of_the_call) && plain(),
                _ => plain(),
            }
        }
        ExprKind::BinaryApp { op, arg1, arg2 } => {
            !matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::In)
                && is_plain(arg1, depth)
                && is_plain(arg2, depth)
        }
        _ => false,
    }
}

fn is_literal(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Lit(_))
}

/// The text of a string literal.
pub(crate) fn literal_text(expr: &Expr) -> Option<&str> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::String(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        let policy = format!("permit (principal, action, resource) when {{ {text} }};");
        Node::of(&policy.parse().unwrap()).unwrap()
    }

    #[test]
    fn fallible_expressions_are_recognized() {
        for (text, expected) in [
            ("context.n < 3", false),
            ("context.n + 1 < 3", true),
            (r#"context.args.getTag("/ip") like "10.*""#, false),
            (r#"context.ip.isInRange(ip("10.0.0.0/8"))"#, false),
            (r#"ip(context.args.getTag("/ip")).isLoopback()"#, true),
            (r#"context.now.toTime() < duration("6h")"#, false),
            (r#"context.now.toDate() < context.now"#, true),
            (r#"context.now.offset(duration("6h")) < context.now"#, true),
            (r#"Portcullis::Tool::"s/t" in Portcullis::Server::"s""#, false),
            (r#"Portcullis::Tool::"s/t".name == "t""#, true),
        ] {
            assert_eq!(may_fail(node(text).expr()), expected, "{text}");
        }
    }

    #[test]
    fn context_usage_is_recognized() {
        for (text, values, reads) in [
            ("principal.verified", ContextUsage::default(), ContextUsage::default()),
            ("context has input", ContextUsage::default(), ContextUsage::INPUT),
            ("context.input.a == 1", ContextUsage::INPUT, ContextUsage::INPUT),
            (r#"context.args.hasTag("/a")"#, ContextUsage::ARGS, ContextUsage::ARGS),
            (
                r#"context has source_ip && principal.verified || context.now < context.now"#,
                ContextUsage::SOURCE_IP | ContextUsage::NOW,
                ContextUsage::SOURCE_IP | ContextUsage::NOW,
            ),
        ] {
            let uses = node(text).uses;
            assert_eq!((uses.values, uses.reads), (values, reads), "{text}");
        }
    }

    #[test]
    fn unreached_expression_cannot_fail() {
        let of_nothing = |text: &str| node(text).outcomes(&mut |_| None);
        let open = Outcomes { satisfied: true, unsatisfied: true, failed: false };
        assert_eq!(of_nothing("context.a && context.b"), open);
        assert_eq!(of_nothing("context.a + 1 > 2"), Outcomes { failed: true, ..open });
        let closed = |text: &str, value: bool| {
            node(text)
                .outcomes(&mut |part| (!part.uses.of_the_call()).then(|| Outcomes::certain(value)))
        };
        let failing = "context.n + 1 > 2";
        for (text, value, expected) in [
            (format!("principal.verified && {failing}"), false, Outcomes::UNSATISFIED),
            (format!("principal.verified || {failing}"), true, Outcomes::SATISFIED),
            (format!("!(principal.verified && {failing})"), false, Outcomes::SATISFIED),
            (format!("if principal.verified then context.a else {failing}"), true, open),
            (
                format!("{failing} && principal.verified"),
                false,
                Outcomes { unsatisfied: true, failed: true, satisfied: false },
            ),
        ] {
            assert_eq!(closed(&text, value), expected, "{text}");
        }
    }
}
