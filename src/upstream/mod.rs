//! Servers: how one is started, spoken to, watched and ended.

pub mod process;
