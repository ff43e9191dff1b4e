//! Portcullis: a policy-enforcing security proxy for the Model Context Protocol.
//!
//! The modules stand in the order in which a message meets them. `ARCHITECTURE.md` follows one
//! message through all of them; [`proxy`] assembles the way and is the only module that names
//! every stage.

// The vocabulary that every stage shares: ids, one message with its context, refusals.
pub mod names;

pub mod exchange;

pub mod obligations;
pub mod refusal;

// The way of a message.

// Where clients connect.
pub mod front;

// Who is calling.
pub mod identity;

// Bytes to messages.
pub mod codec;

// What a legacy client said before.
pub mod session;

// Puts all stages together, and takes a message through them.
pub mod proxy;

// Whom it is for.
pub mod router;

// Who looks at it, and what becomes of their verdicts.
pub mod chain;

// Those who look.
pub mod interceptors;

// Cedar, and WebAssembly, for two of them.
pub mod policy;

pub mod plugin;

// Who is asked where a policy wants a person.
pub mod approval;

// The record of what was decided.
pub mod audit;

// The server, and where it runs.
pub mod upstream;

pub mod container;

// What stands before the engine, where the proxy should not have its socket.
pub use portcullis_guard as guard;

pub mod sandbox;

// The way out of servers that have no network.
pub use portcullis_egress as egress;

// The secrets that it is handed.
pub use portcullis_vault as vault;

// What others wrote of servers.
pub use portcullis_catalog as catalog;

// Where artifacts come from, such as plugins.
pub use portcullis_oci as oci;

// What clients keep for us.
pub mod seal;

// Memory of large messages, and how it goes back to the system.
mod allocator;

// Files of keys, here and in `audit`; keys that sign, there and in `policy`.
mod durable;

mod keyfile;

// Characters that neither a terminal nor a log gets as they are.
mod printable;

// What keys are protected from while they are in memory.
mod process_memory;

mod signing;

// The house around them.
pub mod config;

pub mod cli;

// What the authors of plugins work with.
pub mod authoring;

pub mod admin;

pub mod telemetry;
