//! Portcullis: a policy-enforcing security proxy for the Model Context Protocol.
//!
//! The modules stand in the order in which a message meets them. `ARCHITECTURE.md` follows one
//! message through all of them; [`proxy`] assembles the way and is the only module that names
//! every stage.

// The vocabulary that every stage shares.
pub mod exchange;
pub mod names;
pub mod refusal;

// The way of a message.
pub mod chain;
pub mod codec;
pub mod front;
pub mod identity;
pub mod interceptors;
pub mod router;
pub mod session;
pub mod upstream;

// What the stages stand on.
pub mod audit;
pub mod container;
pub mod plugin;
pub mod policy;
pub mod sandbox;
pub mod vault;

// The house around them.
pub mod admin;
pub mod cli;
pub mod config;
pub mod proxy;
pub mod telemetry;
