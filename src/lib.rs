//! Portcullis: a policy-enforcing security proxy for the Model Context Protocol.
//!
//! The modules stand in the order in which a message meets them. `ARCHITECTURE.md` follows one
//! message through all of them; [`proxy`] assembles the way and is the only module that names
//! every stage.

// The vocabulary that every stage shares: ids, one message with its context, refusals.
pub use portcullis_protocol::{
    claims, codec, exchange, identity, names, obligations, refusal, seal,
};

// The way of a message.

// Where clients connect.
pub mod front;

// What a legacy client said before.
pub mod session;

// Puts all stages together, and takes a message through them.
pub mod proxy;

// Whom it is for.
pub mod router;

// Who looks at it, and what becomes of their verdicts.
pub use portcullis_chain as chain;

// Those who look.
pub use portcullis_interceptors as interceptors;

// Cedar, and WebAssembly, for two of them.
pub use portcullis_policy as policy;

pub use portcullis_plugin_host as plugin;

// Who is asked where a policy wants a person.
pub mod approval;

// The record of what was decided.
pub use portcullis_audit as audit;

// The server, and where it runs.
pub use portcullis_upstream as upstream;

pub use portcullis_runtime::container;

pub use portcullis_guard as guard;

pub use portcullis_runtime::sandbox;

// The way out of servers that have no network.
pub use portcullis_egress as egress;

// The secrets that it is handed.
pub use portcullis_vault as vault;

// What others wrote of servers.
pub use portcullis_catalog as catalog;

// Where artifacts come from, such as plugins.
pub use portcullis_oci as oci;

// The house around them.
pub use portcullis_config as config;

pub mod cli;

// What the authors of plugins work with.
pub mod authoring;

pub mod admin;

pub use portcullis_telemetry as telemetry;
