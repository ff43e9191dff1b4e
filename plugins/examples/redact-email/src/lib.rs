//! Replaces e-mail addresses in tool results by `[email]`, and refuses calls whose arguments hold
//! the marker of the operator's `config = { marker = "…" }`.

wit_bindgen::generate!({ path: "../../wit", world: "plugin" });

use exports::portcullis::interceptor::guest::*;
use serde_json::Value;
use std::sync::OnceLock;

/// The marker of the configuration, where there is one.
static MARKER: OnceLock<Option<String>> = OnceLock::new();

struct RedactEmail;
export!(RedactEmail);

impl Guest for RedactEmail {
    fn describe() -> Manifest {
        let hook = |phase| Hook { events: vec!["tools/call".into()], phase };
        Manifest {
            name: "redact-email".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: env!("CARGO_PKG_DESCRIPTION").into(),
            hooks: vec![hook(Phase::Request), hook(Phase::Response)],
            lifetime: Lifetime::Message,
            config_schema: Some(include_str!("config.schema.json").into()),
            hosts: vec![],
            secrets: vec![],
        }
    }

    fn start(config: String) -> Result<(), String> {
        let marker = json(&config)?["marker"].as_str().map(str::to_owned);
        MARKER.set(marker).map_err(|_| "it began twice".into())
    }

    fn inspect(message: Message) -> Result<Verdict, String> {
        let mut payload: Value = json(&message.payload)?;
        let decision = match message.phase {
            Phase::Request => match MARKER.get().and_then(Option::as_deref) {
                Some(marker) if any(&mut payload["arguments"], &|text| text.contains(marker)) => {
                    Decision::Refuse(Refusal {
                        code: "marker".into(),
                        reason: "the arguments hold a marker that must not leave".into(),
                        detail: None,
                    })
                }
                _ => Decision::Pass,
            },
            Phase::Response if any(&mut payload, &redact) => Decision::Replace(payload.to_string()),
            Phase::Response => Decision::Pass,
        };
        Ok(Verdict { decision, labels: vec![], findings: vec![] })
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Shows every string within to `act`, and says whether it answered `true` to any.
fn any(value: &mut Value, act: &dyn Fn(&mut String) -> bool) -> bool {
    match value {
        Value::String(text) => act(text),
        Value::Array(items) => items.iter_mut().fold(false, |hit, item| any(item, act) | hit),
        Value::Object(map) => map.values_mut().fold(false, |hit, item| any(item, act) | hit),
        _ => false,
    }
}

/// Replaces every `name@host.tld`, and says whether there was one.
fn redact(text: &mut String) -> bool {
    let local = |c: char| c.is_ascii_alphanumeric() || "._%+-".contains(c);
    let host = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    let (mut out, mut rest, mut hit) = (String::new(), text.as_str(), false);
    while let Some(at) = rest.find('@') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        let name = before.trim_end_matches(local);
        let end = after.find(|c| !host(c)).unwrap_or(after.len());
        let domain = after[..end].trim_end_matches(['.', '-']);
        if name.len() < before.len() && domain.contains('.') {
            out = out + name + "[email]";
            rest = &after[domain.len()..];
            hit = true;
        } else {
            out += &rest[..=at];
            rest = after;
        }
    }
    *text = out + rest;
    hit
}
