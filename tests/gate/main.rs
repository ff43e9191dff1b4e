//! The whole gate through its front door: the real executable, real clients, real servers, real
//! containers. `tests/run` prepares what these tests need.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;
mod typed_tools;

mod aggregation;
mod approvals;
mod at_once;
mod audit;
mod bad_input;
mod batches;
mod broken_config;
mod bundles;
mod bypass;
mod connections;
mod defaults;
mod durability;
mod engine_death;
mod eras;
mod exports;
mod faults;
mod fidelity;
mod following;
mod frames;
mod harms;
mod identity;
mod images;
mod instances;
mod interceptors;
mod known_servers;
mod launching;
mod matrix;
mod nested_secrets;
mod obligations;
mod operations;
mod orphans;
mod paired;
mod plugin_http;
mod plugin_life;
mod policy;
mod programs;
mod questions;
mod quickstart;
mod reaching;
mod reaping;
mod records;
mod refusal_floods;
mod registries;
mod remotes;
mod rest;
mod reverse_proxies;
mod roles;
mod sdk_servers;
mod sdks;
mod secret_names;
mod secrets;
mod secrets_of_clients;
mod secrets_renewed;
mod shutdown;
mod signed_images;
mod streaming;
mod streams;
mod superseded;
mod upkeep;
