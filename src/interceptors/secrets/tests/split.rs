//! Secrets that are divided between strings.

use portcullis_protocol::names::SessionId;

use super::*;

/// Message with the parts of a secret, by the place of the parts.
type Place = (&'static str, fn(&[&str]) -> Value);

const PLACES: [Place; 6] = [
    ("lines of a text", |parts| json!({ "text": format!("(start) {} (end)", parts.join("\n")) })),
    ("members", |parts| {
        let members = parts.iter().enumerate().map(|(i, part)| (format!("part{i}"), json!(part)));
        json!({ "structuredContent": Value::Object(members.collect()) })
    }),
    ("elements", |parts| json!({ "structuredContent": { "parts": parts } })),
    ("members of elements", |parts| {
        let all = parts.iter().enumerate().map(|(i, part)| json!({ "n": i, "part": part }));
        json!({ "structuredContent": { "all": all.collect::<Vec<_>>() } })
    }),
    ("text blocks", |parts| {
        let all = parts.iter().map(|part| json!({ "type": "text", "text": part }));
        json!({ "content": all.collect::<Vec<_>>() })
    }),
    ("text blocks, with words around", |parts| {
        let last = parts.len() - 1;
        let all = parts.iter().enumerate().map(|(i, part)| {
            let before = if i == 0 { "The key is " } else { "" };
            let after = if i == last { " and must stay secret." } else { "" };
            json!({ "type": "text", "text": format!("{before}{part}{after}") })
        });
        json!({ "content": all.collect::<Vec<_>>() })
    }),
];

/// Prints the share of secrets with a format of their own that are found if they are divided at any
/// of their characters.
#[test]
fn divided_secrets_are_redacted() {
    let tables = secrets(&Config::default()).tables.load_full();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    println!("| divided between | secrets in two parts | in three parts |\n|---|---|---|");
    for (name, place) in PLACES {
        let mut shares = [(0, 0); 2];
        let mut missed = BTreeMap::<&str, usize>::new();
        let of_formats = sources.iter().filter(|source| !source.named && !source.any_name);
        for (own, source) in of_formats.enumerate() {
            let sample = expand(&source.matches[0], &mut Seed::new(100 + own as u64));
            let hits = tables.scanner.scan(sample.as_bytes(), &mut Budget::of(sample.len()));
            let hits = hits.unwrap();
            let hit = hits.iter().find(|hit| tables.scanner.ids[hit.id] == source.id).unwrap();
            let (start, end) = (hit.range.start, hit.range.end);
            let step = ((end - start) / 20).max(1);
            let two = (start + 1..end).step_by(step);
            let two = two.map(|at| vec![&sample[..at], &sample[at..]]);
            let third = (end - start) / 3;
            let (first, second) = (start + third, start + 2 * third);
            let three = vec![&sample[..first], &sample[first..second], &sample[second..]];
            // Lines are joined if they have this many characters.
            let three = (name != "lines of a text" || third >= 20).then_some(three);
            let all = two.map(|parts| (0, parts)).chain(three.map(|parts| (1, parts)));
            for (group, parts) in all {
                let raw = place(&parts).to_string();
                let report = tables.inspect(Phase::Response, raw.as_bytes(), &[], None, b"");
                let redacted = report.unwrap().report.redacted;
                let shown = redacted.map(|raw| String::from_utf8(raw.to_vec()).unwrap());
                let secret = &sample[start..end];
                let is_shown = |shown: &str| {
                    // A mark has the name of the vendor.
                    let all = secret.as_bytes().chunks(8).filter(|part| part.len() == 8);
                    let all = all.filter(|part| !source.id.as_bytes().starts_with(part));
                    let mut all = all.map(|part| json!(String::from_utf8_lossy(part)).to_string());
                    all.any(|part| shown.contains(&part[1..part.len() - 1]))
                };
                let is_found = shown.as_deref().is_some_and(|shown| !is_shown(shown));
                shares[group].0 += usize::from(is_found);
                shares[group].1 += 1;
                *missed.entry(&source.id).or_default() += usize::from(!is_found);
                if let Some(shown) = shown {
                    assert!(serde_json::from_str::<Value>(&shown).is_ok(), "{shown}");
                    assert!(!shown.contains("The key is ") || shown.contains(" and must stay"));
                }
            }
        }
        let percent = |(found, all): (usize, usize)| 100.0 * found as f64 / all.max(1) as f64;
        let shown =
            shares.map(|share| format!("{} of {} ({:.1} %)", share.0, share.1, percent(share)));
        println!("| {name} | {} | {} |", shown[0], shown[1]);
        missed.retain(|_, count| *count > 0);
        assert!(percent(shares[0]) >= 95.0 && percent(shares[1]) >= 90.0, "{name}: {missed:?}");
    }
}

#[tokio::test]
async fn private_key_is_redacted_in_all_of_its_parts() {
    let secrets = secrets(&Config::default());
    let key = made(
        "-----BEGIN RSA PRIVATE{sp}KEY-----{nl}{base64lines:1600}{nl}-----END RSA PRIVATE KEY-----",
    );
    let mark = "[redacted:private-key]";
    let lines: Vec<&str> = key.lines().collect();
    let verdict = response(&secrets, &json!({ "key": lines, "state": "open" }).to_string()).await;
    let redacted = json!({ "key": vec![mark; lines.len()], "state": "open" });
    assert_eq!(replacement(&verdict), redacted.to_string());
    for at in [40, 300, 700, 1600] {
        let (first, last) = key.split_at(at);
        let raw = json!({ "content": [
            { "type": "text", "text": format!("Key:\n{first}") },
            { "type": "text", "text": format!("{last}\nThat is all.") },
        ] });
        let redacted = json!({ "content": [
            { "type": "text", "text": format!("Key:\n{mark}") },
            { "type": "text", "text": format!("{mark}\nThat is all.") },
        ] });
        let verdict = response(&secrets, &raw.to_string()).await;
        assert_eq!(replacement(&verdict), redacted.to_string(), "{at}");
    }
    // What does not continue a key stays.
    let (first, _) = key.split_at(700);
    let raw = json!([first, "open", "The pull request was closed."]);
    let verdict = response(&secrets, &raw.to_string()).await;
    let redacted = json!([mark, "open", "The pull request was closed."]);
    assert_eq!(replacement(&verdict), redacted.to_string());
}

#[tokio::test]
async fn divided_known_secret_is_redacted() {
    let value = made("{base62:32}");
    let known = Known {
        holder: "git".into(),
        name: "TOKEN".into(),
        client: None,
        value: Secret::new(value.clone()),
    };
    let secrets = Secrets::new("secrets", &Config::default(), &[known]).unwrap();
    for at in 1..value.len() {
        let (first, last) = value.split_at(at);
        let raw = json!({ "a": format!("it is {first}"), "n": 5, "b": format!("{last} now") });
        let verdict = response(&secrets, &raw.to_string()).await;
        let mark = "[redacted:vault:git/TOKEN]";
        let redacted = json!({ "a": format!("it is {mark}"), "n": 5, "b": format!("{mark} now") });
        assert_eq!(replacement(&verdict), redacted.to_string());
    }
}

#[tokio::test]
async fn strings_that_do_not_continue_each_other_are_clean() {
    let secrets = secrets(&Config::default());
    for round in 0..200 {
        let mut seed = Seed::new(round);
        let mut made = |template: &str| expand(template, &mut seed);
        let token = made("ghp_{base62:30}{crc32}");
        let (first, last) = token.split_at(20);
        for raw in [
            json!({ "country": "SK", "digest": made("{hex:32}") }),
            json!({ "prefix": "ghp_", "sha": made("{hex:40}"), "id": made("{base62:36}") }),
            json!([made("{base64:40}"), made("{base62:40}"), made("{hex:64}"), "eyJ"]),
            // Blanks are between the parts.
            json!([format!("{first} "), last]),
            json!([first, format!(" {last}")]),
            json!([first, "of", "a", last]),
        ] {
            assert_eq!(response(&secrets, &raw.to_string()).await, Verdict::pass(), "{raw}");
        }
    }
}

#[test]
fn work_on_chains_is_linear() {
    let scanner = scanner();
    let actions = vec![Action::Redact; scanner.ids.len()];
    for unit in
        ["\"ghp_\",", "\"AKIA\",", "\"a\",", "\"eyJ\",", "\"eyJhb.eyJ\",", "\"ops_\",", "\"=\","]
    {
        let work = |count: usize| {
            let raw = format!("[{}0]", unit.repeat(count));
            let mut budget = Budget::of(raw.len());
            let report =
                payload::inspect_within(&mut budget, &scanner, &actions, raw.as_bytes(), None, b"");
            assert_eq!(report.unwrap().0, Report::default(), "{unit}");
            (budget.scanned, raw.len())
        };
        let (scanned, bytes) = work(40_000);
        assert!(scanned <= 4 * bytes, "{unit}: {scanned} of {bytes}");
    }
}

#[tokio::test]
async fn value_in_front_of_its_name_is_redacted() {
    let secrets = secrets(&Config::default());
    let value = made("{base62:24}");
    let mark = "[redacted:named-member]";
    for (value_key, name_key) in [("value", "name"), ("value", "key")] {
        // `json!` would put the members in the order of their names.
        let raw = format!("[{{\"{value_key}\":{},\"{name_key}\":\"API_KEY\"}}]", json!(value));
        let verdict = response(&secrets, &raw).await;
        assert_eq!(replacement(&verdict), raw.replace(&value, mark));
        let verdict = request(&secrets, &format!("{{\"arguments\":{raw}}}")).await;
        assert_eq!(verdict.findings.len(), 1);
    }
    for clean in [
        json!([{ "value": value, "name": "id" }]).to_string(),
        format!("[{{\"value\":\"{value}\"}},{{\"name\":\"API_KEY\"}}]"),
        format!("{{\"value\":\"{value}\",\"more\":{{\"name\":\"API_KEY\"}}}}"),
        "[{\"value\":\"${API_KEY}\",\"name\":\"API_KEY\"}]".to_owned(),
    ] {
        assert_eq!(response(&secrets, &clean).await, Verdict::pass(), "{clean}");
    }
}

#[tokio::test]
async fn secret_in_two_messages_of_a_session_is_found() {
    let secrets = secrets(&Config::default());
    let token = token();
    let text = |text: &str| json!({ "content": [{ "type": "text", "text": text }] }).to_string();
    let of = |client: &str, server: &str, phase: Phase, text: String| {
        let raw = Payload::new(text.into());
        let empty = Payload::new(Bytes::from_static(b"{}"));
        let (request, response) = match phase {
            Phase::Request => (raw, None),
            Phase::Response => (empty, Some(Answer::Result(raw))),
        };
        let server = Some(server.parse().unwrap());
        let exchange = Exchange { server, request, response, ..message(client, "tools/call") };
        let secrets = &secrets;
        async move { secrets.inspect(&exchange, phase).await.unwrap() }
    };
    let respond = |shown: &str| of("a", "git", Phase::Response, text(shown));
    let call = |shown: &str| {
        // The order is that of clients: `json!` would put `_meta` first.
        let raw = format!(
            r#"{{"name":"put","arguments":{},"_meta":{{"protocolVersion":"2026-07-28","name":"a"}}}}"#,
            json!({ "text": shown })
        );
        of("a", "git", Phase::Request, raw.to_string())
    };
    let mark = "[redacted:github-token]";
    for at in [6, 12, 20, 39] {
        let (first, last) = token.split_at(at);
        assert_eq!(respond(&format!("first: {first}")).await, Verdict::pass());
        // A request is in the other direction.
        assert_eq!(call(last).await, Verdict::pass());
        let verdict = respond(&format!("{last} is the rest")).await;
        assert_eq!(replacement(&verdict), text(&format!("{mark} is the rest")), "{at}");
        // A beginning is used once.
        assert_eq!(respond(&format!("{last} is the rest")).await, Verdict::pass());
    }
    let parts = [&token[..10], &token[10..20], &token[20..]];
    for (part, is_last) in parts.into_iter().zip([false, false, true]) {
        let verdict = call(part).await;
        assert_eq!(matches!(verdict.decision, Decision::Refuse(_)), is_last, "{part}");
    }
    // A beginning hides no secret in the next message.
    let key = made("AKIA{base32:16}");
    for at in [3, 10, 19] {
        let (first, last) = key.split_at(at);
        let raw = json!({ "name": "put", "arguments": { "a": first, "b": last } }).to_string();
        let verdict = of("a", "git", Phase::Request, raw).await;
        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{at}");
        assert_eq!(call("AKIA").await, Verdict::pass());
    }
    // Other servers and principals have their own.
    let (first, last) = token.split_at(20);
    for (client, server) in [("a", "mail"), ("b", "git")] {
        assert_eq!(respond(first).await, Verdict::pass());
        let verdict = of(client, server, Phase::Response, text(last)).await;
        assert_eq!(verdict, Verdict::pass(), "{client} {server}");
    }
}

#[test]
fn beginnings_are_bounded() {
    let beginnings = calls::Beginnings::default();
    let of = |session: usize| {
        let exchange = Exchange {
            server: Some("git".parse().unwrap()),
            session: Some(SessionId::presented(&session.to_string())),
            ..message("a", "tools/call")
        };
        calls::conversation(&exchange, Phase::Request).unwrap()
    };
    (0..3_000).for_each(|session| beginnings.keep(of(session), "ghp_".into()));
    let kept = (0..3_000).filter(|session| beginnings.take(&of(*session)).is_some()).count();
    assert_eq!(kept, 1_024);
}
