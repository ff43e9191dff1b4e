//! Who decides and hears of what a program tries.

use std::{any::Any, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;

use super::{Host, Refusal};

/// How a program asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP `CONNECT`.
    Connect,
    /// A request in plain HTTP.
    Http,
    Socks5,
    /// As if the host were there.
    Direct,
}

impl Protocol {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Http => "http",
            Self::Socks5 => "socks5",
            Self::Direct => "direct",
        }
    }
}

/// A connection that a program wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Which one of the program's; no two have the same.
    pub number: u64,
    pub host: Host,
    pub port: u16,
    pub protocol: Protocol,
}

/// What is said of an attempt.
#[derive(Debug, Clone)]
pub enum Verdict {
    Allow,
    Refuse(Forbidden),
}

/// Why an attempt is refused.
#[derive(Debug, Clone)]
pub struct Forbidden {
    /// In words that the program may read.
    pub why: String,
    /// What the gate wants to have again when it is told of the end.
    pub grounds: Option<Grounds>,
}

/// What a gate knows of its own verdict, and nobody else.
pub type Grounds = Arc<dyn Any + Send + Sync>;

impl From<&str> for Forbidden {
    fn from(why: &str) -> Self {
        Self { why: why.to_owned(), grounds: None }
    }
}

/// What became of an attempt.
#[derive(Debug)]
pub struct Outcome {
    /// What was wanted, where that could be read.
    pub attempt: Option<Attempt>,
    /// Where it went.
    pub address: Option<SocketAddr>,
    /// Bytes from the program.
    pub up: u64,
    /// Bytes to it.
    pub down: u64,
    pub duration: Duration,
    pub end: End,
    /// The gate said so.
    pub allowed: bool,
    /// What the gate gave with its refusal.
    pub grounds: Option<Grounds>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was not allowed, or went on in a way that is not.
    Refused(Refusal),
    /// Both sides have said all.
    Closed,
    /// One of the sides broke off.
    Broken,
    /// Nothing was said for too long.
    Idle,
    /// It was allowed, and then no longer, for a reason in words.
    Revoked(String),
    /// Whoever serves it stopped.
    Stopped,
}

/// Decides what a program may reach beyond its operator's list, and hears what becomes of it.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Whether an attempt may be made that the list allows. Nothing has left for it before.
    async fn decide(&self, attempt: &Attempt) -> Verdict;

    /// Waits until something may be decided otherwise than before.
    async fn changed(&self);

    /// Whether an attempt that was allowed may go on. Must not block.
    fn still(&self, attempt: &Attempt) -> Verdict;

    /// What became of an attempt; each is told of once. Must not block.
    fn told(&self, outcome: Outcome);
}
