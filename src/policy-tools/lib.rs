//! The policy workbench: tools for developing policies, without enforcement.
//!
//! `testing` runs case files, `replay` decides recorded calls again, `changes` shows the
//! policies that differ between two sets and `compare` their effect, `learn` proposes policies from
//! records, `format` formats them and `templates` starts them. The engine that decides is
//! [`portcullis_policy`].
//!
//! # Invariants
//! - Facts that are missing in a record are reported as unknown, never guessed.

mod changes;
mod compare;
mod format;
mod learn;
mod replay;
mod templates;
mod testing;

pub use changes::{ChangeKind, Place, PolicyChange, changes};
pub use compare::{Access, Comparison, Difference};
pub use format::{Formatted, format, format_files};
pub use learn::{Learner, Proposal, START_EVENTS};
pub use replay::{Change, Recorded, Replay, Replayed, SkipReason};
pub use templates::{
    Days, Filling, FolderPath, PolicyPrincipal, RateText, Rendered, Template, ToolName, UserName,
    connect, make,
};
pub use testing::{
    CasePrincipal, CaseReport, Coverage, NOON, Report, is_case_file, read as read_cases,
    run as run_cases, span,
};
