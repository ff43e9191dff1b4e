//! What time it is.

use std::time::{Duration, SystemTime};

use super::bindings::portcullis::interceptor::clock as host;

/// The time of day, to the millisecond. (`SystemTime::now` of the standard library does not work in
/// a plugin.)
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(unix_millis())
}

/// Milliseconds since 1970-01-01T00:00:00Z.
pub fn unix_millis() -> u64 {
    host::now()
}

/// Time since some moment before the instance began; never goes back.
pub fn monotonic() -> Duration {
    Duration::from_nanos(host::monotonic())
}
