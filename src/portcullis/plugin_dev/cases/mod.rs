//! Cases beside a plugin: messages, and the verdicts that it should give on them. Read from YAML
//! (`file`), put together (`asked`, `message`), asked of the plugin in the real host with stand-ins
//! for what is around it (`stand_in`, `run`), and held against what was expected (`verdict`).

mod asked;
mod file;
mod message;
mod run;
mod stand_in;
mod verdict;

pub use run::{Hook, Ran, Report, run};

pub(super) use file::Case;
pub(super) use message::{message, sound};
pub(super) use run::{about, granted, hooks, meeting};
pub(super) use stand_in::StandIn;
pub(super) use verdict::taken;
