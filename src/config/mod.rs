//! `portcullis.toml`: read, checked once with spans, and from then on a [`Config`] of plain values.

mod raw;

pub use raw::{
    Audit, Client, Config, Engine, EntrySettings, Era, Hardening, InterceptorEntry, Limits, Listen,
    LogFormat, MountEntry, Policy, Resources, Runtime, SecretRef, Server, Telemetry, Use,
};
