//! Checks the output of a plugin.

use super::{Decision, Verdict, secret_redactor::SecretRedactor};

/// Limit of the labels and of the findings in one verdict.
const MAX_ITEMS: usize = 32;
/// Limit of a label or of a rule's name in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Limit of a text for people in bytes.
const MAX_TEXT_BYTES: usize = 512;

/// Checks a verdict, and shortens texts for people. The result contains none of the plugin's
/// secrets.
pub fn check(mut verdict: Verdict, veil: &SecretRedactor) -> Result<Verdict, String> {
    if verdict.labels.len() > MAX_ITEMS || verdict.findings.len() > MAX_ITEMS {
        return Err(format!("it returned more than {MAX_ITEMS} labels or findings"));
    }
    for label in &verdict.labels {
        legal("label", label, veil)?;
    }
    for finding in &mut verdict.findings {
        legal("code", &finding.code, veil)?;
        shorten(&mut finding.message, veil);
    }
    match &mut verdict.decision {
        Decision::Pass => {}
        // The chain checks a replacement like every message.
        Decision::Replace(text) => {
            if veil.hides(text) {
                return Err("its replacement contains a secret that was delivered to it".into());
            }
        }
        Decision::Refuse(refusal) => {
            legal("code", &refusal.code, veil)?;
            shorten(&mut refusal.reason, veil);
            if let Some(detail) = &mut refusal.detail {
                shorten(detail, veil);
            }
        }
    }
    Ok(verdict)
}

fn shorten(text: &mut String, veil: &SecretRedactor) {
    // Before truncation, because half a secret is one too.
    veil.cover(text);
    *text = excerpt(text, MAX_TEXT_BYTES);
}

fn legal(what: &str, name: &str, veil: &SecretRedactor) -> Result<(), String> {
    if veil.hides(name) {
        Err(format!("a {what} contains a secret that was delivered to it"))
    } else if is_name(name) {
        Ok(())
    } else {
        Err(format!("`{}` is not a legal {what}", excerpt(name, MAX_NAME_BYTES)))
    }
}

/// Whether a text is legal as a label, a code or a counter's name.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':'))
}

/// Text of a guest, truncated to this number of bytes, with control characters escaped.
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
    use crate::{Finding, Refusal};
    use portcullis_vault::Secret;

    fn verdict(decision: Decision) -> Verdict {
        Verdict { decision, labels: Vec::new(), findings: Vec::new() }
    }

    fn refusal(code: &str, reason: &str) -> Decision {
        Decision::Refuse(Refusal { code: code.into(), reason: reason.into(), detail: None })
    }

    #[test]
    fn labels_and_codes_are_legal_names_and_limited() {
        let veil = SecretRedactor::default();
        for (label, legal) in
            [("pii", true), ("pii:email.v1", true), ("", false), ("a b", false), ("É", false)]
        {
            let labelled = Verdict { labels: vec![label.into()], ..verdict(Decision::Pass) };
            assert_eq!(check(labelled, &veil).is_ok(), legal, "{label}");
            let finding = Finding { code: label.into(), message: "seen".into() };
            let reported = Verdict { findings: vec![finding], ..verdict(Decision::Pass) };
            assert_eq!(check(reported, &veil).is_ok(), legal, "{label}");
            assert_eq!(check(verdict(refusal(label, "no")), &veil).is_ok(), legal, "{label}");
        }
        let many = Verdict { labels: vec!["x".into(); MAX_ITEMS + 1], ..verdict(Decision::Pass) };
        assert!(check(many, &veil).is_err());
    }

    #[test]
    fn refusal_text_is_short_and_on_one_line() {
        let long = refusal("words", &format!("no\n{}", "ä".repeat(9_999)));
        let Ok(Verdict { decision: Decision::Refuse(refusal), .. }) =
            check(verdict(long), &SecretRedactor::default())
        else {
            panic!("the decision changed");
        };
        assert!(refusal.reason.starts_with("no\\nää"));
        assert!(refusal.reason.len() < MAX_TEXT_BYTES + 8);
    }

    #[test]
    fn verdicts_contain_no_secret() {
        let value = ["hunter", "2"].concat();
        let veil = SecretRedactor::over([Secret::new(value.clone())].iter()).unwrap();
        let finding = Finding { code: "seen".into(), message: format!("a {value}") };
        let answer = Verdict { findings: vec![finding], ..verdict(refusal("a", &value)) };
        let shown = format!("{:?}", check(answer, &veil).unwrap());
        assert!(shown.contains("[redacted]") && !shown.contains(&value), "{shown}");
        for bad in [
            verdict(Decision::Replace(format!("{{\"a\":\"{value}\"}}"))),
            verdict(refusal(&value, "no")),
            Verdict { labels: vec![value.clone()], ..verdict(Decision::Pass) },
        ] {
            let error = check(bad, &veil).unwrap_err();
            assert!(!error.contains(&value), "{error}");
        }
    }
}
