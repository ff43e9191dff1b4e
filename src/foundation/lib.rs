//! Common parts of all layers: backoff, files, keys, memory, text and units.
//!
//! # Invariants
//! - Nothing here knows MCP, policies or the config.
//! - No crate of the workspace is a dependency.

pub mod atomic_file;
pub mod backoff;
pub mod fair_semaphore;
pub mod fair_tasks;
pub mod json;
pub mod json_pointer;
pub mod key_file;
pub mod note_key;
pub mod printable;
pub mod process_memory;
pub mod units;
