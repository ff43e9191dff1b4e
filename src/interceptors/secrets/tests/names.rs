//! Values that only a name makes secret, and texts that resemble secrets.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;

#[test]
fn names_of_vendors_are_not_secrets() {
    let scanner = scanner();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    let named = sources.iter().filter(|rule| rule.named);
    for keyword in named.flat_map(|rule| &rule.keywords) {
        let upper = keyword.to_uppercase();
        for template in [
            "{k}_id={hex:32}",
            "{k}={base62:40}",
            "{k}_key: {hex:32}",
            "{k}_key: {hex:40}",
            "{k}_cache_key: {hex:32}",
            "{k}_cache_key: {hex:40}",
            "{k}_api_key_digest={hex:64}",
            "{k}-next-page-token={base62:40}",
            "{k}_public_key={base62:40}",
            "{U}_SITE_KEY={base62:40}",
            "{k}Secret: {k}-9hk8tf6c2m",
            "{k}_token: prod-{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
            "{k}_session = {hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
            "{k}_secret_name = prod_{k}_consumer_secret_for_account_2",
            "{k}_api_secret = get_{k}_api_secret_from_environment_v2",
            "{k}_api_token: {U}_API_TOKEN_FOR_PRODUCTION_V2",
            "{k}_api_key = src/config/production/{k}/keys2/file",
            "{k}_token = self.get_token({hex:32})",
            "{k}_client_secret = ${{U}_CLIENT_SECRET}",
            "{k}_token = 00000000000000000000000000000000",
            "npm install {k}-token-{lower:8}-{lower:12}-{lower:9}",
            // The value is not that of the line before.
            "{k}_api_key=\n{hex:40}",
        ] {
            let text = made(&template.replace("{k}", keyword).replace("{U}", &upper));
            assert_eq!(found(&scanner, &text), Vec::<&str>::new(), "{text}");
        }
    }
    for template in [
        "api-{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
        "sdk-{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
        "md-fab-button-container-23",
        "md-fab-bottom-right-sheets",
        "fc-{hex:32}",
        "API-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "ico-arrowdownwithcirclearoundbordersi",
        "pat-xx9-{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
    ] {
        let text = made(template);
        assert_eq!(found(&scanner, &text), Vec::<&str>::new(), "{text}");
    }
}

#[tokio::test]
async fn member_named_after_a_vendor_is_redacted() {
    let secrets = secrets(&Config::default());
    let key = made("{hex:32}");
    let raw = json!({ "env": { "DATADOG_API_KEY": key, "datadogApiKeys": ["a", key], "id": key } });
    let mark = "[redacted:datadog-secret]";
    let redacted =
        json!({ "env": { "DATADOG_API_KEY": mark, "datadogApiKeys": ["a", mark], "id": key } });
    let verdict = response(&secrets, &raw.to_string()).await;
    assert_eq!(replacement(&verdict), redacted.to_string());
    let verdict = request(&secrets, &json!({ "datadog_cache_key": key }).to_string()).await;
    assert_eq!(verdict, Verdict::pass());
    // Frameworks publish values of such names. A secret there is one all the more.
    for name in ["NEXT_PUBLIC_DATADOG_API_KEY", "VITE_DATADOG_TOKEN", "PUBLIC_CLOUD_DATADOG_TOKEN"]
    {
        let verdict = response(&secrets, &json!({ name: key }).to_string()).await;
        assert_eq!(replacement(&verdict), json!({ name: mark }).to_string());
        let text = format!("{name}={key}");
        let verdict = response(&secrets, &json!([text]).to_string()).await;
        assert_eq!(replacement(&verdict), json!([format!("{name}={mark}")]).to_string());
    }
}

#[tokio::test]
async fn encoded_value_is_found_by_its_name() {
    let secrets = secrets(&Config::default());
    let data = STANDARD.encode(made("{hex:32}"));
    let mark = "[redacted:datadog-secret]";
    let manifest = |data: &str| json!({ "kind": "Secret", "data": { "datadog-api-key": data } });
    let yaml = |data: &str| json!([format!("kind: Secret\ndata:\n  datadog-api-key: {data}\n")]);
    let text = |data: &str| json!({ "text": manifest(data).to_string() });
    for place in [&manifest as &dyn Fn(&str) -> Value, &yaml, &text] {
        let verdict = response(&secrets, &place(&data).to_string()).await;
        assert_eq!(replacement(&verdict), place(mark).to_string());
    }
    let other = json!({ "data": { "digest": data } }).to_string();
    assert_eq!(response(&secrets, &other).await, Verdict::pass());
}

#[tokio::test]
async fn argument_named_authorization_is_found_with_a_token_only() {
    let secrets = secrets(&Config::default());
    for value in [
        "read-only".to_owned(),
        "Basic authentication-required".into(),
        "bearer tokens_are_accepted_here".into(),
        "token based-authentication-flow".into(),
        made("{hex:40}"),
    ] {
        for name in ["authorization", "Authorization"] {
            let raw = json!({ "arguments": { name: value } }).to_string();
            let verdict = request(&secrets, &raw).await;
            assert_eq!(verdict.decision, Decision::Pass, "{value}");
            assert_eq!(verdict.findings.len(), usize::from(value == made("{hex:40}")), "{value}");
        }
    }
    for value in ["Bearer {base62:32}", "bearer {hex:40}", "Basic {base64raw:40}"] {
        let raw = json!({ "arguments": { "authorization": made(value) } }).to_string();
        let Decision::Refuse(refusal) = request(&secrets, &raw).await.decision else {
            panic!("{value}")
        };
        assert_eq!(refusal.rules[0].id, "authorization-header");
    }
}

#[tokio::test]
async fn urls_do_not_continue_on_the_next_line() {
    let secrets = secrets(&Config::default());
    for text in [
        "URL:https://a.example\nEMAIL:j@b.example",
        "BEGIN:VCARD\r\nURL:https://a.example\r\nEMAIL:j@b.example\r\nEND:VCARD",
        "ORGANIZER:https://calendar.example\nATTENDEE:mailto:someone@b.example",
        "https://images.example/one\ndocker.example:latest-version@sha256",
        "https://registry.example:\n@scope/name-of-a-package",
        "registry=https://registry.example\nalways-auth:true-for-this-one@scope/package",
        "postgres://db.example\nnotify:admin-of-the-database@b.example",
    ] {
        for text in [text.to_owned(), json!(text).to_string()] {
            let raw = json!({ "text": text }).to_string();
            assert_eq!(request(&secrets, &raw).await, Verdict::pass(), "{text}");
        }
    }
}

#[test]
fn rules_find_what_they_found_without_encodings() {
    let scanner = scanner();
    for (template, id) in [
        ("https://bot{colon}hunter@git.example.com", "url-password"),
        ("https://bot{colon}thesecret{digits:4}@git.example.com", "url-password"),
        ("https://bot{colon}{lower:10}@git.example.com", "url-password"),
        ("key-{hex:32}", "mailgun-key"),
    ] {
        assert_eq!(found(&scanner, &made(template)), [id], "{template}");
    }
}

#[tokio::test]
async fn strings_of_a_list_are_not_joined() {
    let secrets = secrets(&Config::default());
    let text = "{\n  \"authorization\": \"Bearer token\",\n  \"x-allowed-locations\": \"0x0\"\n}";
    let verdict = response(&secrets, &json!([text]).to_string()).await;
    assert_eq!(verdict, Verdict::pass());
}

/// Names of secrets as members have them.
const NAMES: [&str; 36] = [
    "password",
    "Password",
    "passwd",
    "pwd",
    "db_password",
    "dbPassword",
    "userPassword",
    "admin-password",
    "passphrase",
    "secret",
    "clientSecret",
    "client_secret",
    "app_secret",
    "webhookSecret",
    "SECRET_KEY",
    "secretAccessKey",
    "token",
    "accessToken",
    "access_token",
    "refresh_token",
    "id_token",
    "authToken",
    "bearerToken",
    "sessionToken",
    "personal_access_token",
    "apiKey",
    "api_key",
    "API_KEY",
    "x-api-key",
    "apikey",
    "private_key",
    "encryptionKey",
    "signing_key",
    "credentials",
    "authorization",
    "cookie",
];

#[tokio::test]
async fn value_is_found_by_the_name_of_its_member_or_neighbour() {
    let secrets = secrets(&Config::default());
    let scrubber = Scrubber::new(&[]).unwrap();
    let mark = "[redacted:named-member]";
    let places: [fn(&str, &str) -> Value; 6] = [
        |name, value| json!({ "n": 1, name: value, "b": "c" }),
        |name, value| json!({ "a": [{ name: [value] }] }),
        |name, value| json!({ "headers": [{ "name": name, "value": value }] }),
        |name, value| json!({ "env": [["PATH", "/bin"], [name, value]] }),
        |name, value| json!({ "args": ["-v", format!("--{name}"), value, "x"] }),
        |name, value| json!({ "text": json!({ "a": { name: value } }).to_string() }),
    ];
    let mut found = 0;
    for (name, n) in NAMES.into_iter().zip(0..) {
        let value = expand("{base62:23}{digits:1}", &mut Seed::new(n));
        for place in places {
            let raw = place(name, &value).to_string();
            let verdict = response(&secrets, &raw).await;
            assert!(matches!(verdict.decision, Decision::Replace(_)), "{raw}");
            let shown = replacement(&verdict);
            assert!(!shown.contains(&value), "{raw}");
            serde_json::from_str::<Value>(shown).unwrap();
            let verdict = request(&secrets, &raw).await;
            assert!(!verdict.findings.is_empty(), "{raw}");
            let redacted = scrubber.redact(raw.as_bytes()).unwrap();
            assert!(!redacted.body.to_string().contains(&value), "{raw}");
            found += 1;
        }
        // An argument is reported: tools need it.
        let raw = json!({ "name": "x", "arguments": { name: value } }).to_string();
        let verdict = request(&secrets, &raw).await;
        assert_eq!(verdict.decision, Decision::Pass);
        let effects: Vec<_> = verdict.findings.iter().map(|finding| finding.effect).collect();
        assert_eq!(effects, [Effect::Reported], "{raw}");
    }
    assert_eq!(found, 6 * NAMES.len());
    let short = made("hunter{digits:2}");
    let raw = json!({ "password": short, "token": "v2", "auth": "oauth2", "pin": "pinned" });
    let verdict = response(&secrets, &raw.to_string()).await;
    let shown = json!({ "password": mark, "token": "v2", "auth": "oauth2", "pin": "pinned" });
    assert_eq!(replacement(&verdict), shown.to_string());
}

#[tokio::test]
async fn other_members_are_not_secrets() {
    let secrets = secrets(&Config::default());
    for raw in [
        json!({ "password": { "type": "string", "description": "the password of 8 to 64 letters" } }),
        json!({ "required": ["token", "password", "x1y2z3"], "token": "${TOKEN_2}" }),
        json!({ "nextPageToken": made("{base62:40}"), "max_tokens": "4096", "token_type": "bearer" }),
        json!({ "password": "Mot de passe (8 lettres)", "authorization": "Bearer <token>" }),
        json!({ "secret": "projects/1/secrets/my-secret-2/versions/3", "token": "[redacted:x1]" }),
        json!({ "name": "id", "value": made("{base62:24}") }),
        json!({ "name": "token", "id": made("{hex:40}") }),
        json!(["--verbose", made("{base62:24}"), "--token"]),
        json!({ "auth": "aws-sigv4", "cookie": "accept-all-2024", "publicKey": made("{base62:43}") }),
    ] {
        assert_eq!(response(&secrets, &raw.to_string()).await, Verdict::pass(), "{raw}");
    }
}

#[tokio::test]
async fn reference_is_a_whole_value() {
    let secrets = secrets(&Config::default());
    for reference in
        ["$TOKEN_A", "${token2}", "$(cat token2)", "<token-2>", "{{token2}}", "%TOKEN2%"]
    {
        let raw = json!({ "password": reference }).to_string();
        assert_eq!(response(&secrets, &raw).await, Verdict::pass(), "{raw}");
    }
    for password in ["$unter2!", "<unter2!", "{unter2!", "%unter2!"] {
        let raw = json!({ "password": password }).to_string();
        let redacted = json!({ "password": "[redacted:named-member]" }).to_string();
        assert_eq!(replacement(&response(&secrets, &raw).await), redacted);
    }
}

#[test]
fn random_value_is_not_repetitive() {
    let scanner = scanner();
    for value in [
        "GDE43t43REGTrkilg43934t34qT43t4dgegerGEgg",
        "peWcBiMOS9HrZG15peWcBiMOS9HrZG15",
        "a1b2a1b2a1b2a1b2a1b2",
    ] {
        assert_eq!(found(&scanner, &format!("api_key: '{value}'")), Vec::<&str>::new(), "{value}");
    }
    for template in
        ["{base62:20}", "{base62:41}", "{hex:40}", "{hex:64}", "{base36:32}", "{upper36:40}"]
    {
        let all = (0..1_000).map(|seed| expand(template, &mut Seed::new(seed)));
        let count = all.filter(|value| assigned::is_repetitive(value.as_bytes())).count();
        assert!(count <= 2, "{template}: {count} of 1000");
    }
}

#[test]
fn assigned_texts_that_are_no_keys_are_clean() {
    let scanner = scanner();
    for text in [
        "arn:aws:secretsmanager:eu-west-1:1234:secret:ProdStore-a1b2c3X",
        "KdcAdminPassword: XmlStringMaxLen256;",
        "client_secret: {base62:40}...",
        "client_secret: {base62:40}…",
        "clientSecret: VERYLONGSECRET{base62:40}",
        "ClientRequestToken: '{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}'",
        "System.Core, PublicKeyToken={hex:16}",
    ] {
        let text = made(text);
        assert_eq!(found(&scanner, &text), Vec::<&str>::new(), "{text}");
    }
    for text in ["secret:{base62:40}", "client_secret: {base62:40}.", "a:b, secret: '{base62:40}'"]
    {
        assert_eq!(found(&scanner, &made(text)), ["named-secret"], "{text}");
    }
}

#[tokio::test]
async fn published_examples_are_clean() {
    let secrets = secrets(&Config::default());
    // Of RFC 6749, in two parts.
    let token = ["2YotnFZFEjr", "1zCsicMWpAA"].concat();
    for text in [json!({ "access_token": token }), json!([format!("access_token={token}")])] {
        assert_eq!(response(&secrets, &text.to_string()).await, Verdict::pass(), "{text}");
    }
    let other = token.replace("2Yot", "2Zot");
    let verdict = response(&secrets, &json!({ "access_token": other }).to_string()).await;
    assert!(matches!(verdict.decision, Decision::Replace(_)));
}
