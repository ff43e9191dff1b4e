//! Encoded secrets.

use std::{io::Write as _, sync::LazyLock};

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};

use super::*;
use crate::secrets::{
    encodings::{BASE_VIEWED_BYTES, VIEWED_FACTOR},
    payload,
    scan::Spent,
};

/// Name of an encoding, and its function.
pub(super) type Encoding = (&'static str, fn(&str) -> String);

fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let group = |group: &[u8]| {
        let mut all = [0; 8];
        all[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(all);
        let used = (group.len() * 8).div_ceil(5);
        let digit = |at: usize| char::from(DIGITS[(bits >> (35 - 5 * at) & 31) as usize]);
        (0..8).map(|at| if at < used { digit(at) } else { '=' }).collect::<String>()
    };
    bytes.chunks(5).map(group).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn each(text: &str, map: impl Fn(char) -> String) -> String {
    text.chars().map(map).collect()
}

fn fullwidth(c: char) -> String {
    let wide = c.is_ascii_graphic().then(|| char::from_u32(u32::from(c) + 0xfee0)).flatten();
    wide.unwrap_or(c).to_string()
}

fn homoglyph(c: char) -> String {
    let pairs = "aаeеoоpрcсxхAАKКIІsѕBВ".chars().collect::<Vec<_>>();
    let same = pairs.chunks(2).find(|pair| pair[0] == c);
    same.map_or(c, |pair| pair[1]).to_string()
}

fn quoted_printable(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for byte in text.bytes() {
        let shown = match byte {
            b'\n' => "\r\n".to_owned(),
            b' '..=b'~' if byte != b'=' => char::from(byte).to_string(),
            _ => format!("={byte:02X}"),
        };
        column = if byte == b'\n' { 0 } else { column + shown.len() };
        if column > 32 {
            out.push_str("=\r\n");
            column = shown.len();
        }
        out.push_str(&shown);
    }
    out
}

fn image(text: &str) -> Vec<u8> {
    let noise = |factor: u32| (0..400_u32).map(move |i| ((i * i * factor) >> 3) as u8);
    let head = b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise(7));
    head.chain(b"tEXtComment\0".iter().copied()).chain(text.bytes()).chain(noise(5)).collect()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn hex_list(text: &str, separator: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator)
}

fn decimal_list(text: &str, separator: &str) -> String {
    text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(separator)
}

pub(super) const ENCODINGS: [Encoding; 35] = [
    ("plain", str::to_owned),
    ("base64", |text| STANDARD.encode(text)),
    ("base64url without padding", |text| URL_SAFE_NO_PAD.encode(text)),
    ("base64 behind other text", |text| format!("see /v1/{} there", STANDARD.encode(text))),
    ("base64 in lines", |text| {
        let all = STANDARD.encode(format!("{} {text}", "a file of words ".repeat(8)));
        all.as_bytes().chunks(76).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\r\n")
    }),
    ("base32", |text| base32(text.as_bytes())),
    ("hex", |text| hex(text.as_bytes())),
    ("hex in capitals", |text| hex(text.as_bytes()).to_uppercase()),
    ("hex with 0x", |text| format!("value 0x{}", hex(text.as_bytes()))),
    ("hex behind a name", |text| format!("dataface{}", hex(text.as_bytes()))),
    ("hex with spaces", |text| format!("dump: {}", hex_list(text, " "))),
    ("hex with colons", |text| hex_list(text, ":").to_uppercase()),
    ("list of 0x", |text| format!("[0x{}]", hex_list(text, ", 0x"))),
    ("list of decimals", |text| format!("[{}]", decimal_list(text, ", "))),
    ("list of decimals in lines", |text| decimal_list(text, ",\n        ")),
    ("octal", |text| text.bytes().map(|byte| format!("\\{byte:03o}")).collect()),
    ("percent", percent),
    ("\\x", |text| text.bytes().map(|byte| format!("\\x{byte:02x}")).collect()),
    ("\\u", |text| each(text, |c| format!("\\u{:04x}", u32::from(c)))),
    ("entities", |text| each(text, |c| format!("&#{};", u32::from(c)))),
    ("hex entities", |text| each(text, |c| format!("&#x{:X};", u32::from(c)))),
    ("entities without semicolons", |text| each(text, |c| format!("&#{}", u32::from(c)))),
    ("hex entities without semicolons", |text| each(text, |c| format!("&#x{:x}", u32::from(c)))),
    ("quoted-printable", quoted_printable),
    ("gzip", |text| STANDARD.encode(gzip(format!("first\n{text}\nlast").as_bytes()))),
    ("zlib", |text| STANDARD.encode(zlib(text.as_bytes()))),
    ("UTF-16", |text| STANDARD.encode(utf16(text))),
    ("zero bytes", |text| each(text, |c| format!("{c}\0"))),
    ("zero-width", |text| each(text, |c| format!("{c}\u{200b}"))),
    ("soft hyphens", |text| each(text, |c| format!("{c}\u{ad}"))),
    ("fullwidth", |text| each(text, fullwidth)),
    ("homoglyphs", |text| each(text, homoglyph)),
    ("image data", |text| STANDARD.encode(image(text))),
    ("base64 of base64", |text| STANDARD.encode(STANDARD.encode(text))),
    ("hex of gzip of base64", |text| hex(&gzip(STANDARD.encode(text).as_bytes()))),
];

#[tokio::test]
async fn encoded_secret_is_redacted_as_a_whole() {
    let secrets = secrets(&Config::default());
    let token = token();
    let mark = "[redacted:github-token]";
    for (text, redacted) in [
        (format!("é {}, end", STANDARD.encode(&token)), format!("é {mark}, end")),
        (format!("a={}&b=%41", percent(&token)), format!("a={mark}&b=%41")),
        (format!("&#97;{}\u{a0}x", each(&token, fullwidth)), format!("&#97;{mark}\u{a0}x")),
        (
            format!("“x” {}", each(&token, |c| format!("{c}\u{200b}"))),
            format!("“x” {mark}\u{200b}"),
        ),
        (format!("{{\"a\":\"{}\\n\"}}", hex(token.as_bytes())), format!("{{\"a\":\"{mark}\\n\"}}")),
    ] {
        let verdict = response(&secrets, &json!({ "text": text }).to_string()).await;
        assert_eq!(replacement(&verdict), json!({ "text": redacted }).to_string());
        let verdict = request(&secrets, &json!({ "text": text }).to_string()).await;
        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{text}");
    }
}

#[tokio::test]
async fn secret_in_two_lines_is_redacted() {
    let secrets = secrets(&Config::default());
    let token = token();
    let (first, last) = token.split_at(25);
    let mark = "[redacted:github-token]";
    for (text, redacted) in [
        (format!("a {first}\n{last} b"), format!("a {mark} b")),
        (format!("k = \"{first}\" +\r\n    \"{last}\";"), format!("k = \"{mark}\";")),
        (format!("# {first}\\\n# {last}\n"), format!("# {mark}\n")),
        // A secret before a line break is complete.
        (
            format!("{token}\nnext-line-with-a-long-word"),
            format!("{mark}\nnext-line-with-a-long-word"),
        ),
        // One without an end may continue, except with a name or another secret.
        (
            format!("glpat-{}\n{}", made("{base62:20}"), made("{base62:9}")),
            "[redacted:gitlab-token]".into(),
        ),
        (
            format!("a glpat-{}\nKeep it secret.", made("{base62:20}")),
            "a [redacted:gitlab-token]\nKeep it secret.".into(),
        ),
        (
            format!("> glpat-{}\n> read-only token", made("{base62:20}")),
            "> [redacted:gitlab-token]\n> read-only token".into(),
        ),
        (
            format!("a: glpat-{}\nnext_name: b", made("{base62:20}")),
            "a: [redacted:gitlab-token]\nnext_name: b".into(),
        ),
        (
            format!("glpat-{0}\nglpat-{0}\n", made("{base62:20}")),
            "[redacted:gitlab-token]\n[redacted:gitlab-token]\n".into(),
        ),
    ] {
        let verdict = response(&secrets, &json!({ "text": text }).to_string()).await;
        assert_eq!(replacement(&verdict), json!({ "text": redacted }).to_string());
    }
}

#[tokio::test]
async fn known_secrets_are_found_encoded() {
    for value in [["tr0ub", "4dor"].concat(), ["correct horse", " battery staple"].concat()] {
        let known = Known {
            holder: "s".into(),
            name: "KEY".into(),
            client: None,
            value: Secret::new(value.clone()),
        };
        let secrets = Secrets::new("secrets", &Config::default(), &[known]).unwrap();
        for (name, encode) in ENCODINGS {
            for around in ["", "x", "xy"] {
                // A short secret has a spelling in base64 and in hex only.
                let is_list = name.starts_with("hex with") || name.starts_with("list");
                let is_other = matches!(name, "base32" | "base64 of base64");
                if value.len() < 15 && (is_list || is_other) {
                    continue;
                }
                let text = encode(&format!("{around}{value}{around}"));
                let verdict = response(&secrets, &json!([text]).to_string()).await;
                let Decision::Replace(raw) = &verdict.decision else {
                    panic!("{name}, {around:?}: {text}")
                };
                assert!(std::str::from_utf8(raw).unwrap().contains("[redacted:vault:s/KEY]"));
            }
        }
    }
}

#[tokio::test]
async fn bad_encodings_are_clean() {
    let secrets = secrets(&Config::default());
    let mut deep = "x".repeat(64);
    while deep.len() < 1 << 18 {
        deep = STANDARD.encode(&deep);
    }
    let mut broken = gzip(&b"some text ".repeat(50));
    broken.truncate(40);
    for text in [
        deep,
        STANDARD.encode(broken),
        STANDARD.encode(b"\x1f\x8b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        STANDARD.encode(b"\xff\xfe\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00\xd8\x00"),
        "%4".repeat(1000),
        "%".repeat(1000),
        "&#x110000;&#99999999999;&#x;&;&amp".repeat(50),
        "==\n==3=\r=Z".repeat(50),
        "\u{200b}".repeat(1000),
        "=".repeat(1000),
        "ABCD".repeat(5000),
    ] {
        let verdict = response(&secrets, &json!([text]).to_string()).await;
        assert_eq!(verdict, Verdict::pass(), "{:.80}", text);
    }
    // The text before the end of a broken archive counts.
    let mut archive = gzip(format!("{} ", token()).repeat(9).as_bytes());
    archive.truncate(archive.len() - 6);
    let verdict = response(&secrets, &json!([STANDARD.encode(archive)]).to_string()).await;
    assert_eq!(replacement(&verdict), r#"["[redacted:github-token]"]"#);
}

#[tokio::test]
async fn content_of_outer_archives_is_scanned() {
    let secrets = secrets(&Config::default());
    let text = token();
    for content in [
        // The first two bytes are a valid header of zlib.
        format!("x^ {text}").into_bytes(),
        [gzip(b"a"), format!(" {text}").into_bytes()].concat(),
        [zlib(b"a"), format!(" {text}").into_bytes()].concat(),
        gzip(format!("x^ {text}").as_bytes()),
    ] {
        let verdict =
            response(&secrets, &json!([STANDARD.encode(gzip(&content))]).to_string()).await;
        assert_eq!(replacement(&verdict), r#"["[redacted:github-token]"]"#);
    }
}

#[tokio::test]
async fn numbers_that_are_bytes_of_a_secret_are_redacted() {
    let secrets = secrets(&Config::default());
    for (before, after) in [("", ""), ("-1.5, 256, ", ", 3.25"), ("7,\n", ",\n0")] {
        let raw = |bytes: &str| format!("{{\"n\": [{before}{bytes}{after}], \"x\": 1}}");
        let verdict = response(&secrets, &raw(&decimal_list(&token(), ", "))).await;
        let shown = replacement(&verdict);
        assert!(shown.contains("[redacted:github-token]"), "{shown}");
        serde_json::from_str::<serde_json::Value>(shown).unwrap();
        let verdict = request(&secrets, &raw(&decimal_list(&token(), ","))).await;
        assert!(matches!(verdict.decision, Decision::Refuse(_)), "{before}");
    }
    let scrubber = Scrubber::new(&[]).unwrap();
    let bytes = decimal_list(&token(), ",");
    for (body, shown) in [
        (format!("[{bytes}]"), r#"["[redacted:github-token]"]"#),
        (format!("[1.5,[{bytes}],\"x\"]"), r#"[1.5,["[redacted:github-token]"],"x"]"#),
        (format!("[\"x\",{bytes},1.5]"), r#"["x","[redacted:github-token]",1.5]"#),
        (format!("[{}.0]", bytes.replace(',', ".0,")), r#"["[redacted:github-token]"]"#),
    ] {
        let redacted = scrubber.redact(body.as_bytes()).unwrap();
        assert_eq!((redacted.body.to_string().as_str(), redacted.secrets), (shown, 1), "{body}");
    }
    // Node's form of a buffer.
    let archive: Vec<_> = gzip(token().as_bytes()).iter().map(u8::to_string).collect();
    let buffer = format!(r#"{{"type":"Buffer","data":[{}]}}"#, archive.join(","));
    assert_eq!(
        replacement(&response(&secrets, &buffer).await),
        r#"{"type":"Buffer","data":["[redacted:github-token]"]}"#
    );
    for body in
        ["[1,2,3]".to_owned(), json!(vec![65; 400]).to_string(), json!(["a", 5]).to_string()]
    {
        assert_eq!(response(&secrets, &body).await, Verdict::pass());
        assert_eq!(scrubber.redact(body.as_bytes()).unwrap().body.to_string(), body);
    }
}

#[tokio::test]
async fn long_archives_are_opened_in_every_alphabet_and_behind_other_text() {
    let secrets = secrets(&Config::default());
    let mut seed = Seed::new(5);
    // Content that hardly compresses, so that its archive is longer than a part.
    let noise: String = expand("{base64:900000}", &mut seed);
    let archive = gzip(format!("{} {noise}", token()).as_bytes());
    for text in [
        STANDARD.encode(&archive),
        format!("ab{}", STANDARD.encode(&archive)),
        format!("x:{}", URL_SAFE_NO_PAD.encode(&archive)),
        base32(&archive),
        base32(&archive).to_lowercase(),
        format!("Q{}", base32(&archive)),
        hex(&archive),
        format!("0x{}", hex(&archive)),
    ] {
        let verdict = response(&secrets, &json!([text]).to_string()).await;
        assert!(replacement(&verdict).contains("[redacted:github-token]"), "{:.80}", text);
    }
}

/// Secrets of several thousand bytes.
fn long_secrets() -> [(&'static str, String); 2] {
    let key =
        "-----BEGIN RSA PRIVATE{sp}KEY-----{nl}{base64lines:3200}{nl}-----END RSA PRIVATE KEY-----";
    let token = format!("{}{{base64url:4000}}.{{base64url:400}}", "eyJ{base64url:40}.eyJ");
    [("private-key", made(key)), ("jwt", made(&token))]
}

#[tokio::test]
async fn long_secret_is_found_behind_one_character() {
    let secrets = secrets(&Config::default());
    for (id, secret) in long_secrets() {
        for place in [40, 700, secret.len() / 2, secret.len() - 40] {
            let (first, last) = secret.split_at(place);
            let (c, rest) = last.split_at(1);
            let code = c.as_bytes()[0];
            for text in [
                format!("{first}\u{200b}{last}"),
                format!("{first}\u{ad}{last}"),
                format!("{first}\n{last}"),
                format!("{first}\r\n    {last}"),
                format!("{first}\" +\n\"{last}"),
                format!("{first}\\x{code:02x}{rest}"),
                format!("{first}\\u{code:04x}{rest}"),
                format!("{first}%{code:02X}{rest}"),
                format!("{first}&#{code};{rest}"),
                format!("{first}=\n{last}"),
                json!(format!("{first}\u{2060}{last}")).to_string(),
            ] {
                let raw = json!({ "text": format!("k {text} z") }).to_string();
                let verdict = response(&secrets, &raw).await;
                let shown = replacement(&verdict);
                assert!(shown.contains(&format!("[redacted:{id}]")), "{id} {place}: {shown:.99}");
                assert!(shown.len() < 99, "{id} {place}: {shown}");
            }
        }
    }
}

/// Bytes searched in the scan of a text, and whether its budget was enough.
fn work(scanner: &Scanner, text: &str) -> (usize, bool) {
    let mut budget = Budget::of(text.len());
    let is_enough = scanner.scan(text.as_bytes(), &mut budget).is_ok();
    (budget.scanned, is_enough)
}

/// Texts that cause much work, and whether they are scanned anyway.
pub(super) fn hostile_texts(length: usize) -> Vec<(String, bool)> {
    let sources = rules::read(rules::BUILT_IN).unwrap();
    let keywords: Vec<&str> =
        sources.iter().flat_map(|rule| &rule.keywords).map(String::as_str).collect();
    let samples: Vec<String> =
        sources.iter().flat_map(|rule| &rule.matches).map(|template| made(template)).collect();
    let bomb = STANDARD.encode(gzip(&vec![b'a'; 4 << 20]));
    let nested = STANDARD.encode(gzip(bomb.as_bytes()));
    let mut deep = made("{base62:300}");
    while deep.len() < length {
        deep = STANDARD.encode(&deep);
    }
    let repeated = [
        (keywords.concat(), false),
        (keywords.join(" "), false),
        (samples.join(" "), false),
        (format!("{bomb} "), false),
        (format!("{nested} "), false),
        (format!("{} ", STANDARD.encode(gzip(b"text"))), false),
        (format!("{} ", STANDARD.encode("%25%41 and =3D &#65; text")), true),
        ("ops_eyJ".into(), false),
        ("glpat-".into(), false),
        ("twitter_api_key=".into(), true),
        ("%2525".into(), true),
        ("&#38;#38;".into(), true),
        ("=3D".into(), true),
        ("\\\\\\\\u0041%41&#65;=3D".into(), true),
        ("а\u{200b}b".into(), true),
        ("中文，日本語。".into(), true),
        ("67:68:".into(), true),
        ("abcdefghijklmnopqrst\n".into(), true),
        (deep, true),
    ];
    let long = |(part, passes): (String, bool)| (part.repeat(length / part.len() + 1), passes);
    repeated.into_iter().map(long).collect()
}

/// Asserts that every byte that a message of that size has the scanner search was paid: five levels
/// of escapes, members with their names, and views.
fn assert_paid(scanned: usize, bytes: usize, what: &str) {
    let limit = (VIEWED_FACTOR + 24) * bytes + BASE_VIEWED_BYTES;
    assert!(scanned <= limit, "scanned {scanned} of {bytes}: {what:.60}");
}

#[test]
fn work_is_linear() {
    let scanner = scanner();
    let mut failed = Vec::new();
    for length in [1 << 10, 1 << 14, 1 << 17, 600 << 10] {
        for (text, passes) in hostile_texts(length) {
            let (scanned, is_enough) = work(&scanner, &text);
            assert_paid(scanned, text.len(), &text);
            if passes && !is_enough {
                failed.push(format!("{length}: {text:.40}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn archives_cost_something_however_little_they_yield() {
    let scanner = scanner();
    for archive in [gzip(b""), gzip(b"text")] {
        let one = STANDARD.encode(&archive);
        assert!(work(&scanner, &one).1);
        assert!(!work(&scanner, &format!("{one} ").repeat(10_000)).1, "{}", archive.len());
    }
}

#[test]
fn plain_text_has_a_limit_of_expressions() {
    let scanner = scanner();
    // The shortest keywords of the rules that search furthest: each expression searches all.
    let mut rules = rules::built_in().unwrap().iter().collect::<Vec<_>>();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.after));
    let keywords: Vec<&str> = rules
        .iter()
        .take(40)
        .filter_map(|rule| rule.keywords.iter().min_by_key(|keyword| keyword.len()))
        .map(String::as_str)
        .collect();
    let text = keywords.join(" ").repeat((2 << 20) / keywords.concat().len());
    let mut budget = Budget::of(text.len());
    assert_eq!(scanner.scan(text.as_bytes(), &mut budget), Err(Spent));
}

#[test]
fn same_view_is_scanned_once() {
    let scanner = scanner();
    let escaped = |text: &str| text.replace('é', "=C3=A9").replace('&', "&amp;");
    let text = escaped("a mail of words, é and & in it, ").repeat(1 << 10);
    let mut budget = Budget::of(text.len());
    assert_eq!(scanner.scan(text.as_bytes(), &mut budget), Ok(Vec::new()));
    assert!(budget.scanned < 8 * text.len(), "{} of {}", budget.scanned, text.len());
    // In each order, and at each place.
    let token = token();
    let hidden = percent(&token).replace('%', "=25");
    let both = format!("{text} {hidden} {} {hidden}", percent(&token));
    let hits = scanner.scan(both.as_bytes(), &mut Budget::of(both.len())).unwrap();
    assert_eq!(hits.len(), 3, "{hits:?}");
}

#[test]
fn work_on_members_is_linear() {
    let scanner = scanner();
    let actions = vec![Action::Redact; scanner.ids.len()];
    let of = |name: &str, value: &str| {
        let values = format!("\"{value}\",").repeat((1 << 17) / (value.len() + 3));
        format!("{{\"{name}\":[{}0]}}", values)
    };
    let members = |member: &str| format!("{{{}\"z\":0}}", member.repeat((1 << 17) / member.len()));
    let vendors = "datadog-twitter-linear-splunk-heroku-algolia-mailjet-zoom-api-key";
    for raw in [
        of(&"k".repeat(1 << 17), ""),
        of(&"\\u0061".repeat(1 << 14), "a value of words"),
        of(vendors, ""),
        of(vendors, "0123456789abcd"),
        of(&vendors.replace('-', "\\u002d"), &made("{hex:32}")),
        of("authorization", &made("Bearer {base62:40}")),
        members(&format!("\"{vendors}\":\"0123456789abcd\",")),
        members("\"\":\"\","),
        format!("{}\"a\"{}", "[".repeat(100), "]".repeat(100)),
    ] {
        let mut budget = Budget::of(raw.len());
        let report =
            payload::inspect_within(&mut budget, &scanner, &actions, raw.as_bytes(), None, b"");
        assert!(report.is_ok(), "{raw:.60}");
        assert_paid(budget.scanned, raw.len(), &raw);
    }
}

#[test]
fn small_bomb_costs_no_more_than_a_small_text() {
    let scanner = scanner();
    let bomb = STANDARD.encode(gzip(&gzip(&vec![b'%'; 8 << 20])));
    assert!(bomb.len() < 300, "{}", bomb.len());
    assert_paid(work(&scanner, &bomb).0, bomb.len(), "a bomb");
    // The allowance is one for all texts of a message.
    let mut budget = Budget::of(100 * bomb.len());
    for _ in 0..100 {
        assert_eq!(scanner.scan(bomb.as_bytes(), &mut budget), Err(Spent));
    }
    assert_paid(budget.scanned, 100 * bomb.len(), "bombs");
}

#[test]
fn exhausted_budget_is_a_fault() {
    let tables = secrets(&Config::default()).tables.load_full();
    let bomb = STANDARD.encode(gzip(&vec![b'a'; 8 << 20]));
    assert!(bomb.len() < 12_000);
    let nested = STANDARD.encode(gzip(bomb.as_bytes()));
    let twice = STANDARD.encode(gzip(&gzip(&vec![b'a'; 8 << 20])));
    for encoded in [STANDARD.encode(token()), hex(&gzip(STANDARD.encode(token()).as_bytes()))] {
        for bomb in [&bomb, &nested, &twice] {
            for raw in [
                json!([bomb, encoded]),
                json!([encoded, bomb]),
                json!([format!("{bomb} {encoded}")]),
                json!([format!("{encoded} {bomb}")]),
                json!([{ "a": encoded }, bomb]),
            ] {
                for phase in [Phase::Request, Phase::Response] {
                    let fault = tables
                        .inspect(phase, raw.to_string().as_bytes(), &[], None, b"")
                        .unwrap_err();
                    assert!(fault.0.contains("too much encoded text"), "{fault}");
                }
            }
        }
    }
    // Stored text of which a part could not be scanned is not stored.
    let scrubber = Scrubber::new(&[]).unwrap();
    let mut text = format!("{bomb} {}", token());
    scrubber.scrub(&mut text);
    assert_eq!(text, "[redacted]");
    assert_eq!(scrubber.redact(json!([bomb]).to_string().as_bytes()), Err(Unredacted::Spent));
}

#[test]
fn ordinary_archives_are_scanned() {
    let scanner = scanner();
    let mut log = String::new();
    let mut seed = Seed::new(1);
    while log.len() < 1 << 20 {
        log += &expand("12:00:{digits:2} INFO request {hex:8} took {digits:3} ms\n", &mut seed);
    }
    log += &token();
    for text in [STANDARD.encode(gzip(log.as_bytes())), hex(&gzip(&gzip(log.as_bytes())))] {
        assert_eq!(found(&scanner, &text), ["github-token"], "{}", text.len());
    }
    for count in [1, 20, 400] {
        let manifests = manifests(count);
        let packed = STANDARD.encode(gzip(manifests.as_bytes()));
        for text in [STANDARD.encode(&packed), packed] {
            let found = found(&scanner, &text);
            assert!(found.contains(&"github-token"), "{} of {count}: {found:?}", text.len());
        }
    }
}

/// Release of a chart: JSON with templates in strings, and a token at the end.
fn manifests(count: usize) -> String {
    let mut seed = Seed::new(2);
    let one = |seed: &mut Seed| {
        let template = expand(
            "# Source: {lower:6}\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: \"{lower:9}\"\n  \
             annotations:\n    checksum/config: {hex:64}\ndata:\n  url: \
             https://{lower:9}.example.com/a%20b?c=1&amp;d={digits:4}\n  note: caf\u{e9} for {lower:8}\n\
             {{- range .Values.hosts }}\n  host: {{ . | quote }}\n{{- end }}\n",
            seed,
        );
        json!({ "name": "templates/config.yaml", "data": template })
    };
    let all: Vec<_> = (0..count).map(|_| one(&mut seed)).collect();
    json!({ "chart": all, "notes": format!("use {}\n", token()) }).to_string()
}

#[test]
fn ordinary_mail_is_scanned() {
    let tables = secrets(&Config::default()).tables.load_full();
    let mut seed = Seed::new(4);
    for count in [1, 30, 1_000] {
        let rows: String = (0..count)
            .map(|_| {
                expand(
                    "<tr style=\"color:#{hex:6}\"><td>&nbsp;{lower:5} caf\u{e9}</td>\n<td><a \
                     href=\"https://{lower:9}.example.com/a%20b?c={digits:5}&amp;d=e%2Ff\">{lower:7} \
                     {lower:9}</a> \u{201c}{lower:4}\u{201d}</td></tr>\n",
                    &mut seed,
                )
            })
            .collect();
        let mail = quoted_printable(&format!("<table>\n{rows}</table>\n"));
        for text in [mail.clone(), format!("{mail} {}", token())] {
            let json = json!({ "messages": [{ "snippet": "a mail", "body": text }] }).to_string();
            for text in [text, json] {
                let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
                let report = tables
                    .inspect(Phase::Response, raw.as_bytes(), &[], None, b"")
                    .map(|one| one.report);
                let report =
                    report.unwrap_or_else(|fault| panic!("{} of {count}: {fault}", raw.len()));
                assert_eq!(report.redacted.is_some(), text.contains(&token()), "{count}");
            }
        }
    }
}

/// Texts with a token, each of which once passed.
fn bypasses(token: &str) -> Vec<String> {
    let png: Vec<u8> = {
        let mut seed = Seed::new(3);
        let noise = (0..30_000).map(|_| seed.below(256) as u8);
        b"\x89PNG\r\n\x1a\n".iter().copied().chain(noise).collect()
    };
    let png = STANDARD.encode(png);
    let zero_width = each(token, |c| format!("{c}\u{200b}"));
    let digest = made("{hex:64}");
    let base32 = base32(token.as_bytes());
    let base64 = STANDARD.encode(token);
    let zeros = each(token, |c| format!("&#{:010};", u32::from(c)));
    let long = each(token, |c| format!("&#x{}{:x};", "0".repeat(40), u32::from(c)));
    let archive = STANDARD.encode(gzip(format!("{token} {}", made("{base62:90}")).as_bytes()));
    let wrap = |text: &str| {
        let lines = text.as_bytes().chunks(76).map(String::from_utf8_lossy);
        lines.collect::<Vec<_>>().join("\n")
    };
    // Bytes around a token: neither the start, nor the middle, nor the end is text.
    let buried = |before: usize, after: usize| {
        let mut seed = Seed::new(8);
        let mut noise =
            |count: usize| (0..count).map(|_| 128 + seed.below(128) as u8).collect::<Vec<_>>();
        [&noise(before)[..], token.as_bytes(), &noise(after)].concat()
    };
    let (short, far) = (buried(24, 76), buried(600, 900));
    vec![
        STANDARD.encode(&short),
        format!("x{}", STANDARD.encode(&far)),
        format!("xyz{}", STANDARD.encode(&far)),
        hex(&short),
        short.iter().map(|byte| format!("{byte:02x}:")).collect(),
        format!("DATA{base32}"),
        format!("0{base32}"),
        format!("key{base32}"),
        format!("a{}", base32.to_lowercase()),
        format!("\\x{}", hex(token.as_bytes())),
        format!("a row: \\\\x{}", hex(token.as_bytes())),
        format!("C:\\{base64}"),
        // An escape would take the first digit.
        format!("C:\\{}", STANDARD.encode(format!("n\u{1}{token}"))),
        format!("C:\\{}", STANDARD.encode(format!("\u{7f}{token}"))),
        format!("{zero_width} {png}"),
        format!("{png} {zero_width}"),
        format!("data:image/png;base64,{png}\n{zero_width}"),
        format!("%FF{}", percent(&zero_width)),
        format!("a%FFb {}", percent(&each(token, fullwidth))),
        percent(token).replace("%5F", "%FF%5F"),
        format!("{digest}\n{base32}"),
        format!("{digest}\n{base64}"),
        format!("{}\n{base32}", made("{base64:64}")),
        format!("{}\n{}", made("{base64:76}"), wrap(&archive)),
        format!("{}{archive}", made("{base64:40}/")),
        format!("fee{}", hex(token.as_bytes())),
        format!("{}/{base32}", made("{base32:80}")),
        zeros,
        long,
        STANDARD.encode(gzip(&gzip(token.as_bytes()))),
        // Hex digits and letters that adhere to the first number or the last one.
        format!("face{}", hex_list(token, " ")),
        format!("{}face", hex_list(token, " ")),
        format!("x{}", decimal_list(token, ", ")),
        format!("{}x", decimal_list(token, ", ")),
        gzip(token.as_bytes()).iter().map(|byte| format!("{byte:02x} ")).collect(),
        decimal_list(&"words ".repeat(100_000), ",") + "," + &decimal_list(token, ","),
    ]
}

#[test]
fn encodings_hide_no_token() {
    let tables = secrets(&Config::default()).tables.load_full();
    let token = token();
    for text in bypasses(&token) {
        for raw in [json!([text]), json!({ "a": json!([text]).to_string() })] {
            let report = tables
                .inspect(Phase::Request, raw.to_string().as_bytes(), &[], None, b"")
                .map(|one| one.report)
                .unwrap();
            assert!(report.refuse, "{text:.200}");
            let ids: Vec<_> =
                report.found.iter().map(|one| tables.scanner.ids[one.id].as_str()).collect();
            assert!(ids.contains(&"github-token"), "{ids:?}: {text:.200}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(
        text in "([%&=\\\\#x0-9A-Fa-z;\n\u{200b}\u{ff21}а ]|QUtJ|&#65;|%41|=3D){0,60}"
    ) {
        static SCANNER: LazyLock<Scanner> = LazyLock::new(scanner);
        let hits = SCANNER.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap();
        for hit in hits {
            prop_assert!(text.get(hit.range).is_some());
        }
    }
}

#[test]
fn every_secret_is_in_a_suspicious_part_of_its_message() {
    let scanner = scanner();
    let mut found = 0;
    for (source, n) in rules::read(rules::BUILT_IN).unwrap().iter().zip(0..) {
        let sample = expand(&source.matches[0], &mut Seed::new(n));
        for (name, encode) in ENCODINGS {
            let text = encode(&sample);
            let raw = json!(["a".repeat(80), text, "b".repeat(80)]).to_string();
            let hits = scanner.scan(text.as_bytes(), &mut Budget::of(text.len())).unwrap();
            let suspects = scanner.suspects(raw.as_bytes()).unwrap();
            // The string, and not those beside it.
            let range = 85..raw.len() - 85;
            let is_clean = hits.is_empty();
            assert!(is_clean || suspects.has(raw.as_bytes(), &range), "{} in {name}", source.id);
            found += usize::from(!is_clean);
        }
    }
    assert!(found > 200 * ENCODINGS.len(), "{found}");
    let bytes = made("ghp_{base62:30}{crc32}").into_bytes();
    let raw = json!([bytes, 1]).to_string();
    let suspects = scanner.suspects(raw.as_bytes()).unwrap();
    assert!(suspects.has(raw.as_bytes(), &(2..raw.len() - 4)));
    let raw = json!([1, 2, "The quick brown fox", { "created_at": "2026-07-01" }]).to_string();
    let suspects = scanner.suspects(raw.as_bytes()).unwrap();
    assert!(!suspects.has(raw.as_bytes(), &(1..raw.len() - 1)));
}
