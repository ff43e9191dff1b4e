//! What a plugin hands back, checked before anybody believes it.

use std::{collections::HashSet, fmt};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Decision, Verdict};

/// Labels and findings in one verdict.
const ITEMS: usize = 32;
/// Bytes of a label or of a rule's name.
const NAME_BYTES: usize = 64;
/// Bytes of a text for people.
const TEXT_BYTES: usize = 512;

/// Checks a verdict, and shortens what is only for reading.
pub fn check(mut verdict: Verdict) -> Result<Verdict, String> {
    if verdict.labels.len() > ITEMS || verdict.findings.len() > ITEMS {
        return Err(format!("it gave more than {ITEMS} labels or findings"));
    }
    if let Some(label) = verdict.labels.iter().find(|label| !is_name(label)) {
        return Err(format!("`{}` is not a legal label", excerpt(label, NAME_BYTES)));
    }
    for finding in &mut verdict.findings {
        legal_rule(&finding.rule)?;
        finding.message = excerpt(&finding.message, TEXT_BYTES);
    }
    match &mut verdict.decision {
        Decision::Pass => {}
        Decision::Refuse(refusal) => {
            if let Some(rule) = &refusal.rule {
                legal_rule(rule)?;
            }
            refusal.message = excerpt(&refusal.message, TEXT_BYTES);
            refusal.detail = refusal.detail.as_deref().map(|detail| excerpt(detail, TEXT_BYTES));
        }
        Decision::Replace(text) => {
            let mut json = serde_json::Deserializer::from_str(text);
            let what = Strict::deserialize(&mut json)
                .and_then(|what| json.end().map(|()| what))
                .map_err(|error| format!("its replacement is not strict JSON: {error}"))?;
            if !matches!(what, Strict::Object) {
                return Err("its replacement is not a JSON object".into());
            }
        }
    }
    Ok(verdict)
}

fn legal_rule(rule: &str) -> Result<(), String> {
    if is_name(rule) {
        Ok(())
    } else {
        Err(format!("`{}` is not a legal name of a rule", excerpt(rule, NAME_BYTES)))
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':'))
}

/// At most so many bytes of a guest's text, with control characters escaped.
pub fn excerpt(text: &str, bytes: usize) -> String {
    let short = &text[..text.floor_char_boundary(bytes)];
    let mut out = String::with_capacity(short.len());
    for c in short.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if short.len() < text.len() {
        out.push('…');
    }
    out
}

/// JSON without a key twice in one object. serde_json itself bounds the depth.
enum Strict {
    Object,
    Other,
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        impl<'de> Visitor<'de> for Walk {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
                Ok(Strict::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                while seq.next_element::<Strict>()?.is_some() {}
                Ok(Strict::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut keys = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    map.next_value::<Strict>()?;
                    if !keys.insert(key) {
                        return Err(A::Error::custom("an object has a key twice"));
                    }
                }
                Ok(Strict::Object)
            }
        }

        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Finding, Refusal};

    fn verdict(decision: Decision) -> Verdict {
        Verdict { decision, labels: Vec::new(), findings: Vec::new() }
    }

    #[test]
    fn a_replacement_is_one_strict_object() {
        for (text, legal) in [
            ("{}", true),
            (r#"{"a":[1,-2,0.5,null,true,"x",{"b":{}}]}"#, true),
            (r#"{"a":1,"b":{"a":1}}"#, true),
            ("", false),
            ("[]", false),
            ("null", false),
            ("\"x\"", false),
            ("{} {}", false),
            ("{", false),
            (r#"{"a":1,"a":2}"#, false),
            (r#"{"a":1,"\u0061":2}"#, false),
            (r#"{"x":[{"a":1,"a":1}]}"#, false),
            (&format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500)), false),
        ] {
            let checked = check(verdict(Decision::Replace(text.into())));
            assert_eq!(checked.is_ok(), legal, "{text}");
        }
    }

    #[test]
    fn labels_and_rules_are_names_and_few() {
        for (label, legal) in
            [("pii", true), ("pii:email.v1", true), ("", false), ("a b", false), ("É", false)]
        {
            let labelled = Verdict { labels: vec![label.into()], ..verdict(Decision::Pass) };
            assert_eq!(check(labelled).is_ok(), legal, "{label}");
            let finding = Finding { rule: label.into(), message: "seen".into() };
            let reported = Verdict { findings: vec![finding], ..verdict(Decision::Pass) };
            assert_eq!(check(reported).is_ok(), legal, "{label}");
        }
        let many = Verdict { labels: vec!["x".into(); ITEMS + 1], ..verdict(Decision::Pass) };
        assert!(check(many).is_err());
    }

    #[test]
    fn words_of_a_refusal_are_short_and_of_one_line() {
        let refusal =
            Refusal { message: format!("no\n{}", "ä".repeat(9_999)), rule: None, detail: None };
        let Ok(Verdict { decision: Decision::Refuse(refusal), .. }) =
            check(verdict(Decision::Refuse(refusal)))
        else {
            panic!("a refusal stays one");
        };
        assert!(refusal.message.starts_with("no\\nää"));
        assert!(refusal.message.len() < TEXT_BYTES + 8);
    }
}
