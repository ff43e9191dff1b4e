//! The condition of a policy, for people: the part that decided, and the values that it read.

use cedar_policy::Expression;
use cedar_policy_core::ast::{BinaryOp, Expr, ExprKind};

use super::HiddenData;
use crate::conditions::{Kind, Node, Outcomes, Uses, literal_text, parts};

/// Evaluates an expression: `None` if it fails.
pub(super) type Evaluate<'a> = dyn FnMut(&Expression) -> Option<bool> + 'a;

impl Outcomes {
    /// The result of two requests of which either counts: it fails if one fails, and otherwise
    /// holds if one holds.
    pub(super) fn either(self, other: Self) -> Self {
        let can = |one: Self, other: Self| one.satisfied && (other.satisfied || other.unsatisfied);
        Self {
            satisfied: can(self, other) || can(other, self),
            unsatisfied: self.unsatisfied && other.unsatisfied,
            failed: self.failed || other.failed,
        }
    }
}

impl Node {
    /// A normal form: equal for equal expressions, however they are written.
    pub(super) fn normal(&self) -> String {
        self.expr().to_string()
    }

    /// Offset in its file, and the text as written.
    pub(super) fn written(&self) -> (Option<usize>, String) {
        let location = self.expr().source_loc();
        let snippet = location.and_then(|at| at.snippet()).map(|text| text.trim().to_owned());
        (location.map(|at| at.start()), snippet.unwrap_or_else(|| self.normal()))
    }

    /// Its possible results if parts of the request are unknown.
    pub(super) fn seen(&self, hidden: HiddenData, evaluate: &mut Evaluate<'_>) -> Outcomes {
        self.outcomes(&mut |part| {
            (!hidden.from(part.uses)).then(|| match evaluate(&part.expression) {
                Some(value) => Outcomes::certain(value),
                None => Outcomes::FAILED,
            })
        })
    }

    /// The first conjunct that kept the condition from holding, in Cedar's order of evaluation.
    pub(super) fn to_blame(
        &self,
        hidden: HiddenData,
        evaluate: &mut Evaluate<'_>,
    ) -> Option<&Self> {
        let Kind::And(nodes) = &self.kind else {
            let outcomes = self.seen(hidden, evaluate);
            return (outcomes.unsatisfied || outcomes.failed).then_some(self);
        };
        let mut open = None;
        for node in nodes {
            let outcomes = node.seen(hidden, evaluate);
            if !outcomes.satisfied {
                return node.to_blame(hidden, evaluate);
            }
            if outcomes.is_open() && open.is_none() {
                open = Some(node);
            }
        }
        open.and_then(|node| node.to_blame(hidden, evaluate))
    }

    /// The values that this part reads: each with its text and its expression.
    pub(super) fn values(&self) -> Vec<Value> {
        let mut found: Vec<Value> = Vec::new();
        let mut pending = vec![self.expr()];
        while let Some(expr) = pending.pop() {
            match value(expr) {
                Some(value) => {
                    if !found.iter().any(|other| other.text == value.text) {
                        found.push(value);
                    }
                }
                None => {
                    pending.extend(parts(expr).unwrap_or_default().into_iter().rev());
                }
            }
        }
        found
    }
}

/// A value that a condition reads.
pub(super) struct Value {
    pub(super) text: String,
    pub(super) expression: Expression,
    pub(super) uses: Uses,
    /// The JSON pointer of the argument, if the value is one.
    pub(super) pointer: Option<String>,
}

/// The value of an expression, if that is a path or checks the presence of one.
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
        ExprKind::BinaryApp { op: BinaryOp::GetTag, arg2, .. } => {
            literal_text(arg2).map(str::to_owned)
        }
        _ => None,
    };
    Some(Value {
        text: found.to_string(),
        uses: Uses::of(&found),
        pointer,
        expression: found.into(),
    })
}

/// Whether it is a path from a variable to a value.
fn is_path(expr: &Expr) -> bool {
    let mut expr = expr;
    loop {
        expr = match expr.expr_kind() {
            ExprKind::Var(_) => return true,
            ExprKind::GetAttr { expr, .. } => expr,
            ExprKind::BinaryApp { op: BinaryOp::GetTag, arg1, arg2 }
                if literal_text(arg2).is_some() =>
            {
                arg1
            }
            _ => return false,
        };
    }
}
