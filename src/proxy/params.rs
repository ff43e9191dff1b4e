//! What a tool's schema says of its arguments beside their values: how they are spelled, and which of
//! them headers repeat (`Mcp-Param-*`, MCP 2026-07-28).
//!
//! INVARIANT: decisions are made on the body. A client's headers are held against what it sent
//! itself, and a server's are computed from what goes to it, whatever the chain made of it.

use std::{borrow::Cow, collections::HashMap};

use serde_json::{Map, Value};

use super::{Caller, Proxy};
use crate::{
    codec::{
        fold,
        headers::{PARAM, Repeated, decoded},
        may_have,
    },
    exchange::{Exchange, Payload, Target},
    refusal::{Code, Refusal},
};

/// Headers that no tool asks for, and that are handed on all the same.
const MOST_FORWARDED: usize = 16;

/// Refuses arguments that have a property of the tool's by a name of another case: a policy that
/// forbids its values would not see it, and a server that reads names without case would.
///
/// # Errors
/// `arguments-invalid`.
pub(super) fn well_spelled(exchange: &Exchange) -> Result<(), Refusal> {
    let Target::Tool { tool: Some(tool), .. } = &exchange.target else { return Ok(()) };
    let schema = tool.definition.value().get("inputSchema");
    let (Some(schema), Some(arguments)) = (schema, exchange.arguments()) else { return Ok(()) };
    match misspelled(schema, arguments) {
        None => Ok(()),
        Some(name) => {
            let words = "the arguments have a name that is one of the tool's but for case";
            Err(Refusal::new(Code::ArgumentsInvalid, words)
                .detail(format!("the tool's name for it is {name:?}")))
        }
    }
}

/// The property that stands in an object under a name of another case, there or below.
fn misspelled<'s>(schema: &'s Value, object: &Map<String, Value>) -> Option<&'s str> {
    let properties = schema.get("properties")?.as_object()?;
    let mut folded: Option<HashMap<Cow<'_, str>, &str>> = None;
    for (name, value) in object {
        let Some(inner) = properties.get(name) else {
            let folded = folded.get_or_insert_with(|| {
                properties.keys().map(|name| (fold(Cow::Borrowed(name)), name.as_str())).collect()
            });
            match folded.get(&fold(Cow::Borrowed(name))) {
                Some(known) => return Some(known),
                None => continue,
            }
        };
        let found = match value {
            Value::Object(object) => misspelled(inner, object),
            Value::Array(items) => {
                let objects = items.iter().filter_map(Value::as_object);
                let of_items = inner.get("items");
                of_items.and_then(|of| objects.into_iter().find_map(|item| misspelled(of, item)))
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

impl Proxy {
    /// Holds the client's headers against the arguments that it `sent`. Only once the chain let
    /// the call pass: what a tool's schema says is not for everybody.
    ///
    /// # Errors
    /// `header-mismatch`.
    pub(super) fn params_agree(
        &self,
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
                "header `{}` is missing or not what the body says: ask for the tools again",
                self.shown(name.as_str())
            );
            Refusal::new(Code::HeaderMismatch, message)
        })
    }

    /// The headers for a modern server: those that the tool asks for, and as they came those of
    /// the client's of which nothing is known here. The chain does not see the latter, so none
    /// passes in which a secret stands.
    pub(super) fn repeated(&self, caller: &Caller, exchange: &Exchange) -> Vec<(String, String)> {
        let Target::Tool { .. } = exchange.target else { return Vec::new() };
        let known = repeated(exchange).unwrap_or_default();
        let mut headers = known.headers(exchange.arguments());
        let others = caller.headers.iter().flat_map(|headers| headers.iter());
        let others = others
            .filter(|(name, _)| name.as_str().starts_with(PARAM) && !known.has(name))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .filter(|(name, value)| {
                let clean = decoded(value).is_some_and(|text| {
                    *self.shown(&text) == *text && *self.shown(name) == **name
                });
                if !clean {
                    tracing::warn!(decision = %exchange.id, "a header that no tool asks for is not handed on");
                }
                clean
            })
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        headers.extend(others.take(MOST_FORWARDED));
        headers
    }
}

/// What the called tool has repeated. A legacy server's annotations can be anything: one that is
/// out of place means nothing.
fn repeated(exchange: &Exchange) -> Option<Repeated> {
    let Target::Tool { tool: Some(tool), .. } = &exchange.target else { return None };
    if !may_have(tool.definition.raw(), "x-mcp-header") {
        return None;
    }
    Repeated::of(tool.definition.value().get("inputSchema")?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_of_another_case_is_found() {
        let schema = json!({ "properties": {
            "path": {},
            "Key": {},
            "key": {},
            "in": { "properties": { "deep": {} } },
            "all": { "items": { "properties": { "each": {} } } },
        } });
        for (arguments, found) in [
            (json!({ "path": 1, "Key": 1, "key": 1 }), None),
            (json!({ "other": 1, "p\u{430}th": 1, "": 1 }), None),
            (json!({ "Path": 1 }), Some("path")),
            (json!({ "\u{212a}ey": 1 }), Some("key")),
            (json!({ "in": { "Deep": 1 } }), Some("deep")),
            (json!({ "in": { "more": { "DEEP": 1 } } }), None),
            (json!({ "all": [1, { "each": 1 }, { "eAch": 1 }] }), Some("each")),
        ] {
            let got = misspelled(&schema, arguments.as_object().unwrap());
            // Of two names that differ in case alone, either is one.
            let got = got.map(str::to_lowercase);
            assert_eq!(got.as_deref(), found, "{arguments}");
        }
        let any = json!({ "Path": 1 });
        for schema in [json!({}), json!(true), json!({ "properties": [] })] {
            assert_eq!(misspelled(&schema, any.as_object().unwrap()), None, "{schema}");
        }
    }
}
