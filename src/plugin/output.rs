//! What a plugin hands back, checked before anybody believes it.

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
        // The chain holds a replacement to what every message is held to.
        Decision::Pass | Decision::Replace(_) => {}
        Decision::Refuse(refusal) => {
            if let Some(rule) = &refusal.rule {
                legal_rule(rule)?;
            }
            refusal.message = excerpt(&refusal.message, TEXT_BYTES);
            refusal.detail = refusal.detail.as_deref().map(|detail| excerpt(detail, TEXT_BYTES));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Finding, Refusal};

    fn verdict(decision: Decision) -> Verdict {
        Verdict { decision, labels: Vec::new(), findings: Vec::new() }
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
