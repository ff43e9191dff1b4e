//! Interface to the caller that decides about attempts and records them.

use std::{any::Any, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;

use super::{Host, Refusal};

/// How a program requests a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP `CONNECT`.
    Connect,
    /// A request in plain HTTP.
    Http,
    Socks5,
    /// A connection to an address inside that stands for a host.
    Direct,
}

impl Protocol {
    /// Name of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Socks5 => "socks5",
            Self::Direct => "direct",
        }
    }
}

/// A connection that a program requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number of the attempt, unique for the program.
    pub number: u64,
    pub host: Host,
    pub port: u16,
    pub protocol: Protocol,
}

/// Decision about an attempt.
#[derive(Debug, Clone)]
pub enum Verdict {
    Allow,
    Refuse(Forbidden),
}

/// Refusal of an attempt.
#[derive(Debug, Clone)]
pub struct Forbidden {
    /// Reason, which the program may read.
    pub why: String,
    /// Data of the gate that it gets back with the outcome.
    pub grounds: Option<GateContext>,
}

/// Data of a gate about its own verdict, opaque to this crate.
pub type GateContext = Arc<dyn Any + Send + Sync>;

impl From<&str> for Forbidden {
    fn from(why: &str) -> Self {
        Self { why: why.to_owned(), grounds: None }
    }
}

/// Outcome of an attempt.
#[derive(Debug)]
pub struct Outcome {
    /// The attempt, if it could be parsed.
    pub attempt: Option<Attempt>,
    /// Address of the connection.
    pub address: Option<SocketAddr>,
    /// Bytes from the program.
    pub up: u64,
    /// Bytes to the program.
    pub down: u64,
    pub duration: Duration,
    pub end: End,
    /// Whether the gate allowed it.
    pub allowed: bool,
    /// Data that the gate gave with its refusal.
    pub grounds: Option<GateContext>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was not allowed, or violated the rules later.
    Refused(Refusal),
    /// Both sides finished.
    Closed,
    /// A side closed the connection unexpectedly.
    Broken,
    /// No data for too long.
    Idle,
    /// It was allowed and later revoked, for this reason.
    Revoked(String),
    /// The egress proxy stopped.
    Stopped,
}

/// Decides about attempts within the operator's list, and receives their outcomes.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Decides about an attempt that the list allows. Nothing has been sent for it before.
    async fn decide(&self, attempt: &Attempt) -> Verdict;

    /// Waits until a decision may differ from an earlier one.
    async fn changed(&self);

    /// Decides again about an allowed attempt. Must not block.
    fn still(&self, attempt: &Attempt) -> Verdict;

    /// Receives the outcome of an attempt, once for each. Must not block.
    fn report(&self, outcome: Outcome);
}
