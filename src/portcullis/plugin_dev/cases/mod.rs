//! Test cases of a plugin: messages, and the expected verdicts. `file` reads them from YAML;
//! `expand` and `message` build the messages. `run` runs the plugin in the real host with the
//! stub services of `stubs`; `verdict` compares the results with the expected ones.

mod expand;
mod file;
mod message;
mod run;
mod stubs;
mod verdict;

pub use run::{CaseReport, Hook, Report, run};

pub(super) use file::Case;
pub(super) use message::{message, sound};
pub(super) use run::{about, granted, hooks, matching_hooks};
pub(super) use stubs::StubServices;
pub(super) use verdict::taken;
