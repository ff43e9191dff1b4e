//! The chain: which interceptors see a message, in which order, mode and time, and the effect of
//! their verdicts and faults.
//!
//! # Invariants
//!
//! - Every interceptor that wants a message has seen the version that is sent: a replacement passes
//!   all other interceptors again, including policy, until none changes anything.
//! - A fault, a missed deadline and a panic are refusals, unless the operator set `fail-open`.
//! - An interceptor in `audit` mode has no effect except findings.
//! - No interceptor can lift another's refusal: the first one ends processing.

mod contract;
mod heavy;
mod runner;

pub use contract::{Decision, Fault, Hook, Hooks, Interceptor, Mode, Verdict};
pub use heavy::{
    LARGE_BYTES, Party, Unfinished, Weight, grow, heavy_at_once, in_hand, in_turns, off_workers,
};
pub use runner::{Chain, ChainEntry, ChainTrace, may_replace};
