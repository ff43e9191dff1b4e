//! Written data of an added server: its entry in the config, and its first policies.

mod entry;
mod policy;
mod replace;

pub use entry::{EntryError, add, enable, names, parse_key, remove, set_key};
pub use policy::{file_name, left_on_id, policy, tools_left_on};
pub use replace::{ExistingEntry, Replacement};
