//! What a policy's condition can come to when the circumstances of a call are not known.
//!
//! A condition is taken apart where `&&`, `||`, `!` and `if` join its parts, down to parts that do
//! not look at `context` (closed) and parts that do (open). Cedar evaluates the closed ones; what an
//! open one comes to is left open. What remains is logic, with Cedar's own order of evaluation: a
//! part that is not reached cannot fail.

use std::sync::Arc;

use cedar_policy::{
    Expression, Policy,
    pst::{self, BinaryOp, Clause, Expr, Literal, UnaryOp, Var},
};

use super::{ContextUsage, keys::TagKeys};

/// Levels that a condition is taken apart. What lies deeper is one part.
const DEPTH: usize = 64;

/// A condition.
pub(super) struct Condition {
    /// The whole of it. None where the scope is all that a policy has.
    pub(super) whole: Option<Expression>,
    /// What it looks at of the circumstances.
    pub(super) reads: ContextUsage,
    /// Whether it looks at anything beside them.
    pub(super) entities: bool,
    /// Whether what is known of it before the call may differ between two things of the same kind
    /// and claims on the same server.
    pub(super) individual: bool,
    /// The arguments that it names.
    pub(super) keys: TagKeys,
    tree: Node,
}

enum Node {
    Part(Part),
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    If(Box<[Node; 3]>),
}

/// A part that is not taken apart.
pub(super) enum Part {
    Closed(Expression),
    Open {
        /// Whether it may fail.
        fallible: bool,
        /// Whether Cedar's partial evaluation may know better.
        odd: bool,
    },
}

/// What something can come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) satisfied: bool,
    pub(super) unsatisfied: bool,
    pub(super) failed: bool,
    /// Whether an odd part had a say.
    pub(super) odd: bool,
}

impl Outcomes {
    pub(super) const NONE: Self =
        Self { satisfied: false, unsatisfied: false, failed: false, odd: false };
    pub(super) const FAILED: Self = Self { failed: true, ..Self::NONE };

    pub(super) fn certain(value: bool) -> Self {
        Self { satisfied: value, unsatisfied: !value, ..Self::NONE }
    }

    /// Goes on with what comes next: what it can come to, where this is what `on` says.
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
            odd: next.odd || self.odd,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            satisfied: self.satisfied || other.satisfied,
            unsatisfied: self.unsatisfied || other.unsatisfied,
            failed: self.failed || other.failed,
            odd: self.odd || other.odd,
        }
    }
}

impl Condition {
    pub(super) fn of(policy: &Policy) -> Self {
        let whole = policy.as_ref().non_scope_constraints().cloned().map(Expression::from);
        let Some(whole) = whole else {
            return Self {
                whole: None,
                reads: ContextUsage::default(),
                entities: false,
                individual: false,
                keys: TagKeys::default(),
                tree: Node::And(Vec::new()),
            };
        };
        let mut tree = Some(Vec::new());
        let mut uses = Uses::default();
        let mut individual = false;
        let mut keys = TagKeys::default();
        match policy.to_pst() {
            Ok(policy) => {
                for clause in policy.body().clauses() {
                    let (expr, negated) = match clause {
                        Clause::When(expr) => (expr, false),
                        Clause::Unless(expr) => (expr, true),
                    };
                    uses.add(&Uses::of(expr));
                    keys.add(expr);
                    let node = node(expr, DEPTH, &mut individual)
                        .map(|node| if negated { Node::Not(Box::new(node)) } else { node });
                    match (&mut tree, node) {
                        (Some(nodes), Some(node)) => nodes.push(node),
                        _ => tree = None,
                    }
                }
            }
            Err(_) => tree = None,
        }
        match tree {
            Some(nodes) => Self {
                whole: Some(whole),
                reads: uses.reads,
                entities: uses.entities,
                individual,
                keys,
                tree: Node::And(nodes),
            },
            // Nothing is known of it.
            None => Self {
                whole: Some(whole),
                reads: ContextUsage::ALL,
                entities: true,
                individual: true,
                keys: TagKeys::UNKNOWN,
                tree: Node::Part(Part::Open { fallible: true, odd: true }),
            },
        }
    }

    /// What it can come to, where `closed` says what a closed part comes to.
    pub(super) fn outcomes(&self, closed: &mut dyn FnMut(&Expression) -> Outcomes) -> Outcomes {
        self.tree.outcomes(closed)
    }
}

impl Node {
    fn outcomes(&self, closed: &mut dyn FnMut(&Expression) -> Outcomes) -> Outcomes {
        match self {
            Node::Part(Part::Closed(expression)) => closed(expression),
            Node::Part(Part::Open { fallible, odd }) => {
                Outcomes { satisfied: true, unsatisfied: true, failed: *fallible, odd: *odd }
            }
            Node::And(nodes) => nodes.iter().fold(Outcomes::certain(true), |outcomes, node| {
                outcomes.then(true, || node.outcomes(closed))
            }),
            Node::Or(nodes) => nodes.iter().fold(Outcomes::certain(false), |outcomes, node| {
                outcomes.then(false, || node.outcomes(closed))
            }),
            Node::Not(node) => {
                let outcomes = node.outcomes(closed);
                Outcomes {
                    satisfied: outcomes.unsatisfied,
                    unsatisfied: outcomes.satisfied,
                    ..outcomes
                }
            }
            Node::If(parts) => {
                let [test, then, otherwise] = &**parts;
                let test = test.outcomes(closed);
                let mut outcomes =
                    Outcomes { failed: test.failed, odd: test.odd, ..Outcomes::NONE };
                if test.satisfied {
                    outcomes = outcomes.or(then.outcomes(closed));
                }
                if test.unsatisfied {
                    outcomes = outcomes.or(otherwise.outcomes(closed));
                }
                outcomes
            }
        }
    }
}

/// Takes an expression of type Bool apart. None where that cannot be said in Cedar's own words.
fn node(expr: &Arc<Expr>, depth: usize, individual: &mut bool) -> Option<Node> {
    let uses = Uses::of(expr);
    if !uses.context {
        *individual |= uses.individual;
        return Some(Node::Part(Part::Closed(expression(expr)?)));
    }
    let below = depth.checked_sub(1);
    match (&**expr, below) {
        (Expr::BinaryOp { op: op @ (BinaryOp::And | BinaryOp::Or), .. }, Some(depth)) => {
            // A chain is one level, however long.
            let mut nodes = Vec::new();
            let mut left = expr;
            while let Expr::BinaryOp { op: found, left: first, right } = &**left
                && found == op
            {
                nodes.push(node(right, depth, individual)?);
                left = first;
            }
            nodes.push(node(left, depth, individual)?);
            nodes.reverse();
            Some(if *op == BinaryOp::And { Node::And(nodes) } else { Node::Or(nodes) })
        }
        (Expr::UnaryOp { op: UnaryOp::Not, expr }, Some(depth)) => {
            Some(Node::Not(Box::new(node(expr, depth, individual)?)))
        }
        (Expr::IfThenElse { cond, then_expr, else_expr }, Some(depth)) => {
            Some(Node::If(Box::new([
                node(cond, depth, individual)?,
                node(then_expr, depth, individual)?,
                node(else_expr, depth, individual)?,
            ])))
        }
        _ => {
            let odd = !is_plain(expr, DEPTH);
            *individual |= odd && uses.individual;
            Some(Node::Part(Part::Open { fallible: may_fail(expr), odd }))
        }
    }
}

/// The expression as Cedar evaluates it: the condition of a policy that has nothing else.
fn expression(expr: &Arc<Expr>) -> Option<Expression> {
    let template = pst::Template::new(
        "part",
        pst::Effect::Permit,
        pst::PrincipalConstraint::Any,
        pst::ActionConstraint::Any,
        pst::ResourceConstraint::Any,
    );
    let template = template.try_with_clauses([Clause::When(Arc::clone(expr))]).ok()?;
    let policy = pst::Policy::Static(template.try_into().ok()?);
    let policy = Policy::from_pst(policy).ok()?;
    policy.as_ref().non_scope_constraints().cloned().map(Expression::from)
}

/// What an expression looks at.
#[derive(Default)]
struct Uses {
    context: bool,
    reads: ContextUsage,
    entities: bool,
    individual: bool,
}

impl Uses {
    fn add(&mut self, other: &Self) {
        self.context |= other.context;
        self.reads |= other.reads;
        self.entities |= other.entities;
        self.individual |= other.individual;
    }

    fn of(expr: &Arc<Expr>) -> Self {
        let mut uses = Self::default();
        // A stack of our own: a chain of `&&` is as deep as it is long.
        let mut left: Vec<&Expr> = vec![expr];
        while let Some(expr) = left.pop() {
            match expr {
                Expr::GetAttr { expr: of, attr } => match (&**of, attr.as_str()) {
                    (Expr::Var(Var::Context), "args") => {
                        uses.reads(ContextUsage::ARGS | ContextUsage::SUMMARY)
                    }
                    (Expr::Var(Var::Context), attr) => uses.reads(ContextUsage::of(attr)),
                    (Expr::Var(Var::Resource), "claims") => uses.entities = true,
                    (args, _) if is_args(args) => {
                        uses.reads(ContextUsage::ARGS | ContextUsage::SUMMARY)
                    }
                    (of, _) => left.push(of),
                },
                // Whether there is typed input says the action, and not the call; who asks for it
                // means calls that are of its type.
                Expr::HasAttr { expr: of, attrs }
                    if matches!(**of, Expr::Var(Var::Context))
                        && attrs.head == "input"
                        && attrs.tail.is_empty() =>
                {
                    uses.reads |= ContextUsage::INPUT;
                }
                Expr::HasAttr { expr: of, attrs } => match (&**of, attrs.head.as_str()) {
                    (Expr::Var(Var::Context), "args") => {
                        uses.reads(ContextUsage::ARGS | ContextUsage::SUMMARY)
                    }
                    (Expr::Var(Var::Context), attr) => uses.reads(ContextUsage::of(attr)),
                    (args, _) if is_args(args) => {
                        uses.reads(ContextUsage::ARGS | ContextUsage::SUMMARY)
                    }
                    (of, _) => left.push(of),
                },
                Expr::BinaryOp { op: BinaryOp::GetTag | BinaryOp::HasTag, left: of, right }
                    if is_args(of) =>
                {
                    uses.reads(ContextUsage::ARGS);
                    left.push(right);
                }
                // The same for all that a server has of one kind.
                Expr::Is { expr: of, in_expr: None, .. } if is_resource(of) => uses.entities = true,
                Expr::BinaryOp { op: BinaryOp::In, left: of, right }
                    if is_resource(of) && is_server(right) =>
                {
                    uses.entities = true;
                }
                Expr::Var(Var::Context) => uses.reads(ContextUsage::ALL),
                Expr::Var(Var::Resource) => {
                    uses.entities = true;
                    uses.individual = true;
                }
                Expr::Var(Var::Principal | Var::Action) => uses.entities = true,
                Expr::Literal(Literal::EntityUID(uid)) => match uid.ty.0.id.as_str() {
                    // They are of the call, and a policy can name them itself.
                    "Args" => uses.reads(ContextUsage::ARGS | ContextUsage::SUMMARY),
                    "Paths" => uses.reads(ContextUsage::PATHS),
                    "Urls" => uses.reads(ContextUsage::URLS),
                    "Lists" => uses.reads(ContextUsage::LISTS),
                    // Of all that a server has, Cedar is shown the one that is asked about. So
                    // there is something to see of this one in its own question alone.
                    "Tool" | "Prompt" | "Resource" | "ResourceTemplate" => {
                        uses.entities = true;
                        uses.individual = true;
                    }
                    _ => uses.entities = true,
                },
                expr => {
                    // Forms that Cedar may gain may look at anything.
                    if !add_parts(expr, &mut left) {
                        uses.reads(ContextUsage::ALL);
                        uses.entities = true;
                        uses.individual = true;
                    }
                }
            }
        }
        uses
    }

    fn reads(&mut self, reads: ContextUsage) {
        self.context = true;
        self.reads |= reads;
    }
}

/// Adds the parts of an expression to those that are left to look at. False where its form is not
/// known.
pub(super) fn add_parts<'e>(expr: &'e Expr, left: &mut Vec<&'e Expr>) -> bool {
    match expr {
        Expr::Literal(_) | Expr::Var(_) => {}
        Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::UnaryOp { expr, .. }
        | Expr::Like { expr, .. } => left.push(expr),
        Expr::BinaryOp { left: one, right: other, .. } => left.extend([&**one, other]),
        Expr::Is { expr, in_expr, .. } => {
            left.push(expr);
            left.extend(in_expr.as_deref());
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            left.extend([&**cond, then_expr, else_expr]);
        }
        Expr::Set(items) => left.extend(items.iter().map(|item| &**item)),
        Expr::Record(fields) => left.extend(fields.values().map(|field| &**field)),
        _ => return false,
    }
    true
}

/// Whether it is `context.args`.
fn is_args(expr: &Expr) -> bool {
    matches!(expr, Expr::GetAttr { expr, attr }
        if attr == "args" && matches!(**expr, Expr::Var(Var::Context)))
}

fn is_resource(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Resource))
}

/// Whether it is servers, by name. Nothing but a server is one, whatever it is called.
fn is_server(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(Literal::EntityUID(uid)) => uid.ty.0.id.as_str() == "Server",
        Expr::Set(items) => items.iter().all(|item| is_server(item)),
        _ => false,
    }
}

/// Whether an open part may fail, in a policy that validates. No, where it is a comparison of what
/// every question has.
fn may_fail(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(_) => false,
        Expr::GetAttr { expr, attr } => {
            !matches!(**expr, Expr::Var(Var::Context)) || !ContextUsage::is_always_there(attr)
        }
        Expr::HasAttr { expr, attrs } => {
            !attrs.tail.is_empty() || !matches!(**expr, Expr::Var(Var::Context))
        }
        Expr::Like { expr, .. } => may_fail(expr),
        Expr::Set(items) => items.iter().any(|item| may_fail(item)),
        Expr::BinaryOp {
            op:
                BinaryOp::Eq
                | BinaryOp::NotEq
                | BinaryOp::Less
                | BinaryOp::LessEq
                | BinaryOp::Greater
                | BinaryOp::GreaterEq
                | BinaryOp::HasTag
                | BinaryOp::Contains
                | BinaryOp::ContainsAll
                | BinaryOp::ContainsAny,
            left,
            right,
        } => may_fail(left) || may_fail(right),
        _ => true,
    }
}

/// Whether an open part is of a form of which Cedar's partial evaluation knows nothing either: what
/// a call brings, taken by its path, held against what cannot fail.
fn is_plain(expr: &Expr, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    match expr {
        Expr::Literal(_) => true,
        Expr::GetAttr { expr, .. } => matches!(**expr, Expr::Var(_)) || is_plain(expr, depth),
        Expr::HasAttr { expr, attrs } => {
            matches!(**expr, Expr::Var(Var::Context))
                && attrs.tail.is_empty()
                && ContextUsage::of(&attrs.head) != ContextUsage::ALL
        }
        Expr::Like { expr, .. } => is_plain(expr, depth),
        Expr::Set(items) => items.iter().all(|item| matches!(**item, Expr::Literal(_))),
        // Of a literal these cannot fail: validation has read it.
        Expr::UnaryOp {
            op: UnaryOp::Datetime | UnaryOp::Decimal | UnaryOp::Duration | UnaryOp::Ip,
            expr,
        } => matches!(**expr, Expr::Literal(_)),
        Expr::UnaryOp { op: UnaryOp::Neg | UnaryOp::Not, .. } => false,
        // These may fail of what is known.
        Expr::UnaryOp { expr, .. } => Uses::of(expr).context && is_plain(expr, depth),
        Expr::BinaryOp { op, left, right } => match op {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::In => false,
            BinaryOp::Offset | BinaryOp::DurationSince => {
                (Uses::of(left).context || Uses::of(right).context)
                    && is_plain(left, depth)
                    && is_plain(right, depth)
            }
            _ => is_plain(left, depth) && is_plain(right, depth),
        },
        _ => false,
    }
}
