mod allocations;
mod bodies;
mod encodings;
mod files;
mod groups;
mod measurement;
mod names;
mod nested;
mod split;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    scan::Budget,
    templates::{Seed, expand},
    *,
};
use crate::{
    InterceptorEntry, InterceptorKind,
    fixtures::{answered, message},
};
use portcullis_protocol::exchange::{Answer, Payload};

fn scanner() -> Scanner {
    Scanner::new(rules::built_in().unwrap().to_vec(), &[]).unwrap()
}

fn found<'a>(scanner: &'a Scanner, text: &str) -> Vec<&'a str> {
    let hits = scanner.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap();
    hits.iter().map(|hit| scanner.ids[hit.id].as_str()).collect()
}

fn secrets(config: &Config) -> Secrets {
    Secrets::new("secrets", config, &[]).unwrap()
}

fn made(template: &str) -> String {
    expand(template, &mut Seed::new(7))
}

/// Token that the rule `github-token` finds.
fn token() -> String {
    made("ghp_{base62:30}{crc32}")
}

async fn request(secrets: &Secrets, raw: &str) -> Verdict {
    let exchange = Exchange {
        request: Payload::new(Bytes::copy_from_slice(raw.as_bytes())),
        ..message("a", "tools/call")
    };
    secrets.inspect(&exchange, Phase::Request).await.unwrap()
}

async fn response(secrets: &Secrets, raw: &str) -> Verdict {
    let exchange = Exchange {
        response: Some(Answer::Result(Payload::new(Bytes::copy_from_slice(raw.as_bytes())))),
        ..message("a", "tools/call")
    };
    secrets.inspect(&exchange, Phase::Response).await.unwrap()
}

fn replacement(verdict: &Verdict) -> &str {
    match &verdict.decision {
        Decision::Replace(raw) => std::str::from_utf8(raw).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_rule_finds_its_examples_and_no_clean_text() {
    let scanner = scanner();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    assert!(sources.len() >= 200);
    let mut ids: Vec<_> = sources.iter().map(|source| &source.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), sources.len(), "an id is duplicated");
    // Of formats, and of values that a name makes a secret.
    let mut groups = [(0, 0); 2];
    for source in &sources {
        assert!(!source.description.is_empty() && !source.matches.is_empty(), "{}", source.id);
        let (mut hits, mut all) = (0_usize, 0_usize);
        for round in 0..40 {
            let mut seed = Seed::new(round);
            for template in &source.matches {
                let text = expand(template, &mut seed);
                for text in [text.clone(), format!("a {text} b"), format!("k=\"{text}\",")] {
                    all += 1;
                    hits += usize::from(found(&scanner, &text).contains(&source.id.as_str()));
                }
            }
            for template in &source.clean {
                let text = expand(template, &mut seed);
                let mut ids = found(&scanner, &text);
                // Another rule may find the value by its name.
                ids.retain(|id| source.any_name || *id != "named-secret");
                assert_eq!(ids, Vec::<&str>::new(), "{}: {template}", source.id);
            }
        }
        let group = &mut groups[usize::from(source.named)];
        *group = (group.0 + hits, group.1 + all);
        // A short random text can look like words.
        let is_random = source.any_name || source.check == Some(rules::Check::Random);
        let least = if is_random { 80 } else { 100 };
        assert!(100 * hits >= least * all, "{}: {hits} of {all}", source.id);
    }
    for ((hits, all), group) in groups.into_iter().zip(["formats", "values behind a name"]) {
        println!("{group}: {hits} of {all} samples, {:.2} %", 100.0 * hits as f64 / all as f64);
    }
}

#[test]
fn harmless_texts_are_clean() {
    let scanner = scanner();
    for round in 0..200 {
        let mut seed = Seed::new(round);
        for template in [
            "commit {hex:40}",
            "sha256:{hex:64}",
            "{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
            "checksum = \"{hex:64}\"",
            "\"integrity\": \"sha512-{base64:86}==\"",
            "data:image/png;base64,iVBORw0KGgo{base64:4000}",
            "{base64lines:8000}",
            "https://example.com/{hex:40}?id={digits:12}&v={base62:20}",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{base64raw:43} me@host",
            "{base36:25}",
            "etag: W/\"{hex:32}\"",
            "function {lower:1}({lower:1}){return {lower:1}.{lower:3}(0x{hex:8})}",
        ] {
            let text = expand(template, &mut seed);
            assert_eq!(found(&scanner, &text), Vec::<&str>::new(), "{template}");
        }
    }
}

#[test]
fn secret_is_found_anywhere() {
    let scanner = scanner();
    let (token, key) = (token(), made("AKIA{base32:16}"));
    let filler = "some words, ".repeat(5_000);
    for text in [
        format!("{filler}{token}{filler}"),
        format!("{token}{filler}"),
        format!("{filler}{token}"),
        format!("{token} {token}"),
        format!("ghp_ghp_{token}"),
        format!("{}{token}", "ghp_".repeat(2_000)),
        format!("ghp_{}{token}", "x".repeat(32)),
        format!("{token}ä"),
        format!("ä{token}"),
    ] {
        assert!(found(&scanner, &text).contains(&"github-token"));
    }
    assert_eq!(found(&scanner, &format!("{key},{key};{key}")).len(), 3);
    // Adjacent secrets that share the character between them.
    let keys = (0..3).map(|i| expand("AIza{base64url:35}", &mut Seed::new(i))).collect::<Vec<_>>();
    assert_eq!(found(&scanner, &keys.join(" ")).len(), 3);
}

#[tokio::test]
async fn request_with_a_secret_is_refused() {
    let secrets = secrets(&Config::default());
    let raw = json!({ "arguments": { "a": ["x", format!("t={}", token())] } }).to_string();
    let verdict = request(&secrets, &raw).await;
    let Decision::Refuse(refusal) = &verdict.decision else { panic!("{verdict:?}") };
    assert_eq!(refusal.code, Code::SecretFound);
    assert_eq!(refusal.rules[0].id, "github-token");
    assert!(refusal.rules[0].reason.as_ref().is_some_and(|reason| reason.contains("CRC-32")));
    let finding = &verdict.findings[0];
    assert_eq!(finding.message, "a secret in the string at /arguments/a/1");
    assert_eq!(finding.effect, Effect::Refused);
    assert!(!format!("{verdict:?}").contains(&token()[4..]));
}

#[tokio::test]
async fn response_is_redacted_without_changing_other_bytes() {
    let secrets = secrets(&Config::default());
    let token = token();
    let escaped = format!("\\u0067{}", &token[1..]);
    for shown in [&token, &escaped] {
        let raw = |secret: &str| {
            format!(
                r#" {{ "b":1.50, "content":[{{"text":"é\n\u00e9 {secret}\t!"}}], "n":1e3,"e":"\/" }}"#
            )
        };
        let verdict = response(&secrets, &raw(shown)).await;
        assert_eq!(replacement(&verdict), raw("[redacted:github-token]"));
        assert_eq!(verdict.findings[0].effect, Effect::Redacted);
        assert!(verdict.findings[0].message.ends_with("/content/0/text"));
    }
}

#[tokio::test]
async fn errors_and_lists_are_scanned_too() {
    let secrets = secrets(&Config::default());
    let error = Exchange {
        response: Some(Answer::Error(Payload::from(
            json!({ "code": 1, "message": format!("bad token {}", token()) }),
        ))),
        ..message("a", "resources/read")
    };
    let verdict = secrets.inspect(&error, Phase::Response).await.unwrap();
    assert!(replacement(&verdict).contains("bad token [redacted:github-token]"));
    let list = json!({ "tools": [{ "name": "t", "description": token() }] });
    let verdict = secrets
        .inspect(&answered(message("a", "tools/list"), list), Phase::Response)
        .await
        .unwrap();
    assert!(replacement(&verdict).contains("[redacted:github-token]"));
    for phase in [Phase::Request, Phase::Response] {
        assert_eq!(secrets.inspect(&message("a", "ping"), phase).await.unwrap(), Verdict::pass());
    }
}

#[tokio::test]
async fn secret_in_a_key_refuses_and_is_in_no_pointer() {
    let secrets = secrets(&Config::default());
    let raw = json!({ "r": { token(): { "inner": token() } } }).to_string();
    let verdict = response(&secrets, &raw).await;
    assert!(matches!(verdict.decision, Decision::Refuse(_)));
    let messages: Vec<_> = verdict.findings.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(
        messages,
        ["a secret in the key at /r/[redacted]", "a secret in the string at /r/[redacted]/inner"]
    );
}

#[tokio::test]
async fn settings_apply_by_phase_and_by_rule() {
    let raw = json!({ "a": token(), "b": made("AKIA{base32:16}") }).to_string();
    let with = |toml: &str| secrets(&toml::from_str(toml).unwrap());

    let reporting = with("request = 'report'");
    let verdict = request(&reporting, &raw).await;
    assert_eq!(verdict.decision, Decision::Pass);
    assert_eq!(verdict.findings.len(), 2);
    assert!(verdict.findings.iter().all(|f| f.effect == Effect::Reported));

    let redacting = with("request = 'redact'\nrules = { github-token = 'off' }");
    let verdict = request(&redacting, &raw).await;
    let value: Value = serde_json::from_str(replacement(&verdict)).unwrap();
    assert_eq!(value, json!({ "a": token(), "b": "[redacted:aws-access-key-id]" }));

    let strict = with("rules = { aws-access-key-id = 'refuse' }");
    let verdict = response(&strict, &raw).await;
    assert!(matches!(verdict.decision, Decision::Refuse(_)));
    let effects: Vec<_> = verdict.findings.iter().map(|f| f.effect).collect();
    assert_eq!(effects, [Effect::Reported, Effect::Refused]);

    let off = with("request = 'off'");
    assert_eq!(request(&off, &raw).await, Verdict::pass());
}

#[tokio::test]
async fn values_delivered_to_servers_are_found_exactly() {
    let known = |name: &str, value: &str| Known {
        holder: "db".into(),
        name: name.into(),
        client: None,
        value: Secret::new(value.into()),
    };
    let all = [
        known("PASS WORD", "correct horse \"ä\""),
        known("PIN", "1234567"),
        known("ACCOUNT", "12345678"),
    ];
    let secrets = Secrets::new("secrets", &Config::default(), &all).unwrap();
    let raw = json!({ "a": "it is correct horse \"ä\", pin 1234567" }).to_string();
    let verdict = response(&secrets, &raw).await;
    assert_eq!(
        replacement(&verdict),
        json!({ "a": "it is [redacted:vault:db/PASS_WORD], pin 1234567" }).to_string()
    );
    let numbers = r#"{"a":[1,-12345678.5,2],"b":-12345678}"#;
    let redacted = r#"{"a":[1,"[redacted:vault:db/ACCOUNT]",2],"b":"[redacted:vault:db/ACCOUNT]"}"#;
    assert_eq!(replacement(&response(&secrets, numbers).await), redacted);
    // Many hits in one number cost one visit, and commas at the ends of a secret stay.
    let digits = [known("DIGITS", "12345678"), known("LIST", "11112222,33334444,")];
    let of_digits = Secrets::new("secrets", &Config::default(), &digits).unwrap();
    let long = format!("[0.{},7]", "12345678".repeat(100_000));
    let redacted = r#"["[redacted:vault:db/DIGITS]",7]"#;
    assert_eq!(replacement(&response(&of_digits, &long).await), redacted);
    let redacted = r#"["[redacted:vault:db/LIST]",5]"#;
    assert_eq!(replacement(&response(&of_digits, "[11112222,33334444,5]").await), redacted);
    let lenient =
        Config { rules: BTreeMap::from([("vault".into(), Action::Report)]), ..Config::default() };
    let secrets = Secrets::new("secrets", &lenient, &all).unwrap();
    assert_eq!(response(&secrets, &raw).await.decision, Decision::Pass);
}

#[tokio::test]
async fn overlapping_secrets_count_once_with_the_strictest_action() {
    let url = made("https://bot{colon}ghp_{base62:30}{crc32}@git.example.com/");
    let secrets = self::secrets(&Config::default());
    let verdict = response(&secrets, &json!([url]).to_string()).await;
    assert_eq!(
        replacement(&verdict),
        json!([made("https://bot{colon}[redacted:github-token]@git.example.com/")]).to_string()
    );
    // Redacted text is clean.
    assert_eq!(response(&secrets, replacement(&verdict)).await, Verdict::pass());
    let config: Config = toml::from_str("rules = { url-password = 'refuse' }").unwrap();
    let verdict = response(&self::secrets(&config), &json!([url]).to_string()).await;
    assert!(matches!(verdict.decision, Decision::Refuse(_)));
}

#[tokio::test]
async fn many_secrets_are_redacted_and_the_first_are_reported() {
    let secrets = secrets(&Config::default());
    let list: Vec<_> =
        (0..500).map(|i| expand("ghp_{base62:30}{crc32}", &mut Seed::new(i))).collect();
    let verdict = response(&secrets, &json!(list).to_string()).await;
    assert!(!replacement(&verdict).contains("ghp_"));
    assert_eq!(verdict.findings.len(), 51);
    assert_eq!(verdict.findings[50].message, "450 more secrets");
}

#[tokio::test]
async fn large_messages_are_scanned_and_larger_ones_are_a_fault() {
    let filler = "lorem ipsum dolor sit amet ".repeat(20_000);
    let raw = json!({ "a": filler, "b": token() }).to_string();
    assert!(raw.len() > MAX_INLINE_BYTES);
    let secrets = secrets(&Config::default());
    let verdict = response(&secrets, &raw).await;
    assert!(replacement(&verdict).ends_with("\"[redacted:github-token]\"}"));

    let small = Config { max_bytes: 100, ..Config::default() };
    let exchange = answered(message("a", "tools/call"), json!("x".repeat(200)));
    let fault = self::secrets(&small).inspect(&exchange, Phase::Response).await.unwrap_err();
    assert!(fault.0.contains("`max-bytes` is 100"), "{fault}");
}

#[test]
fn flood_of_keywords_hides_no_token_after_it() {
    let tables = secrets(&Config::default()).tables.load_full();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    let all: Vec<_> = sources.iter().flat_map(|source| source.keywords.clone()).collect();
    let one = ["glpat-", "glsoat-", "sk-admin-", "GOCSPX-", "pck_", "eyJ"].map(str::to_owned);
    for keyword in one.into_iter().chain([all[..17].concat(), all.concat()]) {
        let flood = keyword.repeat((1 << 18) / keyword.len());
        let raw = json!([format!("{flood} {}", token())]).to_string();
        let report = tables
            .inspect(Phase::Response, raw.as_bytes(), &[], None, b"")
            .map(|one| one.report)
            .unwrap();
        let shown = report.redacted.unwrap();
        assert!(shown.ends_with(b" [redacted:github-token]\"]"), "{keyword:.20}");
    }
}

#[tokio::test]
async fn payload_that_is_not_json_is_a_fault() {
    let exchange = Exchange {
        request: Payload::new(Bytes::from_static(b"{\"a\":")),
        ..message("a", "tools/call")
    };
    let secrets = secrets(&Config::default());
    assert!(secrets.inspect(&exchange, Phase::Request).await.is_err());
    let empty = Exchange { request: Payload::new(Bytes::new()), ..exchange };
    assert_eq!(secrets.inspect(&empty, Phase::Request).await.unwrap(), Verdict::pass());
}

#[test]
fn illegal_settings_name_their_key() {
    let config: Config = toml::from_str("rules = { github-tokn = 'off' }").unwrap();
    let error = Secrets::new("secrets", &config, &[]).err().unwrap().to_string();
    assert_eq!(error, "`rules.github-tokn`: unknown rule; did you mean `github-token`?");
    let none = Config { max_bytes: 0, ..Config::default() };
    assert_eq!(Secrets::new("secrets", &none, &[]).err(), Some(Invalid::NoBytes));
    assert!(toml::from_str::<Config>("request = 'hide'").is_err());
}

#[test]
fn settings_are_parsed_from_an_entry() {
    let entry: InterceptorEntry =
        toml::from_str("use = 'secrets'\nresponse = 'refuse'\n[rules]\njwt = 'report'").unwrap();
    let InterceptorKind::Secrets(config) = entry.kind else { panic!() };
    assert_eq!((config.request, config.response), (Action::Refuse, Action::Refuse));
    assert_eq!(config.rules["jwt"], Action::Report);
    assert!(toml::from_str::<InterceptorEntry>("use = 'secrets'\nrespons = 'off'").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn redaction_changes_only_the_strings_concerned(
        texts in prop::collection::vec((any::<String>(), any::<bool>(), any::<String>()), 0..8)
    ) {
        // A space prevents the text before from continuing the token.
        let with = |secret: &str| -> Value {
            texts
                .iter()
                .map(|(a, has, b)| if *has { format!("{a} {secret} {b}") } else { format!("{a}{b}") })
                .map(Value::from)
                .collect()
        };
        let tables = secrets(&Config::default()).tables.load_full();
        let report = tables.inspect(Phase::Response, with(&token()).to_string().as_bytes(), &[], None, b"").map(|one| one.report).unwrap();
        let expected = with("[redacted:github-token]");
        match report.redacted {
            Some(raw) => prop_assert_eq!(serde_json::from_slice::<Value>(&raw).unwrap(), expected),
            None => prop_assert!(texts.iter().all(|(_, has, _)| !has)),
        }
    }
}

#[tokio::test]
async fn newest_value_is_found_after_many_rotations() {
    let value = |i: usize| ["some", "what", "long", &i.to_string(), "end"].join("-");
    let known = |client: Option<&str>, i: usize| Known {
        holder: "db".into(),
        name: "TOKEN".into(),
        client: client.map(str::to_owned),
        value: Secret::new(value(i)),
    };
    let marked = json!(["[redacted:vault:db/TOKEN]"]).to_string();
    let names: Vec<_> = (0..10).map(|i| format!("client-{i}")).collect();
    let clients = names.iter().enumerate().map(|(i, name)| known(Some(name), i));
    let first: Vec<_> = clients.chain([known(None, 10), known(None, 10)]).collect();
    let secrets = Secrets::new("secrets", &Config::default(), &first).unwrap();
    let scrubber = Scrubber::new(&first).unwrap();
    let found = async |i: usize| {
        let raw = json!([value(i)]).to_string();
        let mut redacted = raw.clone();
        scrubber.scrub(&mut redacted);
        let verdict = response(&secrets, &raw).await;
        let in_messages = verdict.decision != Decision::Pass;
        assert_eq!(in_messages, redacted != raw, "{i}");
        assert!(!in_messages || redacted == marked && replacement(&verdict) == marked, "{i}");
        in_messages
    };
    let learn = |all: &[Known]| {
        secrets.learn(all).unwrap();
        scrubber.learn(all).unwrap();
    };
    // One value of each client, then twenty of one client that keeps its first.
    for i in 11..31 {
        learn(&[known(Some("client-0"), 0), known(Some("client-0"), i)]);
        assert!(found(i).await, "{i}");
    }
    for i in 0..11 {
        assert!(found(i).await, "{i}");
    }
    assert!(!found(11).await);
    // A repeated value is the newest again, and values in use are kept, however many.
    learn(&[known(Some("client-0"), 24)]);
    for i in 31..37 {
        learn(&[known(Some("client-0"), i)]);
    }
    assert!(found(24).await && !found(25).await);
    let many: Vec<_> = (40..60).map(|i| known(None, i)).collect();
    learn(&many);
    for i in 40..60 {
        assert!(found(i).await, "{i}");
    }
}
