//! Policy: Cedar decides what passes. Deny by default: what no policy permits is refused, and so
//! is everything on which a policy fails.
//!
//! Invariants:
//! - A decision is made on one whole set of policies, and says by its revision on which.
//! - A set that does not validate is never used; the one before stays.
//! - A policy in shadow decides nothing, and shows or hides nothing in a list.
//! - What [`Engine::could_allow`] denies, [`Engine::decide`] never allows.
//! - This room knows neither the protocol's framing nor a clock: both are handed in.

mod analysis;
mod args;
mod bundle;
mod cache;
mod call;
mod cases;
mod compare;
mod diagnostics;
mod engine;
mod entities;
mod format;
mod ground;
mod index;
mod inspect;
mod learn;
mod load;
mod located;
mod replay;
mod request;
mod source;
mod start;
mod target;
mod templates;
#[cfg(test)]
mod tests;
mod typed;
mod watch;

pub use analysis::{Known, KnownTool};
pub use args::are_showable;
pub(crate) use bundle::sign;
pub use bundle::{Bundle, MANIFEST, Origin, SignFault, Signed};
pub use cases::{Coverage, Ran, Report, run as run_cases};
pub(crate) use cases::{Who, is_case_file, read as read_cases, span};
pub use compare::{Access, Comparison, Difference};
pub(crate) use diagnostics::File;
pub use diagnostics::{Diagnostics, Finding};
pub use engine::{Engine, Failure, Outcome, Reload, Shadow, Status, View};
pub use format::{Formatted, format, format_files};
pub use inspect::{
    Condition, Explanation, Inspector, Judgement, Near, Seen, Side, Standing, Unknown, Verdict,
};
pub use learn::{Learned, Learner};
pub use load::{Revision, schema};
pub use replay::{Aside, Change, Recorded, Replay, Replayed};
pub use request::{
    Action, Attested, Circumstances, Claimant, Claims, HandedAs, Holder, Program, Request,
    Resource, Stated, Subject,
};
pub use source::Source;
pub use start::{Handing, Part, Start};
pub use target::{NoTarget, Target, client_action, is_housekeeping, server_action, worded_action};
pub use templates::{Filling, Made, Team, Template, ToolName, make};
pub use watch::{Watcher, watch};

/// The Cedar schema that every policy is validated against.
pub const SCHEMA: &str = include_str!("schema.cedarschema");
