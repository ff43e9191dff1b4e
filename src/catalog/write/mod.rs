//! What is written of a server: its entry in the config, and the policies that it begins with.

mod again;
mod entry;
mod policy;

pub use again::{Change, MergedEntry, again, moved, said, strayed, written_by_operator};
pub use entry::{Unwritten, add, names, remove};
pub use policy::{file_name, left_on_id, policy, tools_left_on};
