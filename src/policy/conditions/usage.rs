//! The data that conditions read. Circumstances that no condition reads are left out: building a
//! datetime or an address costs more than a decision.

use std::ops::{BitOr, BitOrAssign};

use cedar_policy_core::ast::{BinaryOp, EntityType, Expr, ExprKind, Literal, Var};

use super::parts;

/// Members of `context`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ContextUsage(u16);

impl ContextUsage {
    pub(crate) const METHOD: Self = Self(1);
    pub(crate) const TRANSPORT: Self = Self(1 << 1);
    pub(crate) const REVISION: Self = Self(1 << 2);
    pub(crate) const NOW: Self = Self(1 << 3);
    pub(crate) const SOURCE_IP: Self = Self(1 << 4);
    pub(crate) const SESSION_CALLS: Self = Self(1 << 5);
    /// The arguments, by their pointers.
    pub(crate) const ARGS: Self = Self(1 << 6);
    /// `keys`, `leaves` and `size` of the arguments.
    pub(crate) const SUMMARY: Self = Self(1 << 7);
    /// The arguments, read as paths.
    pub(crate) const PATHS: Self = Self(1 << 8);
    /// The arguments, read as URLs.
    pub(crate) const URLS: Self = Self(1 << 9);
    pub(crate) const LABELS: Self = Self(1 << 10);
    /// The arguments, by the type of their tool.
    pub(crate) const INPUT: Self = Self(1 << 11);
    /// The lengths of arrays among the arguments.
    pub(crate) const LISTS: Self = Self(1 << 12);
    /// The arguments in any form.
    pub(crate) const ARGUMENTS: Self = Self(
        Self::ARGS.0
            | Self::SUMMARY.0
            | Self::PATHS.0
            | Self::URLS.0
            | Self::INPUT.0
            | Self::LISTS.0,
    );
    pub(crate) const ALL: Self = Self(u16::MAX);

    /// The parts of a member, by its name. All parts, if the name is unknown.
    pub(crate) fn of(attribute: &str) -> Self {
        match attribute {
            "method" => Self::METHOD,
            "transport" => Self::TRANSPORT,
            "revision" => Self::REVISION,
            "now" | "weekday" => Self::NOW,
            "source_ip" => Self::SOURCE_IP,
            "session_calls" => Self::SESSION_CALLS,
            "args" => Self::ARGS | Self::SUMMARY,
            "paths" => Self::PATHS,
            "urls" => Self::URLS,
            "lists" => Self::LISTS,
            "labels" => Self::LABELS,
            "input" => Self::INPUT,
            _ => Self::ALL,
        }
    }

    /// Whether any of these is in the set.
    pub(crate) fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    /// The set without others.
    pub(crate) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl BitOr for ContextUsage {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ContextUsage {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The data that an expression reads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uses {
    /// Members of `context` on whose values its value depends.
    pub(crate) values: ContextUsage,
    /// Members of `context` that must be present: `values`, and `input` if the expression only
    /// checks its presence, which depends on the action and not on the call.
    pub(crate) reads: ContextUsage,
    /// Whether it reads a tool's claims.
    pub(crate) claims: bool,
    /// Whether it reads anything except `context`.
    pub(crate) entities: bool,
    /// Whether its value may differ between two items of the same kind and claims on the same
    /// server.
    pub(crate) individual: bool,
}

impl Uses {
    const ALL: Self = Self {
        values: ContextUsage::ALL,
        reads: ContextUsage::ALL,
        claims: true,
        entities: true,
        individual: true,
    };

    pub(crate) fn of(expr: &Expr) -> Self {
        let mut uses = Self::default();
        // An explicit stack: a chain of `&&` is as deep as it is long.
        let mut pending = vec![expr];
        while let Some(expr) = pending.pop() {
            match expr.expr_kind() {
                // Calls that do not fit the action's type are refused, so the input counts as read.
                ExprKind::HasAttr { expr: of, attr } if attr == "input" && is_context(of) => {
                    uses.reads |= ContextUsage::INPUT;
                }
                ExprKind::GetAttr { expr: of, attr } | ExprKind::HasAttr { expr: of, attr } => {
                    uses.member(of, attr, &mut pending);
                }
                ExprKind::ExtHasAttr { expr: of, attrs } => {
                    uses.member(of, &attrs.head, &mut pending);
                }
                ExprKind::BinaryApp { op: BinaryOp::GetTag | BinaryOp::HasTag, arg1, arg2 }
                    if is_args(arg1) =>
                {
                    uses.context(ContextUsage::ARGS);
                    pending.push(arg2);
                }
                // Equal for all items of one kind on a server.
                ExprKind::Is { expr: of, .. } if is_resource(of) => uses.entities = true,
                ExprKind::BinaryApp { op: BinaryOp::In, arg1, arg2 }
                    if is_resource(arg1) && is_server(arg2) =>
                {
                    uses.entities = true;
                }
                ExprKind::Var(Var::Context) => uses.context(ContextUsage::ALL),
                ExprKind::Var(Var::Resource) => {
                    uses.entities = true;
                    uses.individual = true;
                }
                ExprKind::Var(Var::Principal | Var::Action) => uses.entities = true,
                ExprKind::Lit(Literal::EntityUID(uid)) => uses.entity(basename(uid.entity_type())),
                _ => match parts(expr) {
                    Some(parts) => pending.extend(parts),
                    // Forms that future versions of Cedar may add can read anything.
                    None => uses = Self::ALL,
                },
            }
        }
        uses
    }

    /// Whether its value depends on the call.
    pub(crate) fn of_the_call(&self) -> bool {
        self.values != ContextUsage::default()
    }

    fn context(&mut self, members: ContextUsage) {
        self.values |= members;
        self.reads |= members;
    }

    fn member<'e>(&mut self, of: &'e Expr, attr: &str, pending: &mut Vec<&'e Expr>) {
        match of.expr_kind() {
            ExprKind::Var(Var::Context) => self.context(ContextUsage::of(attr)),
            ExprKind::Var(Var::Resource) if attr == "claims" => {
                self.claims = true;
                self.entities = true;
            }
            _ => pending.push(of),
        }
    }

    /// Adds an entity literal, by its type.
    fn entity(&mut self, kind: &str) {
        match kind {
            // They belong to the call, and a policy can name them directly.
            "Args" => self.context(ContextUsage::ARGS | ContextUsage::SUMMARY),
            "Paths" => self.context(ContextUsage::PATHS),
            "Urls" => self.context(ContextUsage::URLS),
            "Lists" => self.context(ContextUsage::LISTS),
            // Of all items of a server, Cedar only gets the resource of the request. So an item
            // that a policy names has attributes only in its own request.
            "Tool" | "Prompt" | "Resource" | "ResourceTemplate" => {
                self.claims |= kind == "Tool";
                self.entities = true;
                self.individual = true;
            }
            _ => self.entities = true,
        }
    }
}

impl BitOr for Uses {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            values: self.values | other.values,
            reads: self.reads | other.reads,
            claims: self.claims || other.claims,
            entities: self.entities || other.entities,
            individual: self.individual || other.individual,
        }
    }
}

pub(super) fn is_context(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Var(Var::Context))
}

fn is_resource(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::Var(Var::Resource))
}

/// Whether it is `context.args`.
fn is_args(expr: &Expr) -> bool {
    matches!(expr.expr_kind(), ExprKind::GetAttr { expr, attr } if attr == "args" && is_context(expr))
}

/// Whether it is one server or a set of them, as literals. Only servers have this type.
fn is_server(expr: &Expr) -> bool {
    match expr.expr_kind() {
        ExprKind::Lit(Literal::EntityUID(uid)) => basename(uid.entity_type()) == "Server",
        ExprKind::Set(items) => items.iter().all(is_server),
        _ => false,
    }
}

fn basename(kind: &EntityType) -> &str {
    kind.name().basename_as_ref().as_ref()
}
