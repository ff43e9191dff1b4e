//! Messages from the audit log, if a policy kept their bodies.

use serde_json::{Value, json};

use portcullis_audit::record::{self, Call, Entry, KeptBody, Record};
use portcullis_plugin_host::{Direction, Message, Phase, Principal, PrincipalKind, Target};

/// Message of a decision, with the number of secrets redacted in the record. It is the response if
/// `answer` says so, or if only the response was kept.
///
/// # Errors
/// The reason why the log does not have the message.
pub fn from_audit(entries: &[Entry], answer: Option<bool>) -> Result<(Message, u32), String> {
    let mut request = Err("the log has no request of this decision".to_owned());
    let mut response = Err("the log has no answer of this decision".to_owned());
    for entry in entries {
        match &entry.record {
            Record::Intent(intent) => request = asked(&intent.call, intent.arguments.as_ref()),
            Record::Refused(refused) => request = asked(&refused.call, refused.arguments.as_ref()),
            Record::Outcome(outcome) => {
                let is_error = outcome.answer == Some(record::AnswerKind::Error);
                response =
                    kept_body(outcome.result.as_ref(), "result").and_then(|(body, taken)| {
                        let payload = body.to_string();
                        Ok((message(&outcome.call, Phase::Response, is_error, payload)?, taken))
                    });
            }
            Record::Event(_) => {}
        }
    }
    match answer {
        Some(true) => response,
        Some(false) => request,
        None => request.or_else(|why| response.map_err(|_| why)),
    }
}

fn asked(call: &Call, arguments: Option<&KeptBody>) -> Result<(Message, u32), String> {
    let (body, taken) = kept_body(arguments, "arguments")?;
    let method = call.method.as_deref().unwrap_or_default();
    let payload = match (&call.target, method) {
        // Only the arguments of these methods are kept.
        (
            Some(record::Target::Tool(name) | record::Target::Prompt(name)),
            "tools/call" | "prompts/get",
        ) => json!({ "name": name, "arguments": body }),
        _ => body.clone(),
    };
    Ok((message(call, Phase::Request, false, payload.to_string())?, taken))
}

fn kept_body<'a>(kept_body: Option<&'a KeptBody>, what: &str) -> Result<(&'a Value, u32), String> {
    let kept_body = kept_body.ok_or_else(|| {
        format!("its {what} were not kept: a policy that decides has to say `@keep(\"{what}\")`")
    })?;
    if let Some(failure) = &kept_body.failure {
        return Err(format!("its {what} were not kept: {failure}"));
    }
    if kept_body.cut {
        return Err(format!("its {what} were longer than what is kept of them"));
    }
    let body = kept_body.body.as_ref().ok_or_else(|| format!("its {what} could not be kept"))?;
    Ok((body, kept_body.redacted))
}

fn message(call: &Call, phase: Phase, is_error: bool, payload: String) -> Result<Message, String> {
    let event = call.method.clone().ok_or("the log does not have its method")?;
    let (name, kind) = match call.principal.as_deref() {
        Some(name) if name.starts_with("local:") => (name, PrincipalKind::Local),
        Some(name) if name != "anonymous" || call.verified => (name, PrincipalKind::Client),
        Some(_) | None => ("anonymous", PrincipalKind::Anonymous),
    };
    Ok(Message {
        exchange: call.id.to_string(),
        event,
        phase,
        direction: match call.direction {
            record::Direction::ClientToServer => Direction::ClientToServer,
            record::Direction::ServerToClient => Direction::ServerToClient,
        },
        server: call.server.clone(),
        target: match &call.target {
            Some(record::Target::Tool(name)) => Target::Tool(name.clone()),
            Some(record::Target::Prompt(name)) => Target::Prompt(name.clone()),
            Some(record::Target::Resource(uri)) => Target::Resource(uri.clone()),
            None => Target::None,
        },
        principal: Principal { name: name.to_owned(), kind, groups: call.groups.clone() },
        labels: call.labels.iter().cloned().collect(),
        session_prefix: call.session.clone(),
        is_error,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(records: &[Value]) -> Vec<Entry> {
        records.iter().map(|record| serde_json::from_value(record.clone()).unwrap()).collect()
    }

    fn record(kind: &str, rest: Value) -> Value {
        let mut record = json!({
            "v": 1, "record": kind, "seq": 1, "recorded": "2026-01-05T12:00:00Z", "prev": "0".repeat(64),
            "id": "0193a7c0-0000-7000-8000-000000000001", "at": "2026-01-05T12:00:00Z",
            "principal": "helpdesk", "verified": true, "groups": ["support"], "transport": "http",
            "direction": "client-to-server", "method": "tools/call", "server": "shop",
            "target": { "tool": "refund" }, "decision": "allowed",
            "request": { "bytes": 1, "digest": "d" }, "total_us": 1,
        });
        record.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        record
    }

    #[test]
    fn kept_bodies_become_messages() {
        let stored = |body: Value| json!({ "body": body });
        let all = entries(&[
            record("intent", json!({ "arguments": stored(json!({ "amount": 1 })) })),
            record(
                "outcome",
                json!({ "result": stored(json!({ "content": [] })), "answer": "result" }),
            ),
        ]);
        let (message, taken) = from_audit(&all, None).unwrap();
        assert_eq!(message.payload, r#"{"name":"refund","arguments":{"amount":1}}"#);
        assert_eq!(
            (message.phase, message.principal.name.as_str(), taken),
            (Phase::Request, "helpdesk", 0)
        );
        let (message, _) = from_audit(&all, Some(true)).unwrap();
        assert_eq!(
            (message.phase, message.payload.as_str()),
            (Phase::Response, r#"{"content":[]}"#)
        );
        // The response, if only the response was kept.
        assert_eq!(from_audit(&all[1..], None).unwrap().0.phase, Phase::Response);
    }

    #[test]
    fn missing_bodies_are_explained() {
        for (arguments, expected) in [
            (json!({}), "@keep(\"arguments\")"),
            (json!({ "arguments": { "body": {}, "cut": true } }), "longer than what is kept"),
            (json!({ "arguments": { "failure": "too deep" } }), "too deep"),
        ] {
            let why = from_audit(&entries(&[record("intent", arguments)]), None).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
        assert!(from_audit(&[], None).unwrap_err().contains("no request"));
    }
}
