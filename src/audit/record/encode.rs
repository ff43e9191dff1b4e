//! Records as text of a bounded size.

use super::v1::{Call, Grounds, Record, Shape};

/// Bytes of one record: what a call can make the log grow by is bounded.
const RECORD_BYTES: usize = 64 * 1024;

/// The JSON object of a record, without what its place in the log adds. Cuts the lists of a record
/// that would be too large and counts what it cut.
pub(in crate::audit) fn encode(record: &mut Record) -> serde_json::Result<Vec<u8>> {
    const CUTS: [fn(&mut Record) -> usize; 4] = [
        |record| record.shape_mut().map_or(0, |shape| std::mem::take(shape).len()),
        |record| record.grounds_mut().map_or(0, |grounds| cut(&mut grounds.findings, 3)),
        |record| record.call_mut().map_or(0, |call| std::mem::take(&mut call.labels).len()),
        |record| record.grounds_mut().map_or(0, |g| cut(&mut g.rules, 1) + cut(&mut g.findings, 0)),
    ];
    let mut text = serde_json::to_vec(record)?;
    for make_smaller in CUTS {
        if text.len() <= RECORD_BYTES {
            break;
        }
        let omitted = make_smaller(record);
        if let Some(grounds) = record.grounds_mut() {
            grounds.omitted =
                grounds.omitted.saturating_add(u32::try_from(omitted).unwrap_or(u32::MAX));
        }
        text = serde_json::to_vec(record)?;
    }
    Ok(text)
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

    pub(super) fn grounds_mut(&mut self) -> Option<&mut Grounds> {
        match self {
            Self::Intent(intent) => Some(&mut intent.grounds),
            Self::Outcome(outcome) => Some(&mut outcome.grounds),
            Self::Refused(refused) => Some(&mut refused.grounds),
            Self::Event(_) => None,
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
    use super::*;
    use crate::{
        audit::{DigestKey, Refused, Ruling, record::Kept},
        exchange, refusal,
    };

    #[test]
    fn the_largest_record_fits() {
        let evil = "\u{1}\"é".repeat(4096);
        let rule = refusal::Rule {
            id: evil.clone(),
            file: Some(evil.clone().into()),
            line: Some(u32::MAX),
            reason: Some(evil.clone()),
            keep: Default::default(),
        };
        let finding = exchange::Finding {
            interceptor: evil.clone(),
            phase: crate::exchange::Phase::Request,
            rule: rule.clone(),
            message: evil.clone(),
            effect: crate::exchange::Effect::Reported,
        };
        let mut refusal = refusal::Refusal::new(refusal::Code::PolicyDenied, evil.clone())
            .detail(evil.clone())
            .rule(rule.clone());
        refusal.rules.resize(100, rule.clone());
        let exchange = crate::audit::tests::exchange(|exchange| {
            exchange.method = exchange::Method::new(&evil);
            exchange.target = exchange::Target::Resource { uri: evil.clone() };
            exchange.labels = (0..100).map(|i| format!("{i}{evil}")).collect();
            exchange.trace = Some(evil.clone());
        });
        let ruling = Ruling {
            rules: &vec![rule.clone(); 100],
            findings: &vec![finding.clone(); 100],
            policy_revision: Some(&evil),
            ..Ruling::default()
        };
        let key = DigestKey::for_tests();
        let refused = Refused::of(&exchange, &refusal, ruling, &key);
        let kept = Kept::of(evil.repeat(8).into(), 0);
        let mut record = Record::from(refused.keeping(Some(kept)));
        record.settle(None);
        let text = encode(&mut record).unwrap();
        assert!(text.len() <= RECORD_BYTES, "{}", text.len());
        let omitted = record.grounds().unwrap().omitted;
        // All rules, findings and labels but sixteen, all findings but three of those, and the one
        // member of the shape. What a policy has kept stays.
        assert_eq!(omitted, (200 - 16) + (100 - 16) + (100 - 16) + 13 + 1);
        assert!(record.kept().is_some_and(|kept| kept.cut && kept.body.is_some()));
    }
}
