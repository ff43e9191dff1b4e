//! Members of the records of calls, written as serde writes them. These records are most of a log,
//! and serde's flattened and optional members cost several times as much.

use serde::Serialize;
use serde_json::{Result, to_writer};

use super::v1::{Call, DecisionBasis, Intent, Outcome, Record, Refused, Shape, Timing};

/// Appends the JSON object of a record.
pub(super) fn write(out: &mut Vec<u8>, record: &Record) -> Result<()> {
    let mut members = Members { out, separator: b'{' };
    match record {
        Record::Intent(intent) => members.intent(intent)?,
        Record::Outcome(outcome) => members.outcome(outcome)?,
        Record::Refused(refused) => members.refused(refused)?,
        Record::Event(_) => return to_writer(out, record),
    }
    members.out.push(b'}');
    Ok(())
}

/// Writer of the members of one object.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    separator: u8,
}

impl Members<'_> {
    fn intent(&mut self, intent: &Intent) -> Result<()> {
        let Intent { call, decision, grounds, asked, request, shape, arguments } = intent;
        self.text("record", "intent")?;
        self.call(call)?;
        self.value("decision", decision)?;
        self.grounds(grounds)?;
        self.optional("asked", asked.as_ref())?;
        self.value("request", request)?;
        self.shape(shape)?;
        self.optional("arguments", arguments.as_ref())
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<()> {
        let Outcome { call, decision, refusal, grounds, answer, response, shape, result, timing } =
            outcome;
        self.text("record", "outcome")?;
        self.call(call)?;
        self.value("decision", decision)?;
        self.optional("refusal", refusal.as_ref())?;
        self.grounds(grounds)?;
        self.optional("answer", answer.as_ref())?;
        self.optional("response", response.as_ref())?;
        self.shape(shape)?;
        self.optional("result", result.as_ref())?;
        self.timing(timing)
    }

    fn refused(&mut self, refused: &Refused) -> Result<()> {
        let Refused { call, decision, refusal, grounds, asked, request, shape, arguments, timing } =
            refused;
        self.text("record", "refused")?;
        self.call(call)?;
        self.value("decision", decision)?;
        self.value("refusal", refusal)?;
        self.grounds(grounds)?;
        self.optional("asked", asked.as_ref())?;
        self.optional("request", request.as_ref())?;
        self.shape(shape)?;
        self.optional("arguments", arguments.as_ref())?;
        self.timing(timing)
    }

    fn call(&mut self, call: &Call) -> Result<()> {
        let Call {
            id,
            at,
            principal,
            verified,
            groups,
            key_id,
            client_addr,
            transport,
            session,
            direction,
            method,
            notification,
            era,
            revision,
            server,
            image,
            target,
            pin,
            labels,
            trace,
        } = call;
        self.value("id", id)?;
        self.value("at", at)?;
        self.optional_text("principal", principal.as_deref())?;
        self.flag("verified", *verified);
        self.optional("groups", Some(groups).filter(|groups| !groups.is_empty()))?;
        self.optional_text("key_id", key_id.as_deref())?;
        self.optional("client_addr", client_addr.as_ref())?;
        self.value("transport", transport)?;
        self.optional_text("session", session.as_deref())?;
        self.value("direction", direction)?;
        self.optional_text("method", method.as_deref())?;
        self.flag("notification", *notification);
        self.optional("era", era.as_ref())?;
        self.optional_text("revision", revision.as_deref())?;
        self.optional_text("server", server.as_deref())?;
        self.optional_text("image", image.as_deref())?;
        self.optional("target", target.as_ref())?;
        self.optional_text("pin", pin.as_deref())?;
        self.optional("labels", Some(labels).filter(|labels| !labels.is_empty()))?;
        self.optional_text("trace", trace.as_deref())
    }

    fn grounds(&mut self, grounds: &DecisionBasis) -> Result<()> {
        let DecisionBasis { rules, findings, policy_revision, omitted } = grounds;
        self.optional("rules", Some(rules).filter(|rules| !rules.is_empty()))?;
        self.optional("findings", Some(findings).filter(|findings| !findings.is_empty()))?;
        self.optional_text("policy_revision", policy_revision.as_deref())?;
        self.optional("omitted", Some(omitted).filter(|omitted| **omitted > 0))
    }

    fn shape(&mut self, shape: &Shape) -> Result<()> {
        if shape.is_empty() {
            return Ok(());
        }
        self.key("shape");
        let mut members = Members { out: self.out, separator: b'{' };
        for (pointer, types) in shape {
            members.data_key(pointer)?;
            string(members.out, types)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn timing(&mut self, timing: &Timing) -> Result<()> {
        let Timing { total_us, server_us, stages_us } = timing;
        self.value("total_us", total_us)?;
        self.optional("server_us", server_us.as_ref())?;
        if stages_us.is_empty() {
            return Ok(());
        }
        self.key("stages_us");
        let mut members = Members { out: self.out, separator: b'{' };
        for (stage, micros) in stages_us {
            members.data_key(stage)?;
            to_writer(&mut *members.out, micros)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Key of the format, which needs no escape.
    fn key(&mut self, key: &'static str) {
        self.out.extend_from_slice(&[self.separator, b'"']);
        self.separator = b',';
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Key that comes from a message or a name.
    fn data_key(&mut self, key: &str) -> Result<()> {
        self.out.push(self.separator);
        self.separator = b',';
        string(self.out, key)?;
        self.out.push(b':');
        Ok(())
    }

    fn text(&mut self, key: &'static str, value: &str) -> Result<()> {
        self.key(key);
        string(self.out, value)
    }

    fn optional_text(&mut self, key: &'static str, value: Option<&str>) -> Result<()> {
        value.map_or(Ok(()), |value| self.text(key, value))
    }

    fn value(&mut self, key: &'static str, value: &impl Serialize) -> Result<()> {
        self.key(key);
        to_writer(&mut *self.out, value)
    }

    fn optional(&mut self, key: &'static str, value: Option<&impl Serialize>) -> Result<()> {
        value.map_or(Ok(()), |value| self.value(key, value))
    }

    /// A member that is absent unless it is true.
    fn flag(&mut self, key: &'static str, value: bool) {
        if value {
            self.key(key);
            self.out.extend_from_slice(b"true");
        }
    }
}

/// A JSON string. Most need no escape and are copied at once.
fn string(out: &mut Vec<u8>, text: &str) -> Result<()> {
    let needs_escape = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\');
    if text.as_bytes().iter().any(needs_escape) {
        return to_writer(out, text);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Every member that a record of the kind can have.
    fn complete(kind: &str) -> Value {
        let digest = json!({ "bytes": 7, "digest": "hmac-sha256:00" });
        let rule = json!({ "id": "r", "file": "a\"b", "line": 3, "reason": "é", "asks": ["note"] });
        let kept = json!({ "body": { "a": [1] }, "redacted": 1, "cut": true });
        let mut record = json!({
            "record": kind, "id": "01a20ffe-6eb5-71c1-8e34-00d882a02b54",
            "at": "2026-11-24T23:57:42.453758431Z", "principal": "dev\n", "verified": true,
            "groups": ["readers"], "key_id": "8f8b60fd8c52", "client_addr": "[::1]:7",
            "transport": "http", "session": "U8-IMnM1", "direction": "server-to-client",
            "method": "tools/call", "notification": true, "era": "modern",
            "revision": "2026-07-28", "server": "notes", "image": "sha256:1",
            "target": { "tool": "read" }, "pin": "sha256:2", "labels": ["\u{1}"], "trace": "3",
            "decision": "refused", "rules": [rule],
            "findings": [{ "interceptor": "schema", "phase": "request", "rule": rule,
                "message": "m", "effect": "reported" }],
            "policy_revision": "4", "omitted": 5, "shape": { "/a\\b": "number|string" },
        });
        let refusal = json!({ "code": "c", "message": "m", "detail": "d" });
        let claims = json!({ "claims": { "read_only": true, "by": "server" }, "session_calls": 1 });
        let request = json!({ "asked": claims, "request": digest, "arguments": kept });
        let timing =
            json!({ "total_us": 9, "server_us": 8, "stages_us": { "parse": 1, "é\t": 2 } });
        let response = json!({ "answer": "error", "response": digest, "result": kept });
        let refusal = json!({ "refusal": refusal });
        let parts = match kind {
            "intent" => vec![request],
            "outcome" => vec![refusal, response, timing],
            _ => vec![refusal, request, timing],
        };
        for part in parts {
            record.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        record
    }

    #[test]
    fn records_are_written_as_serde_writes_them() {
        for kind in ["intent", "outcome", "refused"] {
            let members = complete(kind);
            let record: Record = serde_json::from_value(members.clone()).unwrap();
            let mut text = Vec::new();
            write(&mut text, &record).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, serde_json::to_string(&record).unwrap());
            let written: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(written, members, "the test has every member");
        }
    }

    #[test]
    fn absent_members_are_omitted_as_serde_omits_them() {
        const REQUIRED: [&str; 8] =
            ["record", "id", "at", "transport", "direction", "decision", "request", "total_us"];
        for (kind, more) in [("intent", ""), ("outcome", ""), ("refused", "refusal")] {
            let mut members = complete(kind);
            members
                .as_object_mut()
                .unwrap()
                .retain(|key, _| REQUIRED.contains(&key.as_str()) || key == more);
            let record: Record = serde_json::from_value(members.clone()).unwrap();
            let mut text = Vec::new();
            write(&mut text, &record).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), serde_json::to_string(&record).unwrap());
        }
    }
}
