//! Encoded secrets, and the measurement of the scanner.

use std::{
    collections::BTreeMap, fs, io::Write as _, path::PathBuf, sync::LazyLock, time::Instant,
};

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};

use super::*;

/// Name of an encoding, and its function.
type Encoding = (&'static str, fn(&str) -> String);

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

fn gzip(bytes: &[u8]) -> Vec<u8> {
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

const ENCODINGS: [Encoding; 32] = [
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

#[test]
fn every_rule_finds_its_secret_in_every_encoding() {
    let tables = secrets(&Config::default()).tables.load_full();
    let sources = rules::read(rules::BUILT_IN).unwrap();
    println!("| encoding | found |\n|---|---|");
    for (name, encode) in ENCODINGS {
        let (mut found, mut all) = (0, 0);
        let mut missed = Vec::new();
        for (source, seed) in sources.iter().zip(100..) {
            for template in source.matches.iter().take(1) {
                let text = encode(&expand(template, &mut Seed::new(seed)));
                let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
                let report = tables.inspect(Phase::Response, raw.as_bytes()).unwrap();
                all += 1;
                match report.redacted {
                    Some(raw) => {
                        serde_json::from_slice::<Value>(&raw).unwrap();
                        found += 1;
                    }
                    None => missed.push(source.id.as_str()),
                }
            }
        }
        println!("| {name} | {:.1} % of {all} |", 100.0 * f64::from(found) / f64::from(all));
        assert!(100 * found >= 97 * all, "{name}: {missed:?}");
    }
}

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
        (
            format!("glpat-{}\nnext_line_of_one_word", made("{base62:20}")),
            "[redacted:gitlab-token]\nnext_line_of_one_word".into(),
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
    let bomb = STANDARD.encode(gzip(&vec![b'a'; 32 << 20]));
    let mut deep = "x".repeat(64);
    while deep.len() < 1 << 18 {
        deep = STANDARD.encode(&deep);
    }
    let mut broken = gzip(&b"some text ".repeat(50));
    broken.truncate(40);
    for text in [
        bomb,
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

/// Scanned, decoded and matched bytes for a text.
fn work(scanner: &Scanner, text: &str) -> [usize; 3] {
    let mut budget = Budget::of(text.len());
    scanner.scan(text.as_bytes(), &mut budget);
    [budget.scanned, budget.decoded.spent, budget.matched]
}

fn hostile_texts(length: usize) -> Vec<String> {
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
        keywords.concat(),
        keywords.join(" "),
        samples.join(" "),
        format!("{bomb} "),
        format!("{nested} "),
        format!("{} ", STANDARD.encode(gzip(b"text"))),
        format!("{} ", STANDARD.encode("%25%41 and =3D &#65; text")),
        "ops_eyJ".into(),
        "glpat-".into(),
        "twitter_api_key=".into(),
        "%2525".into(),
        "&#38;#38;".into(),
        "=3D".into(),
        "\\\\\\\\u0041%41&#65;=3D".into(),
        "а\u{200b}b".into(),
        "中文，日本語。".into(),
        "67:68:".into(),
        "abcdefghijklmnopqrst\n".into(),
    ];
    repeated.iter().chain([&deep]).map(|part| part.repeat(length / part.len() + 1)).collect()
}

#[test]
fn work_is_linear() {
    let scanner = scanner();
    for length in [1 << 10, 1 << 14, 1 << 17] {
        for text in hostile_texts(length) {
            let [scanned, decoded, matched] = work(&scanner, &text);
            let of = |factor: usize, base: usize| factor * text.len() + base;
            // One pass, four levels of escapes, and what the allowance has.
            assert!(decoded <= of(6, 64 << 10), "decoded {decoded} of {}: {text:.60}", text.len());
            assert!(scanned <= of(11, 64 << 10), "scanned {scanned} of {}: {text:.60}", text.len());
            assert!(
                matched <= of(60, 512 << 10),
                "matched {matched} of {}: {text:.60}",
                text.len()
            );
        }
    }
}

#[test]
fn small_bomb_costs_no_more_than_a_small_text() {
    let scanner = scanner();
    let bomb = STANDARD.encode(gzip(&gzip(&vec![b'%'; 8 << 20])));
    assert!(bomb.len() < 300, "{}", bomb.len());
    let [scanned, decoded, _] = work(&scanner, &bomb);
    assert!(decoded <= (64 << 10) + 6 * bomb.len() && scanned < 128 << 10, "{scanned} {decoded}");
    // The allowance is one for all texts of a message.
    let mut budget = Budget::of(100 * bomb.len());
    for _ in 0..100 {
        scanner.scan(bomb.as_bytes(), &mut budget);
    }
    assert!(budget.decoded.spent <= (64 << 10) + 600 * bomb.len(), "{}", budget.decoded.spent);
}

#[tokio::test]
async fn bombs_leave_the_rest_to_be_decoded() {
    let secrets = secrets(&Config::default());
    let bomb = STANDARD.encode(gzip(&vec![b'a'; 8 << 20]));
    let nested = STANDARD.encode(gzip(bomb.as_bytes()));
    for encoded in [STANDARD.encode(token()), STANDARD.encode(gzip(token().as_bytes()))] {
        for bombs in [[&bomb; 3], [&nested; 3]] {
            let bombs = bombs.map(String::as_str).join(" ");
            for raw in [
                json!([bombs, encoded]),
                json!([format!("{bombs} {encoded}")]),
                json!([format!("{encoded} {bombs}")]),
                json!([bombs, bombs, bombs, { "a": encoded }]),
            ] {
                let raw = raw.to_string();
                let verdict = response(&secrets, &raw).await;
                let is_found = matches!(verdict.decision, Decision::Replace(_));
                assert!(is_found, "{} of {encoded}: {raw:.99}", raw.len());
            }
        }
    }
}

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
            "{k}_cache_key: {hex:32}",
            "{k}_cache_key: {hex:40}",
            "{k}_api_key_digest={hex:64}",
            "{k}-next-page-token={base62:40}",
            "{k}_public_key={base62:40}",
            "{k}_session = {hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}",
            "{k}_secret_name = prod_{k}_consumer_secret_for_account_2",
            "{k}_api_secret = get_{k}_api_secret_from_environment_v2",
            "{k}_api_token: {U}_API_TOKEN_FOR_PRODUCTION_V2",
            "{k}_api_key = src/config/production/{k}/keys2/file",
            "{k}_token = self.get_token({hex:32})",
            "{k}_client_secret = ${{U}_CLIENT_SECRET}",
            "{k}_token = 00000000000000000000000000000000",
            "npm install {k}-token-{lower:8}-{lower:12}-{lower:9}",
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
        "key-{hex:32}",
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
}

#[tokio::test]
async fn strings_of_a_list_are_not_joined() {
    let secrets = secrets(&Config::default());
    let text = "{\n  \"authorization\": \"Bearer token\",\n  \"x-allowed-locations\": \"0x0\"\n}";
    let verdict = response(&secrets, &json!([text]).to_string()).await;
    assert_eq!(verdict, Verdict::pass());
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(
        text in "([%&=\\\\#x0-9A-Fa-z;\n\u{200b}\u{ff21}а ]|QUtJ|&#65;|%41|=3D){0,60}"
    ) {
        static SCANNER: LazyLock<Scanner> = LazyLock::new(scanner);
        let hits = SCANNER.scan(text.as_bytes(), &mut Budget::of(text.len()));
        for hit in hits {
            prop_assert!(text.get(hit.range).is_some());
        }
    }
}

fn files(directory: PathBuf, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files(path, all) } else { all.push(path) }
    }
}

/// Prints the findings per megabyte in the texts below `PORTCULLIS_CORPUS`, by default this
/// directory, and the throughput beside that of a parser. Findings are of one text block each.
#[test]
fn findings_and_throughput_on_a_corpus() {
    let tables = secrets(&Config::default()).tables.load_full();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    files(std::env::var_os("PORTCULLIS_CORPUS").map_or(here, PathBuf::from), &mut all);
    let (mut bytes, mut scan, mut parse) = (0, 0.0, 0.0);
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for path in all {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let raw = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
        bytes += raw.len();
        let start = Instant::now();
        let value: Value = serde_json::from_str(&raw).unwrap();
        parse += start.elapsed().as_secs_f64();
        drop(value);
        let start = Instant::now();
        let report = tables.inspect(Phase::Response, raw.as_bytes()).unwrap();
        scan += start.elapsed().as_secs_f64();
        assert!(report.redacted.is_none_or(|raw| serde_json::from_slice::<Value>(&raw).is_ok()));
        for one in report.found {
            *found.entry(tables.scanner.ids[one.id].as_str()).or_default() += 1;
        }
    }
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{megabytes:.1} MB; findings per MB: {:.4}",
        found.values().sum::<usize>() as f64 / megabytes
    );
    println!("{found:?}");
    println!("scan: {:.0} MB/s; serde_json: {:.0} MB/s", megabytes / scan, megabytes / parse);
}
