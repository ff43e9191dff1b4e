//! Servers in containers, on a real engine. These tests fail without one.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod confinement;
mod egress;
mod egress_origin;
mod engines;
mod escape;
mod guarded;
mod interpreters;
mod lifecycle;
mod packing;
mod parity;
mod profile;
mod reaping;
mod refusals;
mod set_id_calls;
mod support;
