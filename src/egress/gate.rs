//! Who decides and hears of what a program tries.

use std::{net::SocketAddr, time::Duration};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// Why not, in words that the program may read.
    Refuse(String),
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
    /// Whoever serves it stopped.
    Stopped,
}

/// Decides what a program may reach beyond its operator's list, and hears what becomes of it.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Whether an attempt may be made that the list allows. Nothing has left for it before.
    async fn decide(&self, attempt: &Attempt) -> Verdict;

    /// What became of an attempt; each is told of once. Must not block.
    fn told(&self, outcome: Outcome);
}
