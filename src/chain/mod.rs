//! The chain: which interceptors see a message, in which order, in which mode, by when, and what
//! becomes of their verdicts and faults.

mod contract;

pub use contract::{Decision, Fault, Hook, Hooks, Interceptor, Mode, Verdict};
