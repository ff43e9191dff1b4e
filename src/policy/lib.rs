//! Policy decisions with Cedar. The default is deny: a request is refused if no policy permits it
//! or if a policy fails on it.
//!
//! # Invariants
//! - A decision uses one complete policy set and names its revision.
//! - A set that does not validate is never used; the previous one stays.
//! - A policy in shadow mode does not affect decisions or lists.
//! - [`Engine::decide`] never allows what [`Engine::could_allow`] denies.
//! - The crate has no knowledge of the protocol's framing or of the time: callers pass both in.

mod about;
mod analysis;
mod bundle;
mod cache;
mod conditions;
mod config;
mod context;
mod diagnostics;
mod engine;
mod entities;
mod files;
mod index;
mod inspect;
mod launch;
mod load;
mod normalize;
mod request;
mod request_error;
mod schema_context;
mod source;
mod target;
#[cfg(test)]
mod tests;
mod typed;
mod watch;

pub use analysis::{Inventory, KnownTool};
pub use bundle::{Bundle, MANIFEST, Origin, SignFault, Signed, sign};
pub use config::{Policy, Tool};
pub use diagnostics::{Diagnostics, File, Finding};
pub use engine::{Engine, Failure, Outcome, Reload, Shadow, Status, View};
pub use files::read as read_files;
pub use inspect::{
    Candidate, Condition, Explained, Explanation, Inspector, PolicyResult, ReadValue, Side,
    Unknown, Verdict,
};
pub use launch::{LaunchSecret, Part, RefusedDeviations, Start};
pub use load::{Revision, schema, span};
pub use request::{
    Action, Circumstances, DeliveredAs, Holder, Program, Request, Resource, Stated, Subject,
};
pub use source::Source;
pub use target::{NoTarget, Target, client_action, is_housekeeping, server_action, worded_action};
pub use typed::is_tools_file;
pub use watch::{Watcher, watch};

/// The Cedar schema that every policy is validated against.
pub const SCHEMA: &str = include_str!("schema.cedarschema");
