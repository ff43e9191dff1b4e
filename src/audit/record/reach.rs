//! What servers reach through the proxy's own end, as records of kind `event` have it: version 1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Happening, Rule,
    bounds::{WORDS, clip},
    build::{micros, rule},
};
use crate::{
    egress::{Attempt, End, Outcome},
    identity::PrincipalKind,
    names::DecisionId,
    refusal,
    upstream::Reacher,
};

/// A connection that a server is about to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reaching {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// The one client for which alone the server runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Which one of that launch.
    pub connection: u64,
    pub host: String,
    pub port: u16,
    /// How it asked: `connect`, `http`, `socks5`, or `direct`, as if the host were there.
    pub protocol: String,
    /// The policies that permit it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The revision of the policies that decided.
    pub policy_revision: String,
}

/// What became of a connection that a server wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reached {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// As in its `server-reaching`, where there was one. This and what is asked for are absent where it
    /// could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The address and port that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Bytes from the server.
    pub up: u64,
    /// Bytes to it.
    pub down: u64,
    /// Microseconds that it took.
    pub took_us: u64,
    pub end: ReachEnd,
    /// Why it was refused or ended, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policies that forbid it; none where nothing permits it, or something else refused it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The revision of the policies that forbid it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReachEnd {
    /// It was not allowed, came to nothing, or went on in a way that is not allowed.
    Refused,
    /// Both sides had said all.
    Closed,
    /// One of the sides broke off.
    Broken,
    /// Nothing was said for too long.
    Idle,
    /// Policies came to forbid it.
    Revoked,
    /// The server was stopped.
    Stopped,
}

impl Happening {
    /// A server is about to be connected to where it wants.
    pub fn reaching(
        reacher: &Reacher,
        attempt: &Attempt,
        rules: &[refusal::Rule],
        revision: &str,
    ) -> Self {
        Self::ServerReaching(Reaching {
            launch: reacher.launch,
            server: reacher.server.to_string(),
            principal: reacher.principal.get().map(PrincipalKind::name),
            connection: attempt.number,
            host: attempt.host.plain(),
            port: attempt.port,
            protocol: attempt.protocol.as_str().to_owned(),
            rules: rules.iter().map(rule).collect(),
            policy_revision: revision.to_owned(),
        })
    }

    /// What became of it; with what policies said, where they refused it.
    pub fn reached(
        reacher: &Reacher,
        outcome: &Outcome,
        forbidden: Option<(&[refusal::Rule], &str)>,
    ) -> Self {
        let attempt = outcome.attempt.as_ref();
        let (code, reason) = match &outcome.end {
            End::Refused(refusal) => (Some(refusal.code()), Some(refusal.to_string())),
            End::Revoked(why) => (Some("policy"), Some(why.clone())),
            _ => (None, None),
        };
        let (rules, revision) = forbidden.unzip();
        Self::ServerReached(Box::new(Reached {
            launch: reacher.launch,
            server: reacher.server.to_string(),
            principal: reacher.principal.get().map(PrincipalKind::name),
            connection: attempt.map(|attempt| attempt.number),
            host: attempt.map(|attempt| attempt.host.plain()),
            port: attempt.map(|attempt| attempt.port),
            protocol: attempt.map(|attempt| attempt.protocol.as_str().to_owned()),
            address: outcome.address.map(|address| address.to_string()),
            up: outcome.up,
            down: outcome.down,
            took_us: micros(outcome.duration),
            end: match &outcome.end {
                End::Refused(_) => ReachEnd::Refused,
                End::Closed => ReachEnd::Closed,
                End::Broken => ReachEnd::Broken,
                End::Idle => ReachEnd::Idle,
                End::Revoked(_) => ReachEnd::Revoked,
                End::Stopped => ReachEnd::Stopped,
            },
            code: code.map(str::to_owned),
            reason: reason.map(|reason| clip(&reason, WORDS)),
            rules: rules.unwrap_or_default().iter().map(rule).collect(),
            policy_revision: revision.map(str::to_owned),
        }))
    }
}
