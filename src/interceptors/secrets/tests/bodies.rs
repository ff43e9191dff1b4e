//! Redaction of stored texts and bodies.

use super::*;

#[test]
fn redaction_leaves_no_part_of_a_secret() {
    let value = ["correct", "horse", "battery"].join("-");
    let known = Known {
        holder: "s".into(),
        name: "KEY".into(),
        client: None,
        value: Secret::new(value.clone()),
    };
    let lines = ["first-of-many-lines", "  second-of-many", "third"].join("\n");
    let many = Known { name: "MANY".into(), value: Secret::new(lines.clone()), ..known.clone() };
    let scrubber = Scrubber::new(&[known, many]).unwrap();
    let token = token();
    for (text, scrubbed) in [
        ("tools/call".to_owned(), "tools/call".to_owned()),
        (format!("é{token}é"), "é[redacted:github-token]é".to_owned()),
        (
            format!("{value} and {token}"),
            "[redacted:vault:s/KEY] and [redacted:github-token]".to_owned(),
        ),
        (lines, "[redacted:vault:s/MANY]".to_owned()),
        ("x second-of-many x".to_owned(), "x [redacted:vault:s/MANY] x".to_owned()),
    ] {
        let mut got = text.clone();
        scrubber.scrub(&mut got);
        assert_eq!(got, scrubbed);
    }
}

/// Bodies with a secret at each possible position, in each JSON spelling.
fn bodies(secret: &str) -> Vec<String> {
    let escaped: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let quoted = Value::from(secret).to_string();
    let plain = &quoted[1..quoted.len() - 1];
    let mut all = Vec::new();
    for spelled in [plain, &escaped] {
        all.extend([
            format!(r#"{{"a":"{spelled}"}}"#),
            format!(r#"{{"a":["x",{{"b":"say {spelled} now"}}]}}"#),
            format!(r#"{{"{spelled}":1}}"#),
            format!(r#"{{"é":{{"k {spelled}":["{spelled}"]}}}}"#),
        ]);
    }
    all
}

#[test]
fn no_secret_of_the_corpus_is_left_in_a_stored_body() {
    let scrubber = Scrubber::new(&[]).unwrap();
    let scanner = scanner();
    let mut seed = Seed::new(3);
    for source in rules::read(rules::BUILT_IN).unwrap() {
        for template in &source.matches {
            let text = expand(template, &mut seed);
            // Part of the example that is the secret, by the rule itself.
            let hits = scanner.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap();
            let secrets: Vec<_> = hits.iter().map(|hit| &text[hit.range.clone()]).collect();
            for body in bodies(&text) {
                let Redacted { body: stored, secrets: count } =
                    scrubber.redact(body.as_bytes()).unwrap();
                assert!(count > 0, "{}: {body}", source.id);
                let stored = texts(&stored).join("\0");
                for secret in &secrets {
                    assert!(!stored.contains(*secret), "{}: {template}", source.id);
                }
            }
        }
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(members) => {
            members.iter().flat_map(|(k, v)| [vec![k.clone()], texts(v)].concat()).collect()
        }
        Value::String(text) => vec![text.clone()],
        plain => vec![plain.to_string()],
    }
}

#[test]
fn known_and_named_values_are_redacted_in_stored_bodies() {
    let value = ["8675", "3099", "1122"].concat();
    let known = Known {
        holder: "s".into(),
        name: "PIN".into(),
        client: None,
        value: Secret::new(value.clone()),
    };
    let scrubber = Scrubber::new(&[known]).unwrap();
    let named = made("{base64raw:40}");
    let body = format!(
        r#"{{"n":{value},"s":"a {value}","aws_secret_access_key":"{named}","clean":[1.50,null]}}"#
    );
    let redacted = scrubber.redact(body.as_bytes()).unwrap();
    assert_eq!(redacted.secrets, 3);
    assert_eq!(
        redacted.body,
        json!({
            "n": "[redacted:vault:s/PIN]",
            "s": "a [redacted:vault:s/PIN]",
            "aws_secret_access_key": "[redacted:aws-secret-access-key]",
            "clean": [1.5, null],
        })
    );
    assert_eq!(scrubber.redact(b"no json"), Err(Unredacted::Unreadable));
    // A flood of beginnings of JSON is abandoned, and nothing of it is stored.
    let flood = json!("{\"a\":".repeat(200_000)).to_string();
    assert_eq!(scrubber.redact(flood.as_bytes()), Err(Unredacted::Spent));
}

#[test]
fn other_spellings_of_secrets_are_redacted_in_stored_bodies() {
    let known = |name: &str, value: &str| Known {
        holder: "s".into(),
        name: name.into(),
        client: None,
        value: Secret::new(value.to_owned()),
    };
    let odd = ["a\"b\\c/d", "\u{e9}f\u{1f600}gh"].concat();
    let digits = ["12345678901234567", "8901234567890"].concat();
    let scrubber = Scrubber::new(&[known("ODD", &odd), known("DIGITS", &digits)]).unwrap();
    let mark = |name: &str| format!("[redacted:vault:s/{name}]");
    let redact = |body: String| scrubber.redact(body.as_bytes()).unwrap();

    // JSON in a string, and in a string of that; also as a part of the text.
    let once = json!({ "k": odd, "n": 1 }).to_string();
    let twice = json!([once]).to_string();
    let escaped = once
        .replace('/', "\\/")
        .replace('\u{e9}', "\\u00E9")
        .replace('\u{1f600}', "\\uD83D\\uDE00");
    for text in [&once, &twice, &escaped] {
        for text in [text.clone(), format!("log: {text} end")] {
            let stored = redact(json!({ "content": [{ "text": text }] }).to_string());
            assert_eq!(stored.secrets, 1, "{text}: {:#}", stored.body);
            let stored = stored.body.to_string();
            assert!(
                stored.contains(&mark("ODD")) && !stored.contains("fgh") && !stored.contains("b\\"),
                "{stored}"
            );
        }
    }
    // A name that marks a value, within a string.
    let named = made("{base64raw:40}");
    let inner = json!({ "aws_secret_access_key": named }).to_string();
    let stored = redact(json!({ "text": inner }).to_string());
    assert!(stored.secrets == 1 && !stored.body.to_string().contains(&named), "{stored:?}");
    // Text without secrets stays as written.
    let clean = r#"{ "a" : [1, 2.50] }"#;
    assert_eq!(redact(json!({ "text": clean }).to_string()).body, json!({ "text": clean }));

    // A number that does not fit 64 bits, also within a string.
    for body in [format!("[{digits}]"), json!([format!("[{digits}]")]).to_string()] {
        let stored = redact(body);
        let text = stored.body.to_string();
        assert!(
            stored.secrets == 1 && text.contains(&mark("DIGITS")) && !text.contains("12345"),
            "{text}"
        );
    }

    // A multi-line key, one line per element.
    let body = made("{base64raw:64}");
    let name = ["PRIVATE", "KEY"].join(" ");
    let lines = [
        "before",
        &format!("-----BEGIN {name}-----"),
        &body,
        &body,
        &format!("-----END {name}-----"),
        "after",
    ];
    let stored = redact(json!({ "lines": lines }).to_string());
    let text = stored.body.to_string();
    assert!(stored.secrets >= 1 && !text.contains(&body), "{text}");
    assert!(text.contains("\"before\"") && text.contains("\"after\""), "{text}");
}

#[test]
fn members_with_secret_keys_are_all_kept() {
    let scrubber = Scrubber::new(&[]).unwrap();
    let named_key = |secret: &str| format!("aws_secret_access_key={secret}");
    let named = made("{base64raw:40}");
    let other = expand("{base64raw:40}", &mut Seed::new(8));
    let body = json!({ "ghp": 0, named_key(&named): 1, named_key(&other): 2 }).to_string();
    let redacted = scrubber.redact(body.as_bytes()).unwrap().body;
    let keys: Vec<_> = redacted.as_object().unwrap().keys().collect();
    let mark = "aws_secret_access_key=[redacted:aws-secret-access-key]";
    assert_eq!(keys, ["ghp", mark, &format!("{mark}#2")]);
}

/// Stored body, and the number of removed secrets.
fn stored_body(body: Value) -> (Value, usize) {
    let redacted = Scrubber::new(&[]).unwrap().redact(body.to_string().as_bytes()).unwrap();
    (redacted.body, redacted.secrets)
}

const MARK: &str = "[redacted:secret-name]";

#[test]
fn named_values_are_not_stored() {
    for (body, expected) in [
        (json!({ "password": "x", "user": "bob" }), json!({ "password": MARK, "user": "bob" })),
        (
            json!({ "pass": 48151623, "DB_PASS": 3, "credentials": [48151623, 1] }),
            json!({ "pass": MARK, "DB_PASS": MARK, "credentials": MARK }),
        ),
        (json!({ "credentials": 48151623 }), json!({ "credentials": MARK })),
        (json!({ "tokens": [1, 48151623] }), json!({ "tokens": MARK })),
        (json!({ "pass": "1 HUNT" }), json!({ "pass": MARK })),
        (json!({ "pin": 1234, "cvv": 12 }), json!({ "pin": MARK, "cvv": MARK })),
        // Everything below the name.
        (
            json!({ "credentials": { "user": "a", "list": [1, { "x": "y" }] }, "n": 1 }),
            json!({ "credentials": MARK, "n": 1 }),
        ),
        (json!({ "cookies": ["a", "b"] }), json!({ "cookies": MARK })),
        // A name beside its value.
        (
            json!({ "env": [{ "name": "API_KEY", "value": "x" }, { "name": "A", "value": "b" }] }),
            json!({ "env": [{ "name": "API_KEY", "value": MARK }, { "name": "A", "value": "b" }] }),
        ),
        (
            json!([{ "Key": "Authorization", "Type": "text", "Value": ["Basic YTpi"] }]),
            json!([{ "Key": "Authorization", "Type": "text", "Value": MARK }]),
        ),
        (
            json!({ "element": "Password", "ref": "e1", "text": "x" }),
            json!({ "element": "Password", "ref": "e1", "text": MARK }),
        ),
        // A name in front of its value.
        (json!([["X-Api-Key", "x"], ["Host", "a"]]), json!([["X-Api-Key", MARK], ["Host", "a"]])),
        (
            json!(["Host", "a", "Cookie", "b", "Accept", "c"]),
            json!(["Host", "a", "Cookie", MARK, "Accept", "c"]),
        ),
        (
            json!(["run", "--token", "x", "--verbose", "--password", "--user", "bob"]),
            json!(["run", "--token", MARK, "--verbose", "--password", "--user", "bob"]),
        ),
        // In texts.
        (
            json!({ "headers": "Host: a\r\nAuthorization: Digest abc\r\nX: y", "n": "a" }),
            json!({ "headers": format!("Host: a\r\nAuthorization: {MARK}\r\nX: y"), "n": "a" }),
        ),
        (json!(["A=1", "DB_PASSWORD=x y"]), json!(["A=1", format!("DB_PASSWORD={MARK}")])),
        (
            json!({ "url": "https://h.example/?token=abc&n=1" }),
            json!({ "url": format!("https://h.example/?token={MARK}&n=1") }),
        ),
        // After literal escapes.
        (
            json!({ "log": "got {\\\"password\\\": \\\"a b\\\", \\\"n\\\": 1" }),
            json!({ "log": format!("got {{\\\"password\\\": \\\"{MARK}\\\", \\\"n\\\": 1") }),
        ),
        // In a key.
        (json!({ "a": 1, "pin=x": 1 }), json!({ "a": 1, format!("pin={MARK}"): 1 })),
    ] {
        let (found, count) = stored_body(body.clone());
        assert_eq!(found, expected, "{body}");
        assert!(count > 0, "{body}");
    }
}

#[test]
fn names_in_json_within_a_text_mark_values() {
    let inner = json!({ "env": [{ "name": "TOKEN", "value": "hunter" }], "n": 1 }).to_string();
    let twice = json!({ "inner": inner }).to_string();
    for text in [
        inner.clone(),
        twice,
        format!("{{\"a\":1}}\n{inner}\n"),
        format!("Here:\n```json\n{inner}\n```\n"),
        format!("event: x\ndata: {inner}\n\n"),
        format!("12:00 INFO body={inner} done"),
        // The last of two members with one name is empty, and the first is still in the text.
        r#"{"password":"hunter","password":""}"#.to_owned(),
    ] {
        let (found, count) = stored_body(json!({ "text": text }));
        assert!(count == 1 && !found.to_string().contains("hunter"), "{found}");
        assert!(found.to_string().contains(MARK), "{found}");
    }
}

#[test]
fn values_of_harmless_names_are_kept() {
    for body in [
        json!({ "max_tokens": 500, "tokens": 12, "usage": { "prompt_tokens": 3, "cookies": 2 } }),
        json!({ "tokens": [1, 2, 3], "nextPageToken": "abc", "token_type": "x" }),
        json!({ "password": null, "secret": true, "token": "", "credentials": {}, "keys": 3 }),
        json!({ "author": "a", "primary_key": "id", "keyboard": "us", "gpio_pin": 5 }),
        json!(["user", "password", "email"]),
        json!({ "text": "tokens=12, max_tokens=500 and no secrets here" }),
        json!({ "text": "{\"max_tokens\": 500, \"password\": null}" }),
    ] {
        assert_eq!(stored_body(body.clone()), (body, 0));
    }
}

#[test]
fn matching_rule_gives_the_mark_its_name() {
    let token = token();
    let (found, count) = stored_body(json!({ "password": token, "a": format!("token={token}") }));
    let mark = "[redacted:github-token]";
    assert_eq!((found, count), (json!({ "password": mark, "a": format!("token={mark}") }), 2));
    // If a rule matches only a part of the value, the whole value is redacted.
    let (found, count) = stored_body(json!({ "password": format!("{token} and more") }));
    assert_eq!((found, count), (json!({ "password": MARK }), 1));
}

#[test]
fn named_values_are_redacted_in_records_and_logs() {
    let scrubber = Scrubber::new(&[]).unwrap();
    for (text, scrubbed) in [
        ("db://h/x?password=abc", format!("db://h/x?password={MARK}")),
        ("failed: {\"token\":\"abc\"}", format!("failed: {{\"token\":\"{MARK}\"}}")),
        (
            "secret `TOKEN`: the variable X is not set",
            "secret `TOKEN`: the variable X is not set".into(),
        ),
    ] {
        let mut got = text.to_owned();
        scrubber.scrub(&mut got);
        assert_eq!(got, scrubbed);
    }
}
