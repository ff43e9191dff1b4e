//! Test cases of a plugin: messages, and the expected verdicts. `file` reads them from YAML;
//! `asked` and `message` build the messages. `run` runs the plugin in the real host with the
//! stand-ins of `stand_in`; `verdict` compares the results with the expected ones.

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
