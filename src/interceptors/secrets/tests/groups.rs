//! Rules of groups: numbers of cards, and personal data.

use super::*;

fn with(settings: Value) -> Secrets {
    secrets(&serde_json::from_value(settings).unwrap())
}

#[test]
fn every_optional_rule_finds_its_examples_and_no_clean_text() {
    let rules = rules::built_in().unwrap().iter().chain(rules::optional().unwrap()).cloned();
    let scanner = Scanner::new(rules.collect(), &[]).unwrap();
    for source in rules::read(rules::OPTIONAL).unwrap() {
        assert!(source.group.is_some(), "{}", source.id);
        for round in 0..200 {
            let mut seed = Seed::new(round);
            for template in &source.matches {
                let text = expand(template, &mut seed);
                for text in [text.clone(), format!("a {text} b"), format!("k=\"{text}\",")] {
                    // A sign before or behind a number can be one of its own.
                    assert!(found(&scanner, &text).contains(&source.id.as_str()), "{text}");
                }
            }
            for template in &source.clean {
                let text = expand(template, &mut seed);
                let ids = found(&scanner, &text);
                assert!(!ids.contains(&source.id.as_str()), "{}: {text}", source.id);
            }
        }
    }
}

#[test]
fn check_digits_are_those_of_published_numbers() {
    for (number, is_valid) in
        [("4111 1111 1111 1111", true), ("378282246310005", true), ("4111111111111112", false)]
    {
        assert_eq!(rules::luhn(number.as_bytes()) == 0, is_valid, "{number}");
    }
    for (number, is_valid) in
        [("GB82 WEST 1234 5698 7654 32", true), ("GB82 WEST 1234 5698 7654 33", false)]
    {
        assert_eq!(rules::iban(number.as_bytes()) == 1, is_valid, "{number}");
    }
}

#[tokio::test]
async fn groups_are_off_by_default() {
    let card = made("4{digits:14}{luhn}");
    let raw =
        json!({ "card": card, "number": card.parse::<u64>().unwrap(), "mail": "ann@acme.org" });
    let verdict = response(&with(json!({})), &raw.to_string()).await;
    assert_eq!(verdict, Verdict::pass());
    let verdict =
        response(&with(json!({ "groups": { "cards": "redact" } })), &raw.to_string()).await;
    let mark = "[redacted:card-number]";
    let redacted = json!({ "card": mark, "number": mark, "mail": "ann@acme.org" });
    assert_eq!(replacement(&verdict), redacted.to_string());
    let personal = with(json!({
        "groups": { "personal": "redact" },
        "rules": { "phone-number": "off", "card-number": "report" },
    }));
    let raw = json!({ "text": format!("{card}: Ann <ann@acme.org>, +49 30 12345678") });
    let verdict = response(&personal, &raw.to_string()).await;
    let text = format!("{card}: Ann <[redacted:email-address]>, +49 30 12345678");
    assert_eq!(replacement(&verdict), json!({ "text": text }).to_string());
    assert_eq!(verdict.findings.len(), 2);
    let verdict = request(&personal, &json!({ "mail": "ann@acme.org" }).to_string()).await;
    assert_eq!(replacement(&verdict), json!({ "mail": "[redacted:email-address]" }).to_string());
}

#[test]
fn records_are_redacted_by_groups_that_are_on() {
    let config: Config =
        serde_json::from_value(json!({ "groups": { "personal": "report" } })).unwrap();
    for (settings, shown) in [
        (vec![], "mail of ann@acme.org"),
        (vec![&config, &config], "mail of [redacted:email-address]"),
    ] {
        let scrubber = Scrubber::with_rules(&[], settings).unwrap();
        let mut text = "mail of ann@acme.org".to_owned();
        scrubber.scrub(&mut text);
        assert_eq!(text, shown);
    }
}

#[tokio::test]
async fn group_has_a_budget_for_long_messages() {
    let all = with(json!({ "groups": { "personal": "redact", "cards": "redact" } }));
    let text = "The report of 2026-07-12 has 4 tables, see https://acme.org/a?b=%20c.\n";
    let raw = json!([text.repeat(2 << 20 >> 6)]).to_string();
    assert_eq!(response(&all, &raw).await, Verdict::pass());
}
