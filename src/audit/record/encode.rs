//! Encoding of records as JSON of a bounded size without control characters for terminals.

use std::borrow::Cow;

use serde::ser::Error as _;

use super::{
    PolicyInput, members,
    v1::{Call, DecisionBasis, Record, Shape},
};
use portcullis_foundation::printable::escaped;

/// Maximum bytes of one record. Bounds how much a call can add to the log.
const RECORD_BYTES: usize = 64 * 1024;
/// Bytes of a record that most do not exceed.
const USUAL_BYTES: usize = 1536;

/// JSON object of a record, without the head of its line. Truncates lists of records that would be
/// too large, and counts the omitted items.
pub(crate) fn encode(record: &mut Record) -> serde_json::Result<Vec<u8>> {
    const CUTS: [fn(&mut Record) -> usize; 4] = [
        |record| record.shape_mut().map_or(0, |shape| std::mem::take(shape).len()),
        |record| record.grounds_mut().map_or(0, |grounds| cut(&mut grounds.findings, 3)),
        |record| record.call_mut().map_or(0, |call| std::mem::take(&mut call.labels).len()),
        |record| record.grounds_mut().map_or(0, |g| cut(&mut g.rules, 1) + cut(&mut g.findings, 0)),
    ];
    let mut text = json(record)?;
    for make_smaller in CUTS {
        if text.len() <= RECORD_BYTES {
            break;
        }
        let omitted = make_smaller(record);
        if let Some(grounds) = record.grounds_mut() {
            grounds.omitted =
                grounds.omitted.saturating_add(u32::try_from(omitted).unwrap_or(u32::MAX));
        }
        text = json(record)?;
    }
    Ok(text)
}

/// JSON with escaped control characters, including those that JSON permits: the hashed text is
/// printed unchanged, by the proxy and by readers of an export.
fn json(record: &Record) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL_BYTES);
    members::write(&mut text, record)?;
    let text = String::from_utf8(text).map_err(serde_json::Error::custom)?;
    // On the whole text: its parts are short, so that a check of each costs much more.
    let changed = match escaped(&text, |_| false) {
        Cow::Owned(changed) => Some(changed),
        Cow::Borrowed(_) => None,
    };
    Ok(changed.unwrap_or(text).into_bytes())
}

fn cut<T>(list: &mut Vec<T>, most: usize) -> usize {
    let omitted = list.len().saturating_sub(most);
    list.truncate(most);
    omitted
}

impl Record {
    pub(super) fn call_mut(&mut self) -> Option<&mut Call> {
        match self {
            Self::Intent(intent) => Some(&mut intent.call),
            Self::Outcome(outcome) => Some(&mut outcome.call),
            Self::Refused(refused) => Some(&mut refused.call),
            Self::Event(_) => None,
        }
    }

    pub(super) fn grounds_mut(&mut self) -> Option<&mut DecisionBasis> {
        match self {
            Self::Intent(intent) => Some(&mut intent.grounds),
            Self::Outcome(outcome) => Some(&mut outcome.grounds),
            Self::Refused(refused) => Some(&mut refused.grounds),
            Self::Event(_) => None,
        }
    }

    pub(super) fn asked_mut(&mut self) -> Option<&mut PolicyInput> {
        match self {
            Self::Intent(intent) => intent.asked.as_mut(),
            Self::Refused(refused) => refused.asked.as_mut(),
            Self::Outcome(_) | Self::Event(_) => None,
        }
    }

    fn shape_mut(&mut self) -> Option<&mut Shape> {
        match self {
            Self::Intent(intent) => Some(&mut intent.shape),
            Self::Refused(refused) => Some(&mut refused.shape),
            Self::Outcome(outcome) => Some(&mut outcome.shape),
            Self::Event(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        Conclusion, DecisionContext, DigestKey, Intent, Outcome, Refused, record::KeptBody,
    };
    use portcullis_foundation::printable::can_steer;
    use portcullis_protocol::{exchange, refusal};

    /// Mostly plain ASCII, with characters of all other kinds.
    const TEXT: &str =
        "[ -~]{0,40}|[ -~\\x00-\\x1f\\x7f-\\xffé日\u{202e}\u{200b}\u{1f512}\u{e0041}]{0,40}";

    #[test]
    fn record_cannot_control_a_terminal() {
        let evil = "re\u{1b}[2J\u{7}ad\r\n\u{9b}2J\u{202e}\u{7f}\u{e0041}\\\"é日";
        let exchange = portcullis_test_support::exchange(|exchange| {
            exchange.target = exchange::Target::Tool { name: evil.into(), tool: None };
        });
        let refusal = refusal::Refusal::new(refusal::Code::Unknown, evil);
        let key = DigestKey::for_tests();
        let mut record = Refused::of(&exchange, &refusal, DecisionContext::default(), &key).into();
        let text = String::from_utf8(encode(&mut record).unwrap()).unwrap();
        assert!(!text.contains(can_steer), "{text}");
        assert!(text.contains("é日"), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    proptest! {
        #[test]
        fn record_is_json_with_escaped_control_characters(
            texts in proptest::collection::vec(TEXT, 8),
            labels in proptest::collection::btree_set(TEXT, 0..4),
            line in any::<Option<u32>>(),
        ) {
            let text = |at: usize| texts[at].clone();
            let exchange = portcullis_test_support::exchange(|exchange| {
                exchange.method = exchange::Method::new(&text(0));
                exchange.target = exchange::Target::Resource { uri: text(1) };
                exchange.trace = Some(text(2));
                exchange.labels = labels;
            });
            let rule = refusal::Rule {
                id: text(3),
                file: Some(text(4).into()),
                line,
                reason: Some(text(5)),
                obligations: Default::default(),
            };
            let refusal = refusal::Refusal::new(refusal::Code::PolicyDenied, text(6))
                .detail(text(7))
                .rule(rule.clone());
            let key = DigestKey::for_tests();
            let stages = [(text(3).into(), Duration::from_micros(7))];
            let rules = &[rule];
            let ruling = DecisionContext { rules, stages: &stages, ..DecisionContext::default() };
            let failed = Conclusion::Failed(&refusal);
            for mut record in [
                Record::from(Intent::of(&exchange, ruling, &key)),
                Record::from(Outcome::of(&exchange, ruling, failed, None, &key)),
                Record::from(Refused::of(&exchange, &refusal, ruling, &key)),
            ] {
                record.scrub_and_truncate(None);
                let mut expected = String::new();
                for c in serde_json::to_string(&record).unwrap().chars() {
                    if can_steer(c) {
                        for unit in c.encode_utf16(&mut [0; 2]) {
                            expected.push_str(&format!("\\u{unit:04x}"));
                        }
                    } else {
                        expected.push(c);
                    }
                }
                let line = String::from_utf8(encode(&mut record).unwrap()).unwrap();
                prop_assert_eq!(line, expected);
            }
        }
    }

    #[test]
    fn largest_record_fits() {
        let evil = "\u{1}\"é".repeat(4096);
        let rule = refusal::Rule {
            id: evil.clone(),
            file: Some(evil.clone().into()),
            line: Some(u32::MAX),
            reason: Some(evil.clone()),
            obligations: Default::default(),
        };
        let finding = exchange::Finding {
            interceptor: evil.clone(),
            phase: portcullis_protocol::exchange::Phase::Request,
            rule: rule.clone(),
            message: evil.clone(),
            effect: portcullis_protocol::exchange::Effect::Reported,
        };
        let mut request = finding.clone();
        request.rule.id = "p/@http".into();
        let mut refusal = refusal::Refusal::new(refusal::Code::PolicyDenied, evil.clone())
            .detail(evil.clone())
            .rule(rule.clone());
        refusal.rules.resize(100, rule.clone());
        let exchange = portcullis_test_support::exchange(|exchange| {
            exchange.method = exchange::Method::new(&evil);
            exchange.target = exchange::Target::Resource { uri: evil.clone() };
            exchange.labels = (0..100).map(|i| format!("{i}{evil}")).collect();
            exchange.trace = Some(evil.clone());
        });
        let permit = refusal::Rule { line: Some(1), ..rule };
        let ruling = DecisionContext {
            rules: &vec![permit; 100],
            findings: &[vec![finding.clone(); 100], vec![request; 1_000]].concat(),
            policy_revision: Some(&evil),
            ..DecisionContext::default()
        };
        let key = DigestKey::for_tests();
        let refused = Refused::of(&exchange, &refusal, ruling, &key);
        let kept = KeptBody::of(evil.repeat(8).into(), 0);
        let mut record = Record::from(refused.keeping(Some(kept)));
        record.scrub_and_truncate(None);
        let text = encode(&mut record).unwrap();
        assert!(text.len() <= RECORD_BYTES, "{}", text.len());
        let omitted = record.grounds().unwrap().omitted;
        // All rules, findings and labels except sixteen, all findings except three of those, and
        // the one member of the shape. A body that a policy keeps stays.
        assert_eq!(omitted, (200 - 16) + (100 - 16) + (100 - 16) + (1_000 - 3) + 16 + 1);
        assert!(record.kept_body().is_some_and(|kept| kept.cut && kept.body.is_some()));
    }
}
