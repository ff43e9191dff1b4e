//! The system calls that a server may make: one table for both runtimes.
//!
//! [`table`] is an allow-list of calls, some with conditions on their arguments.
//! [`container_profile`] writes it in the format of container engines; [`sandbox_filters`] compiles
//! it for the sandbox's launcher.
//!
//! # Invariants
//!
//! - Both runtimes allow the same calls, with the following exceptions. A test runs both filters
//!   over the same calls and compares them.
//! - A call that is not in the table fails with `EPERM` in a container and with `ENOSYS` in the
//!   sandbox, because Docker 20.10 ignores another default.
//! - The sandbox refuses `TIOCSTI` and `TIOCLINUX`, which an engine's format cannot express;
//!   containers have no terminal.

mod filter;
mod profile;
mod table;

pub use filter::sandbox_filters;
pub use profile::container_profile;
pub use seccompiler::BackendError;
