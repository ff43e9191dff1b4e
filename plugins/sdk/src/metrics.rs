//! Counters for the operator's monitoring.

use super::bindings::portcullis::interceptor::metrics as host;

/// Adds to a counter. A plugin has 32 at most, each named like a label; more are dropped.
pub fn count(name: &str, by: u64) {
    host::count(name, by);
}
