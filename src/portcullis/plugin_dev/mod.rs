//! What the authors of plugins work with: `portcullis plugin`. Nothing here is in a message's way.
//!
//! # Invariants
//! - A plugin is asked in the real host, with the bounds that it has in the chain: only what is
//!   around it stands in.
//! - A project that `new` makes needs nothing of this machine but its language's tools.

mod call;
mod cases;
mod look;
mod project;
mod recorded;

pub use call::{Answered, Given, Seen, Verdict, ask};
pub use cases::{Hook, Ran, Report, run as run_cases};
pub use look::{Cost, Looked, Slope, look};
pub use project::{Built, Failed, Language, build, new};
pub use recorded::recorded;

/// What is wrong, for the person who can mend it.
pub type Wrong = Box<dyn miette::Diagnostic + Send + Sync>;
