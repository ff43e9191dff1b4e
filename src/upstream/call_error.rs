//! Failures of calls to a server.

use std::{path::PathBuf, time::Duration};

use portcullis_protocol::refusal::{Code, Refusal, Rule};
use portcullis_runtime::process::LaunchFailure;

/// Reason why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server did not start, ended, or cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The image pull takes longer than the call may wait. The pull continues.
    #[error("its image is still being pulled ({0}); the pull continues")]
    Pulling(String),
    /// A remote server rejected the request because its session had ended.
    #[error("it ended the session")]
    Forgotten,
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// A limit of the server is reached.
    #[error("its limit of {most} {what} is reached")]
    Overloaded { what: &'static str, most: usize },
    #[error("{0}")]
    Misbehaved(String),
    /// The circuit is open, or another call has the trial permit.
    #[error("{why}")]
    CircuitOpen { why: String, remaining: Duration },
    /// The start could not be recorded in the audit log, so the server was not started.
    #[error("the audit log cannot record its start: {0}")]
    Unrecorded(String),
    /// The server may not start or run: policies do not permit it, or the config has another
    /// entry under its name.
    #[error("{0}")]
    Forbidden(Box<Refusal>),
    /// A secret of the server differs by client and has no value for this client.
    #[error(
        "`{key}` has no entry for `{client}`{}: add the client to `by-client`, or set a default `from`",
        at(place.as_ref())
    )]
    NoSecret {
        /// Key in the config.
        key: String,
        client: String,
        /// File and line of the key.
        place: Option<(PathBuf, u32)>,
    },
}

fn at(place: Option<&(PathBuf, u32)>) -> String {
    place.map(|(file, line)| format!(" ({}:{line})", file.display())).unwrap_or_default()
}

impl CallError {
    /// The refusal for the agent, with the detail for the operator.
    pub fn refusal(&self, server: &portcullis_protocol::names::ServerName) -> Refusal {
        let (code, message) = match self {
            Self::Forbidden(refusal) => return refusal.as_ref().clone(),
            Self::Unavailable(_) | Self::Forgotten => {
                (Code::ServerUnavailable, format!("server `{server}` is not available"))
            }
            Self::Pulling(_) => (
                Code::ServerUnavailable,
                format!(
                    "server `{server}` is not available yet: its image is being pulled; retry later"
                ),
            ),
            Self::Timeout(_) => {
                (Code::ServerTimeout, format!("server `{server}` did not answer in time"))
            }
            Self::Overloaded { what, .. } => {
                (Code::ServerOverloaded, format!("server `{server}` has too many {what}"))
            }
            Self::CircuitOpen { remaining, .. } => {
                let message = format!(
                    "server `{server}` is crashing repeatedly; circuit open, retry in {} ms",
                    remaining.as_millis()
                );
                let refusal =
                    Refusal::new(Code::ServerCircuitOpen, message).retry_after(*remaining);
                return refusal.detail(self.to_string());
            }
            Self::NoSecret { key, place, .. } => {
                let message = format!(
                    "server `{server}` needs a secret that is not configured for this client"
                );
                let (file, line) = place.clone().unzip();
                let rule = Rule { file, line, ..Rule::named(key) };
                let refusal = Refusal::new(Code::SecretUnavailable, message).rule(rule);
                return refusal.detail(self.to_string());
            }
            Self::Misbehaved(_) => {
                (Code::ServerMisbehaved, format!("server `{server}` returned an invalid response"))
            }
            Self::Unrecorded(_) => (
                Code::AuditUnavailable,
                format!(
                    "server `{server}` was not started: the audit log could not record the start"
                ),
            ),
        };
        Refusal::new(code, message).detail(self.to_string())
    }
}

impl From<LaunchFailure> for CallError {
    fn from(LaunchFailure { what, remedy }: LaunchFailure) -> Self {
        Self::Unavailable(match remedy {
            Some(remedy) => format!("{what} ({remedy})"),
            None => what,
        })
    }
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Forbidden(Box::new(refusal))
    }
}
