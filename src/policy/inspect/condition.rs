//! A policy's condition, taken apart where Cedar's evaluator would branch, so that it can be said
//! which part decided, and what can be said where not everything is known.

use std::ops::{BitOr, BitOrAssign};

use cedar_policy::Expression;
use cedar_policy_core::ast::{BinaryOp, EntityUID, Expr, ExprKind, Literal, UnaryOp, Var};

/// Levels that are taken apart; what is below stays whole.
const DEPTH: usize = 64;

/// What an expression looks at of a question beside who asks what of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ReadSet(u8);

impl ReadSet {
    pub(crate) const NOTHING: Self = Self(0);
    /// The arguments, however they are read.
    pub(crate) const ARGUMENTS: Self = Self(1);
    /// The other circumstances.
    pub(crate) const CIRCUMSTANCES: Self = Self(1 << 1);
    /// What is claimed of a tool.
    pub(crate) const CLAIMS: Self = Self(1 << 2);
    /// Of the other circumstances: how the client reached the proxy.
    pub(crate) const TRANSPORT: Self = Self(1 << 3);
    /// Its address.
    pub(crate) const SOURCE_IP: Self = Self(1 << 4);
    /// The calls of its session.
    pub(crate) const SESSION_CALLS: Self = Self(1 << 5);
    const ALL_OF_CONTEXT: Self = Self(
        Self::ARGUMENTS.0
            | Self::CIRCUMSTANCES.0
            | Self::TRANSPORT.0
            | Self::SOURCE_IP.0
            | Self::SESSION_CALLS.0,
    );

    pub(crate) fn at(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    fn of(expr: &Expr) -> Self {
        let mut looks = Self::NOTHING;
        // A stack of our own: a chain of `&&` is as deep as it is long.
        let mut left = vec![expr];
        while let Some(expr) = left.pop() {
            let (of, attr) = match expr.expr_kind() {
                // That says the action, and not the call.
                ExprKind::HasAttr { expr, attr } if attr == "input" && is_context(expr) => continue,
                ExprKind::GetAttr { expr, attr } | ExprKind::HasAttr { expr, attr } => (expr, attr),
                ExprKind::Var(Var::Context) => {
                    looks |= Self::ALL_OF_CONTEXT;
                    continue;
                }
                // They are of the call, and a policy can name them itself.
                ExprKind::Lit(Literal::EntityUID(uid)) if is_of_the_call(uid) => {
                    looks |= Self::ARGUMENTS;
                    continue;
                }
                _ => {
                    left.extend(children(expr));
                    continue;
                }
            };
            match (of.expr_kind(), attr.as_str()) {
                (ExprKind::Var(Var::Context), "args" | "paths" | "urls" | "lists" | "input") => {
                    looks |= Self::ARGUMENTS
                }
                (ExprKind::Var(Var::Context), attr) => {
                    looks |= Self::CIRCUMSTANCES;
                    match attr {
                        "transport" => looks |= Self::TRANSPORT,
                        "source_ip" => looks |= Self::SOURCE_IP,
                        "session_calls" => looks |= Self::SESSION_CALLS,
                        _ => {}
                    }
                }
                (ExprKind::Var(Var::Resource), "claims") => looks |= Self::CLAIMS,
                _ => left.push(of),
            }
        }
        looks
    }
}

impl BitOr for ReadSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ReadSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

fn is_of_the_call(uid: &EntityUID) -> bool {
    let kind: &str = uid.entity_type().name().basename_as_ref().as_ref();
    ["Args", "Paths", "Urls", "Lists"].contains(&kind)
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Var(Var::Context))
}

/// The direct parts of an expression.
fn children(expr: &Expr) -> Vec<&Expr> {
    match expr.expr_kind() {
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
        _ => Vec::new(),
    }
}

/// A condition, or a part of one that is a Bool.
pub(crate) struct Node {
    /// Where it stands in its file: offset and length.
    pub(crate) place: Option<(usize, usize)>,
    /// As it is written.
    pub(crate) text: String,
    pub(crate) looks: ReadSet,
    kind: Kind,
    expr: Expr,
}

enum Kind {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    If(Box<[Node; 3]>),
    /// Whether it may fail, in a policy that validates.
    Leaf {
        expression: Box<Expression>,
        fallible: bool,
    },
}

/// What a condition can come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) holds: bool,
    pub(crate) does_not: bool,
    pub(crate) fails: bool,
}

impl Outcomes {
    const fn certain(value: bool) -> Self {
        Self { holds: value, does_not: !value, fails: false }
    }

    pub(crate) const HOLDS: Self = Self::certain(true);
    pub(crate) const DOES_NOT: Self = Self::certain(false);
    const FAILS: Self = Self { holds: false, does_not: false, fails: true };

    /// Whether more than one is possible.
    pub(crate) fn is_open(self) -> bool {
        u8::from(self.holds) + u8::from(self.does_not) + u8::from(self.fails) > 1
    }

    fn or(self, other: Self) -> Self {
        Self {
            holds: self.holds || other.holds,
            does_not: self.does_not || other.does_not,
            fails: self.fails || other.fails,
        }
    }

    /// Where two questions are put and either counts: it fails where it fails of one, and else holds
    /// where it holds of one.
    pub(crate) fn either(self, other: Self) -> Self {
        let can = |one: Self, other: Self| one.holds && (other.holds || other.does_not);
        Self {
            holds: can(self, other) || can(other, self),
            does_not: self.does_not && other.does_not,
            fails: self.fails || other.fails,
        }
    }

    fn negated(self) -> Self {
        Self { holds: self.does_not, does_not: self.holds, fails: self.fails }
    }
}

/// Evaluates an expression: `None` where it fails.
pub(crate) type Evaluate<'a> = dyn FnMut(&Expression) -> Option<bool> + 'a;

impl Node {
    pub(crate) fn of(expr: &Expr) -> Self {
        Self::within(expr, DEPTH)
    }

    fn within(expr: &Expr, depth: usize) -> Self {
        let below = depth.saturating_sub(1);
        let kind = match expr.expr_kind() {
            _ if depth == 0 => Kind::leaf(expr),
            ExprKind::And { .. } => Kind::And(chain(expr, true, below)),
            ExprKind::Or { .. } => Kind::Or(chain(expr, false, below)),
            ExprKind::UnaryApp { op: UnaryOp::Not, arg } => {
                Kind::Not(Box::new(Self::within(arg, below)))
            }
            ExprKind::If { test_expr, then_expr, else_expr } => {
                let part = |expr| Self::within(expr, below);
                Kind::If(Box::new([part(test_expr), part(then_expr), part(else_expr)]))
            }
            _ => Kind::leaf(expr),
        };
        let (place, text) = written(expr);
        Self { place, text, looks: ReadSet::of(expr), kind, expr: expr.clone() }
    }

    /// The same text for the same expression, however it is written.
    pub(crate) fn normal(&self) -> String {
        self.expr.to_string()
    }

    /// What it can come to where `unknown` is not known.
    pub(crate) fn outcomes(&self, unknown: ReadSet, evaluate: &mut Evaluate<'_>) -> Outcomes {
        let mut all = |nodes: &[Self], until: bool| {
            let mut outcomes = Outcomes::certain(!until);
            for node in nodes {
                let goes_on = if until { outcomes.does_not } else { outcomes.holds };
                if !goes_on {
                    break;
                }
                let next = node.outcomes(unknown, evaluate);
                outcomes = if until {
                    Outcomes {
                        holds: outcomes.holds || next.holds,
                        does_not: next.does_not,
                        fails: outcomes.fails || next.fails,
                    }
                } else {
                    Outcomes {
                        holds: next.holds,
                        does_not: outcomes.does_not || next.does_not,
                        fails: outcomes.fails || next.fails,
                    }
                };
            }
            outcomes
        };
        match &self.kind {
            Kind::And(nodes) => all(nodes, false),
            Kind::Or(nodes) => all(nodes, true),
            Kind::Not(node) => node.outcomes(unknown, evaluate).negated(),
            Kind::If(parts) => {
                let [test, then, otherwise] = &**parts;
                let test = test.outcomes(unknown, evaluate);
                let mut outcomes = Outcomes { fails: test.fails, ..Outcomes::default() };
                if test.holds {
                    outcomes = outcomes.or(then.outcomes(unknown, evaluate));
                }
                if test.does_not {
                    outcomes = outcomes.or(otherwise.outcomes(unknown, evaluate));
                }
                outcomes
            }
            Kind::Leaf { fallible, .. } if self.looks.at(unknown) => {
                Outcomes { holds: true, does_not: true, fails: *fallible }
            }
            Kind::Leaf { expression, .. } => match evaluate(expression) {
                Some(value) => Outcomes::certain(value),
                None => Outcomes::FAILS,
            },
        }
    }

    /// The first of the conjuncts that kept the condition from holding, as Cedar evaluates it.
    pub(crate) fn to_blame(&self, unknown: ReadSet, evaluate: &mut Evaluate<'_>) -> Option<&Self> {
        let Kind::And(nodes) = &self.kind else {
            let outcomes = self.outcomes(unknown, evaluate);
            return (outcomes.does_not || outcomes.fails).then_some(self);
        };
        let mut open = None;
        for node in nodes {
            let outcomes = node.outcomes(unknown, evaluate);
            if !outcomes.holds {
                return node.to_blame(unknown, evaluate);
            }
            if outcomes.is_open() && open.is_none() {
                open = Some(node);
            }
        }
        open.and_then(|node| node.to_blame(unknown, evaluate))
    }

    /// What this part looks at: each value by its text, and the expression for it.
    pub(crate) fn values(&self) -> Vec<Value> {
        let mut found: Vec<Value> = Vec::new();
        let mut left = vec![&self.expr];
        while let Some(expr) = left.pop() {
            match value(expr) {
                Some(value) => {
                    if !found.iter().any(|other| other.text == value.text) {
                        found.push(value);
                    }
                }
                None => {
                    let mut parts = children(expr);
                    parts.reverse();
                    left.extend(parts);
                }
            }
        }
        found
    }
}

/// Something that a condition looks at.
pub(crate) struct Value {
    pub(crate) text: String,
    pub(crate) expression: Expression,
    pub(crate) looks: ReadSet,
    /// The JSON pointer of the argument that it is.
    pub(crate) pointer: Option<String>,
}

/// The value that an expression stands for, where it is a path to one, or asks whether there is one.
fn value(expr: &Expr) -> Option<Value> {
    let found = match expr.expr_kind() {
        ExprKind::HasAttr { expr, attr } => Expr::get_attr((**expr).clone(), attr.clone()),
        ExprKind::BinaryApp { op: BinaryOp::HasTag, arg1, arg2 } => {
            Expr::get_tag((**arg1).clone(), (**arg2).clone())
        }
        ExprKind::GetAttr { .. }
        | ExprKind::BinaryApp { op: BinaryOp::GetTag, .. }
        | ExprKind::Var(_) => expr.clone(),
        _ => return None,
    };
    if !is_path(&found) {
        return None;
    }
    let pointer = match found.expr_kind() {
        ExprKind::BinaryApp { op: BinaryOp::GetTag, arg2, .. } => literal(arg2),
        _ => None,
    };
    let looks = ReadSet::of(&found);
    Some(Value { text: found.to_string(), looks, pointer, expression: found.into() })
}

/// Whether it leads from a variable to a value.
fn is_path(expr: &Expr) -> bool {
    let mut expr = expr;
    loop {
        expr = match expr.expr_kind() {
            ExprKind::Var(_) => return true,
            ExprKind::GetAttr { expr, .. } => expr,
            ExprKind::BinaryApp { op: BinaryOp::GetTag, arg1, arg2 } if literal(arg2).is_some() => {
                arg1
            }
            _ => return false,
        };
    }
}

fn literal(expr: &Expr) -> Option<String> {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::String(text)) => Some(text.to_string()),
        _ => None,
    }
}

impl Kind {
    fn leaf(expr: &Expr) -> Self {
        let expression = Box::new(Expression::from(expr.clone()));
        Self::Leaf { expression, fallible: may_fail(expr) }
    }
}

/// The links of a chain of `&&` or `||`, however long.
fn chain(expr: &Expr, and: bool, depth: usize) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut left = vec![expr];
    while let Some(expr) = left.pop() {
        match (expr.expr_kind(), and) {
            (ExprKind::And { left: first, right }, true)
            | (ExprKind::Or { left: first, right }, false) => left.extend([&**right, first]),
            _ => nodes.push(Node::within(expr, depth)),
        }
    }
    nodes
}

/// Whether it may fail, in a policy that validates strictly: attributes and tags are then asked for
/// before they are read, and texts of addresses and times are literals. Arithmetic may overflow.
fn may_fail(expr: &Expr) -> bool {
    let mut left = vec![expr];
    while let Some(expr) = left.pop() {
        let fallible = match expr.expr_kind() {
            ExprKind::BinaryApp { op, .. } => {
                matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul)
            }
            ExprKind::UnaryApp { op, .. } => matches!(op, UnaryOp::Neg),
            ExprKind::ExtensionFunctionApp { fn_name, .. } => {
                matches!(fn_name.to_string().as_str(), "offset" | "durationSince" | "toDate")
            }
            _ => false,
        };
        if fallible {
            return true;
        }
        left.extend(children(expr));
    }
    false
}

/// Where an expression is written, and how.
fn written(expr: &Expr) -> (Option<(usize, usize)>, String) {
    let location = expr.source_loc();
    let place = location.map(|at| (at.start(), at.end().saturating_sub(at.start())));
    let snippet = location.and_then(|at| at.snippet()).map(|text| text.trim().to_owned());
    (place, snippet.unwrap_or_else(|| expr.to_string()))
}
