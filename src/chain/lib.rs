//! The chain: which interceptors see a message, in which order, in which mode, by when, and what
//! becomes of their verdicts and faults.
//!
//! INVARIANTS
//! - What leaves was seen by every interceptor that asked for it: a replacement sends the message
//!   past all the others again, policy included, until none has anything to change.
//! - A fault, a missed deadline and a panic are refusals, unless the operator wrote `fail-open`.
//! - An interceptor in `audit` mode has no effect but findings.
//! - No interceptor can lift another's refusal: the first one ends the message's way.

mod contract;
mod heavy;
mod runner;

pub use contract::{Decision, Fault, Hook, Hooks, Interceptor, Mode, Verdict};
pub use heavy::{LARGE_BYTES, Party, Weight, grow, in_turns};
pub use runner::{Chain, ChainEntry, ChainTrace, may_replace};
