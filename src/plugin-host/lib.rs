//! Host of plugins: WebAssembly components that implement `plugins/wit`.
//!
//! The crate knows neither exchanges nor policies: the interceptor `plugin` converts an exchange
//! into a [`Message`] and a [`Verdict`] into the chain's.
//!
//! # Invariants
//!
//! - Every message gets its own instance, made from memory that no other message sees. If the
//!   plugin requests an instance for each session, that instance gets only the messages of one
//!   principal's session, one after the other. No instance is used again after a fault.
//! - A plugin has no authority except the functions of the contract that the operator grants it. A
//!   component that imports more is not loaded.
//! - The output of a plugin contains none of the secrets that were delivered to it.
//! - Time, memory, tables, stack and copied output are limited, so that a plugin can fail but
//!   cannot stall or starve the proxy. A guest that does not finish within a few milliseconds
//!   continues on separate threads. A plugin that fails repeatedly is skipped for a while, and its
//!   messages are refused.
//! - Native code that runs was compiled by wasmtime in this process, or was read from the cache
//!   under the proxy's seal.

mod artifact;
mod bindings;
mod breaker;
mod cache;
mod functions;
mod grants;
mod guest;
mod host;
mod limits;
mod load;
mod load_error;
mod manifest;
mod outcome;
mod output;
mod plugin;
mod pool;
mod quotas;
mod secret_redactor;
mod sessions;
mod signature;
mod template;

pub use artifact::{Artifact, Artifacts};
pub use bindings::exports::portcullis::interceptor::guest::{
    Decision, Direction, Finding, Lifetime, Message, Phase, Principal, PrincipalKind, Refusal,
    Target, Verdict,
};
pub use cache::Cache;
pub use functions::{
    Broken, States, Values,
    host_services::{HostServices, NoServices, StubResponse},
    http::DENIED,
};
pub use grants::{Destination, Function, Grants, Missing};
pub use load::{Compiled, Pin, Settings, Trial, digest};
pub use load_error::LoadError;
pub use manifest::{Manifest, Versions};
pub use outcome::{Failure, Inspection};
pub use plugin::Plugin;
pub use signature::{Signed, Unsigned, path as signature_path};

use std::{sync::Arc, time::Duration};

/// Time limit for one artifact of a registry, unless the config sets one.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Environment of all plugins of a proxy.
#[derive(Clone)]
pub struct PluginHost {
    /// Services of the proxy.
    pub services: Arc<dyn HostServices>,
    /// Stored values; `None`: they are dropped with the plugin.
    pub states: Option<Arc<States>>,
    /// Cache of compiled plugins; `None`: each is compiled at every start.
    pub cache: Option<Arc<Cache>>,
    /// Access to registries.
    pub artifacts: Artifacts,
}

impl PluginHost {
    /// Empty environment, for commands that only inspect a plugin.
    pub fn bare() -> Self {
        let artifacts = Artifacts::from_registries(Default::default(), REGISTRY_TIMEOUT);
        Self { services: Arc::new(NoServices), states: None, cache: None, artifacts }
    }
}
