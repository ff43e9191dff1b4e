//! Lines for the operator's log: [`debug!`](crate::debug), [`info!`](crate::info),
//! [`warn!`](crate::warn) and [`error!`](crate::error). A few short ones for each message; the rest is
//! dropped. Put nothing of a message into them.

use super::bindings::portcullis::interceptor::log as host;

pub use host::Level;

/// Writes one line. The macros of this crate do it with `format!`'s words.
pub fn line(level: Level, line: &str) {
    host::log(level, line);
}

/// Writes a line of details.
#[macro_export]
macro_rules! debug { ($($words:tt)+) => { $crate::log::line($crate::log::Level::Debug, &format!($($words)+)) } }

/// Writes a line that the operator may want to know.
#[macro_export]
macro_rules! info { ($($words:tt)+) => { $crate::log::line($crate::log::Level::Info, &format!($($words)+)) } }

/// Writes a line that the operator should know.
#[macro_export]
macro_rules! warn { ($($words:tt)+) => { $crate::log::line($crate::log::Level::Warn, &format!($($words)+)) } }

/// Writes a line of what does not work.
#[macro_export]
macro_rules! error { ($($words:tt)+) => { $crate::log::line($crate::log::Level::Error, &format!($($words)+)) } }
