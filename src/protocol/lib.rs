//! Types that every layer shares: names, messages, exchanges, principals and refusals.
//!
//! # Invariants
//!
//! - Nothing here decides what happens to a message.
//! - Nothing here reaches a network.

pub mod arguments;
pub mod claims;
pub mod codec;
pub mod exchange;
pub mod identity;
pub mod names;
pub mod obligations;
pub mod refusal;
pub mod seal;
pub mod tool_names;
