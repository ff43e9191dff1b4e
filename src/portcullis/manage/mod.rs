//! Operations behind the verbs. They return results, which `cli` prints.
//!
//! Invariant: nothing here parses arguments, prints, or knows `cli`. Errors name the options that
//! caused them.

pub mod background;
pub mod bridge;
pub mod can_i;
pub mod catalog_search;
pub mod client_files;
pub mod config_values;
pub mod doctor;
pub mod images;
pub mod init;
pub mod locked_images;
pub mod new_files;
pub mod one_shot;
pub mod profile_overrides;
pub mod run;
pub mod server_entries;
pub mod server_facts;
pub mod server_states;
pub mod servers;
pub mod status;
pub mod tool_lists;

use std::any::Any;

/// Error of an input that is invalid, or that names something the config lacks.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidInput(pub String);

/// Receives the steps of an operation that takes long.
pub trait Reporter {
    /// Reports a fact that is not part of the result.
    fn note(&self, text: &str);

    /// Reports a step that lasts until the returned value is dropped.
    fn step(&self, what: String) -> Box<dyn Any>;
}
