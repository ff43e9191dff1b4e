//! Changes that permitting policies require: `@redact` and `@note`.

use std::ops::Range;

use bytes::Bytes;
use serde_json::{Value, json};

use portcullis_chain::{Decision, Verdict};
use portcullis_protocol::{
    codec::{Object, Pointer, items, overwrite, splice},
    exchange::{Answer, Effect, Exchange, Finding, Method, Phase},
    obligations::Obligations,
    refusal::Rule,
};

/// Replacement of redacted values.
const REDACTED: &[u8] = br#""[redacted]""#;

/// Verdict on a request that these rules permit, with its redactions.
pub(super) fn of_request(exchange: &Exchange, rules: &[Rule]) -> Verdict {
    let named = [Method::TOOLS_CALL, Method::PROMPTS_GET].contains(&exchange.method.as_str());
    let mut text = exchange.request.raw().clone();
    let mut findings = Vec::new();
    for rule in rules {
        let pointers = rule.obligations.redact.arguments.iter();
        let pointers: Vec<_> = pointers
            .map(|pointer| if named { pointer.within("arguments") } else { pointer.clone() })
            .collect();
        if let Some(redacted) = overwrite(&text, &pointers, REDACTED) {
            text = redacted;
            findings.push(finding(rule.clone(), Phase::Request));
        }
    }
    if findings.is_empty() {
        return Verdict::pass();
    }
    Verdict { findings, ..Verdict::replace(text) }
}

/// Verdict on a result, with the findings and rules of another one: applies the redactions of the
/// policies that permitted the request, and adds their notes.
pub(super) fn of_answer(exchange: &Exchange, verdict: Verdict) -> Verdict {
    let Some(Answer::Result(result)) = &exchange.response else { return verdict };
    let mut text = result.raw().clone();
    let mut findings = verdict.findings.clone();
    for obligations in &exchange.obligations {
        let of_task = Method::TASK.contains(&exchange.method.as_str());
        if let Some(redacted) = redacted(&text, obligations, of_task) {
            text = redacted;
            findings.push(finding(Rule::named("@redact"), Phase::Response));
        }
        let is_call = exchange.method.as_str() == Method::TOOLS_CALL;
        if let Some(noted) =
            obligations.note.as_ref().filter(|_| is_call).and_then(|n| noted(&text, n))
        {
            text = noted;
        }
    }
    if text == *result.raw() {
        return verdict;
    }
    Verdict { decision: Decision::Replace(text), findings, ..verdict }
}

fn finding(rule: Rule, phase: Phase) -> Finding {
    Finding {
        interceptor: "policy".to_owned(),
        phase,
        rule,
        message: "a field was overwritten".to_owned(),
        effect: Effect::Redacted,
    }
}

/// Result with redacted fields. A server repeats its structured content as JSON in a text block
/// (MCP, "Structured Content"), so it is redacted there, too. The state of a task contains the
/// result of its call as `result`.
fn redacted(text: &Bytes, obligations: &Obligations, of_task: bool) -> Option<Bytes> {
    let pointers = &obligations.redact.result;
    if pointers.is_empty() {
        return None;
    }
    if of_task && let Some(place) = inner_result(text) {
        let inner = redacted(&text.slice(place.clone()), obligations, false)?;
        return splice(text, vec![(place, inner)]);
    }
    let written = overwrite(text, pointers, REDACTED)?;
    // Any of the texts could contain a copy of structured content.
    let structured = |text: &Bytes| Object::parse(text.clone()).ok()?.get("structuredContent");
    if structured(text) == structured(&written) {
        return Some(written);
    }
    let inner: Vec<Pointer> =
        pointers.iter().filter_map(|pointer| pointer.under("structuredContent")).collect();
    Some(in_blocks(&written, &inner).unwrap_or(written))
}

fn inner_result(text: &Bytes) -> Option<Range<usize>> {
    let state = Object::parse(text.clone()).ok()?;
    state.members().find(|(key, _)| *key == "result").map(|(_, place)| place)
}

/// Result with the fields redacted in all text blocks. Blocks without these fields are redacted as
/// a whole.
fn in_blocks(text: &Bytes, pointers: &[Pointer]) -> Option<Bytes> {
    let result = Object::parse(text.clone()).ok()?;
    let (_, content) = result.members().find(|(key, _)| *key == "content")?;
    let edits = items(&text[content.clone()])?.into_iter().filter_map(|block| {
        let start = content.start + block.start;
        let block = Object::parse(text.slice(start..content.start + block.end)).ok()?;
        let inner = Bytes::from(block.string("text")?);
        let (_, place) = block.members().find(|(key, _)| *key == "text")?;
        let written = match overwrite(&inner, pointers, REDACTED) {
            Some(redacted) => {
                Bytes::from(Value::from(String::from_utf8_lossy(&redacted)).to_string())
            }
            None => Bytes::from_static(REDACTED),
        };
        Some((start + place.start..start + place.end, written))
    });
    splice(text, edits.collect())
}

/// Result with a note appended to its content; `None` if the note is already there.
fn noted(text: &Bytes, note: &str) -> Option<Bytes> {
    let result = Object::parse(text.clone()).ok()?;
    let content = result.get("content")?;
    let block = json!({ "type": "text", "text": format!("[portcullis] {note}") }).to_string();
    let inside = content.trim_ascii().strip_prefix(b"[")?.strip_suffix(b"]")?;
    if memchr::memmem::find(inside, block.as_bytes()).is_some() {
        return None;
    }
    let comma: &[u8] = if inside.trim_ascii().is_empty() { b"" } else { b"," };
    let content = [b"[", inside, comma, block.as_bytes(), b"]"].concat();
    Some(result.with(&[("content", Some(&content))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn field_is_redacted_everywhere_in_a_result() {
        let mut obligations = Obligations::default();
        obligations.take("redact", "result:/structuredContent/ssn").unwrap();
        let result = r#"{"content": [{"type": "text", "text": "{\"ssn\": 1, \"n\": 1.0}"}, {"type": "text", "text": "x: 1"}], "structuredContent": {"ssn": 1, "n": 1.0}}"#;
        let written = redacted(&bytes(result), &obligations, false).unwrap();
        assert_eq!(
            written,
            r#"{"content": [{"type": "text", "text": "{\"ssn\": \"[redacted]\", \"n\": 1.0}"}, {"type": "text", "text": "[redacted]"}], "structuredContent": {"ssn": "[redacted]", "n": 1.0}}"#
        );
        assert_eq!(redacted(&written, &obligations, false), None);
        // Same in the state of a task.
        let state = format!(r#"{{"taskId": "t", "result": {result}}}"#);
        let state = redacted(&bytes(&state), &obligations, true).unwrap();
        assert!(state.ends_with(&[&written[..], b"}"].concat()), "{state:?}");
    }

    #[test]
    fn text_blocks_keep_no_copy_of_redacted_content() {
        let result = r#"{"content":[{"type":"text","text":"{\"a\":{\"ssn\":1}}"}],"structuredContent":{"a":{"ssn":1}}}"#;
        for (redact, text, structured) in [
            ("result:/structuredContent", r#""[redacted]""#, r#""[redacted]""#),
            ("result:/*/a", r#""{\"a\":\"[redacted]\"}""#, r#"{"a":"[redacted]"}"#),
            (
                "result:/*/*/ssn",
                r#""{\"a\":{\"ssn\":\"[redacted]\"}}""#,
                r#"{"a":{"ssn":"[redacted]"}}"#,
            ),
        ] {
            let mut obligations = Obligations::default();
            obligations.take("redact", redact).unwrap();
            let written = redacted(&bytes(result), &obligations, false).unwrap();
            let expected = format!(
                r#"{{"content":[{{"type":"text","text":{text}}}],"structuredContent":{structured}}}"#
            );
            assert_eq!(written, expected, "{redact}");
        }
    }

    #[test]
    fn note_is_appended_once() {
        for (result, expected) in [
            (
                r#"{"content":[]}"#,
                r#"{"content":[{"type":"text","text":"[portcullis] be careful"}]}"#,
            ),
            (
                r#"{"content": [ {"a": 1.0} ], "isError": true}"#,
                r#"{"content": [ {"a": 1.0} ,{"type":"text","text":"[portcullis] be careful"}], "isError": true}"#,
            ),
        ] {
            let written = noted(&bytes(result), "be careful").unwrap();
            assert_eq!(written, expected);
            assert_eq!(noted(&written, "be careful"), None);
        }
        for result in ["{}", r#"{"content": {}}"#, r#"{"content": null}"#] {
            assert_eq!(noted(&bytes(result), "be careful"), None, "{result}");
        }
    }
}
