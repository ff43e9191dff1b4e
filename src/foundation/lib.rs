//! What every layer stands on and no layer owns: files, keys, memory, text and units.
//!
//! INVARIANT: nothing here knows MCP, policies or the config, and no crate of the workspace is a
//! dependency.

pub mod allocator;
pub mod atomic_file;
pub mod fair_semaphore;
pub mod json;
pub mod json_pointer;
pub mod key_file;
pub mod note_key;
pub mod printable;
pub mod process_memory;
pub mod units;
