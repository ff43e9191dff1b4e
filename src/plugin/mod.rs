//! The host of plugins: WebAssembly components that speak `plugins/wit`.
//!
//! # Invariants
//! - Every message meets an instance of its own, made from memory that no other message sees; an
//!   instance is never used again, least of all after a trap.
//! - A plugin has no authority but the functions of the contract that the operator grants it. A
//!   component that asks for more is not loaded.
//! - What it is handed of secrets is in nothing that it says.
//! - Time, memory, tables, stack and what is copied out are bounded, so that a plugin can fail but
//!   not stall or starve the proxy. A guest that is not done within a few milliseconds goes on in
//!   threads of its own.
//!
//! This room knows neither exchanges nor policies: [`crate::interceptors::plugin`] turns the one
//! into a [`Message`] and a [`Verdict`] into the chain's.

mod bindings;
mod functions;
mod grants;
mod guest;
mod host;
mod load;
mod manifest;
mod output;
mod run;
mod signature;
mod unusable;
mod veil;

pub use bindings::exports::portcullis::interceptor::guest::{
    Decision, Direction, Finding, Lifetime, Message, Phase, Principal, PrincipalKind, Refusal,
    Target, Verdict,
};
pub use functions::{Broken, Canned, Nowhere, States, Surroundings, Values};
pub use grants::{Destination, Function, Grants, Missing};
pub use load::{Compiled, Pin, Settings};
pub use manifest::Manifest;
pub use run::{Failure, Plugin, Said};
pub use signature::{Signed, Unsigned, path as signature_path};
pub use unusable::Unusable;

use std::sync::Arc;

/// What all plugins of a proxy have around them.
#[derive(Clone)]
pub struct House {
    /// Who counts for them and lets them out.
    pub around: Arc<dyn Surroundings>,
    /// Where their values are; nowhere: they are forgotten with the plugin.
    pub states: Option<Arc<States>>,
}

impl House {
    /// Without anything: for who only looks at a plugin.
    pub fn bare() -> Self {
        Self { around: Arc::new(Nowhere), states: None }
    }
}
