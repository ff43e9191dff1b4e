//! The host of plugins: WebAssembly components that speak `plugins/wit`.
//!
//! # Invariants
//! - Every message meets an instance of its own, made from memory that no other message sees; an
//!   instance is never used again, least of all after a trap.
//! - A plugin has no authority but to write a few log lines, and that only where the operator
//!   grants it. A component that asks for more is not loaded.
//! - Time, memory, tables, stack and what is copied out are bounded, so that a plugin can fail but
//!   not stall or starve the proxy. A guest that is not done within a few milliseconds goes on in
//!   threads of its own.
//!
//! This room knows neither exchanges nor policies: [`crate::interceptors::plugin`] turns the one
//! into a [`Message`] and a [`Verdict`] into the chain's.

mod bindings;
mod guest;
mod host;
mod load;
mod manifest;
mod output;
mod run;

pub use bindings::exports::portcullis::interceptor::guest::{
    Decision, Direction, Finding, Message, Phase, Principal, PrincipalKind, Refusal, Target,
    Verdict,
};
pub use load::{Pin, Settings, Unusable};
pub use manifest::Manifest;
pub use run::{Failure, Plugin};
