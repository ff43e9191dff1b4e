//! The first words with a server: which era it speaks, and what it says of itself.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::link::{Call, Failure, Link, Reply};
use crate::{
    codec::era::{implementation, own_meta},
    config::Era,
    exchange::{Method, Payload, Revision},
};

/// How long a server may take to answer the question that only modern servers know.
const PROBE: Duration = Duration::from_secs(3);

/// What a server said when it was greeted.
#[derive(Debug)]
pub struct Greeting {
    pub revision: Revision,
    /// The result of `initialize` or `server/discover`: the server's claims.
    pub words: Payload,
}

impl Greeting {
    /// Whether the server says that it has a capability.
    pub fn offers(&self, capability: &str) -> bool {
        self.words.value().get("capabilities").is_some_and(|c| c.get(capability).is_some())
    }
}

/// Greets a server. In [`Era::Auto`] it is asked with `server/discover` first; any answer but a
/// modern one, or none in time, means legacy.
///
/// # Errors
/// [`Failure::Unavailable`] where the link died, in which case a caller that probed should start
/// the server again and greet it as legacy; the other failures of [`Link::call`].
pub async fn greet(link: &dyn Link, era: Era, deadline: Duration) -> Result<Greeting, Failure> {
    if era != Era::Legacy {
        let wait = if era == Era::Auto { PROBE.min(deadline) } else { deadline };
        match discover(link, wait).await {
            Ok(Some(greeting)) => {
                link.agreed(greeting.revision);
                return Ok(greeting);
            }
            Ok(None) if era == Era::Modern => {
                return Err(Failure::Misbehaved("it does not speak 2026-07-28".into()));
            }
            Err(failure) if era == Era::Modern || link.dead().is_some() => return Err(failure),
            Ok(None) | Err(_) => {}
        }
    }
    let greeting = initialize(link, deadline).await?;
    link.agreed(greeting.revision);
    link.notify(Method::INITIALIZED, Bytes::from_static(b"{}")).await?;
    Ok(greeting)
}

async fn discover(link: &dyn Link, deadline: Duration) -> Result<Option<Greeting>, Failure> {
    let params = json!({ "_meta": own_meta() }).to_string();
    match link.call(Call::own(Method::DISCOVER, Some(params.into()), deadline)).await? {
        Reply::Error(_) => Ok(None),
        Reply::Result(result) => {
            let words = Payload::new(result);
            let modern = words
                .value()
                .get("supportedVersions")
                .and_then(Value::as_array)
                .is_some_and(|v| v.iter().any(|v| v == Revision::LATEST_MODERN.as_str()));
            Ok(modern.then_some(Greeting { revision: Revision::LATEST_MODERN, words }))
        }
    }
}

async fn initialize(link: &dyn Link, deadline: Duration) -> Result<Greeting, Failure> {
    let params = json!({
        "protocolVersion": Revision::LATEST_LEGACY.as_str(),
        "capabilities": {},
        "clientInfo": implementation(),
    });
    match link
        .call(Call::own(Method::INITIALIZE, Some(params.to_string().into()), deadline))
        .await?
    {
        Reply::Error(_) => Err(Failure::Misbehaved("it refused `initialize`".into())),
        Reply::Result(result) => {
            let words = Payload::new(result);
            let version = words.value().get("protocolVersion").and_then(Value::as_str);
            let revision = version
                .and_then(Revision::parse)
                .filter(|revision| !revision.is_modern())
                .ok_or_else(|| {
                    Failure::Misbehaved(
                        "it answered `initialize` with a revision nobody knows".into(),
                    )
                })?;
            Ok(Greeting { revision, words })
        }
    }
}
