//! Portcullis: a policy-enforcing security proxy for the Model Context Protocol.
//!
//! The command line, and the tools of plugin authors. The proxy itself is [`portcullis_gateway`].

pub mod cli;
pub mod plugin_dev;
