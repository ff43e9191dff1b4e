//! Portcullis: a policy-enforcing security proxy for the Model Context Protocol.
//!
//! `cli` is the command line, `manage` has the operations of its verbs, and `plugin_dev` has the
//! tools of plugin authors. The proxy itself is [`portcullis_gateway`].

mod allocator;
pub mod cli;
pub mod manage;
pub mod plugin_dev;
