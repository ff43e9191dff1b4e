//! Rule files of gitleaks, baselines of detect-secrets, actions by severity, and handles.

use std::{fs, path::PathBuf};

use portcullis_protocol::{
    exchange::Direction,
    identity::{Principal, PrincipalKind},
};
use sha1::{Digest as _, Sha1};

use super::*;

/// A directory with a file.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    (directory, path)
}

/// Rules in the dialect of gitleaks.
pub(super) const RULES: &str = r#"
title = "rules of a team"

[[rules]]
id = "team-key"
description = "Key of a team"
regex = '''\b(tk_[a-z0-9]{10,})\b'''
entropy = 2.0
keywords = ["TK_"]

[[rules.allowlists]]
regexes = ['''^tk_example''']
stopwords = ["dummy"]

[[rules.allowlists]]
condition = "AND"
regexTarget = "line"
regexes = ['''documentation''']
stopwords = ["docs"]

[[rules]]
id = "second-group"
regex = '''(name)=\{(v[0-9]{6})}'''
secretGroup = 2
keywords = ["name"]

[[rules]]
id = "anywhere"
regex = '''zz[[:digit:]&&~~]{4}--end'''

[[rules]]
id = "key-store"
path = '''\.p12$'''

[allowlist]
paths = ['''node_modules''']
regexes = ['''v000000''']
"#;

fn with_rules(path: &std::path::Path) -> Config {
    Config { gitleaks: vec![path.to_owned()], ..Config::default() }
}

#[tokio::test]
async fn rules_of_gitleaks_apply_beside_the_built_in_ones() {
    let (_directory, path) = file("gitleaks.toml", RULES);
    let secrets = secrets(&with_rules(&path));
    let key = made("tk_{base36:12}");
    for (text, shown) in [
        (format!("a {key} b"), "a [redacted:gitleaks:team-key] b".to_owned()),
        (
            format!("{} {key}", token()),
            "[redacted:github-token] [redacted:gitleaks:team-key]".into(),
        ),
        ("name={v123456}".into(), "name={[redacted:gitleaks:second-group]}".into()),
        ("x zz12&~--end".into(), "x [redacted:gitleaks:anywhere]".into()),
    ] {
        let verdict = response(&secrets, &json!([text]).to_string()).await;
        assert_eq!(replacement(&verdict), json!([shown]).to_string());
    }
    for text in [
        "tk_example123456",
        "tk_dummy1234567",
        "documentation: tk_docs1234567",
        "tk_aaaaaaaaaaaa",
        "name={v000000}",
    ] {
        assert_eq!(response(&secrets, &json!([text]).to_string()).await, Verdict::pass(), "{text}");
    }
    let file = gitleaks::read(&path, RULES).unwrap();
    assert_eq!(
        file.notices,
        [
            "an allowlist of the file has `paths` and `commits`, which no message has",
            "rule `key-store` has a `path`, which no message has: it is not used",
        ]
    );
    // The action of one of its rules.
    let rules = [("gitleaks:team-key".to_owned(), Action::Off)].into();
    let secrets = self::secrets(&Config { rules, ..with_rules(&path) });
    assert_eq!(response(&secrets, &json!([key]).to_string()).await, Verdict::pass());
}

#[test]
fn invalid_rule_file_is_refused_with_line_and_remedy() {
    let rule = |more: &str| format!("[[rules]]\nid = 'a'\n{more}\n");
    let many: String = (0..9).map(|i| format!("[[rules]]\nid = 'a{i}'\nregex = 'b'\n")).collect();
    for (text, line, words) in [
        ("[[rules]]\nid = 'a'\nid = 'b'".to_owned(), 3, "duplicate key"),
        (rule("regex = '(?<=a)b'"), 3, "look-around"),
        (rule("regex = 'a('"), 3, "the expression of rule `a` is not valid"),
        (rule("regex = '((a{999}){999}){9}'"), 3, "smaller repetitions"),
        (rule("regex = 'a'\nsecretGroup = 3"), 3, "correct its `secretGroup`"),
        (rule("regex = 'a'") + &rule("regex = 'b'"), 4, "two rules have the id `a`"),
        (rule(""), 1, "has neither `regex` nor `path`"),
        ("[[rules]]\nregex = 'a'".to_owned(), 1, "has no `id`"),
        ("x = 1\n[[allowlists]]\nregexTarget = 'mtach'\nregexes = ['a']".to_owned(), 2, "`mtach`"),
        ("[[allowlists]]".to_owned(), 1, "has no condition"),
        (many, 25, "add `keywords`"),
    ] {
        let error = gitleaks::read("rules.toml".as_ref(), &text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("rules.toml:{line}: ")), "{error}");
        assert!(error.contains(words), "{error}");
    }
    let (_directory, path) = file("gitleaks.toml", "[[rules]]\nid = 'a'\nregex = '('");
    let error = Secrets::new("secrets", &with_rules(&path), &[]).err().unwrap().to_string();
    assert!(error.starts_with(&format!("{}:3: ", path.display())), "{error}");
    let missing = path.with_file_name("missing.toml");
    let error = Secrets::new("secrets", &with_rules(&missing), &[]).err().unwrap().to_string();
    assert!(error.contains("correct the path"), "{error}");
}

#[tokio::test]
async fn secrets_of_a_baseline_are_not_findings() {
    let hash = |text: &str| hex::encode(Sha1::digest(text));
    let (known, confirmed) = (token(), expand("ghp_{base62:30}{crc32}", &mut Seed::new(8)));
    let entry = |text: &str| json!({ "type": "GitHub Token", "hashed_secret": hash(text) });
    let mut real = entry(&confirmed);
    real["is_secret"] = true.into();
    // A confirmation in one file precedes the entry of another.
    let entries = json!({ "a.py": [entry(&known), real], "b.py": [entry(&confirmed)] });
    let baseline = json!({ "version": "1.5.0", "results": entries });
    let (_directory, path) = file(".secrets.baseline", &baseline.to_string());
    let config = Config { baselines: vec![path.clone()], ..Config::default() };
    let secrets = self::secrets(&config);
    let verdict = response(&secrets, &json!([known, confirmed]).to_string()).await;
    assert_eq!(replacement(&verdict), json!([known, "[redacted:github-token]"]).to_string());
    // A known secret stays one.
    let vault = Known {
        holder: "s".into(),
        name: "KEY".into(),
        client: None,
        value: Secret::new(known.clone()),
    };
    let secrets = Secrets::new("secrets", &config, &[vault]).unwrap();
    let verdict = response(&secrets, &json!([known]).to_string()).await;
    assert_eq!(replacement(&verdict), r#"["[redacted:vault:s/KEY]"]"#);
    for (text, words) in [
        ("{\n\"results\": 3}", ".secrets.baseline:2: "),
        ("{\"results\": {\"a\": [{\"hashed_secret\": \"xyz\"}]}}", "is not a SHA-1"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Secrets::new("secrets", &config, &[]).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn severity_selects_the_action_of_rules_without_one() {
    let severities = [(Severity::Critical, Action::Refuse), (Severity::High, Action::Report)];
    let config = Config { severities: severities.into(), ..Config::default() };
    let tables = secrets(&config).tables.load_full();
    let action = |id: &str| {
        let at = tables.scanner.ids.iter().position(|other| other == id).unwrap();
        (tables.scanner.severity(at), tables.response[at])
    };
    assert_eq!(action("private-key"), (Severity::Critical, Action::Refuse));
    assert_eq!(action("github-token"), (Severity::High, Action::Report));
    assert_eq!(action("slack-webhook"), (Severity::Medium, Action::Redact));
}

fn exchange(user: &str, server: &str) -> Exchange {
    let kind = PrincipalKind::Local { user: user.into() };
    let principal = Principal { kind, groups: Vec::new(), verified: true, key: None };
    Exchange {
        principal: principal.into(),
        server: Some(server.parse().unwrap()),
        direction: Direction::ClientToServer,
        ..message("a", "tools/call")
    }
}

async fn answer(secrets: &Secrets, mut exchange: Exchange, raw: &Value) -> Verdict {
    let raw = Bytes::from(raw.to_string());
    exchange.response = Some(Answer::Result(Payload::new(raw)));
    secrets.inspect(&exchange, Phase::Response).await.unwrap()
}

async fn call(secrets: &Secrets, mut exchange: Exchange, raw: &Value) -> Verdict {
    exchange.request = Payload::new(Bytes::from(raw.to_string()));
    secrets.inspect(&exchange, Phase::Request).await.unwrap()
}

#[tokio::test]
async fn handle_becomes_the_secret_for_its_server_and_principal_only() {
    let secrets = secrets(&Config { handles: true, ..Config::default() });
    let text = json!({ "text": format!("token: {}", token()) });
    let verdict = answer(&secrets, exchange("a", "one"), &text).await;
    let shown: Value = serde_json::from_str(replacement(&verdict)).unwrap();
    let handle = shown["text"].as_str().unwrap().strip_prefix("token: ").unwrap().to_owned();
    assert!(handle.starts_with("[secret:github-token:") && handle.len() == 30, "{handle}");
    let again = answer(&secrets, exchange("a", "one"), &text).await;
    assert_eq!(replacement(&again), replacement(&verdict));

    let params = |text: &str| json!({ "name": "a", "arguments": { "x": [text], "n": 1.50 } });
    let verdict = call(&secrets, exchange("a", "one"), &params(&format!("é {handle}\n"))).await;
    assert_eq!(replacement(&verdict), params(&format!("é {}\n", token())).to_string());
    assert_eq!(verdict.findings[0].effect, Effect::Replaced);
    for other in [exchange("b", "one"), exchange("a", "two")] {
        assert_eq!(call(&secrets, other, &params(&handle)).await, Verdict::pass());
    }
    let mut anonymous = exchange("a", "one");
    anonymous.principal = Principal::anonymous();
    assert_eq!(call(&secrets, anonymous, &params(&handle)).await, Verdict::pass());
    // A value that records could not redact stays a handle: this rule needs a boundary.
    let id = json!([made("AKIA{base32:16}")]);
    let verdict = answer(&secrets, exchange("a", "one"), &id).await;
    let bounded: Value = serde_json::from_str(replacement(&verdict)).unwrap();
    let glued = params(&format!("x{}y", bounded[0].as_str().unwrap()));
    assert_eq!(call(&secrets, exchange("a", "one"), &glued).await, Verdict::pass());
    // Only arguments get values.
    let meta = json!({ "name": "a", "arguments": {}, "_meta": { "x": handle } });
    assert_eq!(call(&secrets, exchange("a", "one"), &meta).await, Verdict::pass());
    // The secret itself is refused, beside a handle too.
    let both = params(&format!("{handle} {}", token()));
    let verdict = call(&secrets, exchange("a", "one"), &both).await;
    assert!(matches!(verdict.decision, Decision::Refuse(_)));
}

#[tokio::test]
async fn every_handle_of_a_message_has_a_value() {
    let secrets = secrets(&Config { handles: true, ..Config::default() });
    let mut seed = Seed::new(1);
    let all: Vec<_> = (0..300).map(|_| expand("ghp_{base62:30}{crc32}", &mut seed)).collect();
    let verdict = answer(&secrets, exchange("a", "one"), &json!(all)).await;
    let shown: Vec<String> = serde_json::from_str(replacement(&verdict)).unwrap();
    let (handles, marks) = shown.split_at(handles::MAX_OF_OWNER);
    assert!(marks.iter().all(|mark| mark == "[redacted:github-token]"));
    let params = json!({ "name": "a", "arguments": { "x": handles } });
    let verdict = call(&secrets, exchange("a", "one"), &params).await;
    let params = json!({ "name": "a", "arguments": { "x": &all[..handles.len()] } });
    assert_eq!(replacement(&verdict), params.to_string());
}

#[test]
fn allowlist_reads_only_the_text_beside_each_match() {
    let (_directory, path) = file("gitleaks.toml", RULES);
    let files = RuleFiles::read(&with_rules(&path)).unwrap();
    let rule = files.rules.iter().find(|rule| rule.id == "gitleaks:team-key").unwrap();
    let key = made("tk_{base36:12}docs");
    let allowed = |before: &str, after: &str| {
        let text = format!("{before}{key}{after}");
        let secret = before.len()..before.len() + key.len();
        rule.is_allowed(text.as_bytes(), &secret, &secret)
    };
    assert!(allowed("documentation ", "") && allowed("", " documentation"));
    assert!(!allowed("documentation\n", "\ndocumentation"));
    let far = " ".repeat(1 << 20);
    assert!(!allowed(&format!("documentation{far}"), &format!("{far}documentation")));
}

#[tokio::test]
async fn secret_of_a_server_gets_no_handle() {
    let vault = Known {
        holder: "s".into(),
        name: "KEY".into(),
        client: None,
        value: Secret::new(["tr0ub", "4dor&3"].concat()),
    };
    let config = Config { handles: true, ..Config::default() };
    let secrets = Secrets::new("secrets", &config, std::slice::from_ref(&vault)).unwrap();
    let verdict = answer(&secrets, exchange("a", "one"), &json!([vault.value.expose()])).await;
    assert_eq!(replacement(&verdict), r#"["[redacted:vault:s/KEY]"]"#);
}

#[test]
fn records_are_redacted_by_the_rules_of_files() {
    let (_directory, path) = file("gitleaks.toml", RULES);
    let scrubber = Scrubber::with_rules(&[], [&with_rules(&path)]).unwrap();
    let mut text = made("a tk_{base36:12} b");
    scrubber.scrub(&mut text);
    assert_eq!(text, "a [redacted:gitleaks:team-key] b");
}

#[tokio::test]
async fn policies_decide_the_action() {
    let secrets = secrets(&Config::default());
    let raw = json!({ "arguments": { "a": token(), "b": made("AKIA{base32:16}") } });
    let decided = |texts: &[&str]| {
        let of = |text: &&str| {
            let mut obligations = Obligations::default();
            obligations.take("secrets", text).unwrap();
            Arc::new(obligations)
        };
        Exchange { obligations: texts.iter().map(of).collect(), ..exchange("a", "one") }
    };
    let effects = |verdict: &Verdict| -> Vec<_> {
        verdict.findings.iter().map(|finding| finding.effect).collect()
    };
    for (texts, expected) in [
        (&["allow"][..], vec![]),
        (&["request: report"], vec![Effect::Reported; 2]),
        (&["response: allow"], vec![Effect::Refused; 2]),
        (&["github-token = redact, report"], vec![Effect::Redacted, Effect::Reported]),
        (&["report", "request: redact"], vec![Effect::Redacted; 2]),
        (&["github-token = allow", "refuse"], vec![Effect::Refused]),
    ] {
        let verdict = call(&secrets, decided(texts), &raw).await;
        assert_eq!(effects(&verdict), expected, "{texts:?}");
    }
    // A secret of a server needs its rule.
    let vault = Known {
        holder: "s".into(),
        name: "KEY".into(),
        client: None,
        value: Secret::new(["tr0ub", "4dor&3"].concat()),
    };
    let secrets = Secrets::new("s", &Config::default(), std::slice::from_ref(&vault)).unwrap();
    let raw = json!([vault.value.expose()]);
    let verdict = call(&secrets, decided(&["allow"]), &raw).await;
    assert_eq!(effects(&verdict), [Effect::Refused]);
    let verdict = call(&secrets, decided(&["vault = allow"]), &raw).await;
    assert_eq!(verdict, Verdict::pass());
}
