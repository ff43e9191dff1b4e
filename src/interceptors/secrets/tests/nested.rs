//! Secrets in JSON text and other escaped text within a string.

use super::*;
use crate::secrets::layers::Layers;

/// Name, and function that places a text in another.
type Placing = (&'static str, fn(&str) -> String);

/// Position of a sample in the inner value.
const POSITIONS: [Placing; 5] = [
    ("alone", str::to_owned),
    ("at the start of a line", |text| format!("the first line\n{text}")),
    ("between lines", |text| format!("a\r\n{text}\r\nb")),
    ("behind a tab", |text| format!("key\t{text}")),
    ("in quotes", |text| format!("say \"{text}\" now")),
];

fn json_of(value: &str) -> String {
    json!({ "n": 1.50, "a": [value] }).to_string()
}

fn unicode(text: &str) -> String {
    let mut units = [0; 2];
    let unit = |c: char| {
        let units: Vec<_> =
            c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04X}")).collect();
        units.concat()
    };
    text.chars().map(unit).collect()
}

fn repr(value: &str) -> String {
    let text = value.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
    format!("{{'a': '{}', 'n': None}}", text.replace('\t', "\\t").replace('\'', "\\'"))
}

/// Text around the inner value. The first four are JSON as a whole.
const NESTINGS: [Placing; 11] = [
    ("JSON", json_of),
    ("JSON in JSON", |value| json_of(&json_of(value))),
    ("JSON in JSON in JSON", |value| json_of(&json_of(&json_of(value)))),
    ("JSON with every letter escaped", |value| format!("[\"{}\"]", unicode(value))),
    ("NDJSON", |value| format!("{{\"i\":1}}\n{}\n{{\"i\":2}}\n", json_of(value))),
    ("a code fence", |value| {
        format!("Here it is:\n```json\n{:#}\n```\n", json!({ "a": { "b": value } }))
    }),
    ("server-sent events", |value| format!("event: message\ndata: {}\n\n", json_of(value))),
    ("a part of JSON", |value| {
        let whole = json!({ "a": value, "b": 1 }).to_string();
        whole[1..whole.len() - 4].to_owned()
    }),
    ("a JSON string", |value| json!(value).to_string()),
    ("a Python repr", repr),
    ("a log line", |value| format!("12:00 INFO body={} took 3 ms", json_of(value))),
];
const WHOLE: usize = 4;

/// Every spelling of a text that a parser of nested text could see.
fn layers(text: &str) -> Vec<String> {
    let layers = Layers::of(text.as_bytes());
    layers.texts().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
}

#[test]
fn every_rule_finds_its_secret_in_nested_text() {
    let scanner = scanner();
    let tables = secrets(&Config::default()).tables.load_full();
    let scrubber = Scrubber::new(&[]).unwrap();
    let mut cases = 0;
    for (source, seed) in rules::read(rules::BUILT_IN).unwrap().iter().zip(0..) {
        let sample = expand(&source.matches[0], &mut Seed::new(seed));
        let hits = scanner.scan(sample.as_bytes(), &mut Budget::of(sample.len())).unwrap();
        let parts: Vec<_> = hits.iter().map(|hit| &sample[hit.range.clone()]).collect();
        for (position, place) in POSITIONS {
            for (at, (nesting, nest)) in NESTINGS.into_iter().enumerate() {
                let what = format!("{} {position} in {nesting}", source.id);
                let text = nest(&place(&sample));
                let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
                let clean = |found: &str| {
                    let found = layers(found);
                    !parts.iter().any(|part| found.iter().any(|text| text.contains(part)))
                };
                cases += 1;

                let report = tables
                    .inspect(Phase::Request, raw.as_bytes(), &[], None, b"")
                    .map(|one| one.report)
                    .unwrap();
                assert!(report.refuse, "{what}: {text}");
                let report = tables
                    .inspect(Phase::Response, raw.as_bytes(), &[], None, b"")
                    .map(|one| one.report)
                    .unwrap();
                let redacted = report.redacted.unwrap_or_else(|| panic!("{what}: {text}"));
                let value: Value = serde_json::from_slice(&redacted).unwrap();
                let shown = value["content"][0]["text"].as_str().unwrap();
                assert!(clean(shown), "{what}: {shown}");
                if at < WHOLE {
                    serde_json::from_str::<Value>(shown)
                        .unwrap_or_else(|_| panic!("{what}: {shown}"));
                }
                // Text before the first mark and after the last is unchanged.
                let (before, _) = shown.split_once("[redacted:").unwrap();
                let (_, last) = shown.rsplit_once("[redacted:").unwrap();
                let (_, after) = last.split_once(']').unwrap();
                assert!(text.starts_with(before) && text.ends_with(after), "{what}: {shown}");

                let stored = scrubber.redact(raw.as_bytes()).unwrap();
                let shown = stored.body["content"][0]["text"].as_str().unwrap();
                assert!(stored.secrets > 0 && clean(shown), "{what}: {shown}");
            }
        }
    }
    assert!(cases >= 3_000, "{cases}");
}

#[tokio::test]
async fn redaction_in_nested_json_changes_no_other_byte() {
    let secrets = secrets(&Config::default());
    let token = token();
    let text = |secret: &str| {
        format!("{{ \"n\": 1.50,\t\"a\":\"\\u00e9\\n{secret}\\\"\\/\" , \"e\":1e3}}")
    };
    let raw = |secret: &str| json!({ "text": text(secret) }).to_string();
    let verdict = response(&secrets, &raw(&token)).await;
    assert_eq!(replacement(&verdict), raw("[redacted:github-token]"));
    // A mark covers whole escapes.
    let spelled = unicode(&token);
    let verdict = response(&secrets, &raw(&spelled)).await;
    assert_eq!(replacement(&verdict), raw("[redacted:github-token]"));
    // A truncated private key ends within an escape.
    let name = ["PRIVATE", "KEY"].join(" ");
    let key = format!("-----BEGIN {name}-----\\n{}\\", made("{base64raw:64}"));
    let inner = format!("{{\"a\":\"{key}\"\"}}");
    let verdict = response(&secrets, &json!({ "text": inner }).to_string()).await;
    let value: Value = serde_json::from_str(replacement(&verdict)).unwrap();
    let text = value["text"].as_str().unwrap();
    assert_eq!(text, "{\"a\":\"[redacted:private-key]\"}");
}

#[tokio::test]
async fn redacted_number_in_nested_json_is_still_json() {
    let digits = ["8675", "3099", "1122"].concat();
    let known = Known {
        holder: "s".into(),
        name: "PIN".into(),
        client: None,
        value: Secret::new(digits.clone()),
    };
    let secrets = Secrets::new("secrets", &Config::default(), &[known]).unwrap();
    let raw = json!({ "text": format!("{{\"a\":{digits},\"b\":\"{digits}\"}}") }).to_string();
    let verdict = response(&secrets, &raw).await;
    let value: Value = serde_json::from_str(replacement(&verdict)).unwrap();
    let inner: Value = serde_json::from_str(value["text"].as_str().unwrap()).unwrap();
    assert_eq!(inner, json!("[redacted:vault:s/PIN]"));
}

#[test]
fn flood_of_escapes_stays_within_limits() {
    let scanner = scanner();
    for text in ["\\".repeat(1 << 20), "\\\\n".repeat(1 << 18), "\\u0061".repeat(1 << 17)] {
        assert!(scanner.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap().is_empty());
        let raw = json!({ "a": text }).to_string();
        assert!(Scrubber::new(&[]).unwrap().redact(raw.as_bytes()).is_ok());
    }
    // Many findings in a text with many escapes: one walk for all of them.
    let tokens: String = (0..2_000)
        .map(|i| format!("\\n{}", expand("ghp_{base62:30}{crc32}", &mut Seed::new(i))))
        .collect();
    let found = scanner.scan(tokens.as_bytes(), &mut Budget::of(tokens.len())).unwrap();
    assert_eq!(found.len(), 2_000);
}
