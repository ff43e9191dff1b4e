//! Limits of loading and running, and the interface of a component.

use std::time::Duration;

/// Limit of a component's file in bytes. Interpreters of other languages take 10 to 20 MiB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Limit of a signature's note in bytes.
pub const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Time limit for `describe` when a plugin is loaded.
pub const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for `start` when a plugin is loaded or prepared.
pub const START_TIMEOUT: Duration = Duration::from_secs(1);
/// Interface that a component must export.
pub const GUEST: &str = "portcullis:interceptor/guest@0.1";
/// Limit in bytes of a guest's output beyond twice the payload.
pub const MAX_EXTRA_OUTPUT_BYTES: usize = 1 << 20;
