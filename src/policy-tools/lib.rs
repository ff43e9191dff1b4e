//! The policy workbench: what people do with policies beside enforcing them.
//!
//! `cases` runs test files, `replay` decides recorded calls again, `compare` shows what two sets of
//! policies decide differently, `learn` proposes policies from records, `format` formats them and
//! `templates` begins them. The engine that decides is [`portcullis_policy`].

mod compare;
mod format;
mod learn;
mod replay;
mod templates;
mod testing;

pub use compare::{Access, Comparison, Difference};
pub use format::{Formatted, format, format_files};
pub use learn::{Learned, Learner};
pub use replay::{Aside, Change, Recorded, Replay, Replayed};
pub use templates::{Filling, Made, Team, Template, ToolName, make};
pub use testing::{
    Coverage, Ran, Report, Who, is_case_file, read as read_cases, run as run_cases, span,
};
