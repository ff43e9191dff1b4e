//! Headers that repeat arguments of a tool, as its schema declares (`Mcp-Param-*`, MCP 2026-07-28).
//!
//! INVARIANT: decisions are made on the body. A client's headers are checked against the body that
//! the client sent. A server's headers are computed from the body that the chain made.

use serde_json::Value;

use crate::{recorder::Recorder, stages::Caller};
use portcullis_protocol::{
    codec::{
        headers::{PARAM, Repeated, decoded},
        may_have,
    },
    exchange::{Exchange, Payload, Target},
    refusal::{Code, Refusal},
};

/// Forwarded headers that no tool declares.
const MOST_FORWARDED: usize = 16;

/// Checks the client's headers against the arguments that it `sent`. Runs only after the chain
/// allowed the call, since a tool's schema is not visible to everyone.
///
/// # Errors
/// `header-mismatch`.
pub(super) fn check(
    recorder: &Recorder,
    caller: &Caller,
    exchange: &Exchange,
    sent: &Payload,
) -> Result<(), Refusal> {
    let (Some(headers), Some(repeated)) = (&caller.headers, repeated(exchange)) else {
        return Ok(());
    };
    let arguments = sent.value().get("arguments").and_then(Value::as_object);
    repeated.check(headers, arguments).map_err(|name| {
        let message = format!(
            "header `{}` is missing or differs from the body: list the tools again",
            recorder.shown(name.as_str())
        );
        Refusal::new(Code::HeaderMismatch, message)
    })
}

/// The headers for a modern server: those that the tool declares, and unchanged the client's
/// headers that the schema does not declare. The chain does not see the latter, so those with a
/// secret are left out.
pub(super) fn for_server(
    recorder: &Recorder,
    caller: &Caller,
    exchange: &Exchange,
) -> Vec<(String, String)> {
    let Target::Tool { .. } = exchange.target else { return Vec::new() };
    let repeated_params = repeated(exchange).unwrap_or_default();
    let mut headers = repeated_params.headers(exchange.arguments());
    let others = caller.headers.iter().flat_map(|headers| headers.iter());
    let others = others
        .filter(|(name, _)| name.as_str().starts_with(PARAM) && !repeated_params.has(name))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .filter(|(name, value)| {
            let clean = decoded(value).is_some_and(|text| {
                *recorder.shown(&text) == *text && *recorder.shown(name) == **name
            });
            if !clean {
                tracing::warn!(decision = %exchange.id, "header dropped: no tool declares it");
            }
            clean
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    headers.extend(others.take(MOST_FORWARDED));
    headers
}

/// The repeated arguments of the called tool. Legacy servers may use such annotations for anything,
/// so a misplaced one is ignored.
fn repeated(exchange: &Exchange) -> Option<Repeated> {
    let Target::Tool { tool: Some(tool), .. } = &exchange.target else { return None };
    if !may_have(tool.definition.raw(), "x-mcp-header") {
        return None;
    }
    Repeated::of(tool.definition.value().get("inputSchema")?).ok()
}
