//! Development tools for authors of plugins: `portcullis plugin`. The proxy never runs this code.
//!
//! # Invariants
//! - Plugins run in the real host with the limits of the chain; only their environment is replaced.
//! - A project made by `new` needs only the tools of its language on this machine.

mod call;
mod cases;
mod from_audit;
mod inspect;
mod project;

pub use call::{Answered, PluginCall, ReportedFinding, Verdict, ask};
pub use cases::{CaseReport, Hook, Report, run as run_cases};
pub use from_audit::from_audit;
pub use inspect::{Cost, Inspection, Slope, inspect};
pub use project::{Built, Failed, Language, SourceWatcher, build, new};

/// Error for a person who can correct it.
pub type UserError = Box<dyn miette::Diagnostic + Send + Sync>;
